"""Draw the accuracy and the loss of runs, against epochs and against time; or write the README's tables."""

from pathlib import Path
from types import SimpleNamespace

from cifar_classification import options, tables
from harness.cli import ArgumentParser, run_main
from harness.plots import colour, new_figure, save_figure
from harness.record import read_metrics, read_run

STYLES = {"Train": ":", "Test": "-"}


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (without any: the README's tables instead)")
    parser.add_argument("--out", metavar="FILE", help="PNG to write (without it: curves.png in the first run folder)")
    args = parser.parse_args(argv)
    if not args.runs:
        return tables.write(options.RESULTS)
    path = Path(args.out or Path(args.runs[0]) / "curves.png")
    save_figure(draw(args.runs), path)
    print(path)


def draw(folders):
    """A figure of what the run folders hold. UsageError if one holds no record."""
    figure, axes = new_figure(2, 2, sharey="row")
    for folder in folders:
        chosen = SimpleNamespace(**read_run(folder)["arguments"])
        label = options.title(chosen) + (f", {chosen.gradient}" if chosen.gradient else "")
        shade = colour(chosen.gradient or "resnet")
        for part, style in STYLES.items():
            rows = [row for row in read_metrics(folder) if f"{part}/Loss" in row]
            times = [row["step"] for row in rows], [row["seconds"] / 60 for row in rows]
            for ax_row, quantity in zip(axes, ("Accuracy", "Loss")):
                values = [row[f"{part}/{quantity}"] for row in rows]
                for ax, time in zip(ax_row, times):
                    ax.plot(time, values, style, color=shade, label=f"{label}, {part.lower()}")
    for ax, text in zip(axes[1], ("epoch", "minutes")):
        ax.set_xlabel(text)
    for ax, text in zip(axes[:, 0], ("accuracy", "cross-entropy")):
        ax.set_ylabel(text)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    return figure


if __name__ == "__main__":
    run_main(main)
