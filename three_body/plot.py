"""Figures and animations from the records: orbits, errors, gradients and masses."""

import io

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from harness import packed
from harness.cli import run_main
from harness.plots import colour, look, new_figure, save_figure
from harness.record import read_epochs, read_run
from harness.tables import results_folder
from three_body.experiment import ThreeBody, label
from three_body.first_gradient import FOLDER
from three_body.plot_findings import draw_first_gradient
from three_body.report import collect

STYLES = {"lstm": (0, (4, 1, 1, 1)), "lstm-aug": (0, (1, 2))}
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
    """Each body's true and predicted orbit in the plane of its two widest axes; what was not trained on is dotted."""
    figure, axes = new_figure(1, 3, width=3.6, height=3.6)
    times, _, true, predicted = trajectory(row["folder"])
    until = row["until"][0]
    for body, ax in enumerate(axes):
        across, up = sorted(np.argsort(np.ptp(true[:, body], axis=0))[1:])
        shades = {"truth": (true, colour("truth")), "predicted": (predicted, _shade(row["label"]))}
        for name, (positions, shade) in shades.items():
            for seen, style, part in ((times <= until, "-", "trained on"), (times > until, ":", "beyond")):
                x, y = positions[seen, body, across], positions[seen, body, up]
                ax.plot(x, y, style, color=shade, linewidth=1.2, label=f"{name}, {part}")
            ax.plot(*positions[-1, body, [across, up]], "s", color=shade, markersize=4)
        for axis, limits in ((across, ax.set_xlim), (up, ax.set_ylim)):  # a prediction may fly off
            lower, upper = true[:, body, axis].min(), true[:, body, axis].max()
            limits(lower - 0.3 * (upper - lower), upper + 0.3 * (upper - lower))
        ax.set(title=f"body {body + 1}", xlabel="xyz"[across], ylabel="xyz"[up])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    span = f"[0, {row['until'][1]:g}], trained on [0, {until:g}]"
    figure.suptitle(f"{row['title']}\n{span}; squares: the end", fontsize=9)
    save_figure(figure, path)


def _shade(name):
    """The colour of a model: that of its gradient method where it has one."""
    model, gradient = model_of(name)
    return colour((gradient or model).partition("-own")[0])


def _look(name):
    model, gradient = model_of(name)
    if gradient:
        return look(gradient.partition("-own")[0])
    return {"color": colour(model), "linestyle": STYLES[model], "linewidth": 1.2}


def draw_comparison(groups, path, heading):
    """Errors of networks and of Newton's law against time, gradient norms and the masses' errors against the epoch.

    ``groups`` holds the runs of each label, a run a seed: the line is their median, the band their range.
    """
    figure, ((networks, laws), (norms, masses)) = new_figure(2, 2, width=5.4, height=3.7)
    some = next(iter(groups.values()))[0]
    times, _, true, _ = trajectory(some["folder"])
    constant = np.linalg.norm((true - true[times <= some["until"][0]].mean(0)).reshape(len(times), -1), axis=1)
    for name, rows in groups.items():
        model, gradient = model_of(name)
        ax = laws if model == "ode" else networks
        errors = [trajectory(row["folder"])[1] for row in rows]
        _band(ax, times, [np.where(error > 0, error, np.nan) for error in errors], name)  # 0: given to the model
        metrics = [read_epochs(row["folder"]) for row in rows]
        if gradient:
            line = {"linewidth": 2.4, "alpha": 0.6} if model == "node" else {}
            _band(norms, *_by_epoch(metrics, lambda entry: entry["Train/GradientNorm"]), name, **line)
        if model == "ode":
            _band(masses, *_by_epoch(metrics, lambda entry: max(
                abs(entry[f"Masses/{i}"] - mass) for i, mass in enumerate(some["masses"], 1))), name)  # fmt: skip
    for ax, title in ((networks, "black boxes and neural fields"), (laws, "Newton's law, unknown masses")):
        ax.plot(times, constant, color="grey", linestyle="-.", linewidth=1, label="constant: the mean of [0, 1]")
        ax.axvline(some["until"][0], color="grey", linewidth=0.8)
        ax.set(xlabel="time (trained up to the line)", yscale="log", ylabel="distance from the truth", title=title)
        ax.legend(fontsize="x-small", loc="lower right", ncols=2)
    norms.set(xlabel="epoch", yscale="log", ylabel="norm of the gradient", title="gradients (broad: neural field)")
    masses.set(xlabel="epoch", yscale="log", ylabel="largest error of a mass", title="masses of Newton's law")
    norms.set_ylim(top=1e4 * norms.get_ylim()[1])  # room for the legend
    norms.legend(fontsize="x-small", loc="upper right", ncols=2)
    masses.legend(fontsize="x-small", loc="lower left")
    counts = sorted({len(rows) for rows in groups.values()})
    words = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed" + "s" * (counts[0] > 1)
    figure.suptitle(f"{heading}: median and range over {words}", fontsize=10)
    save_figure(figure, path)


def _by_epoch(metrics, value):
    """Epochs that all runs have, and of each run a value at these."""
    count = min(map(len, metrics))
    return [entry["step"] for entry in metrics[0][:count]], [[value(row) for row in run[:count]] for run in metrics]


def _band(ax, x, curves, name, **line):
    """Median and range of curves, as far as there are numbers."""
    curves = np.array(curves, dtype=float)
    known = ~np.isnan(curves).all(0)
    x, curves = np.asarray(x)[known], curves[:, known]
    style = _look(name) | line
    ax.plot(x, np.nanmedian(curves, 0), label=name, **style)
    ax.fill_between(x, np.nanmin(curves, 0), np.nanmax(curves, 0), color=style["color"], alpha=0.12, linewidth=0)


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
    about = "Draw figures and animations of all runs; orbits and masses of the lowest seed of each model and system."
    root, groups = results_folder(argv, about, ThreeBody().results), {}
    if packed.read(root / FOLDER.name, "summary.json"):
        save_figure(draw_first_gradient(root / FOLDER.name), root / FOLDER.name / f"{FOLDER.name}.png")
    for row in collect(root):
        settings = read_run(row["folder"])["settings"]
        row |= {"title": ThreeBody().title(settings), "masses": settings["system"]["masses"]}
        row |= {"until": settings["until"]}
        groups.setdefault((row["profile"], row["system"]), {}).setdefault(label(settings), []).append(row)
    for (profile, system), of_label in groups.items():
        folder, first = root / profile / system / "figures", {name: rows[0] for name, rows in of_label.items()}
        scaled = ", scaled down" if any("scaled down" in row["title"] for row in first.values()) else ""
        heading = f"{system} system, {profile} profile{scaled}"
        draw_comparison(of_label, folder / "comparison.png", heading)
        for row in first.values():
            draw_orbits(row, folder / f"orbits-{row['label']}.png")
            if row["label"].startswith("ode"):
                draw_masses(row, folder / f"masses-{row['label']}.png")
        if animated := [first[name] for name in ANIMATED if name in first]:
            animate(animated, folder / "orbits.gif", heading)
        print(f"{len(first)} models -> {folder}")


if __name__ == "__main__":
    run_main(main)
