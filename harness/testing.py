"""Tests of a trained model, the same for every experiment: command line, solvers, and the record tests.jsonl."""

import json
import sys
from pathlib import Path

from harness import environment, packed
from harness.cli import FAILED, apply_common_arguments, read_arguments, refuse
from harness.experiment import BEST, LAST
from harness.files import atomic_write, check_folder, write_text
from harness.record import parsed, read_run, trainings
from harness.resources import Stopwatch
from harness.solvers import TEST_SOLVER
from harness.training import read_checkpoint
from torch_ACA import SolverError

RECORD = "tests.jsonl"


def test(experiment, argv=None):
    """test.py's main: tests with each solver that is asked for, adding a row to the record; returns the exit code.

    Where there are several solvers, those that are in the record already are left out.
    """
    args, chosen = read_arguments(experiment.test_parser(), argv)
    if Path(args.resume).is_file():
        refuse(chosen, ("weights",), "--resume names a checkpoint")
    state, path = read_checkpoint(experiment, args.resume, LAST if args.weights == "last" else BEST)
    settings = state["settings"]
    solvers = experiment.test_solvers(settings, chosen)
    device = apply_common_arguments(args)
    folder = Path(args.out) if args.out else path.parent
    check_folder(folder)
    training = _status(path.parent)
    known, measure = experiment.tester(settings, state, device, args)
    as_trained = len(solvers) == 1 and not any(name in chosen for name in TEST_SOLVER)
    recorded = {identity(row) for row in read_tests(folder)} if len(solvers) > 1 else ()
    code = 0
    for solver in solvers:
        row = {
            "title": experiment.title(settings),
            "checkpoint": path.name,
            "epoch": state["epoch"],
            "training": training,
            "solver": solver,
            "as_trained": as_trained,
            **known,
        }
        if identity(row) in recorded:
            continue
        clock = Stopwatch(device=device)
        try:
            measured, files = measure(solver)
        except SolverError as error:
            print(f"error: {_words(solver)}: {error}", file=sys.stderr)
            measured, files, code = {"error": str(error)}, {}, FAILED
        row |= {**measured, "seconds": clock.seconds, "environment": environment.describe()}
        add_test(folder, row)
        if as_trained or args.out:
            for name, text in files.items():
                write_text(folder / name, text)
        if "error" not in row:
            print(f"{row['title']}, {path.name} after epoch {row['epoch']}, {_words(solver)}:")
            print(experiment.test_line(row), flush=True)
    return code


def _status(folder):
    """How the training ended; None where it has not, or there is no record of it."""
    summary = read_run(folder)["summary"] if (folder / "run.json").exists() else None
    return summary and summary["status"]


def _words(solver):
    if solver is None:
        return "without solver"
    words = [str(solver[name]) if name == "method" else f"{name} {solver[name]:g}"
             for name in TEST_SOLVER if solver.get(name) is not None and name != "per_sample"]  # fmt: skip
    return ", ".join([*words, *["per sample"] * bool(solver.get("per_sample"))])


def add_test(folder, row):
    """Add the row of a test to the record in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / RECORD) as file:
        file.writelines(f"{line}\n".encode() for line in [*_lines(folder), json.dumps(row)])


def read_tests(folder):
    """The rows of the tests recorded in a folder that did not fail, in order, the last one for each `identity`."""
    where = Path(folder, RECORD)
    rows = [parsed(line, f"{where}, line {number}") for number, line in enumerate(_lines(folder), 1)]
    rows = [row for row in rows if "error" not in row]
    return list({identity(row): row for row in rows}.values())


def own_test(folder, checkpoint):
    """Of these the last one of ``checkpoint`` (BEST or LAST) with the training's own solver; None if there is none."""
    rows = [row for row in read_tests(folder) if row["as_trained"] and row["checkpoint"] == checkpoint]
    return rows[-1] if rows else None


def runs_tested(experiment, root, checkpoint):
    """Of the runs at any depth below ``root`` that ended and have an `own_test`, in order: folder, record, the row of
    that test."""
    for folder, run in trainings(root, experiment.name):
        if run["summary"] and (test := own_test(folder, checkpoint)):
            yield folder, run, test


def _lines(folder):
    return (packed.read(folder, RECORD) or b"").decode().splitlines()


def identity(row):
    """What makes two tests the same one, as text: checkpoint, epoch, solver and, where there is a choice, how many
    images and in which precision."""
    return json.dumps([row.get(name) for name in ("checkpoint", "epoch", "solver", "amp", "images")])
