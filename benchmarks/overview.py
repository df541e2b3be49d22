"""One figure of all cases that diffrax solves too: the time of every solver over its time."""

from pathlib import Path

from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks import records, tables
from benchmarks.cases import CASES, diagram_rows, time_rows
from harness.plots import new_figure, save_figure

FILE = "overview.png"
DIFFRAX = ("diffrax, jitted", "diffrax, vmap", "diffrax Kvaerno5, jitted")  # whichever a case has
FORWARD_ONLY = "scipy Radau, forward"
TOLERANCE = 1e-6  # of the point shown of a diagram


def draw(folder, colours, markers):
    """Write the figure of a folder of records; nothing where fewer than two cases have diffrax beside others.

    :param colours, markers: by solver
    """
    found = {name: ratios for name in CASES if (ratios := over_diffrax(_record(folder, name)))}
    if len(found) < 2:
        return
    figure, ax = new_figure(width=9.0, height=1.6 + 0.36 * len(found))
    for solver in dict.fromkeys(solver for ratios in found.values() for solver in ratios):
        places = [(ratios[solver], height) for height, ratios in enumerate(found.values()) if solver in ratios]
        ours = any(_record(folder, name).solvers.get(solver, {}).get("library") == tables.OURS for name in found)
        style = {"markersize": 8, "markeredgecolor": "black"} if ours else {"markersize": 5}
        ax.plot(*zip(*places), markers[solver], color=colours[solver], linestyle="", label=solver, **style)
    ax.axvline(1.0, color="black", lw=1)
    ax.set_yticks(range(len(found)), [title(name) for name in found])
    ax.invert_yaxis()
    ax.grid(axis="y", alpha=0.3)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator())  # the range is too wide for more than decades
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="time of forward and backward pass / that of jitted diffrax")
    ax.set_title("Left of the line: faster than diffrax. Black edges: torch_ACA", fontsize="medium")
    figure.legend(loc="outside right center", fontsize="small")
    save_figure(figure, Path(folder) / FILE)


def over_diffrax(record):
    """{solver: its time over diffrax's in the same round, median}; empty where diffrax was not timed."""
    base = next((solver for solver in DIFFRAX if record and record.median(solver) is not None), None)
    if base is None:
        return {}
    others = [solver for solver in record.solvers if solver not in (*DIFFRAX, FORWARD_ONLY)]
    return {solver: ratio for solver in others if (ratio := record.to_solver(solver, base))}


def title(name):
    """What a case is called in the figure."""
    at = f", {TOLERANCE:.0e}" if CASES[name].rows is diagram_rows else ""
    return CASES[name].title.replace("Work and precision, ", "") + at


def _record(folder, name):
    """The record of a case of rounds, or of a diagram's tolerance; None for other cases, and where it is missing."""
    if CASES[name].rows is time_rows:
        return records.read(folder, name)
    if CASES[name].rows is diagram_rows:
        return (records.read_diagram(folder, name) or {}).get(TOLERANCE)
    return None
