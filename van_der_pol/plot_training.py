"""Figure of the trained fields."""

import numpy as np
from matplotlib.lines import Line2D

from harness.plots import colour, look, new_figure
from harness.training import FINISHED
from van_der_pol import tables
from van_der_pol.models import MU
from van_der_pol.styles import NAMES, style
from van_der_pol.training import HORIZON, OBSERVED


def train(folder):
    """Loss and gradient norm of each problem, and the recovered parameter: all seeds, and their mean."""
    runs = tables.training_runs(folder)
    figure, axes = new_figure(3, 2, width=4.6, height=2.7)
    panels = [(problem, tag, f"{tables.PROBLEM_TITLES[problem]}: {what}") for problem in ("neural", "parameter")
              for tag, what in (("Train/Loss", "loss"), ("Train/GradientNorm", "norm of the gradient"))]  # fmt: skip
    panels.append(("parameter", "Train/Parameter", "the equation's parameter (dotted: true)"))
    for ax, (problem, tag, title) in zip(axes.flat, panels):
        for gradient in NAMES:
            _curves(ax, _trained(runs, problem, gradient), tag, gradient)
        ax.set(xlabel="iteration", title=title, yscale="linear" if tag == "Train/Parameter" else "log")
    axes[2, 0].axhline(MU, color=colour("truth"), ls=":")
    axes[2, 1].axis("off")
    handles = [Line2D([], [], label=_ended(runs, name), **style(name)) for name in NAMES]
    axes[2, 1].legend(handles=handles, title="runs that finished", loc="center", fontsize="small")
    first = runs[0]["settings"]
    figure.suptitle(
        f"Training on a trajectory observed from t = {float(OBSERVED[0]):g} to {HORIZON:g}, rtol {first['rtol']:g}, "
        f"atol {first['atol']:g}\nthin: single seeds, a cross where a run dies; thick: mean over seeds",
        fontsize="medium",
    )
    return figure


def _trained(runs, problem, gradient):
    return [run for run in runs if (run["problem"], run["gradient"]) == (problem, gradient)]


def _ended(runs, gradient):
    """How many runs of a method finished, and how many died at once, for which no point is drawn."""
    lines = [NAMES[gradient]]
    for problem, title in (("neural", "field"), ("parameter", "parameter")):
        own = _trained(runs, problem, gradient)
        at_once = sum(not run["rows"] for run in own)
        text = f"   {title}: {sum(run['summary']['status'] == FINISHED for run in own)} of {len(own)}"
        lines.append(text + (f" ({at_once} died in the first step)" if at_once else ""))
    return "\n".join(lines)


def _curves(ax, runs, tag, gradient):
    """Each run, and their mean (of the logarithm where the axis has one); crosses where a run broke off."""
    runs = [run for run in runs if run["rows"]]
    if not runs:
        return
    curves = [[row[tag] for row in run["rows"]] for run in runs]
    values = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(values, curves):
        row[: len(curve)] = curve if tag == "Train/Parameter" else np.log(curve)
    back = np.asarray if tag == "Train/Parameter" else np.exp
    x, middle = np.arange(1, values.shape[1] + 1), np.nanmean(values, 0)
    ax.plot(x, back(middle), **style(gradient))
    for curve in values:
        ax.plot(x, back(curve), **look(gradient, linewidth=0.6, alpha=0.5))
    broken = [(len(curve), curve[-1]) for run, curve in zip(runs, curves) if run["summary"]["status"] != FINISHED]
    ax.plot([i for i, _ in broken], [value for _, value in broken], "X", ms=9, color=colour(gradient), mec="white")
