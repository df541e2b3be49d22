"""A model in training: its steps, its epochs, and the state that a checkpoint holds."""

import copy
import math
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

from cifar_classification.data import CLASSES
from cifar_classification.evaluation import autocast, evaluate, tally
from cifar_classification.models import (
    NETWORKS,
    STATS,
    ode_blocks,
    scale_branches,
    scale_fields,
    set_solver,
    solver_stats,
)
from harness.cli import UsageError, usage_errors
from harness.distributed import ALONE
from harness.resources import peak_memory_bytes
from harness.seeding import random_state, restore_random_state, seed_everything
from harness.solvers import MEMORY, SOLVER
from harness.training import Training, TrainingFailed
from torch_ACA import SolverError

MOMENTUM = 0.9


class CifarTraining(Training):
    """``epoch`` epochs are finished, and ``batch`` batches of the next one, over which ``sums`` (see `tally`) and
    ``solver`` (see `solver_stats`) have added up.

    ``accuracy`` is that of the last test, ``best_accuracy`` that of the best one, after ``best_epoch`` epochs.

    With several ``processes`` each works on its share of every batch, and all of them hold the same weights and counts.
    Left to each are step sizes, unless the error norm is global, and BatchNorm's statistics, unless these are
    synchronised: running ones are averaged where they matter, for tests and checkpoints.

    Raises:
        UsageError: the settings do not go with the device or the number of processes.
    """

    keeps_weights = False  # what a failure was found after has trained on

    def __init__(self, settings, images, device, processes=ALONE):
        self.settings, self.options = settings, SimpleNamespace(**settings)
        options = self.options
        self.images, self.device, self.processes = images, device, processes
        seed_everything(options.seed)
        self.model = build_model(settings).to(device)
        if processes.size > 1:
            self._prepare_for_several()
        if settings.get("per_sample"):
            with usage_errors():  # fields that tie images together, as BatchNorm does in training
                copy.deepcopy(self.model).train()(next(self.images.test_batches(2))[0])
        if options.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=options.lr, momentum=MOMENTUM, weight_decay=options.weight_decay
        )
        self.batches = math.ceil(len(images.train) / options.batch_size)
        self.scheduler = make_scheduler(self.optimizer, options, self.batches)
        self.epoch = self.best_epoch = 0
        self.accuracy = self.best_accuracy = 0.0
        self._begin_epoch()

    def _prepare_for_several(self):
        options, size = self.options, self.processes.size
        for images in (self.images.train, self.images.test):
            last = len(images) % options.batch_size or options.batch_size
            if last < size:  # some would have nothing to work on
                raise UsageError(
                    f"--batch-size {options.batch_size} leaves a last batch of {last} images to {size} processes"
                )
        if options.batch_norm == "sync":
            if self.device.type != "cuda":
                raise UsageError("--batch-norm sync needs CUDA devices: PyTorch synchronises BatchNorm on GPUs only")
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if options.error_norm == "global":
            set_solver(self.model, options={"norm": self.processes.rms_norm})

    def _begin_epoch(self):
        self.batch, self._left = 0, None
        self.sums = torch.zeros(3, device=self.device)
        self.solver = torch.zeros(len(ode_blocks(self.model)), len(STATS), dtype=torch.float64)

    epoch = 0  # counted here, not computed from the steps

    @property
    def step(self):
        return self.epoch * self.batches + self.batch

    def training_batches(self):
        """What is left of the epoch under way."""
        options = self.options
        crop = options.crop if self.epoch < (options.crop_epochs or 0) else None
        return self.images.training_batches(
            options.batch_size,
            seed=options.seed,
            epoch=self.epoch,
            first=self.batch,
            crop=crop,
            share=self.processes.share,
        )

    def advance(self):
        if self._left is None:
            self._left = self.training_batches()
        try:
            self.train_on(*next(self._left))
            if self.batch < self.batches:
                return None
            self.check()
            return self.finish_epoch()
        except SolverError as failure:
            raise TrainingFailed(f"{self._where()}: {failure}") from failure

    def _where(self):
        return f"epoch {self.epoch + 1}, after batch {self.batch}"

    def train_on(self, images, labels):
        """One optimiser step on a batch, of which ``images`` and ``labels`` are this process's share."""
        self.model.train()
        with autocast(self.device, self.options.amp):
            logits = self.model(images).to(images.dtype)
        loss = functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        # shares may differ in size: each counts by its part of the batch, so that the sum is the mean over all images
        (loss * (len(labels) / self._size_of_batch())).backward()
        counts = tally(loss, logits, labels)
        solver = solver_stats(self.model).double()
        self.processes.add_up([*(p.grad for p in self.model.parameters()), counts])
        self.processes.average([solver])
        self.optimizer.step()
        self.scheduler.step()
        self.sums += counts
        self.solver += solver
        self.batch += 1

    def _size_of_batch(self):
        """Images in the batch under way, the shares of all processes together."""
        return min(self.options.batch_size, len(self.images.train) - self.batch * self.options.batch_size)

    def check(self):
        """TrainingFailed if the loss or a parameter is not finite; waits for the device."""
        if not self.sums.isfinite().all():
            raise TrainingFailed(f"{self._where()}: the loss is not finite")
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise TrainingFailed(f"{self._where()}: a parameter is not finite")

    def finish_epoch(self):
        """Close the epoch and test where that is due: the scalars and the extras of its row of metrics."""
        loss, correct, total = self.sums.tolist()
        rate = self.optimizer.param_groups[0]["lr"]
        scalars = {"Train/Loss": loss / total, "Train/Accuracy": correct / total, "Train/LearningRate": rate}
        extra = {"peak_memory_bytes": peak_memory_bytes(self.device)}
        if len(self.solver):
            per_block = self.solver / self.batches
            scalars |= {f"Solver/{name}": value for name, value in zip(STATS, per_block.mean(0).tolist())}
            extra["solver_per_block"] = per_block.tolist()
        self.epoch += 1
        if self.epoch % self.options.evaluate_every == 0 or self.finished:
            self.average_statistics()
            batches = self.images.test_batches(self.options.batch_size, share=self.processes.share)
            result = evaluate(self.model, batches, self.device, amp=self.options.amp, processes=self.processes)
            scalars |= {"Test/Loss": result.loss, "Test/Accuracy": result.accuracy}
            self.accuracy = result.accuracy
            if result.accuracy > self.best_accuracy:
                self.best_epoch, self.best_accuracy = self.epoch, result.accuracy
        self._begin_epoch()
        return scalars, extra

    def average_statistics(self):
        """Give all processes the mean of their running BatchNorm statistics. To do so now or later makes no difference:
        training does not use them, and what is averaged now goes into the later mean with the same weight."""
        self.processes.average([buffer for buffer in self.model.buffers() if buffer.is_floating_point()])

    def state(self):
        """Everything that going on exactly needs. TrainingFailed if the model has diverged: the last good one stays."""
        self.check()
        self.average_statistics()
        return {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random_state": random_state(),
            **{name: getattr(self, name) for name in self.POSITION},
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        restore_random_state(state["random_state"])
        for name in self.POSITION:
            setattr(self, name, state[name])
        self.sums, self.solver, self._left = self.sums.to(self.device), self.solver.double(), None

    POSITION = ("epoch", "batch", "sums", "solver", "accuracy", "best_accuracy", "best_epoch")

    def new_best(self, written):
        """The state after the best epoch, which is there right after it only."""
        return self.state() if self.batch == 0 and self.epoch == self.best_epoch != written else None

    def line(self, scalars):
        parts = [f"epoch {self.epoch}/{self.options.epochs}"]
        for part in ("Train", "Test"):
            if f"{part}/Loss" in scalars:
                loss, accuracy = scalars[f"{part}/Loss"], scalars[f"{part}/Accuracy"]
                parts.append(f"{part.lower()} loss {loss:.3f} accuracy {accuracy:.2%}")
        if "Solver/n_f_evals" in scalars:
            parts.append(f"NFE {scalars['Solver/n_f_evals']:.1f} + {scalars['Solver/n_backward_f_evals']:.1f}")
        return "  ".join(parts)

    def summary(self):
        return {
            "test_accuracy": self.accuracy,
            "best_test_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "best_selected_on": "the test images, as the authors did",
        }

    def outcome(self, summary):
        return (
            f"{summary['title']}: test accuracy {summary['test_accuracy']:.2%} after the last epoch; "
            f"{summary['best_test_accuracy']:.2%} after epoch {summary['best_epoch']}, the best one, "
            f"selected on {summary['best_selected_on']}"
        )


def network_solver(settings):
    """Keywords of `make_block` among the settings; None for a discrete network."""
    if settings["model"] == "discrete":
        return None
    given = {name: settings.get(name) for name in (*SOLVER, "memory")}
    if settings["gradient"] == "aca":
        given["memory"] = given["memory"] or MEMORY
    return {name: value for name, value in given.items() if name == "h" or (value is not None and value is not False)}


def build_model(settings):
    """The network, freshly initialised from the global random stream. UsageError if the width is too small for it."""
    with usage_errors():
        classes = CLASSES[settings["dataset"]]
        model = NETWORKS[settings["network"]](settings["width"], classes, network_solver(settings))
    if settings["model"] == "ode":
        scale_fields(model, settings["field_scale"])
    else:
        scale_branches(model, settings.get("branch_scale") or 1.0)  # records from before there was a choice have none
    return model


def make_scheduler(optimizer, options, batches_per_epoch):
    """The learning rate of ``optimizer`` from batch to batch."""
    if options.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, options.lr, total_steps=options.epochs * batches_per_epoch, cycle_momentum=False
        )
    milestones = [epoch * batches_per_epoch for epoch in options.milestones]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
