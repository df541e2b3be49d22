"""A model in training: its epochs, and the state that a checkpoint holds."""

import copy
import math

import torch

from harness.seeding import generator, seed_everything
from three_body.data import System, simulate, time_grid
from three_body.models import RECURRENT, build
from three_body.settings import solver_of
from torch_ACA import SolverError, solve

SEQUENCE = 20  # points of the sequences that the recurrent networks are trained on


class TrainingFailed(Exception):
    """No step can be taken from here. The message says why."""


class Training:
    """``epoch`` epochs are finished; ``evaluations`` are those of the vector field so far, forward and backward.

    ``best`` holds the weights of least unweighted error on the training data, that error and the epoch it was found in.
    Everything is determined by the settings, so a run that goes on from a checkpoint ends like an uninterrupted one.
    """

    def __init__(self, settings, device):
        self.settings = settings
        self.times = time_grid(settings["until"][0], settings["points"])
        self.truth = simulate(System(**settings["system"]), self.times)[:, None].to(device)
        seed_everything(settings["seed"])
        self.model = build(settings["model"]).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings["lr"], betas=settings["betas"])
        self.epoch = 0
        self.evaluations = {"forward": 0, "backward": 0}
        self.best = {"epoch": 0, "error": math.inf, "weights": copy.deepcopy(self.model.state_dict())}

    def advance(self):
        """Train for one epoch, that is one step on the whole data; returns scalars for the record.

        Raises:
            TrainingFailed: the solver gave up, or the loss or its gradient is not finite. The weights stay.
        """
        measure = self._recurrent_loss if self.settings["model"] in RECURRENT else self._trajectory_loss
        learning_rate = self.settings["lr"] * self.settings["decay"] ** (self.epoch + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        try:
            loss, error, stats = measure()
            loss.backward()
            loss = loss.detach()
        except SolverError as failure:
            raise TrainingFailed(f"epoch {self.epoch + 1}: {failure}") from failure
        gradient = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        if not torch.isfinite(loss + gradient):
            raise TrainingFailed(f"epoch {self.epoch + 1}: loss {loss:g} with gradient of norm {gradient:g}")
        scalars = {
            "Train/Loss": loss,
            "Train/Error": error,
            "Train/LearningRate": learning_rate,
            "Train/GradientNorm": gradient,
        }
        if stats is not None:
            self.evaluations["forward"] += stats.n_f_evals
            self.evaluations["backward"] += stats.n_backward_f_evals
            scalars |= {"Solver/Forward": stats.n_f_evals, "Solver/Backward": stats.n_backward_f_evals}
        if (masses := masses_of(self.model.state_dict())) is not None:
            scalars |= {f"Masses/{i}": mass for i, mass in enumerate(masses, 1)}
        if error < self.best["error"]:
            weights = copy.deepcopy(self.model.state_dict())
            self.best = {"epoch": self.epoch + 1, "error": float(error), "weights": weights}
        self.optimizer.step()
        self.epoch += 1
        return scalars

    def _trajectory_loss(self):
        solution = solve(self.model, self.truth[0], self.times, **solver_of(self.settings))
        squared = ((solution.ys - self.truth)[:, :, :3] ** 2).sum((-2, -1)).mean(1)
        weights = self.settings["loss_weight"] ** self.times.to(squared.device)
        return (weights * squared).mean(), squared.detach().mean(), solution.stats

    def _recurrent_loss(self):
        """One-step-ahead error over the trajectory cut into sequences, from a point that changes with the epoch."""
        positions = self.truth[:, :, :3]
        draw = generator("cpu", self.settings["seed"], self.epoch)
        start = int(torch.randint(min(SEQUENCE, len(positions) - SEQUENCE + 1), (), generator=draw))
        count = (len(positions) - start) // SEQUENCE
        cut = positions[start : start + count * SEQUENCE].unflatten(0, (count, SEQUENCE))
        sequences = cut.transpose(0, 1).flatten(1, 2)  # [SEQUENCE, sequences of all systems, 3, 3]
        predicted, _ = self.model(sequences[:-1])
        loss = ((predicted - sequences[1:]) ** 2).sum((-2, -1)).mean()
        return loss, loss.detach(), None

    def state(self):
        """What a checkpoint holds."""
        return {
            "settings": self.settings,
            "epoch": self.epoch,
            "evaluations": self.evaluations,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
        }

    def load(self, state):
        """Go on from where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.evaluations, self.best = state["epoch"], state["evaluations"], state["best"]


def masses_of(weights):
    """The learnt masses as a list (None for a model without)."""
    return weights["masses"].tolist() if "masses" in weights else None
