"""Figures on MNIST: figure 3 of the paper (error, time and evaluations of a solve, and how they grow), and memory."""

import json

from matplotlib.ticker import MaxNLocator

from harness.cli import run_main
from harness.experiment import BEST
from harness.plots import colour, look, new_figure, save_figure
from harness.record import read_epochs
from harness.tables import results_folder
from harness.testing import read_tests
from neural_ode_2018.mnist.experiment import MNIST
from neural_ode_2018.mnist.memory import RECORD, RESNET
from neural_ode_2018.mnist.models import SOLVED

POINTS = {"linestyle": "none", "markerfacecolor": "none", "markersize": 8}
LOOK_OF_RESNET = {"color": colour(RESNET), "linestyle": (0, (3, 1, 1, 1)), "marker": "P", "markersize": 5}


def swept(folder):
    """The tests with Dopri5, from loose to tight tolerances."""
    rows = [row for row in read_tests(folder) if row["checkpoint"] == BEST and row["solver"]["method"] == "Dopri5"]
    return sorted(rows, key=lambda row: -row["solver"]["rtol"])


def draw_solves(rows, path, heading):
    """Four panels: error and seconds against evaluations, evaluations backward against forward, and against epoch.

    In three of them a network has a point for each tolerance. Points are hollow, as those of several networks coincide.
    """
    figure, axes = new_figure(1, 4, width=3.4, height=3.2)
    errors, times, backward, epochs = axes
    for row in rows:
        tests, style = swept(row["folder"]), look(row["gradient"], markers=True, label=row["label"])
        forward, points = [test["forward_of_batch"] for test in tests], style | POINTS
        errors.plot(forward, [test["solution_error"] for test in tests], **points)
        times.plot(forward, [test["seconds_forward"] for test in tests], **points)
        backward.plot(forward, [test["backward_of_batch"] for test in tests], **points)
        metrics = read_epochs(row["folder"])
        epochs.plot([m["step"] for m in metrics], [m["Solver/Forward"] for m in metrics], **style)
    errors.set(yscale="log", xlabel="NFE forward, a point a tolerance", ylabel="relative error of the block's output")
    times.set(xlabel="NFE forward", ylabel="seconds, one batch forward")
    low, high = backward.get_xlim()
    backward.plot([low, high], [low, high], color="grey", lw=0.8)
    backward.set(xlabel="NFE forward", ylabel="NFE backward (line: equal)")
    epochs.set(xlabel="epoch", ylabel="NFE forward, mean of the epoch")
    epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    errors.legend(fontsize=7)
    figure.suptitle(heading, fontsize=9)
    save_figure(figure, path)


def draw_memory(record, path):
    """Memory against depth."""
    figure, ax = new_figure()
    for name in dict.fromkeys(row["network"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["network"] == name]
        sizes = [row["bytes"] / 2**20 for row in own]
        style = LOOK_OF_RESNET if name == RESNET else look(name, markers=True)
        ax.plot([row["depth"] for row in own], sizes, label=name, **style)
    ax.set(yscale="log", xlabel="depth: steps, or residual blocks", ylabel="peak memory above that of depth 1, MiB")
    ax.set_xscale("log", base=2)
    ax.legend()
    save_figure(figure, path)


def main(argv=None):
    root, groups = results_folder(argv, "Draw the solves of trained networks, and memory.", MNIST), {}
    for row in MNIST.runs(root):
        if row["model"] in SOLVED:
            groups.setdefault(row["profile"], {}).setdefault(row["label"], row)
    for profile, rows in groups.items():
        scaled = ", scaled down" if any("scaled down" in row["title"] for row in rows.values()) else ""
        draw_solves(list(rows.values()), root / profile / "solves.png", f"MNIST, {profile} profile{scaled}")
    record = root / RECORD.name
    if record.exists():
        draw_memory(json.loads(record.read_text()), root / "memory.png")
    print(f"{len(groups)} profiles -> {root}")


if __name__ == "__main__":
    run_main(main)
