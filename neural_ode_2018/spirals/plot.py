"""Figures of the spirals: what each model predicts forward and backward in time, one run of each."""

import csv

from harness import packed
from harness.cli import run_main
from harness.plots import PART_COLOURS, colour, new_figure, save_figure
from harness.tables import results_folder
from neural_ode_2018.spirals.experiment import SHOWN, SPIRALS

PARTS = dict(zip(("seen", "ahead", "behind"), zip(PART_COLOURS, ("-", "--", ":"))))


def read(folder):
    """Rows of a run's predictions, numbers as floats, None where blank."""
    lines = packed.read(folder, "predictions.csv").decode().splitlines()
    return [{name: text if name == "part" else float(text) if text else None for name, text in row.items()}
            for row in csv.DictReader(lines)]  # fmt: skip


def columns(points, prefix=""):
    """x and y of rows."""
    return zip(*((point[f"{prefix}x"], point[f"{prefix}y"]) for point in points))


def draw(rows, path, heading):
    """A row of panels for each of the runs ``rows``, a column for each spiral."""
    figure, panels = new_figure(len(rows), SHOWN, width=2.6, height=2.7, squeeze=False)
    for row, axes in zip(rows, panels):
        points = read(row["folder"])
        for i, ax in enumerate(axes):
            own = sorted((p for p in points if p["spiral"] == i), key=lambda p: p["t"])
            ax.plot(*columns(own, "true_"), color=colour("truth"), lw=0.8, label="truth")
            seen = [p for p in own if p["seen_x"] is not None]
            ax.plot(*columns(seen, "seen_"), ".", color="grey", ms=3, label="observed")
            for part, (shade, style) in PARTS.items():
                guess = [p for p in own if p["part"] == part and p["x"] is not None]
                if guess:
                    ax.plot(*columns(guess), style, color=shade, lw=1.8, label=part)
            ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
        axes[0].set_ylabel(row["label"])
    names = {name: line for ax in panels[:, 0] for line, name in zip(*ax.get_legend_handles_labels())}
    figure.legend(names.values(), names, loc="outside lower center", ncols=len(names), fontsize="small")
    figure.suptitle(f"{heading}\nnew spirals: predicted at the times trained on, ahead of them and behind", fontsize=9)
    save_figure(figure, path)


def main(argv=None):
    root, groups = results_folder(argv, "Draw what the models of the spirals predict.", SPIRALS), {}
    for row in SPIRALS.runs(root):
        groups.setdefault((row["profile"], row["what"]), {}).setdefault(row["label"], row)
    for (profile, what), rows in groups.items():
        scaled = ", scaled down" if any("scaled down" in row["title"] for row in rows.values()) else ""
        draw(list(rows.values()), root / profile / what / "predictions.png", f"{what}, {profile} profile{scaled}")
    print(f"{len(groups)} figures -> {root}")


if __name__ == "__main__":
    run_main(main)
