"""Figure of the trained fields."""

from collections import Counter

import numpy as np
from matplotlib.lines import Line2D

from harness.plots import colour, new_figure
from harness.training import FINISHED
from van_der_pol import tables
from van_der_pol.models import MU
from van_der_pol.styles import NAMES, style
from van_der_pol.training import HORIZON, OBSERVED

BAND = 0.1, 0.9  # quantiles of the seeds


def train(folder):
    """Loss and gradient norm of each problem, and the recovered parameter: how they lie over the seeds."""
    runs = tables.training_runs(folder)
    figure, axes = new_figure(3, 2, width=4.6, height=2.7)
    panels = [(problem, tag, f"{tables.PROBLEM_TITLES[problem]}: {what}") for problem in ("neural", "parameter")
              for tag, what in (("Train/Loss", "loss"), ("Train/GradientNorm", "norm of the gradient"))]  # fmt: skip
    panels.append(("parameter", "Train/Parameter", "the equation's parameter (dotted: true)"))
    counts = Counter(run["gradient"] for run in runs)
    drawn = [name for name in NAMES if counts[name] >= max(counts.values()) / 10]  # medians of few seeds would mislead
    for ax, (problem, tag, title) in zip(axes.flat, panels):
        for gradient in drawn:
            _curves(ax, tables.trained(runs, problem, gradient), tag, gradient)
        ax.set(xlabel="iteration", title=title, yscale="linear" if tag == "Train/Parameter" else "log")
    axes[2, 0].axhline(MU, color=colour("truth"), ls=":")
    axes[2, 1].axis("off")
    handles = [
        Line2D([], [], label=_ended(runs, name, shown), **style(name) | ({} if shown else {"linestyle": ""}))
        for name in NAMES
        for shown in [name in drawn]
    ]
    axes[2, 1].legend(handles=handles, title="seeds that finished", loc="center", fontsize="small")
    first = runs[0]["settings"]
    figure.suptitle(
        f"Training on a trajectory observed from t = {float(OBSERVED[0]):g} to {HORIZON:g}, rtol {first['rtol']:g}, "
        f"atol {first['atol']:g}\nline: median of the runs that go on; band: the middle "
        f"{BAND[1] - BAND[0]:.0%} of them; cross: a run dies",
        fontsize="medium",
    )
    return figure


def _ended(runs, gradient, drawn):
    """How many runs of a method finished, and how many died at once, for which no point is drawn."""
    lines = [NAMES[gradient] + ("" if drawn else ", fewer seeds, not drawn")]
    for problem, title in (("neural", "field"), ("parameter", "parameter")):
        own = tables.trained(runs, problem, gradient)
        at_once = sum(not run["rows"] for run in own)
        text = f"   {title}: {sum(run['summary']['status'] == FINISHED for run in own)} of {len(own)}"
        lines.append(text + (f" ({at_once} died in the first step)" if at_once else ""))
    return "\n".join(lines)


def _curves(ax, runs, tag, gradient):
    """Median and band of the runs that go on, and crosses where the others broke off."""
    curves = [[row[tag] for row in run["rows"]] for run in runs]
    longest = max(map(len, curves), default=0)
    if not longest:
        return
    values = np.full((len(curves), longest), np.nan)
    for row, curve in zip(values, curves):
        row[: len(curve)] = curve
    x = np.arange(1, longest + 1)
    ax.plot(x, np.nanmedian(values, 0), **style(gradient))
    ax.fill_between(x, *np.nanquantile(values, BAND, axis=0), color=colour(gradient), alpha=0.15, lw=0)
    broken = [(len(curve), curve[-1]) for run, curve in zip(runs, curves)
              if curve and run["summary"]["status"] != FINISHED]  # fmt: skip
    ax.plot([i for i, _ in broken], [value for _, value in broken], "x", ms=5, alpha=0.7, color=colour(gradient))
