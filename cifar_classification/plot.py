"""Draw the accuracy and the loss of runs, against epochs and against time."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from cifar_classification import robustness
from cifar_classification.claims import scale_of
from cifar_classification.data import TITLES
from cifar_classification.experiment import ALL_SOLVERS, Cifar
from harness.cli import ArgumentParser, run_main
from harness.files import check_file
from harness.plots import colour, look, new_figure, save_figure
from harness.record import read_metrics, read_training

STYLES = {"Train": ":", "Test": "-"}
ROBUST_STYLES = {"euler": {"color": colour("resnet"), "marker": "s"}, "aca": look("aca", markers=True)}


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", metavar="FILE", help="PNG to write; the default is curves.png in the first run folder")
    args = parser.parse_args(argv)
    path = Path(args.out or Path(args.runs[0]) / "curves.png")
    check_file(path)
    save_figure(draw(args.runs), path)
    print(path)


def draw(folders):
    """A figure of what the run folders hold. UsageError if one holds no training on CIFAR."""
    figure, axes = new_figure(2, 2, sharey="row")
    for folder in folders:
        settings = read_training(folder, Cifar.name)["settings"]
        label = Cifar().title(settings) + (f", {settings['gradient']}" if settings["gradient"] else "")
        shade = colour(settings["gradient"] or "resnet")
        for part, style in STYLES.items():
            rows = [row for row in read_metrics(folder) if f"{part}/Loss" in row]
            times = [row["step"] for row in rows], [row["seconds"] / 60 for row in rows]
            for ax_row, quantity in zip(axes, ("Accuracy", "Loss")):
                values = [row[f"{part}/{quantity}"] for row in rows]
                for ax, time in zip(ax_row, times):
                    ax.plot(time, values, style, color=shade, label=f"{label}, {part.lower()}")
    for ax in axes[:, 0]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax, text in zip(axes[1], ("epoch", "minutes")):
        ax.set_xlabel(text)
    for ax, text in zip(axes[:, 0], ("accuracy", "cross-entropy")):
        ax.set_ylabel(text)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    return figure


def draw_methods(methods, *groups):
    """Figure 7(a, b) of the paper: test accuracy against the epoch, and after the last one seed by seed, a row for each
    of ``groups``. Times of a shared processor are not drawn.

    Args:
        methods: runs of each label, a run a seed.
        groups: labels that belong together, and last the figure's title.
    """
    *groups, heading = groups
    figure, axes = new_figure(len(groups), 2, height=3.2, squeeze=False)
    for (curves, dots), labels in zip(axes, groups):
        shown = [label for label in labels if methods[label]]
        for place, label in enumerate(shown):
            _draw_mean(curves, dots, place, methods[label], label)
        curves.set(xlabel="epoch", ylabel="test accuracy")
        curves.xaxis.set_major_locator(MaxNLocator(integer=True))
        dots.set_xticks(range(len(shown)), [label.removesuffix("-own") for label in shown], rotation=20, ha="right")
        dots.set(ylabel="after the last epoch", xlim=(-0.6, max(len(shown), 1) - 0.4))
        if shown:
            curves.legend(loc="lower right", fontsize="x-small")
    for ax, text in zip(axes[:, 0], ("like for like", "the paper's solvers, tolerances and batches")):
        ax.set_title(text, fontsize="medium")
    figure.suptitle(f"{heading}\nleft: mean and range over seeds; right: each seed, bar: mean", fontsize="medium")
    return figure


def _draw_mean(curves, dots, place, runs, label):
    """The mean accuracy of some runs over epochs with their range, and their last values as dots at ``place``."""
    epochs = min(len(run.rows) for run in runs)
    accuracy = np.array([[row["Test/Accuracy"] for row in run.rows[:epochs]] for run in runs])
    style = look(label.removesuffix("-own"), markers=True)
    name = f"{label.removesuffix('-own')}, {len(runs)} run{'s' * (len(runs) > 1)}"
    curves.plot(np.arange(1, epochs + 1), accuracy.mean(0), label=name, **style)
    shade = style["color"]
    curves.fill_between(np.arange(1, epochs + 1), accuracy.min(0), accuracy.max(0), color=shade, alpha=0.2, linewidth=0)
    dots.plot([place] * len(runs), accuracy[:, -1], **style | {"linestyle": "", "markersize": 6, "alpha": 0.7})
    dots.hlines(accuracy[:, -1].mean(), place - 0.3, place + 0.3, color=shade)


def draw_networks(chosen, names, others, paper, heading):
    """Figure 7(c, d) of the paper: box plots of the accuracy over seeds, beside what was read off the paper's.

    Args:
        chosen: runs by data set and label.
        names: labels to draw, and what to call them.
        others: likewise, those that the paper does not have; drawn where there are runs.
        paper: the paper's boxes, likewise.
        heading: title of the figure.
    """

    def short(label):
        return (names | others)[label].partition(",")[0]

    drawn = {dataset: [*names, *(label for label in others if runs[label])] for dataset, runs in chosen.items()}
    widths = [count for shown in drawn.values() for count in (len(shown), len(names))]
    figure, axes = new_figure(1, 2 * len(chosen), width=2.8, height=3.5, width_ratios=widths)
    for (dataset, runs), ours, theirs in zip(chosen.items(), axes[::2], axes[1::2]):
        shown = drawn[dataset]
        for place, label in enumerate(shown):
            values = [100 * run.summary["test_accuracy"] for run in runs[label]]
            if values:
                ours.boxplot([values], positions=[place], widths=0.5, **_box(label))
                ours.plot([place] * len(values), values, "o", markersize=3, color=_shade(label))
        for place, label in enumerate(names):
            theirs.bxp([paper[dataset][label]], positions=[place], widths=0.5, **_box(label))
        own = [f"{name}\nfrom {scale_of(runs[label][0]):g}" if runs[label] else name
               for label in shown for name in [short(label)]]  # fmt: skip
        for ax, where, ticks in ((ours, "here", own), (theirs, "paper, 10 runs", [short(label) for label in names])):
            ax.set_title(f"{TITLES[dataset]}, {where}", fontsize="medium")
            ax.set_xticks(range(len(ticks)), ticks, fontsize="small")
            ax.set_xlim(-0.6, len(ticks) - 0.4)
        ours.set_ylabel("test accuracy, %")
        if not ours.has_data():
            ours.set_yticks([])
    figure.suptitle(f"Accuracy over seeds, {heading}\nfrom: the size that second blocks begin with", fontsize="medium")
    return figure


def draw_robustness(found):
    """The supplement's tables 1 and 2: by how much each test solver increases the error, here and in the paper.

    ``found`` is what `robustness.tested` gives.
    """
    figure, (ours, theirs) = new_figure(1, 2, width=4.6, height=5.4, sharey=True)
    places = np.arange(len(ALL_SOLVERS))
    for shift, (label, (_, tests)) in zip((-0.15, 0.15), found.items()):
        style = ROBUST_STYLES[label] | {"linestyle": "", "markersize": 6}
        for ax, grown in ((ours, robustness.increases(tests, label)), (theirs, robustness.quoted(label))):
            values = [grown.get(robustness.cell(solver), np.nan) for solver in ALL_SOLVERS]
            ax.plot(values, places + shift, label=robustness.ROBUST[label], **style)
    scales = dict.fromkeys(run.title.partition(", ")[2] or "the paper's scale" for run, _ in found.values() if run)
    here = "; ".join(["here, one run each", *scales] if scales else ["here: not run"])
    for ax, title in ((ours, here), (theirs, "in the paper")):
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.set(xlabel="increase of the error, percentage points", title=title)
        ax.title.set_fontsize("medium")
        for place in places[1:]:
            if ALL_SOLVERS[place]["method"] != ALL_SOLVERS[place - 1]["method"]:
                ax.axhline(place - 0.5, color="grey", linewidth=0.5)
    ours.set_yticks(places, [robustness.name(solver) for solver in ALL_SOLVERS], fontsize="small")
    ours.set_ylim(len(places) - 0.5, -0.5)
    figure.get_layout_engine().set(w_pad=0.1)
    figure.legend(*theirs.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle("Growth of the error on CIFAR-10 with other test solvers than that of the training")
    return figure


def _shade(label):
    return colour({"aca": "node"}.get(label.removesuffix("-scale"), label.removesuffix("-scale")))


def _box(label):
    line = {"color": _shade(label)}
    return {
        "boxprops": line,
        "whiskerprops": line,
        "capprops": line,
        "medianprops": line,
        "flierprops": {"markersize": 3},
    }


if __name__ == "__main__":
    run_main(main)
