"""Tables with a row a run: those that stand alone, with their command, and all runs of the compared tables."""

from cifar_classification.experiment import Cifar
from harness.cli import flag
from harness.tables import table
from harness.testing import read_tests

CIFAR = Cifar()
COMMANDS = {"quick": "bash scripts/run_cifar.sh", "paper": "bash scripts/run_cifar.sh --paper"}


def single_runs(runs, root, seen):
    """Runs by the command that makes them; ``seen`` is the folder ``root`` of the results, as seen from the page."""
    rows = [
        [
            command_of(run),
            f"[{run.summary['title']}]({seen}/{run.record(root)})",
            f"{run.chosen.gradient}, {run.chosen.method}" if run.chosen.model == "ode" else "",
            f"{run.summary['test_accuracy']:.2%}",
            f"{run.summary['best_test_accuracy']:.2%}",
            f"{run.summary['seconds'] / 60:.1f}",
            run.hardware,
        ]
        for run in runs
    ]
    return table(["command", "what", "solver", "test accuracy", "best", "minutes", "hardware"], rows)


def command_of(run):
    """How such a run is made: by its profile, and flags for what it has otherwise. What its settings leave open has no
    flag."""
    chosen = run.chosen
    today = CIFAR.settle({name: getattr(chosen, name) for name in ("profile", "dataset", "seed")})
    others = {name: getattr(chosen, name, None) for name, value in today.items()}
    others = {name: value for name, value in others.items() if value not in (None, today[name])}
    command = COMMANDS.get(chosen.profile, f"python cifar_classification/train.py --profile {chosen.profile}")
    return f"`{' '.join([command, *map(as_flag, others, others.values())])}`"


def as_flag(name, value):
    """A setting as on the command line."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def single_tests(run):
    """A trained model under other solvers; nothing if it was not tested."""
    records = read_tests(run.folder)
    if not records:
        return None
    rows = [
        [solver_text(record["solver"]), f"{1 - record['test_accuracy']:.2%}", nfe_text(record["nfe_per_block"])]
        for record in records
    ]
    heading = f"**{records[-1]['title']}, after epoch {records[-1]['epoch']}, tested with**"
    return f"{heading}\n\n" + table(["solver", "error", "NFE per block"], rows)


def solver_text(solver):
    return ", ".join(f"{name} {value:g}" if name != "method" else value for name, value in solver.items() if value)


def nfe_text(per_block):
    return " ".join(f"{value:.1f}" for value in per_block)


def every_run(runs, root):
    """All runs of the tables below the folder ``root`` of the results, and how they ended."""
    rows = [
        [
            f"[{'/'.join(run.folder.parts[-2:])}]({run.record(root)})",
            run.title,
            f"{run.summary['test_accuracy']:.2%}" if run.summary else "",
            f"{run.summary['seconds'] / 60:.1f}" if run.summary else "",
            "finished" if run.summary else run.failure or f"{len(run.rows)} of {run.chosen.epochs} epochs",
            run.hardware,
        ]
        for run in runs
        if run.place
    ]
    return "## All runs of the tables\n\n" + table(["run", "what", "accuracy", "minutes", "ended", "hardware"], rows)
