"""MNIST as an experiment: its settings, and how a trained network is tested."""

import torch
from torch.nn import functional

from harness.cli import UsageError, non_negative_int, positive_float, positive_int, refuse
from harness.resources import Stopwatch
from harness.solvers import MEMORY, TEST_SOLVER, settle_test_solver, solver_of
from neural_ode_2018.mnist.data import load
from neural_ode_2018.mnist.models import MODELS, SOLVED, Network
from neural_ode_2018.mnist.training import MNISTTraining
from neural_ode_2018.part import Part

# The paper's schedule, batch and tolerances are not known: these are those of torchdiffeq's public example, with its
# random crops. The paper solves by implicit Adams; Dopri5 is our choice. RK-Net back-propagates through its solver.
PAPER = {
    **{"epochs": 160, "train_images": 60_000, "test_images": 10_000, "batch_size": 128, "lr": 0.1},
    **{"drops": [60, 100, 140], "rtol": 1e-3, "atol": 1e-3},
    "gradient": {"resnet": None, "rk-net": "direct", "ode-net": None},
}
# Learning rate, batch and method of the smaller profiles were tried out on the training images that "quick" leaves out:
# 300 steps of ODE-Net and ResNet. RK23 at a loose tolerance takes half the evaluations of Dopri5 at 1e-2.
FAST = {"lr": 0.05, "method": "RK23", "rtol": 0.1, "atol": 0.1}
PROFILES = {
    "paper": PAPER,
    "cpu": PAPER | FAST | {"epochs": 6, "drops": [4, 5], "batch_size": 64},
    "quick": PAPER | FAST | {"epochs": 2, "drops": [1], "batch_size": 32, "train_images": 10_000},
}
SWEEP = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # tolerances
REFERENCE = 1e-6  # the tolerance of the solution that errors are measured against
MEASURED = 32  # images for errors and for evaluations backward
TESTED_AT_A_TIME = 200
SWEPT = 1000  # test images at many tolerances


class MNISTNetworks(Part):
    name = "neural_ode_2018/mnist"
    train_help = "Train a network on MNIST. Defaults are the paper's where it gives them."
    test_help = "Test a trained network."
    profiles = PROFILES
    data, data_env = None, "MNIST_DATA"
    checkpoint_every = 100
    models, solved = MODELS, SOLVED
    task = "train_images"
    sizes = {
        **{"epochs": "epochs", "train_images": "training images", "test_images": "test images"},
        "batch_size": "images a step",
    }

    def add_settings(self, parser):
        parser.add_argument("--train-images", type=positive_int, metavar="N", help="(default: the profile's)")
        parser.add_argument("--test-images", type=positive_int, metavar="N", help="(default: the profile's)")
        parser.add_argument("--batch-size", type=positive_int, help="images a step (default: the profile's)")
        parser.add_argument("--lr", type=positive_float, help="initial learning rate (default: the profile's)")
        drops = "epochs after which the learning rate is divided by 10 (default: the profile's)"
        parser.add_argument("--drops", type=non_negative_int, nargs="+", metavar="EPOCH", help=drops)

    def profile(self, values):
        own = super().profile(values)
        return own | {"method": None} if values.get("gradient") == "mali" else own  # which has its own

    def what(self, settings):
        return "mnist"

    def training(self, settings, device, args, processes):
        return MNISTTraining(settings, self._images(settings, device, args), device)

    def _images(self, settings, device, args):
        return load(args.data, settings["train_images"], settings["test_images"], device)

    def add_test_arguments(self, parser):
        parser.add_argument("--sweep", action="store_true", help=f"Dopri5 at many tolerances, {SWEPT} images")

    def test_solvers(self, settings, chosen):
        if not chosen.get("sweep"):
            return super().test_solvers(settings, chosen)
        refuse(chosen, TEST_SOLVER, "--sweep has tolerances of its own")
        if settings["model"] not in SOLVED:
            raise UsageError(f"--sweep needs an ODE block; {settings['model']} has none")
        each = ({"method": "Dopri5", "rtol": tolerance, "atol": tolerance} for tolerance in SWEEP)
        return [settle_test_solver(solver_of(settings), solver) for solver in each]

    def tester(self, settings, state, device, args):
        images = self._images(settings, device, args)
        if getattr(args, "sweep", False):
            images = images.with_tests(SWEPT)
        own = solver_of(settings)
        network = Network(settings["model"], own).to(device)
        network.load_state_dict(state["model"])

        def measure(solver):
            if solver is not None:
                network.body.configure(**{"h": None} | solver)
            wrong, evaluations, batches = 0, 0, 0
            with torch.no_grad():
                for pictures, labels in images.test_batches(TESTED_AT_A_TIME):
                    wrong += int((network(pictures).argmax(1) != labels).sum())
                    evaluations, batches = evaluations + (network.stats.n_f_evals if network.stats else 0), batches + 1
            row = {"test_error": wrong / len(images.test)}
            if solver is None:
                return row, {}
            row["evaluations"] = evaluations / batches
            return row | one_batch(network, images, own["gradient"], solver, device), {}

        return {"images": len(images.test)}, measure

    def test_line(self, row):
        evaluations = f", NFE {row['evaluations']:.1f}" if "evaluations" in row else ""
        return f"test error {row['test_error']:.2%} of {row['images']} images{evaluations}"


def one_batch(network, images, gradient, solver, device):
    """On one batch: evaluations and seconds of a solve and of the gradient that the training used, and how far the
    block's output is from that at REFERENCE (root mean square, relative)."""
    pictures, labels = (part[:MEASURED] for part in next(images.test_batches(MEASURED)))
    if gradient != "mali":  # which has a method of its own
        network.body.configure(gradient=gradient, memory=MEMORY if gradient == "aca" else None)
    clock = Stopwatch(device=device)
    z = network.body(network.stem(pictures))
    forward = clock.seconds
    functional.cross_entropy(network.head(z), labels).backward()
    whole, stats = clock.seconds, network.stats
    network.zero_grad()
    tight = {"method": "Dopri5", "rtol": REFERENCE, "atol": REFERENCE, "h": None, "gradient": "aca"}
    with torch.no_grad():
        network.body.configure(**tight)
        exact = network.body(network.stem(pictures))
        error = float((z - exact).norm() / exact.norm())
    return {
        "forward_of_batch": stats.n_f_evals,
        "backward_of_batch": stats.n_backward_f_evals,
        "seconds_forward": forward,
        "seconds_backward": whole - forward,
        "solution_error": error,
    }


MNIST = MNISTNetworks()
