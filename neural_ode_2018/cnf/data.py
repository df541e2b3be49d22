"""What the flows learn: two densities that samples are drawn from, and one that is known but for a constant."""

import math

import torch
from torch.nn import functional

from harness.seeding import generator

SAMPLED, KNOWN = ("circles", "moons"), ("crescents",)
DENSITIES = (*SAMPLED, *KNOWN)
HALF_WIDTH = 6.0  # of the square that holds all but nothing of the densities and of the flows
SCATTER = {"circles": 0.12, "moons": 0.15}  # standard deviation of the noise


def samples(density, count, *keys):
    """``count`` samples [count, 2] of a density of SAMPLED: radii 1 and 2, or half circles of radius 1.5; drawn from
    the generator of ``keys``."""
    draw = generator("cpu", *keys)
    angle, which = math.pi * torch.rand(count, generator=draw), torch.rand(count, generator=draw) < 0.5
    if density == "circles":
        radius = torch.where(which, 1.0, 2.0)
        points = torch.stack([radius * (2 * angle).cos(), radius * (2 * angle).sin()], dim=1)
    else:
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        points = 1.5 * torch.where(which[:, None], upper, -upper)
    return points + SCATTER[density] * torch.randn(count, 2, generator=draw)


def log_density(x):
    """Logarithm of the target [...] at points [..., 2], but for a constant: Rezende and Mohamed's first energy, two
    crescents on a circle of radius 2."""
    ring = ((x.norm(dim=-1) - 2) / 0.4).square() / 2
    first = x[..., 0]
    return functional.softplus(-4 * first / 0.36) - ((first - 2) / 0.6).square() / 2 - ring


def grid(points):
    """The centres of ``points`` x ``points`` cells of the square [points**2, 2], and the area of one."""
    edge = 2 * HALF_WIDTH / points
    axis = -HALF_WIDTH + edge * (torch.arange(points) + 0.5)
    return torch.cartesian_prod(axis, axis), edge**2


def log_constant(points=600):
    """Logarithm of the integral of the target over the square, by the midpoint rule."""
    centres, area = grid(points)
    return float(torch.logsumexp(log_density(centres.double()), 0)) + math.log(area)
