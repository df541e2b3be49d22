"""Tables of the recorded runs and tests, in this folder's README and, without the tests, in the project's."""

import json
from pathlib import Path
from types import SimpleNamespace

from cifar_classification.test import RECORD
from harness.files import atomic_write
from harness.record import read_run

README = Path(__file__).parent / "README.md"
PROJECT_README = README.parent.parent / "README.md"
MARKS = "<!-- measured: written by cifar_classification/plot.py -->\n", "<!-- end of measured -->\n"
COMMANDS = {"quick": "bash scripts/run_cifar.sh", "paper": "bash scripts/run_cifar.sh --paper"}


def write(results):
    """Put the tables of all finished runs under ``results`` into the READMEs."""
    folders = sorted(path.parent for path in Path(results).glob("*/summary.json"))
    _replace(README, "\n".join([_runs(folders, "../results"), *filter(None, map(_tests, folders))]))
    _replace(PROJECT_README, _runs(folders, "results"))


def _replace(readme, text):
    """Put ``text`` between the marks of a README."""
    head, rest = readme.read_text().split(MARKS[0])
    with atomic_write(readme) as file:
        file.write((head + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1]).encode())


def _runs(folders, results):
    rows = []
    for folder in folders:
        record = read_run(folder)
        summary, machine = record["summary"], record["environment"]
        chosen = SimpleNamespace(**record["arguments"])
        solver = f"{chosen.gradient}, {chosen.method}" if chosen.model == "ode" else ""
        hardware = machine["gpus"][0] if machine["gpus"] else f"{machine['cpu']}, {machine['threads']} threads"
        rows.append(
            [
                f"`{COMMANDS.get(chosen.profile, f'python cifar_classification/train.py --profile {chosen.profile}')}`",
                f"[{summary['title']}]({results}/cifar_classification/{folder.name})",
                solver,
                f"{summary['test_accuracy']:.2%}",
                f"{summary['best_test_accuracy']:.2%}",
                f"{summary['seconds'] / 60:.1f}",
                hardware,
            ]
        )
    return _table(["command", "what", "solver", "test accuracy", "best", "minutes", "hardware"], rows)


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
