"""Command lines of this experiment: what a run is made of, and what may change when it is resumed or tested again.

A setting is taken from the first that has it: the command line, the profile, the paper. A resumed run keeps its own.
"""

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

from torch import nn

from cifar_classification.data import CLASSES, TITLES
from cifar_classification.models import NETWORKS, scale_fields
from cifar_classification.models.blocks import ALL_GRADIENTS, make_block
from harness.cli import (
    ArgumentParser,
    UsageError,
    add_common_arguments,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    usage_errors,
)
from torch_ACA import FIXED_STEP_METHODS, METHODS

RESULTS = Path(__file__).resolve().parent.parent / "results" / "cifar_classification"
PROFILES = {path.stem: path for path in sorted((Path(__file__).parent / "profiles").glob("*.json"))}
PAPER_EPOCHS = 90
DATA_VARIABLE = "CIFAR_DATA"
TOLERANCE = 1e-2
SOLVER = ("method", "rtol", "atol", "h", "gradient", "memory")
GLOBAL_NORM_GRADIENTS = ("aca", "direct", "mali")
# of the machine or of the record, so free to differ between the parts of one run
UNSETTLED = ("device", "threads", "data", "download", "out", "overwrite", "resume", "checkpoint_every", "print_folder")


def recorded(chosen):
    """The settings as the record keeps them: without the machine's own folder of the data."""
    return {name: value for name, value in vars(chosen).items() if name != "data"}


def method_name(text):
    """argparse type: one of METHODS, whatever its case (rk4 is the classic RK4, as in the authors' scripts)."""
    for method in METHODS:
        if text.lower() == method.lower():
            return method
    raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(METHODS)}")


def add_solver_arguments(parser, *, method=None, tolerance=None):
    """Add --method --rtol --atol --h, with these defaults."""
    parser.add_argument(
        "--method", type=method_name, default=method, metavar="NAME", help=f"one of {', '.join(METHODS)}"
    )
    parser.add_argument("--rtol", type=non_negative_float, default=tolerance, help="relative tolerance")
    parser.add_argument("--atol", type=non_negative_float, default=tolerance, help="absolute tolerance")
    parser.add_argument(
        "--h", type=positive_float, help="size of fixed steps, or of the first adaptive one (without it: Hairer's rule)"
    )


def add_data_arguments(parser):
    """Add --data and --download."""
    parser.add_argument(
        "--data",
        default=os.environ.get(DATA_VARIABLE) or None,
        metavar="DIR",
        help=f"folder of CIFAR; ${DATA_VARIABLE} sets the default (without either: data/)",
    )
    parser.add_argument(
        "--download",
        action=argparse.BooleanOptionalAction,
        help="fetch CIFAR where it is not there (without the flag: only into data/, not into a folder that was named)",
    )


