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


def test_batch(split, settings):
    """All trajectories of a split, each observed at points that depend on the seed alone: the same for every model."""
    return split.observe(slice(None), settings["observed"], generator("cpu", settings["seed"], "test"))


@torch.no_grad()
def test_error(model, batch, settings):
    """Mean squared error over all samples, trajectories, target times and features, and the `Prediction`."""
    prediction = model(batch, generator("cpu", settings["seed"], "test samples"))
    _, error = likelihood(prediction, batch.targets, settings["observation_std"])
    return float(error.mean()), prediction
