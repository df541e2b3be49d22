"""Training, the same for every experiment: the command line, the loop, checkpoints, resuming, and how a run ends.

A run folder holds run.json (arguments, settings, environment), metrics.jsonl (a row for each epoch, or an error),
checkpoint.pt and best.pt, and summary.json once the run has ended. A run that goes on from a checkpoint, wherever that
was taken, ends bit for bit like an uninterrupted one.
"""

import contextlib
import copy
import math
import shlex
import sys
from pathlib import Path

import torch

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.cli import FAILED, INTERRUPTED, UsageError, apply_common_arguments, read_arguments, refuse
from harness.distributed import ALONE, processes
from harness.experiment import BEST, LAST
from harness.files import check_folder
from harness.interrupt import GracefulStop
from harness.progress import progress
from harness.record import NoRun, Run, read_run
from torch_ACA import SolverError

FINISHED = "finished"


class TrainingFailed(Exception):
    """No step can be taken from here. The message says why."""


class Training:
    """A model in training, of which ``step`` steps are done, ``batches`` of them an epoch. To be subclassed: `loss`.

    Everything has to be determined by the settings and the step; what is drawn comes from generators without history.
    ``evaluations`` are those of the vector field so far, forward and backward. ``best`` has the weights for which the
    scalar called ``criterion`` was least: those it was computed with, where an epoch is one step, else those after the
    epoch that it is the mean of. A criterion that `loss` does not give is for `end_epoch` to hand to `keep_best`.
    """

    criterion = "Train/Loss"
    keeps_weights = True  # as they were before a step that fails

    def __init__(self, settings, model, optimizer, batches=1):
        self.settings, self.model, self.optimizer, self.batches = settings, model, optimizer, batches
        self.step = 0
        self.evaluations = {"forward": 0, "backward": 0}
        self.best = {"epoch": 0, "value": math.inf, "model": copy.deepcopy(model.state_dict())}
        self._sums = {}

    @property
    def epoch(self):
        """Finished epochs."""
        return self.step // self.batches

    @property
    def finished(self):
        return self.epoch >= self.settings["epochs"]

    # to be defined

    def loss(self):
        """The loss of the next step, scalars for the record by tag, and the `Stats` of the solve (None: no solve); not
        needed where a class has an `advance` of its own."""
        raise NotImplementedError

    def learning_rate(self):
        """That of the next step."""
        return self.settings["lr"]

    def end_epoch(self, scalars):
        """The row of metrics for an epoch that has ended, as (scalars, extra); None to leave it out.

        Raises:
            TrainingFailed: a solve in a test gave up.
        """
        return scalars, {}

    def summary(self):
        """What goes into the record of a run that has ended, beside its status and sizes."""
        return {}

    # as they are in most experiments

    def advance(self):
        """Take a step; returns the row of metrics of an epoch that ends with it, as (scalars, extra), or None.

        Raises:
            TrainingFailed: the solver gave up, or the loss or its gradient is not finite. The weights stay.
        """
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        try:
            loss, scalars, stats = self.loss()
            loss.backward()
        except SolverError as failure:
            raise TrainingFailed(f"{self._where()}: {failure}") from failure
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        loss, gradient = float(loss.detach()), float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(loss + gradient):
            raise TrainingFailed(f"{self._where()}: loss {loss:g} with gradient of norm {gradient:g}")
        scalars = {"Train/Loss": loss, **{tag: float(value) for tag, value in scalars.items()}}
        scalars["Train/GradientNorm"] = gradient
        if stats is not None:
            self.evaluations["forward"] += stats.n_f_evals
            self.evaluations["backward"] += stats.n_backward_f_evals
            scalars |= {"Solver/Forward": stats.n_f_evals, "Solver/Backward": stats.n_backward_f_evals}
        self._sums = {tag: self._sums.get(tag, 0.0) + value for tag, value in scalars.items()}
        if self.batches == 1:
            self.keep_best(self.epoch + 1, self._sums)
        self.optimizer.step()
        self.step += 1
        if self.step % self.batches:
            return None
        means, self._sums = {tag: value / self.batches for tag, value in self._sums.items()}, {}
        if self.batches > 1:
            self.keep_best(self.epoch, means)
        return self.end_epoch(means | {"Train/LearningRate": rate})

    def _where(self):
        batch = f", batch {self.step % self.batches + 1}" if self.batches > 1 else ""
        return f"epoch {self.epoch + 1}{batch}"

    def keep_best(self, epoch, scalars):
        """Keep the weights if the criterion is among these scalars, and less than it ever was."""
        value = scalars.get(self.criterion, math.inf)
        if value < self.best["value"]:
            self.best = {"epoch": epoch, "value": value, "model": copy.deepcopy(self.model.state_dict())}

    def new_best(self, written):
        """What best.pt is to hold, if that is of another epoch than the one ``written`` last (None: none was)."""
        if self.best["epoch"] == written:
            return None
        return {"settings": self.settings, **self.best}

    def state(self):
        """What a checkpoint holds; for all processes to call. TrainingFailed if that is worth nothing."""
        return {
            "settings": self.settings,
            "epoch": self.epoch,
            "step": self.step,
            "evaluations": self.evaluations,
            "sums": self._sums,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state):
        """Go on from where `state` was taken."""
        if "step" not in state:
            raise UsageError("the checkpoint is of an earlier version of this experiment: it cannot be gone on from")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.evaluations = state["step"], state["evaluations"]
        self.best, self._sums = state["best"], state["sums"]

    def line(self, scalars):
        """A line to print for a row of metrics; None: none."""
        return None

    def outcome(self, summary):
        """The last line on a run that has ended."""
        return f"{summary['status']} after {self.epoch} epochs; best {self.criterion} {self.best['value']:.3g}"


