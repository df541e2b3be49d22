"""A model in training: its iterations, and the state that a checkpoint holds."""

import math
import time

import torch

from harness.seeding import generator, seed_everything
from latent_ode_mujoco.evaluation import bound, likelihood, test_batch, test_error
from latent_ode_mujoco.models import build
from latent_ode_mujoco.settings import solver_of
from torch_ACA import SolverError


class TrainingFailed(Exception):
    """No step can be taken from here. The message says why."""


class Training:
    """``iteration`` iterations are finished, ``batches`` of which are an epoch.

    Everything is determined by the settings and the iteration: which points are observed and predicted and what is
    drawn comes from generators without history. So a run that goes on from a checkpoint, taken anywhere, ends like an
    uninterrupted one. ``evaluations`` are those of the decoder's vector field so far, forward and backward;
    ``seconds`` what the iterations took, the tests between them left out: of processor time on a CPU, which others who
    use the machine do not lengthen, of the clock elsewhere.
    """

    def __init__(self, settings, task, device):
        self.settings, self.task = settings, task
        seed_everything(settings["seed"])
        self.model = build(settings, solver_of(settings)).to(device)
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=settings["lr"], foreach=True)
        self.batches = math.ceil(len(task.train) / settings["batch_size"])
        self.test_batch = test_batch(task.test, settings)
        self.iteration = 0
        self.evaluations = {"forward": 0, "backward": 0}
        self.seconds = 0.0
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter
        self._sums = {}

    @property
    def epoch(self):
        """Finished epochs."""
        return self.iteration // self.batches

    @property
    def finished(self):
        return self.epoch == self.settings["epochs"]

    def advance(self):
        """Train on one batch; returns the scalars of the epoch if it was its last, else None.

        Raises:
            TrainingFailed: the solver gave up, or the loss or its gradient is not finite. The weights stay.
        """
        start = self._clock()
        settings, where = self.settings, f"epoch {self.epoch + 1}, batch {self.iteration % self.batches + 1}"
        rate = settings["lr"] * max(settings["lr_decay"] ** (self.iteration + 1), settings["lr_floor"])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        draw = generator("cpu", settings["seed"], "train", self.iteration)
        first = self.iteration % self.batches * settings["batch_size"]
        batch = self.task.train.observe(slice(first, first + settings["batch_size"]), settings["observed"], draw)
        batch = batch.some_targets(settings["targets"], draw)
        self.optimizer.zero_grad()
        try:
            prediction = self.model(batch, draw)
            log_density, error = likelihood(prediction, batch.targets, settings["observation_std"])
            loss = bound(log_density, prediction.divergence, self._divergence_weight())
            loss.backward()
        except SolverError as failure:
            raise TrainingFailed(f"{where}: {failure}") from failure
        gradient = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        loss, gradient = float(loss.detach()), float(gradient)
        if not math.isfinite(loss + gradient):
            raise TrainingFailed(f"{where}: loss {loss:g} with gradient of norm {gradient:g}")
        self.optimizer.step()
        self.iteration += 1
        scalars = {"Train/Loss": loss, "Train/MSE": float(error.mean()), "Train/GradientNorm": gradient}
        if prediction.divergence is not None:
            scalars["Train/Divergence"] = float(prediction.divergence.detach())
        if prediction.stats is not None:
            forward, backward = prediction.stats.n_f_evals, prediction.stats.n_backward_f_evals
            self.evaluations["forward"] += forward
            self.evaluations["backward"] += backward
            scalars |= {"Solver/Forward": forward, "Solver/Backward": backward}
        self._sums = {tag: self._sums.get(tag, 0.0) + value for tag, value in scalars.items()}
        self.seconds += self._clock() - start
        if self.iteration % self.batches:
            return None
        means, self._sums = {tag: value / self.batches for tag, value in self._sums.items()}, {}
        return means | {"Train/LearningRate": rate}

    def test(self):
        """Mean squared error on the test trajectories.

        Raises:
            TrainingFailed: the solver gave up.
        """
        try:
            return test_error(self.model, self.test_batch, self.settings)[0]
        except SolverError as failure:
            raise TrainingFailed(f"test after epoch {self.epoch}: {failure}") from failure

    def _divergence_weight(self):
        late = self.epoch - self.settings["kl_from"]
        return 1 - self.settings["kl_decay"] ** late if late > 0 else 0.0

    def state(self):
        """What a checkpoint holds."""
        return {
            "settings": self.settings,
            "iteration": self.iteration,
            "evaluations": self.evaluations,
            "training_seconds": self.seconds,
            "sums": self._sums,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state):
        """Go on from where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.evaluations = state["iteration"], state["evaluations"]
        self.seconds, self._sums = state["training_seconds"], state["sums"]
