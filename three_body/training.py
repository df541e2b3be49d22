"""A model in training: its loss, and what is recorded of it."""

import torch

from harness.seeding import generator, seed_everything
from harness.solvers import solver_of
from harness.training import Training
from three_body.data import System, simulate, time_grid
from three_body.models import RECURRENT, build
from three_body.own_time import extent, solve_in_own_time
from torch_ACA import solve

SEQUENCE = 20  # points of the sequences that the recurrent networks are trained on
ROWS = 200  # of metrics at most, whatever the number of epochs


class ThreeBodyTraining(Training):
    """An epoch is one step on the whole data. ``Train/Error`` is the unweighted error on the training data."""

    criterion = "Train/Error"

    def __init__(self, settings, device):
        self.times = time_grid(settings["until"][0], settings["points"])
        self.truth = simulate(System(**settings["system"]), self.times)[:, None].to(device)
        self.end = extent(self.truth, self.times)
        seed_everything(settings["seed"])
        model = build(settings["model"]).to(device)
        super().__init__(
            settings, model, torch.optim.Adam(model.parameters(), lr=settings["lr"], betas=settings["betas"])
        )

    def learning_rate(self):
        return self.settings["lr"] * self.settings["decay"] ** (self.epoch + 1)

    def loss(self):
        loss, error, stats = (self._one_step_ahead if self.settings["model"] in RECURRENT else self._trajectory)()
        masses = masses_of(self.model.state_dict()) or []
        return loss, {"Train/Error": error, **{f"Masses/{i}": mass for i, mass in enumerate(masses, 1)}}, stats

    def _trajectory(self):
        keywords = solver_of(self.settings)
        if self.settings.get("own_time"):
            solution = solve_in_own_time(self.model, self.truth[0], self.times, self.end, **keywords)
        else:
            solution = solve(self.model, self.truth[0], self.times, **keywords)
        squared = ((solution.ys - self.truth)[:, :, :3] ** 2).sum((-2, -1)).mean(1)
        weights = self.settings["loss_weight"] ** self.times.to(squared.device)
        return (weights * squared).mean(), squared.detach().mean(), solution.stats

    def _one_step_ahead(self):
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

    def end_epoch(self, scalars):
        spacing = max(1, self.settings["epochs"] // ROWS)
        return (scalars, {}) if self.epoch % spacing == 0 or self.epoch == 1 or self.finished else None

    def summary(self):
        best = self.best
        return {
            "evaluations": self.evaluations if "gradient" in self.settings else None,
            "best": {
                "epoch": best["epoch"],
                "error": best["value"] if best["epoch"] else None,
                "masses": masses_of(best["model"]),
            },
            "last": {"masses": masses_of(self.model.state_dict())},
        }


def masses_of(weights):
    """The learnt masses as a list (None for a model without)."""
    return weights["masses"].tolist() if "masses" in weights else None
