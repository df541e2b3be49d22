"""A model in training: its loss, its validation between epochs, and what is recorded of it."""

import math
import time

import torch

from harness.record import TIME_DIGITS
from harness.seeding import generator, seed_everything
from harness.solvers import solver_of
from harness.training import Training, TrainingFailed
from latent_ode_mujoco.evaluation import bound, fixed_batch, likelihood, mean_error
from latent_ode_mujoco.models import build
from torch_ACA import SolverError


class LatentODETraining(Training):
    """A step is one batch. Which points are observed and predicted is drawn anew in each.

    Between epochs the error on the trajectories set aside for that is taken, and best.pt has the weights for which it
    was least; those to test on are not looked at.

    ``seconds`` are what the steps took, without what is between them: of processor time on a CPU, which others who
    use the machine do not lengthen, of the clock elsewhere.
    """

    criterion = "Validation/MSE"

    def __init__(self, settings, task, device):
        self.task = task
        seed_everything(settings["seed"])
        model = build(settings, solver_of(settings)).to(device)
        optimizer = torch.optim.Adamax(model.parameters(), lr=settings["lr"], foreach=True)
        super().__init__(settings, model, optimizer, math.ceil(len(task.train) / settings["batch_size"]))
        self.aside = fixed_batch(task, "validation", settings)
        self.seconds = 0.0
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter

    def learning_rate(self):
        settings = self.settings
        return settings["lr"] * max(settings["lr_decay"] ** (self.step + 1), settings["lr_floor"])

    def advance(self):
        self._start = self._clock()
        row = super().advance()
        if row is None:  # `end_epoch` has counted the time of a last one
            self.seconds += self._clock() - self._start
        return row

    def loss(self):
        settings, draw = self.settings, generator("cpu", self.settings["seed"], "train", self.step)
        first = self.step % self.batches * settings["batch_size"]
        batch = self.task.train.observe(slice(first, first + settings["batch_size"]), settings["observed"], draw)
        batch = batch.some_targets(settings["targets"], draw)
        prediction = self.model(batch, draw)
        log_density, error = likelihood(prediction, batch.targets, settings["observation_std"])
        loss = bound(log_density, prediction.divergence, self._divergence_weight())
        scalars = {"Train/MSE": error.mean()}
        if prediction.divergence is not None:
            scalars["Train/Divergence"] = prediction.divergence.detach()
        return loss, scalars, prediction.stats

    def _divergence_weight(self):
        late = self.epoch - self.settings["kl_from"]
        return 1 - self.settings["kl_decay"] ** late if late > 0 else 0.0

    def end_epoch(self, scalars):
        """Every so often with the validation error."""
        self.seconds += self._clock() - self._start
        if self.epoch % self.settings["validate_every"] == 0 or self.epoch == 1 or self.finished:
            try:
                scalars[self.criterion] = mean_error(self.model, self.aside, "validation", self.settings)[0]
            except SolverError as failure:
                raise TrainingFailed(f"validation after epoch {self.epoch}: {failure}") from failure
            self.keep_best(self.epoch, scalars)
        return scalars, {"training_seconds": round(self.seconds, TIME_DIGITS)}

    def summary(self):
        return {
            "iterations": self.step,
            "training_seconds": self.seconds,
            "evaluations": self.evaluations if "gradient" in self.settings else None,
            "best_epoch": self.best["epoch"],
            "best_selected_on": "trajectories set aside for validation",
        }

    def state(self):
        return super().state() | {"training_seconds": self.seconds}

    def load(self, state):
        super().load(state)
        self.seconds = state["training_seconds"]
