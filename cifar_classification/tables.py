"""Tables of the recorded runs and tests, in the README between its marks."""

import json
from pathlib import Path
from types import SimpleNamespace

from cifar_classification.test import RECORD
from harness.files import atomic_write
from harness.record import read_run

README = Path(__file__).parent / "README.md"
MARKS = "<!-- measured: written by plot.py -->\n", "<!-- end of measured -->\n"


def write(results):
    """Put the tables of all finished runs under ``results`` into the README."""
    folders = sorted(path.parent for path in Path(results).glob("*/summary.json"))
    text = "\n".join([_runs(folders), *filter(None, map(_tests, folders))])
    head, rest = README.read_text().split(MARKS[0])
    with atomic_write(README) as file:
        file.write((head + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1]).encode())


def _runs(folders):
    rows = []
    for folder in folders:
        record = read_run(folder)
        summary, machine = record["summary"], record["environment"]
        chosen = SimpleNamespace(**record["arguments"])
        solver = f"{chosen.gradient}, {chosen.method}" if chosen.model == "ode" else ""
        hardware = machine["gpus"][0] if machine["gpus"] else f"{machine['cpu']}, {machine['threads']} threads"
        rows.append(
            [
                f"[{chosen.profile}](../results/cifar_classification/{folder.name})",
                summary["title"],
                solver,
                f"{summary['test_accuracy']:.2%}",
                f"{summary['best_test_accuracy']:.2%}",
                f"{summary['seconds'] / 60:.1f}",
                hardware,
            ]
        )
    return _table(["profile", "what", "solver", "test accuracy", "best", "minutes", "hardware"], rows)


def _tests(folder):
    """The trained model under other solvers; nothing if it was not tested."""
    path = folder / RECORD
    if not path.exists():
        return None
    records = [json.loads(line) for line in path.read_text().splitlines()]
    latest = {json.dumps([record["checkpoint"], record["solver"]]): record for record in records}
    rows = [
        [
            ", ".join(f"{name} {value:g}" if name != "method" else value for name, value in solver.items() if value),
            f"{1 - record['test_accuracy']:.2%}",
            " ".join(f"{value:.1f}" for value in record["nfe_per_block"]),
        ]
        for record in latest.values()
        for solver in [record["solver"]]
    ]
    heading = f"**{records[-1]['title']}, after epoch {records[-1]['epoch']}, tested with**"
    return f"{heading}\n\n" + _table(["solver", "error", "NFE per block"], rows)


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
