"""Flows: maps of the plane that carry the density N(0, 1) to another. Shapes: B points, M hidden units, K layers.

Both have ``push(z, ...)``, from the base to the data, and ``pull(x, ...)`` back; each returns the points [B, 2] at the
other end, the change of the log-density along [B], and the `Stats` of the solve (None: no solve).
"""

import math

import torch
from torch import nn
from torch.nn import functional

from torch_ACA import solve

SOLVED = ("cnf",)
MODELS = ("nf", *SOLVED)
END = 10.0  # of the interval of a continuous flow
HIDDEN = 32  # units that compute the weights of the field from the time
BISECTIONS = 60


def log_normal(z):
    """Log-density of N(0, 1) at z [B, 2]: [B]."""
    return -z.square().sum(1) / 2 - math.log(2 * math.pi)


class Field(nn.Module):
    """dz/dt = mean of u tanh(w z + b) over M units, whose u, w and b depend on time."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.weights = nn.Sequential(
            nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 6 * width)
        )

    def forward(self, t, z, noise=None):
        """Velocity [B, 2] and divergence [B] at z [B, 2]: exact, or Hutchinson's estimate n^T J n with noise [B, 2]."""
        w, u, b, gate = self.weights(t.reshape(1).to(z)).view(6, self.width).split([2, 2, 1, 1])
        u = u * gate.sigmoid()
        hidden = torch.tanh(z @ w + b)
        slope = 1 - hidden.square()
        along = (w * u).sum(0) if noise is None else (noise @ w) * (noise @ u)
        return hidden @ u.T / self.width, (slope * along).mean(1)


class ContinuousFlow(nn.Module):
    """The change of the log-density is minus the integral of the divergence (instantaneous change of variables)."""

    def __init__(self, width):
        super().__init__()
        self.field = Field(width)

    def push(self, z, solver, noise=None):
        return self._ends(z, (0.0, END), solver, noise)

    def pull(self, x, solver, noise=None):
        return self._ends(x, (END, 0.0), solver, noise)

    def _ends(self, z, times, solver, noise):
        points, change, stats = self.path(z, times, solver, noise)
        return points[-1], change[-1], stats

    def path(self, z, times, solver, noise=None):
        """Points [T, B, 2] and changes of the log-density [T, B] at all ``times`` [T].

        Args:
            noise: [B, 2], of mean 0 and covariance 1, the same for the whole solve; None: exact divergence.
        """

        def slope(t, state):
            velocity, divergence = self.field(t, state[0], noise)
            return velocity, -divergence

        solution = solve(slope, (z, torch.zeros_like(z[:, 0])), times, **solver)
        return *solution.ys, solution.stats


class PlanarFlow(nn.Module):
    """K layers z + u tanh(w z + b), with w u > -1 so that each can be inverted; the inverse is found by bisection.

    Args:
        backwards: whether the layers lead from the data to the base, whose densities then are at hand, as maximum
            likelihood needs; else from the base to the data.
    """

    def __init__(self, depth, backwards):
        super().__init__()
        self.backwards = backwards
        self.w, self.u = (nn.Parameter(0.1 * torch.randn(depth, 2)) for _ in range(2))
        self.b = nn.Parameter(torch.zeros(depth))

    def push(self, z, solver=None, noise=None):
        return *(self._inverse(z) if self.backwards else self._layers(z)), None

    def pull(self, x, solver=None, noise=None):
        return *(self._layers(x) if self.backwards else self._inverse(x)), None

    def _allowed(self):
        """w [K, 2], u [K, 2] with w u > -1, and w u [K]."""
        product = (self.w * self.u).sum(1)
        allowed = functional.softplus(product) - 1
        return self.w, self.u + ((allowed - product) / self.w.square().sum(1))[:, None] * self.w, allowed

    def _layers(self, z):
        change = torch.zeros_like(z[:, 0])
        for w, u, product, b in zip(*self._allowed(), self.b):
            hidden = torch.tanh(z @ w + b)
            change = change - torch.log1p((1 - hidden.square()) * product)
            z = z + hidden[:, None] * u
        return z, change

    def _inverse(self, z):
        layers = zip(*self._allowed(), self.b)
        change = torch.zeros_like(z[:, 0])
        for w, u, product, b in reversed([*layers]):
            target = z @ w + b  # = a + product tanh(a), increasing in the argument a
            low, high = target - product.abs() - 1e-6, target + product.abs() + 1e-6
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                above = middle + product * torch.tanh(middle) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            hidden = torch.tanh((low + high) / 2)
            change = change + torch.log1p((1 - hidden.square()) * product)
            z = z - hidden[:, None] * u
        return z, change


def log_density(flow, x, solver, noise=None):
    """Log-density of the flow at points x [B, 2]: [B]; and the `Stats` of the solve."""
    z, change, stats = flow.pull(x, solver, noise)
    return log_normal(z) - change, stats


def build(settings, known):
    """The flow of ``settings["model"]``, initialised from torch's global random stream; ``known``: see `PlanarFlow`."""
    width = settings["width"]
    return ContinuousFlow(width) if settings["model"] in SOLVED else PlanarFlow(width, backwards=not known)
