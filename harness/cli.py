"""Command lines: one clear line and exit code 2 for bad input, and the flags that every script shares."""

import argparse
import contextlib
import math
import os
import sys

import torch

FAILED, INTERRUPTED = 1, 130  # exit codes


class UsageError(Exception):
    """Bad input from the user. The message is one line: what was given and what is accepted."""


@contextlib.contextmanager
def usage_errors():
    """Turn a ValueError raised inside, where a library validates what the user gave, into a UsageError.

    Wrap only the validating call: a ValueError from anywhere else is a bug and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def run_main(main, argv=None):
    """Call ``main(argv)`` and leave the process with the exit code it returns (None counts as 0).

    0: done; 1: failed, with a row in the record; 2: wrong usage, a UsageError, whose one line goes to stderr;
    130: interrupted, by `train` with a checkpoint.
    """
    try:
        code = main(argv)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default, except None: there the help text itself says what happens without the flag."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with defaults in --help, no abbreviated flags, and errors of one line instead of the usage."""

    def __init__(self, description=None, **keywords):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False, **keywords)

    def error(self, message):
        self.exit(2, f"error: {message} (--help lists the options)\n")


def _number(convert, accepted, holds):
    """An argparse type: ``convert`` the text, refuse what does not hold, saying what is accepted."""

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not math.isfinite(value) or not holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {accepted}")
        return value

    return parse


positive_float = _number(float, "a number above 0", lambda value: value > 0)
non_negative_float = _number(float, "a number of at least 0", lambda value: value >= 0)
positive_int = _number(int, "a whole number of at least 1", lambda value: value >= 1)
non_negative_int = _number(int, "a whole number of at least 0", lambda value: value >= 0)
fraction = _number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
seed = _number(int, "a whole number from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)


def add_machine_arguments(parser, *, data=None, data_env=None):
    """Add the flags that say where to work, not what at: --device --threads and --data.

    Args:
        parser: an argparse parser or group.
        data: default of --data; the flag is there only if this or ``data_env`` is given.
        data_env: environment variable that takes precedence over ``data``.
    """
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto (CUDA where there is one)")
    parser.add_argument("--threads", type=positive_int, help="CPU threads; the default is PyTorch's choice")
    if data or data_env:
        source = f"data folder; ${data_env} sets the default" if data_env else "data folder"
        without = "" if data else ", else data/"
        default = os.environ.get(data_env or "") or data
        parser.add_argument("--data", default=default, metavar="DIR", help=source + without)


def add_common_arguments(parser, *, out, data=None, data_env=None):
    """Add the flags that every script which makes a record shares: --seed --out --overwrite and those of the machine.

    Args:
        parser: an argparse parser.
        out: default of --out, the run folder; None where the script derives it from its other arguments.
        data, data_env: as for `add_machine_arguments`.
    """
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=seed, default=0, help="seed of every random number")
    derived = "" if out else "; by default it is named after the arguments"
    group.add_argument("--out", default=out, metavar="DIR", help="run folder" + derived)
    group.add_argument("--overwrite", action="store_true", help="replace the record that the run folder already holds")
    add_machine_arguments(group, data=data, data_env=data_env)
    return group


def read_arguments(parser, argv=None):
    """The command line as (all options: a namespace, those that it names: a dict)."""
    args, unset = parser.parse_args(argv), object()
    values = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset))))
    return args, {name: value for name, value in values.items() if value is not unset}


def flag(name):
    """The flag of an option's name."""
    return "--" + name.replace("_", "-")


def refuse(chosen, names, reason):
    """UsageError if one of ``names`` was chosen."""
    for name in names:
        if name in chosen:
            raise UsageError(f"{flag(name)} would have no effect: {reason}")


def apply_common_arguments(args):
    """Act on --device and --threads: returns the torch.device. Raises UsageError if the device is not there."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    return device


def resolve_device(name):
    """The torch.device called auto, cpu, cuda, cuda:N or mps.

    Raises:
        UsageError: an unknown name, or a device that this machine or this PyTorch does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: accepted are auto, cpu, cuda, cuda:N and mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: no CUDA device is available here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here, counted from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: MPS is not available here; use --device cpu")
    return device
