"""Classifying CIFAR as an experiment: its settings, where its runs go, and how a trained model is tested."""

import argparse
import json
from pathlib import Path

from torch import nn

from cifar_classification import data, predictions
from cifar_classification.collectives import check_collectives
from cifar_classification.data import CLASSES, TITLES
from cifar_classification.evaluation import evaluate
from cifar_classification.models import NETWORKS, parameter_count, set_solver
from cifar_classification.models.blocks import ALL_GRADIENTS, PEERS, make_block
from cifar_classification.training import CifarTraining, build_model, network_solver
from harness.cli import UsageError, non_negative_float, positive_float, positive_int, refuse, usage_errors
from harness.experiment import Experiment
from harness.solvers import SOLVER, TEST_SOLVER, add_solver_arguments, joint_or_per_sample
from torch_ACA import FIXED_STEP_METHODS

PAPER_EPOCHS = 90
PAPER = {
    **{"epochs": PAPER_EPOCHS, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "schedule": "multistep"},
    **{"method": "RK12", "rtol": 1e-2, "atol": 1e-2, "gradient": "aca", "field_scale": 1.0, "branch_scale": 1.0},
    **{"amp": False, "channels_last": False, "compile": False},
}
# what the command line does not name is taken from the file of a profile, and then from the paper
FILES = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "profiles").glob("*.json")}
PROFILES = {name: FILES[name] for name in sorted(FILES, key=lambda name: (name != "paper", name))}
# With fewer channels PyTorch 2.14 writes beyond its memory on some processors (1 x 1 convolutions of stride 2, back).
LEAST_CHANNELS_LAST = 8
OF_A_SOLVER = (*SOLVER, "memory", "field_scale", "error_norm")
# flags whose defaults stand in the parser, or that stay None
OTHERS = (
    *("profile", "dataset", "network", "model", "width", "h", "max_evals", "memory", "milestones", "crop"),
    *("crop_epochs", "evaluate_every", "error_norm", "batch_norm", "seed"),
)
FIXED, ADAPTIVE = ("Euler", "RK2", "RK4"), ("HeunEuler", "RK23", "RK45")
STEPS, TOLERANCES = (1.0, 0.5, 0.2, 0.1), (1e-1, 1e-2, 1e-3)
ALL_SOLVERS = [
    *({"method": method, "h": h} for method in FIXED for h in STEPS),
    *({"method": method, "rtol": tolerance, "atol": tolerance} for method in ADAPTIVE for tolerance in TOLERANCES),
]


