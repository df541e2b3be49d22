"""Figure of the first gradient: its error by method and tolerance, by cost, by time, and the steps that make it."""

from collections import defaultdict

import numpy as np

from harness.measurement import read
from harness.plots import colour, look, new_figure
from three_body.first_gradient import LOOKED_INTO, PAPERS

OWN_TIME = "aca, own time"
MARKERS = dict(zip(("as it is", "lands 20 times", "lands 100 times", "lands where bodies are near", "safety 0.5",
                    "PI controller", "dopri8", "own time"), "o1234P*D"))  # fmt: skip


def _look(method, **others):
    """As `look`; ACA in a time of its own is ACA in another shade."""
    return look("aca-own-time", **others) if method == OWN_TIME else look(method, **others)


def _dots(method):
    return _look(method, markers=True) | {"linestyle": "", "alpha": 0.35, "markersize": 3}


def draw_first_gradient(folder):
    """The figure; `first_gradient` says what the rows are."""
    figure, axes = new_figure(2, 2, width=5.4, height=3.9)
    rows = read(folder)
    _against_tolerance(axes[0, 0], [row for row in rows if row["kind"] == "tolerance"])
    _against_cost(axes[0, 1], rows)
    seed = LOOKED_INTO[0]
    _along_time(axes[1, 0], [row for row in rows if row["kind"] == "horizon" and row["seed"] == seed], seed)
    _by_step(axes[1, 1], [row for row in rows if row["kind"] == "step" and row["seed"] == seed], seed)
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(f"Three bodies, known law: gradient in the masses at the first iterate, {seeds} seeds")
    return figure


def _against_tolerance(ax, rows):
    for method in dict.fromkeys(row["method"] for row in rows):
        groups = defaultdict(list)
        for row in rows:
            if row["method"] == method and row["error"] is not None:
                groups[row["tolerance"]].append(row["error"])
        most = max(map(len, groups.values()))  # a median over fewer seeds would be of others
        middle = {tolerance: np.median(errors) for tolerance, errors in groups.items() if len(errors) >= most - 1}
        ax.plot(list(middle), list(middle.values()), label=method, **_look(method, markers=True))
        for tolerance, errors in groups.items():
            ax.plot([tolerance] * len(errors), errors, **_dots(method))
    ax.axvline(PAPERS, color="grey", lw=0.8)
    ax.text(PAPERS, 2e-9, " the paper's", color="grey", fontsize="small")
    ax.set(xscale="log", yscale="log", xlabel="rtol = atol", ylabel="relative error of the gradient")
    ax.set_title("By tolerance: medians, seeds as dots", fontsize="medium")
    ax.invert_xaxis()
    ax.legend(fontsize="small", loc="upper right")


def _against_cost(ax, rows):
    for method in ("aca", "naive", OWN_TIME):
        own = [row for row in rows if row["kind"] == "tolerance" and row["method"] == method and row["error"]]
        ax.plot([row["evaluations"] for row in own], [row["error"] for row in own], **_dots(method))
        groups = defaultdict(list)
        for row in own:
            groups[row["tolerance"]].append((row["evaluations"], row["error"]))
        most = max(map(len, groups.values()))
        middle = [np.median(own, axis=0) for own in groups.values() if len(own) >= most - 1]
        ax.plot(*np.array(middle).T, label=method, **_look(method))
    for name, marker in MARKERS.items():
        own = [row for row in rows if row["kind"] == "correction" and row["name"] == name and row["error"]]
        if own and name not in ("as it is", "own time"):
            place = np.median([(row["evaluations"], row["error"]) for row in own], axis=0)
            ax.plot(*place, marker, color=colour("truth"), ms=7, mfc="none", label=f"aca 1e-5: {name}")
    ax.set(xscale="log", yscale="log", xlabel="evaluations of f, both passes", ylabel="relative error of the gradient")
    ax.set_title("By cost: medians, seeds as dots", fontsize="medium")
    ax.set_ylim(top=1e14)  # room for the legend
    ax.legend(fontsize="x-small", loc="upper right", ncols=2)


def _along_time(ax, rows, seed):
    for method in ("aca", "naive"):
        own = [row for row in rows if row["method"] == method]
        points = [row["horizon"] for row in own], [row["error"] for row in own]
        ax.plot(*points, label=method, **look(method, markers=True))
    ax.set(yscale="log", xlabel="the loss ends at time", ylabel="relative error of the gradient")
    ax.set_title(f"By horizon at {PAPERS:.0e}, seed {seed}", fontsize="medium")
    ax.legend(fontsize="small", loc="upper left")


def _by_step(ax, rows, seed):
    sizes = [np.linalg.norm(row["added"]) for row in rows]
    ax.loglog([row["distance"] for row in rows], sizes, "o", ms=4, mfc="none", color=colour("naive"))
    ax.set(xlabel="distance of the nearest two bodies at the end of a step")
    ax.set_ylabel("size of $dL/dt_i \\cdot dt_i/dm$")
    ax.set_title(f"What steps add to naive - aca at {PAPERS:.0e}, seed {seed}", fontsize="medium")
