"""Figures and animations from the records: orbits, errors, masses and losses, one run of each model and system."""

import io

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from harness import packed
from harness.cli import run_main
from harness.plots import colour, new_figure, save_figure
from harness.record import read_epochs, read_run
from harness.tables import results_folder
from three_body.experiment import ThreeBody, label
from three_body.report import collect

STYLES = {"adjoint": ":", "naive": "--", "aca": "-", "direct": "-.", "mali": (0, (5, 1, 1, 1))}
ANIMATED = ("lstm-aug", "node-aca", "ode-aca")
FRAMES, TAIL = 50, 0.25  # of the animation, and the time that trails behind each body


def trajectory(folder):
    """Times and errors [T], true and predicted positions [T, 3, 3] of a run; NaN where the prediction had failed."""
    numbers = np.genfromtxt(io.BytesIO(packed.read(folder, "trajectory.csv")), delimiter=",", skip_header=1)
    return numbers[:, 0], numbers[:, 1], numbers[:, 2:11].reshape(-1, 3, 3), numbers[:, 11:].reshape(-1, 3, 3)


def model_of(name):
    """Model and gradient method of a label such as ode-aca; the method is None for a recurrent network."""
    return (name, None) if name.startswith("lstm") else tuple(name.split("-", 1))


def draw_orbits(row, path):
    """Each body's true (solid) and predicted (dashed) orbit in 3-D."""
    figure, axes = new_figure(1, 3, width=3.6, height=3.8, subplot_kw={"projection": "3d"})
    _, _, true, predicted = trajectory(row["folder"])
    for body, ax in enumerate(axes):
        ax.plot(*true[:, body].T, color=colour("truth"), linewidth=1, label="truth")
        ax.plot(*predicted[:, body].T, "--", color=colour(model_of(row["label"])[0]), linewidth=1, label="prediction")
        lower, upper = true[:, body].min(), true[:, body].max()  # a prediction that flies off would hide the truth
        margin = 0.3 * (upper - lower)
        ax.set(xlim=(lower - margin, upper + margin), ylim=(lower - margin, upper + margin))
        ax.set(zlim=(lower - margin, upper + margin), title=f"body {body + 1}", xlabel="x", ylabel="y", zlabel="z")
    axes[0].legend(loc="upper left")
    figure.suptitle(f"{row['title']}\n[0, 2], trained on [0, 1]", fontsize=9)
    save_figure(figure, path)


def draw_comparison(rows, path, heading):
    """Error against time, loss against epoch, and the masses' errors against epoch, a line for each model."""
    figure, (errors, losses, masses) = new_figure(1, 3, width=5, height=4)
    for row in rows:
        model, gradient = model_of(row["label"])
        look = {"color": colour(model), "linestyle": STYLES.get(gradient, "-"), "label": row["label"], "linewidth": 1.2}
        times, error, *_ = trajectory(row["folder"])
        errors.semilogy(times, np.where(error > 0, error, np.nan), **look)  # zero: points that the model was given
        metrics = read_epochs(row["folder"])
        steps = np.array([entry["step"] for entry in metrics])
        losses.semilogy(steps / max(steps, default=1), [entry["Train/Loss"] for entry in metrics], **look)
        if model == "ode":
            masses.semilogy(steps, [max(abs(entry[f"Masses/{i}"] - mass) for i, mass in enumerate(row["masses"], 1))
                                    for entry in metrics], **look)  # fmt: skip
    errors.axvline(1.0, color="grey", linewidth=0.8)
    errors.set(xlabel="time (trained up to the line)", ylabel="distance of all positions from the truth")
    losses.set(xlabel="epoch / epochs of the run", ylabel="training loss (LSTMs: one step ahead)")
    masses.set(xlabel="epoch", ylabel="largest error of a mass")
    errors.legend(fontsize=7)
    figure.suptitle(heading, fontsize=10)
    save_figure(figure, path)


def draw_masses(row, path):
    """The three learnt masses against the epoch, with the true ones."""
    figure, ax = new_figure()
    metrics = read_epochs(row["folder"])
    for i, (mass, shade) in enumerate(zip(row["masses"], ("aca", "naive", "mali")), 1):
        steps, learnt = zip(*((entry["step"], entry[f"Masses/{i}"]) for entry in metrics))
        ax.plot(steps, learnt, color=colour(shade), label=f"body {i}")
        ax.axhline(mass, color=colour("truth"), linewidth=0.6)
    ax.set(xlabel="epoch", ylabel="mass (thin lines: true)", title=row["title"])
    ax.title.set_fontsize(9)
    ax.legend()
    save_figure(figure, path)


def animate(rows, path, heading):
    """The truth beside the predictions of ``rows``, over the whole of [0, 2]."""
    figure, axes = new_figure(1, 1 + len(rows), width=2.6, height=3.0, subplot_kw={"projection": "3d"})
    loaded = [trajectory(row["folder"]) for row in rows]
    times, _, true, _ = loaded[0]
    panels = [("truth", times, true)]
    panels += [(row["label"], own_times, predicted) for row, (own_times, _, _, predicted) in zip(rows, loaded)]
    bodies = [colour(name) for name in ("aca", "naive", "mali")]
    artists = []
    for ax, (name, own_times, positions) in zip(axes, panels):
        ax.set(xlim=(true.min(), true.max()), ylim=(true.min(), true.max()), zlim=(true.min(), true.max()), title=name)
        ax.tick_params(labelbottom=False, labelleft=False, labelright=False)
        for body, shade in enumerate(bodies):
            (tail,), (head,) = ax.plot([], [], [], color=shade), ax.plot([], [], [], "o", color=shade)
            artists.append((tail, head, own_times, positions[:, body]))
    clock = figure.suptitle("", fontsize=9)

    def show(frame):
        now = times[-1] * frame / (FRAMES - 1)
        for tail, head, own_times, positions in artists:
            seen = positions[(own_times > now - TAIL) & (own_times <= now)]
            tail.set_data_3d(*seen.T)
            head.set_data_3d(*seen[-1:].T)
        clock.set_text(f"{heading}, t = {now:.2f}" + (" (beyond the training data)" if now > 1 else ""))

    path.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, show, frames=FRAMES).save(path, writer=PillowWriter(fps=8), dpi=50)


def main(argv=None):
    about = "Draw figures and animations of all runs, the lowest seed of each model and system."
    root, groups = results_folder(argv, about, ThreeBody().results), {}
    for row in collect(root):
        settings = read_run(row["folder"])["settings"]
        row |= {"title": ThreeBody().title(settings), "masses": settings["system"]["masses"]}
        groups.setdefault((row["profile"], row["system"]), {}).setdefault(label(settings), row)
    for (profile, system), of_label in groups.items():
        folder, rows = root / profile / system / "figures", list(of_label.values())
        scaled = ", scaled down" if any("scaled down" in row["title"] for row in rows) else ""
        heading = f"{system} system, {profile} profile{scaled}"
        draw_comparison(rows, folder / "comparison.png", heading)
        for row in rows:
            draw_orbits(row, folder / f"orbits-{row['label']}.png")
            if row["label"].startswith("ode"):
                draw_masses(row, folder / f"masses-{row['label']}.png")
        if animated := [of_label[name] for name in ANIMATED if name in of_label]:
            animate(animated, folder / "orbits.gif", heading)
        print(f"{len(rows)} models -> {folder}")


if __name__ == "__main__":
    run_main(main)
