"""Tables over all runs, rendered from their records: runs.csv, one row a run, and tables.md, one row a model."""

import csv
import io
import json
from pathlib import Path
from statistics import mean, stdev

from harness.cli import ArgumentParser, run_main
from harness.files import atomic_write
from harness.record import read_run
from three_body.data import PAPER
from three_body.models import RECURRENT
from three_body.settings import PRESETS, RESULTS, label

COMPARED = ("adjoint", "naive", "aca")
LABELS = (*RECURRENT, *(f"{model}-{gradient}" for model in ("node", "ode") for gradient in COMPARED))
COLUMNS = (
    "preset", "system", "label", "seed", "status", "mse", "mse_trained", "mass_error", "last_mass_error",
    "energy_drift", "momentum_drift", "seconds", "forward", "backward", "epochs", "parameters", "prediction",
)  # fmt: skip
HEADINGS = {
    "mse": "MSE [0, 2]",
    "mse_trained": "MSE [0, 1]",
    "mass_error": "mass error",
    "energy_drift": "energy drift",
    "momentum_drift": "momentum drift",
    "seconds": "seconds",
    "forward": "NFE forward",
    "backward": "NFE backward",
}
_QUICK, _PAPER = ([PRESETS[name][family]["epochs"] for family in ("recurrent", "ode")] for name in ("quick", "paper"))
TITLES = {
    "released": "Settings of the authors' script (`--preset released`)",
    "paper": "Settings of the paper (`--preset paper`)",
    "quick": f"Quick, scaled down: {_QUICK[0]} of {_PAPER[0]} epochs (LSTM), {_QUICK[1]} of {_PAPER[1]}",
}


def collect(root):
    """One dict with COLUMNS and ``folder`` for each tested run below ``root``, in the order of the tables."""
    rows = [_row(path.parent) for path in sorted(Path(root).glob("*/*/*/*/test.json"))]
    return sorted(rows, key=lambda row: (row["preset"], row["system"], _rank(row["label"]), row["seed"]))


def _rank(name):
    return (LABELS.index(name) if name in LABELS else len(LABELS), name)


def _row(folder):
    run, test = read_run(folder), json.loads((folder / "test.json").read_text())
    settings, summary = run["arguments"]["settings"], run["summary"]
    last, true = summary["last"]["masses"], settings["system"]["masses"]
    return {
        **{name: test[name] for name in COLUMNS if name in test},
        **{name: summary[name] for name in ("status", "seconds", "epochs", "parameters")},
        **(summary["evaluations"] or {"forward": None, "backward": None}),
        "preset": settings["preset"],
        "system": settings["system"]["name"],
        "label": label(settings),
        "seed": settings["seed"],
        "last_mass_error": last and max(abs(m - t) for m, t in zip(last, true)),
        "cpu": run["environment"]["cpu"],
        "folder": folder,
    }


def tables(rows):
    """The text of tables.md."""
    parts = ["# Three-body problem: results\n\nWritten by `python three_body/report.py` from the records beside it.\n"]
    for preset, title in TITLES.items():
        own = [row for row in rows if row["preset"] == preset]
        for systems, chosen in (
            ("the paper's system", [row for row in own if row["system"] == PAPER.name]),
            ("other systems", [row for row in own if row["system"] != PAPER.name]),
        ):
            if chosen:
                parts.append(_table(f"{title}: {systems}", chosen))
    cpus = sorted({row["cpu"] for row in rows})
    parts.append(
        "Mean ± standard deviation over the runs. MSE: over time, bodies and axes, for the weights of "
        "least training error. Mass error: the largest of the three. Drifts: largest deviation of the prediction from "
        "the true energy (relative) and momentum (relative to the bodies' momenta). Blank: not run, or no number. "
        f"Times: one thread of {', '.join(cpus)}, shared with other work.\n"
    )
    return "\n".join(parts)


def _table(title, rows):
    lines = [f"## {title}\n", f"| model | runs | {' | '.join(HEADINGS.values())} |", "|---" * (len(HEADINGS) + 2) + "|"]
    failures = []
    for name in sorted({*LABELS, *(row["label"] for row in rows)}, key=_rank):
        own = [row for row in rows if row["label"] == name]
        cells = [_spread([row[key] for row in own if row[key] is not None]) for key in HEADINGS]
        lines.append(f"| {name} | {len(own) or ''} | {' | '.join(cells)} |")
        for row in own:
            for stage, outcome in (("training", row["status"]), ("prediction", row["prediction"])):
                if outcome != "finished":
                    failures.append(f"- {name}, {row['system']} system, seed {row['seed']}, {stage}: {outcome}")
    if failures:
        lines += ["", "Failures (means leave out what has no number):", "", *failures]
    return "\n".join([*lines, ""])


def _spread(values):
    if not values:
        return ""
    deviation = f" ± {stdev(values):.1e}" if len(values) > 1 else ""
    return f"{mean(values):.2e}{deviation}"


def main(argv=None):
    parser = ArgumentParser("Write runs.csv and tables.md from the records of all runs.")
    parser.add_argument("--results", default=str(RESULTS), metavar="DIR", help="folder of the runs")
    root = Path(parser.parse_args(argv).results)
    rows = collect(root)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    for name, content in (("runs.csv", text.getvalue()), ("tables.md", tables(rows))):
        with atomic_write(root / name) as file:
            file.write(content.encode())
    print(f"{len(rows)} runs -> {root / 'tables.md'}")


if __name__ == "__main__":
    run_main(main)
