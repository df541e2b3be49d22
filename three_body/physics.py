"""Newton's law for three bodies, in the authors' units: r_i' = K2 v_i and v_i' = K1 sum_j m_j d_ij / |d_ij|^3.

Masses are counted in solar masses. States are tensors [..., 6, 3]: r1 r2 r3 v1 v2 v3; masses are [..., 3].
"""

import torch

GRAVITY = 6.67408e-11  # m^3 kg^-1 s^-2
MASS = 1.989e30  # kg
LENGTH = 5.326e12  # m
SPEED = 3e4  # m/s
TIME = 79.91 * 365 * 24 * 3600 * 0.51  # s
K1 = GRAVITY * TIME * MASS / (LENGTH**2 * SPEED)
K2 = SPEED * TIME / LENGTH
PAIRS = ((0, 1), (0, 2), (1, 2))
FIRST, SECOND = map(list, zip(*PAIRS))


def separations(positions):
    """Vectors from the first to the second body of each pair: [..., 3, 3] -> [..., 3 pairs, 3]."""
    return positions[..., SECOND, :] - positions[..., FIRST, :]


def distances(positions):
    """Distance of each pair of each system: [..., 3, 3] -> [..., 3 pairs]."""
    return torch.linalg.vector_norm(separations(positions), dim=-1)


def slope(masses, state):
    """Time derivative of the state under Newton's law of motion and of gravitation: [..., 6, 3] -> [..., 6, 3]."""
    positions, velocities = state.split(3, dim=-2)
    pulls = positions[..., None, :, :] - positions[..., :, None, :]  # [..., i, j, 3]: from body i to body j
    squares = (pulls * pulls).sum(-1) + torch.eye(3).to(state)  # a body is no source of its own pull: keep 0/1 there
    accelerations = K1 * ((masses[..., None, :] * squares**-1.5)[..., None] * pulls).sum(-2)
    return torch.cat([K2 * velocities, accelerations], dim=-2)


def energy(masses, state):
    """Total energy, which the motion conserves: [...]."""
    positions, velocities = state.split(3, dim=-2)
    kinetic = 0.5 * (masses * (velocities**2).sum(-1)).sum(-1)
    products = masses[..., FIRST] * masses[..., SECOND]
    return kinetic - K1 / K2 * (products / distances(positions)).sum(-1)


def momentum(masses, state):
    """Total momentum, which the motion conserves: [..., 3]."""
    return (masses[..., None] * state[..., 3:, :]).sum(-2)
