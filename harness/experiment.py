"""What an experiment says about itself. `harness.training` and `harness.testing` do the rest, for all of them alike."""

from abc import ABC, abstractmethod
from pathlib import Path

from harness.cli import (
    ArgumentParser,
    UsageError,
    add_common_arguments,
    add_machine_arguments,
    flag,
    non_negative_int,
    positive_int,
    read_arguments,
)
from harness.environment import ROOT
from harness.solvers import add_test_solver_arguments, settle_test_solver, solver_of

LAST, BEST = "checkpoint.pt", "best.pt"


class Experiment(ABC):
    """One experiment: to be subclassed. Settings are a dict that JSON can hold; a run is determined by them.

    Attributes:
        name: of its folder, of its folder in results/, and the kind of its checkpoints.
        train_help, test_help: first lines of --help.
        profiles: settings by name; the first is the default. A setting is taken from the first that has it: the
            command line, the profile, the defaults of the flags. A resumed run keeps its own.
        epochs_help: what an epoch is.
        data, data_env: default of --data, and the environment variable that sets it; neither: there is no such flag.
        checkpoint_every: default of the flag.
        several: whether torchrun can start several processes that train one model together.
        rows: what of a batch can take steps of its own, for the flag --per-sample of a test; None: nothing.
        files: names of what its tests and figures write into a run folder, beside the record.
    """

    name = train_help = test_help = ""
    profiles = {}
    epochs_help = "passes through the data"
    data = data_env = None
    checkpoint_every = 10
    several = False
    rows = None
    files = ()

    @property
    def results(self):
        return ROOT / "results" / self.name

    # to be defined

    @abstractmethod
    def add_arguments(self, parser):
        """Add the flags of its settings but --profile, --epochs and --seed."""

    @abstractmethod
    def complete(self, values, chosen):
        """The settings, from the ``values`` of all options, of which ``chosen`` are those on the command line.

        Raises:
            UsageError: options that contradict each other, or one was chosen that the others leave without effect.
        """

    @abstractmethod
    def title(self, settings):
        """What was run, for figures and tables; a scaled-down run says so."""

    @abstractmethod
    def place(self, settings):
        """Run folder of these settings below results/NAME."""

    @abstractmethod
    def training(self, settings, device, args, processes):
        """The `Training` of a run; ``args`` has the machine's options. UsageError if these do not go with it."""

    @abstractmethod
    def tester(self, settings, state, device, args):
        """What tests the weights in the checkpoint ``state``: fields of the record that are known before, and a
        function that takes a solver (keywords of `solve`, or None) and returns the other fields, and texts of files by
        name, one of ``files``."""

    @abstractmethod
    def test_line(self, row):
        """What is printed of a test's row."""

    # as they are in most experiments

    def add_test_arguments(self, parser):  # noqa: B027  # there need be none
        """Add further flags of a test."""

    def profile(self, values):
        """Settings of the profile that was chosen, which may depend on the values of other options."""
        return self.profiles[values["profile"]]

    def extendable(self, settings):
        """Whether a run with these settings can go on for more epochs than it was started with; or a reason why not."""
        return True

    def test_solvers(self, settings, chosen):
        """The solvers to test with, as the command line wants them."""
        return [settle_test_solver(solver_of(settings), chosen)]

    # what follows from all this

    def train_parser(self):
        """The command line of training."""
        parser = ArgumentParser(self.train_help)
        names = list(self.profiles)
        parser.add_argument("--profile", choices=names, default=names[0], help="sizes and schedule; other flags win")
        epochs = f"{self.epochs_help}; the default is the profile's"
        parser.add_argument("--epochs", "--num-epochs", type=positive_int, help=epochs)
        self.add_arguments(parser)
        run = add_common_arguments(parser, out=None, data=self.data, data_env=self.data_env)
        run.add_argument(
            "--resume",
            metavar="WHERE",
            help="run folder or checkpoint to go on from; auto: go on if the run folder of these settings has a "
            "checkpoint, else start",
        )
        run.add_argument(
            "--checkpoint-every",
            type=non_negative_int,
            default=self.checkpoint_every,
            metavar="N",
            help="steps between checkpoints; there is also one after each epoch of several steps; 0: no others",
        )
        run.add_argument(
            "--stop-after", type=positive_int, metavar="N", help="stop, as after Ctrl-C, after this many steps in all"
        )
        run.add_argument("--print-folder", action="store_true", help="print the run folder of these settings, and stop")
        return parser

    def test_parser(self):
        """The command line of a test."""
        parser = ArgumentParser(self.test_help)
        parser.add_argument("--resume", required=True, metavar="WHERE", help="run folder, or checkpoint")
        parser.add_argument(
            "--weights",
            choices=["best", "last"],
            help=f"of a run folder: {BEST} (best, the default) or {LAST} (last)",
        )
        add_test_solver_arguments(parser, rows=self.rows)
        self.add_test_arguments(parser)
        parser.add_argument(
            "--out",
            metavar="DIR",
            help="where tests.jsonl and the files to draw from go; the default is the run folder, which gets the "
            "latter only with training's own solver",
        )
        add_machine_arguments(parser, data=self.data, data_env=self.data_env)
        return parser

    def settle(self, chosen, saved=None):
        """The settings of a new run from the options ``chosen``, or of one that goes on with the settings ``saved``.

        Raises:
            UsageError: the options contradict each other, or what was saved. More epochs are no contradiction.
        """
        parser = self.train_parser()
        defaults = {action.dest: parser.get_default(action.dest) for action in parser._actions}
        base = defaults | (saved or {})
        profile = self.profile(base | chosen) if "profile" in chosen or not saved else {}
        settings = self.complete(base | profile | chosen, chosen)
        for name, value in (saved or {}).items():
            if settings.get(name) == value:
                continue
            reason = ""
            if name == "epochs" and settings[name] > value:
                extendable = self.extendable(saved)
                if extendable is True:
                    continue
                reason = f" ({extendable})"
            raise UsageError(f"{flag(name)} {chosen.get(name, settings.get(name))} contradicts the run to resume, "
                             f"which has {value}{reason}")  # fmt: skip
        return settings

    def new_settings(self, *argv):
        """Settings of a new run from a command line."""
        return self.settle(read_arguments(self.train_parser(), argv)[1])

    def folder(self, settings, out=None):
        """The run folder: ``out``, or the place of the settings."""
        return Path(out) if out else self.results / self.place(settings)