def training_parser():
    parser = ArgumentParser("Train NODE-18, ResNet-18 or SqueezeNext on CIFAR. Defaults are the paper's.")
    parser.add_argument(
        "--profile", choices=list(PROFILES), default="paper", help="settings from profiles/; other flags win"
    )
    parser.add_argument("--dataset", choices=["auto", *CLASSES], default="auto", help="auto: cifar10, else digits")
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet", help="architecture")
    parser.add_argument(
        "--model", choices=["ode", "discrete"], default="ode", help="second block of every stage: an ODE, or residual"
    )
    parser.add_argument("--width", type=positive_int, help="channels of the first stage (without it: the paper's)")

    solver = parser.add_argument_group("solver, for --model ode")
    add_solver_arguments(solver, method="RK12", tolerance=TOLERANCE)
    solver.add_argument("--gradient", choices=ALL_GRADIENTS, default="aca", help="gradient method")
    solver.add_argument(
        "--memory", metavar="SIZE", help="with --gradient aca, keep graphs of steps up to a size, such as 1GiB"
    )
    solver.add_argument(
        "--field-scale", type=positive_float, default=1.0, help="initial weight of each vector field's last BatchNorm"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", "--num-epochs", type=positive_int, default=PAPER_EPOCHS, help="passes over data")
    training.add_argument("--batch-size", type=positive_int, default=128, help="images per step")
    training.add_argument("--lr", type=positive_float, default=0.1, help="first, or one-cycle's largest, learning rate")
    training.add_argument("--weight-decay", type=non_negative_float, default=5e-4, help="L2 penalty of SGD")
    training.add_argument(
        "--schedule", choices=["multistep", "onecycle"], default="multistep", help="multistep: x0.1 at every milestone"
    )
    training.add_argument(
        "--milestones", type=positive_int, nargs="+", metavar="EPOCH", help="(without it: a third and two thirds)"
    )
    training.add_argument(
        "--crop", type=int, choices=range(8, 32), metavar="SIDE", help="side, 8 to 31, of smaller images to begin with"
    )
    training.add_argument(
        "--crop-epochs", type=positive_int, metavar="N", help="epochs that see random crops of side --crop"
    )
    training.add_argument("--evaluate-every", type=positive_int, default=1, help="epochs between tests")
    training.add_argument(
        "--checkpoint-every", type=non_negative_int, default=100, help="batches between checkpoints; 0: an epoch's"
    )

    parallel = parser.add_argument_group("several processes, by torchrun; --batch-size counts the images of all")
    parallel.add_argument(
        "--error-norm",
        choices=["local", "global"],
        default="local",
        help="the error that sets a step's size: of each process's images, or of all (then all take the same steps)",
    )
    parallel.add_argument(
        "--batch-norm",
        choices=["local", "sync"],
        default="local",
        help="statistics of each process's images, or of all; sync needs GPUs and that all take the same steps",
    )

    speed = parser.add_argument_group("speed")
    switch = argparse.BooleanOptionalAction
    speed.add_argument("--amp", action=switch, default=False, help="bfloat16 where autocast allows it")
    speed.add_argument("--channels-last", action=switch, default=False, help="memory format of images and weights")
    speed.add_argument("--compile", action=switch, default=False, help="torch.compile the blocks")

    add_common_arguments(parser, out=None)
    add_data_arguments(parser)
    parser.add_argument("--print-folder", action="store_true", help="print the run folder of these settings, and stop")
    return parser


def read(parser, argv):
    """The command line as (defaults, chosen): two dicts, ``chosen`` with what ``argv`` names only."""
    names, unset = vars(parser.parse_args(argv)), object()
    values = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset))))
    chosen = {name: value for name, value in values.items() if value is not unset}
    return {name: parser.get_default(name) for name in names}, chosen


def settle(base, chosen):
    """All options of a run: ``chosen`` over its profile over ``base``, and those filled in that depend on others.

    Raises:
        UsageError: an option was chosen that the others leave without effect.
    """
    options = SimpleNamespace(**(base | _profile(base, chosen) | chosen))
    options.width = options.width or NETWORKS[options.network].PAPER_WIDTH
    if options.model == "discrete":
        unused = (*SOLVER, "field_scale", "error_norm")
        refuse(chosen, unused, "--model discrete solves no ODE")
        vars(options).update(dict.fromkeys(unused))
    elif options.method in FIXED_STEP_METHODS:
        unused = ("rtol", "atol", "error_norm")
        refuse(chosen, unused, f"{options.method} has fixed steps")
        vars(options).update(dict.fromkeys(unused))
    if options.schedule == "onecycle":
        refuse(chosen, ("milestones",), "--schedule onecycle has none")
        options.milestones = None
    elif options.milestones is None:
        options.milestones = [max(1, round(share * options.epochs)) for share in (1 / 3, 2 / 3)]
    if (options.crop is None) != (options.crop_epochs is None):
        raise UsageError("--crop and --crop-epochs go together: give both")
    if options.model == "ode":
        with usage_errors():
            make_block(nn.Identity(), **solver_of(options))
        _check_collectives(options)
    if options.dataset == "digits":
        refuse(chosen, ("data",), "the digits come with scikit-learn")
    return options


def _check_collectives(options):
    """UsageError if processes could come to wait for each other in vain, or would get gradients that are not theirs."""
    if options.error_norm == "global" and options.gradient not in GLOBAL_NORM_GRADIENTS:
        raise UsageError(
            f"--error-norm global goes with --gradient {' '.join(GLOBAL_NORM_GRADIENTS)}: "
            f"{options.gradient} has a norm in its backward pass too"
        )
    if options.batch_norm == "sync" and (options.error_norm == "local" or options.memory):
        cause = "--memory, by which they may" if options.memory else "--error-norm local, by which processes"
        raise UsageError(f"--batch-norm sync does not go with {cause} evaluate different numbers of times and deadlock")


