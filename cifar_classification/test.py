"""Test a trained model with the solver of its training or, without retraining, with another one."""

import json

from cifar_classification import data, options
from cifar_classification.checkpoints import BEST, read_checkpoint
from cifar_classification.evaluation import evaluate
from cifar_classification.models import parameter_count
from harness import environment
from harness.cli import ArgumentParser, apply_common_arguments, positive_int, run_main
from harness.resources import Stopwatch

RECORD = "tests.jsonl"


def make_parser():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--resume", required=True, metavar="PATH", help="checkpoint or run folder (its best model)")
    options.add_solver_arguments(parser)
    parser.add_argument("--batch-size", type=positive_int, help="images at a time (without it: as in the training)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto (CUDA where there is one)")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (without it: PyTorch's choice)")
    options.add_data_arguments(parser)
    return parser


def main(argv=None):
    defaults, chosen = options.read(make_parser(), argv)
    checkpoint, path = read_checkpoint(chosen["resume"], BEST)
    tested = options.settle_test(defaults | checkpoint["settings"], chosen)
    device = apply_common_arguments(tested)
    images = data.load(tested.dataset, tested.data, tested.download, device=device, channels_last=tested.channels_last)
    model = options.build_model(tested).to(device)
    model.load_state_dict(checkpoint["model"])

    clock = Stopwatch(device=device)
    result = evaluate(model, images.test_batches(tested.batch_size), device, amp=tested.amp)
    seconds = clock.seconds
    record = {
        "title": options.title(tested),
        "checkpoint": path.name,
        "epoch": checkpoint["epoch"],
        "parameters": parameter_count(model),
        "solver": {name: getattr(tested, name) for name in ("method", "rtol", "atol", "h")},
        "batch_size": tested.batch_size,
        "best_test_accuracy_in_training": checkpoint["best_accuracy"],
        "test_accuracy": result.accuracy,
        "test_loss": result.loss,
        "nfe_per_block": result.solver[:, 0].tolist(),
        "seconds": seconds,
        "environment": environment.describe(),
    }
    with open(path.parent / RECORD, "a") as file:
        file.write(json.dumps(record) + "\n")

    print(f"{record['title']}, after epoch {checkpoint['epoch']}")
    print(f"Total number of parameters: {record['parameters']}")
    print(f"Best Acc@1: {checkpoint['best_accuracy']:.2%} (in training, selected on the test images)")
    print(f"Test Acc@1: {result.accuracy:.2%}, error {1 - result.accuracy:.2%}{_solver_text(record)}, {seconds:.1f} s")


def _solver_text(record):
    """The solver and what it cost, as the middle of a sentence; nothing for a discrete network."""
    if not record["nfe_per_block"]:
        return ""
    settings = ", ".join(f"{name} {value}" for name, value in record["solver"].items() if value is not None)
    evaluations = ", ".join(f"{value:.1f}" for value in record["nfe_per_block"])
    return f" with {settings}; NFE per block {evaluations}"


if __name__ == "__main__":
    run_main(main)
