"""Pictures of the flows: densities, samples, and the continuous flow over time, also as an animation."""

import io

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from harness import packed
from harness.cli import run_main
from harness.plots import colour, new_figure, save_figure
from harness.tables import results_folder
from neural_ode_2018.cnf.data import HALF_WIDTH
from neural_ode_2018.cnf.experiment import CNF, FRAMES
from neural_ode_2018.cnf.models import END, SOLVED

SHOWN = 4.0  # half the side of what is drawn
SHOWN_TIMES = (0, 3, 6, 9, FRAMES - 1)  # of the flow over time


def numbers(folder, name):
    """The table in a CSV file of a run's record."""
    return np.genfromtxt(io.BytesIO(packed.read(folder, name)), delimiter=",", skip_header=1)


def positions(folder):
    """Where samples are at the frames of the flow [FRAMES, samples, 2]."""
    return numbers(folder, "flow.csv").reshape(FRAMES, -1, 2)


def scatter(ax, points, title):
    (dots,) = ax.plot(*points.T, ".", ms=2, color=colour("aca"))
    ax.set(xlim=(-SHOWN, SHOWN), ylim=(-SHOWN, SHOWN), aspect="equal", title=title)
    return dots


def draw_densities(rows, path, heading):
    """Density and samples of each run."""
    figure, panels = new_figure(2, len(rows), width=2.4, height=2.5, squeeze=False)
    for row, (density, drawn) in zip(rows, panels.T):
        extent = (-HALF_WIDTH, HALF_WIDTH) * 2
        density.imshow(numbers(row["folder"], "density.csv").T, origin="lower", extent=extent, cmap="viridis")
        density.set(xlim=(-SHOWN, SHOWN), ylim=(-SHOWN, SHOWN), title=row["label"])
        density.grid(False)
        solved = row["model"] in SOLVED
        scatter(drawn, positions(row["folder"])[-1] if solved else numbers(row["folder"], "samples.csv"), "samples")
    figure.suptitle(heading, fontsize=9)
    save_figure(figure, path)


def draw_flow(row, path):
    """Samples at some times."""
    figure, axes = new_figure(1, len(SHOWN_TIMES), width=2.4, height=2.6)
    points = positions(row["folder"])
    for frame, ax in zip(SHOWN_TIMES, axes):
        scatter(ax, points[frame], f"t = {END * frame / (FRAMES - 1):.1f}")
    figure.suptitle(row["title"], fontsize=9)
    save_figure(figure, path)


def animate(row, path):
    """The samples on their way from the base to the data."""
    figure, ax = new_figure(width=3.2, height=3.4)
    points = positions(row["folder"])
    dots = scatter(ax, points[0], row["label"])

    def show(frame):
        dots.set_data(*points[frame].T)
        ax.set_title(f"{row['label']}, {row['profile']} profile, t = {END * frame / (FRAMES - 1):.1f}", fontsize=9)

    path.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, show, frames=FRAMES).save(path, writer=PillowWriter(fps=6), dpi=60)


def main(argv=None):
    root, groups = results_folder(argv, "Draw the flows, the lowest seed of each.", CNF), {}
    for row in CNF.runs(root):
        groups.setdefault((row["profile"], row["what"]), {}).setdefault(row["label"], row)
    for (profile, what), of_label in groups.items():
        folder, rows = root / profile / what, list(of_label.values())
        scaled = ", scaled down" if any("scaled down" in row["title"] for row in rows) else ""
        draw_densities(rows, folder / "densities.png", f"{what}, {profile} profile{scaled}")
        continuous = [row for row in rows if row["model"] in SOLVED]
        if continuous:
            widest = max(continuous, key=lambda row: row["width"])
            draw_flow(widest, folder / "flow.png")
            animate(widest, folder / "flow.gif")
    print(f"{len(groups)} densities -> {root}")


if __name__ == "__main__":
    run_main(main)
