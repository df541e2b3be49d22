"""How far predictions are from the truth, in training and in the test."""

import math

import torch

from harness.seeding import generator


def likelihood(prediction, targets, std):
    """Log density of the targets [B, T, D] under each sample, averaged over trajectories, times and features: [S]; and
    the mean squared error of each sample [S], without graph."""
    error = ((prediction.mean - targets.transpose(0, 1)[:, None]) ** 2).mean((0, 2, 3))
    return -error / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi)), error.detach()


def bound(log_density, divergence, weight):
    """Negative of the importance-weighted bound on the log density, from samples [S]; without latent state (divergence
    None) its negative itself. Averages stand where the bound has sums, as in the recipe."""
    if divergence is None:
        return -log_density.mean()
    return math.log(len(log_density)) - torch.logsumexp(log_density - weight * divergence, 0)


def fixed_batch(task, part, settings):
    """All trajectories of a ``part`` of a `Task`, test or validation, each observed at points that depend on the seed
    alone: the same for every model."""
    draw = generator("cpu", settings["seed"], part)
    return getattr(task, part).observe(slice(None), settings["observed"], draw)


@torch.no_grad()
def mean_error(model, batch, part, settings):
    """Mean squared error over all samples, trajectories, target times and features, and the `Prediction`."""
    prediction = model(batch, generator("cpu", settings["seed"], f"{part} samples"))
    _, error = likelihood(prediction, batch.targets, settings["observation_std"])
    return float(error.mean()), prediction