def train(experiment, argv=None):
    """train.py's main: returns the exit code."""
    args, chosen = read_arguments(experiment.train_parser(), argv)
    joined = processes(args.device) if experiment.several else contextlib.nullcontext((ALONE, args.device))
    with joined as (group, device_name):
        settings, folder, state = _find_run(experiment, args, chosen)
        if args.print_folder:
            print(folder)
            return 0
        check_folder(folder)
        group.any(False)  # nobody writes before all have looked at what is there
        args.device = device_name
        device = apply_common_arguments(args)
        if state and (ended := _ended(folder, settings)):
            print(f"{ended} already: {folder}", file=sys.stderr if ended != FINISHED else sys.stdout)
            return 0 if ended == FINISHED else FAILED
        training = experiment.training(settings, device, args, group)
        if state:
            training.load(state)
        if args.stop_after and args.stop_after <= training.step:
            raise UsageError(f"--stop-after {args.stop_after}: the run to resume has {training.step} steps already")
        run = _open(experiment, args, settings, folder, training if state else None) if group.first else NoRun(folder)
        print(f"{experiment.title(settings)} -> {folder}", flush=True)
        return _loop(experiment, training, run, args, group)


def _find_run(experiment, args, chosen):
    """What the command line asks for: settings, run folder and, where a run is to go on, the state in its checkpoint.

    Raises:
        UsageError: the options contradict each other or the checkpoint, or it cannot be read.
    """
    if args.resume and args.resume != "auto":
        refuse(chosen, ("out", "overwrite"), "a resumed run stays in its folder")
        state, path = read_checkpoint(experiment, args.resume, LAST)
        return experiment.settle(chosen, state["settings"]), path.parent, state
    settings = experiment.settle(chosen)
    folder = experiment.folder(settings, args.out)
    if args.resume and (folder / LAST).exists():
        state, _ = read_checkpoint(experiment, folder, LAST)
        return experiment.settle(chosen, state["settings"]), folder, state
    return settings, folder, None


def read_checkpoint(experiment, where, name):
    """The state in a checkpoint, or in the one called ``name`` (LAST or BEST) of a run folder, and the file's path.

    Raises:
        UsageError: it is not there, damaged, or not of this experiment.
    """
    path = Path(where)
    path = path / name if path.is_dir() else path
    state = load_checkpoint(path, kind=experiment.name)
    if missing := {"settings", "epoch", "model"} - state.keys():
        raise UsageError(f"{path} is of an earlier version of this experiment: it lacks {', '.join(sorted(missing))}")
    return state, path


def _ended(folder, settings):
    """The status of a run that has ended and has no further epochs to go; None otherwise."""
    summary = read_run(folder)["summary"]
    if summary is None or (summary["status"] == FINISHED and summary["epochs"] < settings["epochs"]):
        return None
    return summary["status"]


def _open(experiment, args, settings, folder, resumed):
    """The `Run` of a new run, or of the `Training` that was ``resumed``."""
    arguments = {name: value for name, value in vars(args).items() if name != "data"}  # the machine's own folder
    if resumed:
        return Run.resume(folder, arguments, step=resumed.epoch, settings=settings)
    overwrite = args.overwrite or args.resume == "auto"
    kind, files = experiment.name, experiment.files
    return Run.start(folder, arguments, kind=kind, settings=settings, overwrite=overwrite, files=files)


def _loop(experiment, training, run, args, group):
    settings, folder = training.settings, run.folder
    written = None  # epoch of the model in best.pt
    total, every = settings["epochs"] * training.batches, args.checkpoint_every

    def save():
        nonlocal written
        state, best = training.state(), training.new_best(written)
        if best is not None:
            written = best["epoch"]
            if group.first:
                save_checkpoint(folder / BEST, best, kind=experiment.name)
        if group.first:
            run.sync()
            save_checkpoint(folder / LAST, state, kind=experiment.name)

    with GracefulStop() as stop:
        try:
            for _ in progress(range(training.step, total), desc=folder.name, shown=group.first):
                row = training.advance()
                if row is not None:
                    run.log(training.epoch, row[0], **row[1])
                    if line := training.line(row[0]):
                        print(line, flush=True)
                stopping = group.any(stop.requested or training.step == args.stop_after) and not training.finished
                at_end = training.batches > 1 and training.step % training.batches == 0
                if stopping or at_end or training.finished or (every and training.step % every == 0):
                    save()
                if stopping:
                    run.close()
                    if group.first:
                        again = f"python {experiment.name}/train.py --resume {shlex.quote(str(folder))}"
                        if getattr(args, "data", None) not in (None, experiment.data):
                            again += f" --data {shlex.quote(str(args.data))}"
                        print(f"stopped after {training.step} of {total} steps; go on with: {again}", file=sys.stderr)
                    return INTERRUPTED
            status = FINISHED
        except TrainingFailed as failure:
            status = f"failed in {failure}"
            run.log(training.epoch + 1, error=str(failure))
            if training.keeps_weights:
                save()
        summary = {
            "status": status,
            "title": experiment.title(settings),
            "epochs": training.epoch,
            "parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
            **training.summary(),
        }
        run.finish(summary)
    if status != FINISHED:
        if group.first:
            print(f"error: {status}", file=sys.stderr)
        return FAILED
    print(training.outcome(summary))
    return 0