def _profile(base, chosen):
    """The settings of the profile that was chosen; it may have some of its own for a data set."""
    if "profile" not in chosen:
        return {}
    profile = json.loads(PROFILES[chosen["profile"]].read_text())
    return profile["settings"] | profile.get((base | chosen)["dataset"], {})


def settle_resumed(defaults, saved, chosen):
    """The options of a run that goes on with the settings ``saved`` in its checkpoint.

    Raises:
        UsageError: the command line contradicts them. More epochs are no contradiction where the schedule permits.
    """
    options = settle(defaults | saved, {name: value for name, value in chosen.items() if value != "auto"})
    for name, value in saved.items():
        new = getattr(options, name)
        if new == value or (name == "epochs" and saved["schedule"] == "multistep" and new > value):
            continue
        hint = " (only a multistep schedule can be extended)" if name == "epochs" else ""
        raise UsageError(f"{flag(name)} {new} contradicts the run to resume, which has {value}{hint}")
    return options


def settle_test(saved, chosen):
    """The options of a test of a model that was trained with the settings ``saved``.

    With --method the solver's other options start from their defaults, without it from those of the training. What is
    about gradients or several processes does not matter here.
    """
    base = vars(training_parser().parse_args([])) | saved
    if base["model"] == "ode":
        if "method" in chosen:
            base |= {"rtol": TOLERANCE, "atol": TOLERANCE, "h": None}
        gradient = "mali" if chosen.get("method", base["method"]) == "ALF" else "aca"
        base |= {"gradient": gradient, "memory": None, "error_norm": "local", "batch_norm": "local"}
    return settle(base, chosen)


def refuse(chosen, names, reason):
    """UsageError if one of ``names`` was chosen."""
    for name in names:
        if name in chosen:
            raise UsageError(f"{flag(name)} would have no effect: {reason}")


def flag(name):
    return "--" + name.replace("_", "-")


def settings_of(options):
    """The options that make a run what it is, as a dict: the same in all its parts."""
    return {name: value for name, value in vars(options).items() if name not in UNSETTLED}


def is_of_profile(options):
    """Whether a run, whose options were recorded, has the settings that its profile gives today."""
    defaults = vars(training_parser().parse_args([]))
    today = settle(defaults, {name: getattr(options, name) for name in ("profile", "dataset", "seed")})
    return all(getattr(today, name) == value for name, value in settings_of(options).items())


def solver_of(options):
    """Keywords of `make_block`; None for a discrete network."""
    if options.model == "discrete":
        return None
    return {name: getattr(options, name) for name in SOLVER if name == "h" or getattr(options, name) is not None}


def build_model(options):
    """The network, freshly initialised from the global random stream. UsageError if the width is too small for it."""
    with usage_errors():
        model = NETWORKS[options.network](options.width, CLASSES[options.dataset], solver_of(options))
    if options.model == "ode":
        scale_fields(model, options.field_scale)
    return model


def run_folder(options):
    """--out, or a folder named like the authors' after what sets the run apart."""
    if options.out:
        return Path(options.out)
    solved = options.model == "ode"
    parts = [options.network, options.method if solved else "discrete", "lr", options.lr]
    parts += ["h", options.h, options.gradient] if solved else []
    parts += [options.dataset, "width", options.width, "epochs", options.epochs, "seed", options.seed]
    return RESULTS / "_".join(map(str, parts))


def title(options):
    """What was run, for figures and tables; a scaled-down run says so."""
    network = NETWORKS[options.network]
    scaled_down = []
    if options.width < network.PAPER_WIDTH:
        scaled_down.append(f"width {options.width} of {network.PAPER_WIDTH}")
    if options.epochs < PAPER_EPOCHS:
        scaled_down.append(f"{options.epochs} of {PAPER_EPOCHS} epochs")
    if getattr(options, "limit", None):  # of a test
        scaled_down.append(f"the first {options.limit} test images")
    text = f"{network.TITLES[options.model]} on {TITLES[options.dataset]}"
    return f"{text}, scaled down: {', '.join(scaled_down)}" if scaled_down else text
