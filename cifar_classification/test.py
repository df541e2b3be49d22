"""Test a trained model with the solver of its training or, without retraining, with another one, or with many."""

import argparse
import json
import sys

from cifar_classification import data, options
from cifar_classification.checkpoints import BEST, read_checkpoint
from cifar_classification.evaluation import evaluate
from cifar_classification.models import parameter_count, set_solver
from cifar_classification.predictions import Collector
from harness import environment
from harness.cli import ArgumentParser, UsageError, apply_common_arguments, positive_int, run_main
from harness.files import atomic_write
from harness.resources import Stopwatch
from torch_ACA import SolverError

RECORD = "tests.jsonl"
SOLVER = ("method", "rtol", "atol", "h")
FIXED, ADAPTIVE = ("Euler", "RK2", "RK4"), ("HeunEuler", "RK23", "RK45")
STEPS, TOLERANCES = (1.0, 0.5, 0.2, 0.1), (1e-1, 1e-2, 1e-3)
ALL_SOLVERS = [
    *({"method": method, "h": h} for method in FIXED for h in STEPS),
    *({"method": method, "rtol": tolerance, "atol": tolerance} for method in ADAPTIVE for tolerance in TOLERANCES),
]


def make_parser():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--resume", required=True, metavar="PATH", help="checkpoint or run folder (its best model)")
    options.add_solver_arguments(parser)
    parser.add_argument(
        "--all-solvers",
        action="store_true",
        help=f"each of the {len(ALL_SOLVERS)} solvers of the paper's supplement; those already recorded are left out",
    )
    parser.add_argument(
        "--predictions", action="store_true", help="also keep what is said about each image, in predictions.npz"
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N test images")
    parser.add_argument("--batch-size", type=positive_int, help="images at a time (without it: as in the training)")
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bfloat16 where it is safe (without it: as in the training)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto (CUDA where there is one)")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (without it: PyTorch's choice)")
    options.add_data_arguments(parser)
    return parser


def main(argv=None):
    defaults, chosen = options.read(make_parser(), argv)
    checkpoint, path = read_checkpoint(chosen["resume"], BEST)
    saved = defaults | checkpoint["settings"]
    solvers = [{}]
    if chosen.get("all_solvers"):
        options.refuse(chosen, (*SOLVER, "predictions"), "--all-solvers tests with many solvers")
        if saved["model"] == "discrete":
            raise UsageError("--all-solvers needs an ODE network; this one is discrete")
        solvers = ALL_SOLVERS
    tests = [options.settle_test(saved, chosen | solver) for solver in solvers]
    recorded = {identity(record) for record in read_tests(path.parent)} if len(tests) > 1 else ()
    first = tests[0]
    device = apply_common_arguments(first)
    images = data.load(first.dataset, first.data, first.download, device=device, channels_last=first.channels_last)
    images = images.with_tests(first.limit)
    model = options.build_model(first).to(device)
    model.load_state_dict(checkpoint["model"])

    print(f"{options.title(first)}, after epoch {checkpoint['epoch']}")
    print(f"Total number of parameters: {parameter_count(model)}")
    print(f"Best Acc@1: {checkpoint['best_accuracy']:.2%} (in training, selected on the test images)")
    code = 0
    for tested in tests:
        known = {
            "title": options.title(tested),
            "checkpoint": path.name,
            "epoch": checkpoint["epoch"],
            "parameters": parameter_count(model),
            "solver": {name: getattr(tested, name) for name in SOLVER},
            "batch_size": tested.batch_size,
            "amp": tested.amp,
            "images": len(images.test),
        }
        if identity(known) in recorded:
            continue
        if solver := options.solver_of(tested):
            set_solver(model, **solver)
        keep = Collector() if tested.predictions else None
        clock = Stopwatch(device=device)
        try:
            result = evaluate(model, images.test_batches(tested.batch_size), device, amp=tested.amp, each=keep)
        except SolverError as error:
            print(f"error: {known['solver']}: {error}", file=sys.stderr)
            code = 1
            continue
        record = known | {
            "best_test_accuracy_in_training": checkpoint["best_accuracy"],
            "test_accuracy": result.accuracy,
            "test_loss": result.loss,
            "nfe_per_block": result.solver[:, 0].tolist(),
            "seconds": clock.seconds,
            "environment": environment.describe(),
        }
        add_test(path.parent, record)
        print(describe(record), flush=True)
        if keep:
            print(f"predictions: {keep.write(path.parent, checkpoint['epoch'])}")
    return code


def describe(record):
    """One line on a test."""
    solver, evaluations = "", record["nfe_per_block"]
    if evaluations:  # none in a discrete network
        settings = ", ".join(f"{name} {value}" for name, value in record["solver"].items() if value is not None)
        solver = f" with {settings}; NFE per block {', '.join(f'{value:.1f}' for value in evaluations)}"
    accuracy = record["test_accuracy"]
    return f"Test Acc@1: {accuracy:.2%}, error {1 - accuracy:.2%}{solver}, {record['seconds']:.1f} s"


def add_test(folder, record):
    """Add the record of a test to those of the run."""
    with atomic_write(folder / RECORD) as file:
        file.writelines(f"{line}\n".encode() for line in [*_lines(folder), json.dumps(record)])


def read_tests(folder):
    """The records of the tests of a run, in order, the last one for each `identity`."""
    records = map(json.loads, _lines(folder))
    return list({identity(record): record for record in records}.values())


def _lines(folder):
    path = folder / RECORD
    return path.read_text().splitlines() if path.exists() else []


def identity(record):
    """What makes two tests the same one, as text; records from before there was a choice lack the last two."""
    parts = [record[name] for name in ("checkpoint", "epoch", "solver")]
    return json.dumps([*parts, record.get("amp"), record.get("images")])


if __name__ == "__main__":
    run_main(main)
