"""A model of the spirals in training: its loss."""

import math

import torch

from harness.seeding import generator, seed_everything
from harness.solvers import solver_of
from harness.training import Training
from neural_ode_2018.spirals.data import NOISE, make_spirals
from neural_ode_2018.spirals.models import SOLVED, build


class SpiralsTraining(Training):
    """A step is one batch of spirals. The latent ODE maximises the evidence lower bound, with the true noise and the
    prior N(0, 1); recurrent networks minimise the squared error of the next point."""

    def __init__(self, settings, device):
        self.data = make_spirals(settings["spirals"], settings["points"], settings["seed"], "train", device)
        seed_everything(settings["seed"])
        model = build(settings["model"]).to(device)
        batches = math.ceil(settings["spirals"] / settings["batch_size"])
        super().__init__(settings, model, torch.optim.Adam(model.parameters(), lr=settings["lr"]), batches)

    def learning_rate(self):
        return self.settings["lr"] * self.settings["decay"] ** self.epoch

    def loss(self):
        number, size, seed = self.step % self.batches, self.settings["batch_size"], self.settings["seed"]
        order = torch.randperm(len(self.data), generator=generator("cpu", seed, "order", self.epoch))
        chosen = order[number * size : (number + 1) * size]
        values, times = self.data.values[chosen], self.data.seen_times(chosen).to(self.data.values)
        if self.settings["model"] in SOLVED:
            return self._bound(chosen, values, times)
        predicted, _ = self.model(values[:, :-1], times.diff(dim=1))
        loss = (predicted - values[:, 1:]).square().mean()
        return loss, {}, None

    def _bound(self, chosen, values, times):
        mean, log_std = self.model.encode(times, values)
        noise = torch.randn(mean.shape, generator=generator("cpu", self.settings["seed"], "latent", self.step))
        z = mean + log_std.exp() * noise.to(mean)
        points, stats = self.model.decode(z, self.data.times, solver_of(self.settings))
        seen = points.gather(1, self.data.index[chosen][..., None].expand(-1, -1, 2))
        squared = (seen - values).square()
        divergence = ((mean.square() + (2 * log_std).exp() - 1) / 2 - log_std).sum(1).mean()
        loss = squared.sum((1, 2)).mean() / (2 * NOISE**2) + divergence  # but for a constant
        return loss, {"Train/MSE": squared.detach().mean(), "Train/Divergence": divergence.detach()}, stats

    def summary(self):
        return {"evaluations": self.evaluations if self.settings["model"] in SOLVED else None}