class Cifar(Experiment):
    name = "cifar_classification"
    train_help = "Train NODE-18, ResNet-18 or SqueezeNext on CIFAR. Defaults are the paper's."
    test_help = (
        "Test a trained model with the solver of its training or, without retraining, with another one, or many."
    )
    profiles = PROFILES
    data_env = "CIFAR_DATA"
    checkpoint_every = 100
    several, rows = True, "image"
    files = (predictions.FILE, "curves.png")

    def add_arguments(self, parser):
        parser.add_argument("--dataset", choices=["auto", *CLASSES], default="auto", help="auto: cifar10, else digits")
        parser.add_argument("--network", choices=list(NETWORKS), default="resnet", help="architecture")
        parser.add_argument(
            "--model",
            choices=["ode", "discrete"],
            default="ode",
            help="second block of every stage: an ODE, or residual",
        )
        parser.add_argument("--width", type=positive_int, help="channels of the first stage; default: the paper's")
        solver = add_solver_arguments(parser, "for --model ode", gradients=ALL_GRADIENTS, default_method="RK12",
                                      rows=self.rows)  # fmt: skip
        solver.add_argument(
            "--memory", metavar="SIZE", help="with --gradient aca, keep graphs of steps up to a size, such as 1GiB"
        )
        solver.add_argument("--field-scale", type=positive_float, help="initial weight of each field's last BatchNorm")
        branch = "with --model discrete, initial weight of the last BatchNorm in the second block of every stage"
        parser.add_argument("--branch-scale", type=positive_float, help=branch)
        training = parser.add_argument_group("training; the defaults are the profile's")
        training.add_argument("--batch-size", type=positive_int, help="images per step")
        training.add_argument("--lr", type=positive_float, help="first, or one-cycle's largest, learning rate")
        training.add_argument("--weight-decay", type=non_negative_float, help="L2 penalty of SGD")
        training.add_argument(
            "--schedule", choices=["multistep", "onecycle"], help="multistep: x0.1 at every milestone"
        )
        training.add_argument(
            "--milestones", type=positive_int, nargs="+", metavar="EPOCH", help="default: after 1/3 and 2/3 of --epochs"
        )
        training.add_argument(
            "--crop", type=int, choices=range(8, 32), metavar="SIDE", help="side, 8 to 31, of smaller images at first"
        )
        training.add_argument(
            "--crop-epochs", type=positive_int, metavar="N", help="epochs that see random crops of side --crop"
        )
        training.add_argument("--evaluate-every", type=positive_int, default=1, help="epochs between tests")
        parallel = parser.add_argument_group("several processes, by torchrun; --batch-size counts the images of all")
        parallel.add_argument(
            "--error-norm",
            choices=["local", "global"],
            default="local",
            help="the error that sets a step's size: of each process's images, or of all (all take equal steps then)",
        )
        parallel.add_argument(
            "--batch-norm",
            choices=["local", "sync"],
            default="local",
            help="statistics of each process's images, or of all; sync needs GPUs and that all take the same steps",
        )
        speed = parser.add_argument_group("speed; the defaults are the profile's")
        switch = argparse.BooleanOptionalAction
        speed.add_argument("--amp", action=switch, help="bfloat16 where autocast allows it")
        speed.add_argument("--channels-last", action=switch, help="memory format of images and weights")
        _add_download(parser)

    def profile(self, values):
        """The paper's settings, and over them those of the profile, which may have some of its own for a data set."""
        profile = self.profiles[values["profile"]]
        return PAPER | profile["settings"] | profile.get(values["dataset"], {})

    def settle(self, chosen, saved=None):
        """The same with the data set that ``auto`` stands for, which is looked for once all else is in order."""
        if saved:
            chosen = {name: value for name, value in chosen.items() if (name, value) != ("dataset", "auto")}
        settings = super().settle(chosen, saved)
        if settings["dataset"] == "auto":
            folder = chosen.get("data", self.train_parser().get_default("data"))
            found = data.resolve_auto(folder, chosen.get("download"))
            settings = super().settle(chosen | {"dataset": found}, saved)
        return settings

    def complete(self, values, chosen):
        settings = {name: values[name] for name in (*OTHERS, *PAPER)}
        settings |= joint_or_per_sample({"per_sample": values.get("per_sample")})
        settings["width"] = settings["width"] or NETWORKS[settings["network"]].PAPER_WIDTH
        if settings["width"] < LEAST_CHANNELS_LAST:
            if chosen.get("channels_last"):
                raise UsageError(f"--channels-last needs a width of at least {LEAST_CHANNELS_LAST}")
            settings["channels_last"] = False  # a profile's is for wider networks
        if settings["model"] == "ode":
            refuse(chosen, ("branch_scale",), "--model ode has vector fields instead of branches: see --field-scale")
            settings["branch_scale"] = None
        if settings["model"] == "discrete":
            refuse(chosen, OF_A_SOLVER, "--model discrete solves no ODE")
            settings |= dict.fromkeys(OF_A_SOLVER)
        elif settings["method"] in FIXED_STEP_METHODS:
            refuse(chosen, ("rtol", "atol", "error_norm"), f"{settings['method']} has fixed steps")
            settings |= dict.fromkeys(("rtol", "atol", "error_norm"))
        elif settings["gradient"] == "mali" and "method" not in chosen:
            settings["method"] = "ALF"
        if settings["gradient"] != "aca" and "memory" not in chosen:
            settings["memory"] = None  # a profile's is for aca
        if settings["gradient"] in PEERS:
            refuse(chosen, ("max_evals", "compile", "per_sample"), f"{settings['gradient']} has no such option")
        if settings["schedule"] == "onecycle":
            refuse(chosen, ("milestones",), "--schedule onecycle has none")
            settings["milestones"] = None
        elif settings["milestones"] is None:
            settings["milestones"] = [max(1, round(share * settings["epochs"])) for share in (1 / 3, 2 / 3)]
        if (settings["crop"] is None) != (settings["crop_epochs"] is None):
            raise UsageError("--crop and --crop-epochs go together: give both")
        if settings["model"] == "ode":
            with usage_errors():
                make_block(nn.Identity(), **network_solver(settings))
            check_collectives(settings)
        if settings["dataset"] == "digits":
            refuse(chosen, ("data",), "the digits come with scikit-learn")
        return settings

    def extendable(self, settings):
        return settings["schedule"] == "multistep" or "only a multistep schedule can be extended"

    def title(self, settings):
        network = NETWORKS[settings["network"]]
        scaled_down = []
        if settings["width"] < network.PAPER_WIDTH:
            scaled_down.append(f"width {settings['width']} of {network.PAPER_WIDTH}")
        if settings["epochs"] < PAPER_EPOCHS:
            scaled_down.append(f"{settings['epochs']} of {PAPER_EPOCHS} epochs")
        if settings.get("limit"):  # of a test
            scaled_down.append(f"the first {settings['limit']} test images")
        text = f"{network.TITLES[settings['model']]} on {TITLES[settings['dataset']]}"
        return f"{text}, scaled down: {', '.join(scaled_down)}" if scaled_down else text

    def place(self, settings):
        """A folder named like the authors' after what sets the run apart."""
        solved = settings["model"] == "ode"
        parts = [settings["network"], settings["method"] if solved else "discrete", "lr", settings["lr"]]
        parts += ["h", settings["h"], settings["gradient"]] if solved else []
        parts += ["per_sample"] * bool(settings.get("per_sample"))
        parts += [settings["dataset"], "width", settings["width"]]
        return "_".join(map(str, [*parts, "epochs", settings["epochs"], "seed", settings["seed"]]))

    def training(self, settings, device, args, processes):
        images = data.load(
            settings["dataset"], args.data, args.download, device=device, channels_last=settings["channels_last"]
        )
        return CifarTraining(settings, images, device, processes)

    # tests

    def add_test_arguments(self, parser):
        parser.add_argument(
            "--all-solvers",
            action="store_true",
            help=f"each of the {len(ALL_SOLVERS)} solvers of the paper's supplement but those recorded already",
        )
        parser.add_argument(
            "--predictions", action="store_true", help="also keep what is said about each image, in predictions.npz"
        )
        parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N test images")
        parser.add_argument("--batch-size", type=positive_int, help="images at a time; the default is that of training")
        parser.add_argument(
            "--amp",
            action=argparse.BooleanOptionalAction,
            help="bfloat16 where it is safe; the default is that of training",
        )
        _add_download(parser)

    def test_solvers(self, settings, chosen):
        if not chosen.get("all_solvers"):
            return [self._test_solver(settings, chosen)]
        refuse(chosen, (*TEST_SOLVER, "predictions"), "--all-solvers tests with many solvers")
        if settings["model"] == "discrete":
            raise UsageError("--all-solvers needs an ODE network; this one is discrete")
        return [self._test_solver(settings, solver) for solver in ALL_SOLVERS]

    def _test_solver(self, settings, chosen):
        """The solver of a test; ALF, which only MALI has, stays. With --method other tolerances than the training's
        default to the paper's, as a network trained with fixed steps has none."""
        own = joint_or_per_sample({name: settings.get(name) for name in TEST_SOLVER})
        if settings["model"] == "discrete":
            refuse(chosen, TEST_SOLVER, "--model discrete solves no ODE")
            return own
        if "method" in chosen:
            own |= {"rtol": PAPER["rtol"], "atol": PAPER["atol"], "h": None}
        own |= {name: chosen[name] for name in TEST_SOLVER if name in chosen}
        if own["method"] in FIXED_STEP_METHODS:
            refuse(chosen, ("rtol", "atol"), f"{own['method']} has fixed steps")
            own |= {"rtol": None, "atol": None}
        own = joint_or_per_sample(own)
        with usage_errors():
            make_block(nn.Identity(), **_keywords(own))
        return own

    def tester(self, settings, state, device, args):
        batch_size = args.batch_size or settings["batch_size"]
        amp = settings["amp"] if args.amp is None else args.amp
        images = data.load(
            settings["dataset"], args.data, args.download, device=device, channels_last=settings["channels_last"]
        ).with_tests(args.limit)
        own = dict.fromkeys(("memory", "compile", "per_sample")) | {"method": "RK12", "rtol": 1e-2, "atol": 1e-2}
        model = build_model(settings | own | {"gradient": settings["gradient"] and "aca"}).to(device)
        model.load_state_dict(state["model"])
        known = {
            "title": self.title(settings | {"limit": args.limit}),
            "parameters": parameter_count(model),
            "batch_size": batch_size,
            "amp": amp,
            "images": len(images.test),
            "best_test_accuracy_in_training": state["best_accuracy"],
        }
        print(f"Total number of parameters: {known['parameters']}")
        print(f"Best Acc@1: {state['best_accuracy']:.2%} (in training, selected on the test images)")

        def measure(solver):
            if settings["model"] == "ode":
                set_solver(model, **_keywords(solver))
            keep = predictions.Collector() if args.predictions else None
            result = evaluate(model, images.test_batches(batch_size), device, amp=amp, each=keep)
            if keep:
                folder = Path(args.out) if args.out else _run_folder(args.resume)
                print(f"predictions: {keep.write(folder, state['epoch'])}")
            accuracy = {"test_accuracy": result.accuracy, "test_loss": result.loss}
            return accuracy | {"nfe_per_block": result.solver[:, 0].tolist()}, {}

        return known, measure

    def test_line(self, row):
        evaluations = ", ".join(f"{value:.1f}" for value in row["nfe_per_block"])
        evaluations = f"; NFE per block {evaluations}" if evaluations else ""  # none in a discrete network
        accuracy = row["test_accuracy"]
        return f"Test Acc@1: {accuracy:.2%}, error {1 - accuracy:.2%}{evaluations}, {row['seconds']:.1f} s"


def _add_download(parser):
    parser.add_argument(
        "--download",
        action=argparse.BooleanOptionalAction,
        help="download CIFAR if it is missing; by default only into data/, not into a folder given by --data",
    )


def _run_folder(where):
    return Path(where) if Path(where).is_dir() else Path(where).parent


def _keywords(solver):
    """Keywords of `make_block` for the solver of a test."""
    gradient = "mali" if solver["method"] == "ALF" else "aca"
    given = {name: value for name, value in solver.items() if value is not None or name == "h"}
    return given | {"gradient": gradient}
