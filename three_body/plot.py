"""Figures and animations from the records: errors, gradients and masses here, orbits in plot_orbits.py."""

import math

import numpy as np

from harness import packed
from harness.cli import run_main
from harness.plots import PART_COLOURS, colour, look, new_figure, save_figure
from harness.record import read_epochs, read_run
from harness.tables import results_folder
from three_body.data import PAPER
from three_body.experiment import ThreeBody, label
from three_body.first_gradient import FOLDER
from three_body.plot_findings import draw_first_gradient
from three_body.plot_orbits import animate, draw_orbits, faint, model_of, trajectory
from three_body.report import collect

STYLES = {"lstm": (0, (4, 1, 1, 1)), "lstm-aug": (0, (1, 2))}
ANIMATED = ("lstm-aug", "node-aca", "ode-aca")
CEILING = 1e7  # of the norms of gradients in a figure: a single one may be larger by tens of orders of magnitude
OTHERS = "ode-aca"  # the model whose orbits are drawn for all other systems


def _look(name):
    model, gradient = model_of(name)
    if gradient:
        return look(gradient)
    return {"color": colour(model), "linestyle": STYLES[model], "linewidth": 1.2}


def draw_comparison(groups, path, heading):
    """Errors of networks and of Newton's law against time, gradient norms and the masses' errors against the epoch.

    ``groups`` holds the runs of each label, a run a seed: thin lines, of which the thick one is the median.
    """
    figure, ((networks, laws), (norms, masses)) = new_figure(2, 2, width=5.4, height=3.7)
    some = next(iter(groups.values()))[0]
    times, _, true, _ = trajectory(some["folder"])
    constant = np.linalg.norm((true - true[times <= some["until"][0]].mean(0)).reshape(len(times), -1), axis=1)
    for name, rows in groups.items():
        model, gradient = model_of(name)
        ax = laws if model == "ode" else networks
        errors = [trajectory(row["folder"])[1] for row in rows]
        _curves(ax, times, [np.where(error > 0, error, np.nan) for error in errors], name)  # 0: given to the model
        metrics = [read_epochs(row["folder"]) for row in rows]
        if gradient:
            line = {"linewidth": 2.4, "alpha": 0.6} if model == "node" else {}
            _curves(norms, *_by_epoch(metrics, lambda entry: entry["Train/GradientNorm"]), name, **line)
        if model == "ode":
            _curves(masses, *_by_epoch(metrics, lambda entry: max(
                abs(entry[f"Masses/{i}"] - mass) for i, mass in enumerate(some["masses"], 1))), name)  # fmt: skip
    for ax, title in ((networks, "black boxes and neural fields"), (laws, "Newton's law, unknown masses")):
        ax.plot(times, constant, color="grey", linestyle="-.", linewidth=1, label="constant: the mean of [0, 1]")
        ax.axvline(some["until"][0], color="grey", linewidth=0.8)
        ax.set(xlabel="time (trained up to the line)", yscale="log", ylabel="distance from the truth", title=title)
        ax.legend(fontsize="x-small", loc="lower right", ncols=2)
    largest = max((row["gradient_norm"] or 0 for rows in groups.values() for row in rows), default=0)
    title = f"gradients (broad: neural field){f', up to {largest:.0e}' if largest > CEILING else ''}"
    norms.set(xlabel="epoch", yscale="log", ylabel="norm of the gradient", title=title)
    masses.set(xlabel="epoch", yscale="log", ylabel="largest error of a mass", title="masses of Newton's law")
    norms.set_ylim(top=1e4 * min(norms.get_ylim()[1], CEILING))  # room for the legend
    norms.legend(fontsize="x-small", loc="upper right", ncols=2)
    masses.legend(fontsize="x-small", loc="lower left")
    counts = sorted({len(rows) for rows in groups.values()})
    words = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed" + "s" * (counts[0] > 1)
    figure.suptitle(f"{heading}: {words} (thin) and their median", fontsize=10)
    save_figure(figure, path)


def _by_epoch(metrics, value):
    """Epochs, and of each run a value at these, as far as it went."""
    longest = max(metrics, key=len)
    values = [[value(row) for row in run] + [math.nan] * (len(longest) - len(run)) for run in metrics]
    return [entry["step"] for entry in longest], values


def _curves(ax, x, curves, name, **line):
    """Each curve, and their median, as far as there are numbers."""
    curves = np.array(curves, dtype=float)
    known = ~np.isnan(curves).all(0)
    x, curves = np.asarray(x)[known], curves[:, known]
    style = _look(name) | line
    ax.plot(x, np.nanmedian(curves, 0), label=name, **style)
    if len(curves) > 1:
        ax.plot(x, curves.T, **style | {"linewidth": 0.5, "alpha": faint(len(curves))})


def draw_masses(row, path):
    """The three learnt masses against the epoch, with the true ones."""
    figure, ax = new_figure()
    metrics = read_epochs(row["folder"])
    for i, (mass, shade) in enumerate(zip(row["masses"], PART_COLOURS), 1):
        steps, learnt = zip(*((entry["step"], entry[f"Masses/{i}"]) for entry in metrics))
        ax.plot(steps, learnt, color=shade, label=f"body {i}")
        ax.axhline(mass, color=colour("truth"), linewidth=0.6)
    ax.set(xlabel="epoch", ylabel="mass (thin lines: true)", title=row["title"])
    ax.title.set_fontsize(9)
    ax.legend()
    save_figure(figure, path)


def main(argv=None):
    about = "Draw figures and animations of all runs; orbits and masses of the lowest seed of each model and system."
    root, groups = results_folder(argv, about, ThreeBody()), {}
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
        draw_orbits(of_label, folder / "orbits.png", f"{heading}\nbroad: the lowest seed; thin: the others")
        for row in first.values():
            if row["label"].startswith("ode"):
                draw_masses(row, folder / f"masses-{row['label']}.png")
        if animated := [first[name] for name in ANIMATED if name in first]:
            animate(animated, folder / "orbits.gif", heading)
        print(f"{len(first)} models -> {folder}")
    for profile in dict.fromkeys(profile for profile, _ in groups):
        systems = {system: of_label[OTHERS] for (own, system), of_label in groups.items()
                   if own == profile and system != PAPER.name and OTHERS in of_label}  # fmt: skip
        if systems:
            draw_orbits(systems, root / profile / "systems.png", f"{OTHERS} on other systems, {profile} profile")


if __name__ == "__main__":
    run_main(main)
