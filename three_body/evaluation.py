"""How far a predicted trajectory is from the truth, and whether it obeys physics."""

import math

import torch

from three_body.models import GIVEN_POINTS, Recurrent
from three_body.physics import K2, energy, momentum
from torch_ACA import solve


@torch.no_grad()
def predict(model, truth, times, solver):
    """States [T, B, 6, 3] that ``model`` predicts at ``times`` [T], and how that ended ("finished" or why it stopped).

    Vector fields start from the first of the true states ``truth`` [T, B, 6, 3]; where their solve fails, the states
    before are returned. Recurrent networks continue the first GIVEN_POINTS positions; their velocities are differences.

    Args:
        solver: keywords of `solve`, None for a recurrent network.
    """
    if isinstance(model, Recurrent):
        positions = model.infer(truth[:GIVEN_POINTS, :, :3], len(times))
        (velocities,) = torch.gradient(positions, spacing=(times.to(positions),), dim=0)
        return torch.cat([positions, velocities / K2], dim=2), "finished"
    solution = solve(model, truth[0], times, on_failure="return", **solver)
    return solution.ys, solution.status


def measures(predicted, truth, times, masses, trained_until):
    """Errors of predicted states [T', B, 6, 3], T' <= T, against the truth [T, B, 6, 3] at ``times`` [T].

    ``mse``: mean of the squared error over time, systems, bodies and axes; ``summed``: the same summed over bodies and
    axes, as in the authors' script; None where the prediction ended before. The drifts are the largest deviations from
    the initial true energy (relative to it) and momentum (relative to the sum of the sizes of the bodies' momenta).
    """
    count = len(predicted)
    squared = (predicted[:, :, :3] - truth[:count, :, :3]) ** 2
    seen = int((times <= trained_until + 1e-9).sum())
    energies, true_energy = energy(masses, predicted), energy(masses, truth[0])
    momenta, true_momentum = momentum(masses, predicted), momentum(masses, truth[0])
    scale = (masses[..., None] * truth[0, :, 3:]).norm(dim=-1).sum(-1)
    complete = count == len(times)
    return {
        "mse": _number(squared.mean()) if complete else None,
        "mse_trained": _number(squared[:seen].mean()) if count >= seen else None,
        "summed": _number(squared.sum((-2, -1)).mean()) if complete else None,
        "predicted_until": float(times[count - 1]),
        "energy_drift": _number(((energies - true_energy) / true_energy).abs().max()),
        "momentum_drift": _number(((momenta - true_momentum).norm(dim=-1) / scale).max()),
    }


def _number(value):
    """A float that JSON can hold, or None."""
    return float(value) if math.isfinite(value) else None
