"""`Solution`: what a solve returns, and its dense output."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .autocast import without_autocast
from .interpolants import Polynomials
from .march import Stats
from .notices import shown
from .option_checks import time_of
from .private_torch import pytree
from .record import Record
from .state import StateLayout


@dataclass
class Solution:
    """Result of a solve.

    ``ts`` [m]: the times asked for, with per_sample=True perhaps [b, m]; ``ys``: the states there, each leaf
    [m, *shape], ``ys[0]`` the initial one;
    ``stats``: `Stats` of the solve (its backward counts are filled in by the backward pass); ``error``: None, or, with
    on_failure="return", the `SolverError` that ended the solve early (``ts`` and ``ys`` are then the outputs before
    it). With per_sample=True ``error`` names all rows that failed, ``ys`` is NaN behind the last good output of each,
    and ``row_errors`` holds the error of every row, or None. Calling the solution gives the state at any time inside
    the interval (only with dense=True), differentiable. ``record``: what the solve did (only with record=True).
    """

    ts: torch.Tensor
    ys: Any
    stats: Stats
    error: Exception | None = None
    dense: Callable | None = field(default=None, repr=False)
    record: Record | None = field(default=None, repr=False)
    row_errors: tuple | None = field(default=None, repr=False)

    @property
    def success(self) -> bool:
        return self.error is None

    @property
    def status(self) -> str:
        """"finished", or why and where the solve ended early."""
        return "finished" if self.success else str(self.error)

    def __call__(self, t: float | torch.Tensor) -> Any:
        """State at time t (0-d: shaped like y0) or at times t [k] (leaves [k, *shape])."""
        if self.dense is None:
            raise ValueError("dense output was not kept: solve with dense=True" if self.success else self.status)
        return self.dense(t)


@dataclass
class Trajectory:
    """Dense output of a whole solve on flat states; differentiable.

    ``times`` [N + 1] and ``states`` [N + 1, n] at the ends of the accepted steps, ``slopes`` [N, slopes, n] inside
    them.
    """

    interpolant: Polynomials
    times: torch.Tensor
    states: torch.Tensor
    slopes: torch.Tensor

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        """States at times t [k] -> [k, n].

        :raises ValueError: a time outside the interval that was solved
        """
        nodes = self.times.detach()
        sign = 1.0 if nodes[-1] >= nodes[0] else -1.0
        t = t.double().cpu()
        inside = (sign * t >= sign * nodes[0]) & (sign * t <= sign * nodes[-1])
        if not bool(inside.all()):
            raise ValueError(
                f"dense output covers [{float(nodes[0]):g}, {float(nodes[-1]):g}], got {shown(t[~inside].tolist())}"
            )
        i = torch.searchsorted(sign * nodes, sign * t.detach(), right=True).clamp(1, len(nodes) - 1) - 1
        h = self.times[i + 1] - self.times[i]
        weights = self.interpolant.weights((t - self.times[i]) / h) * h[:, None]
        return self.states[i] + torch.einsum("ks,ksn->kn", weights.to(self.states), self.slopes[i])


@dataclass
class DenseOutput:
    """A `Trajectory` on states nested like y0."""

    trajectory: Trajectory
    layout: StateLayout

    def __call__(self, t: float | torch.Tensor) -> Any:
        """As `Solution.__call__`."""
        t = time_of(t)
        with without_autocast(self.layout.device.type):
            states = self.layout.unflatten(self.trajectory(t.reshape(-1)))
        return states if t.dim() else pytree.tree_map(lambda leaf: leaf[0], states)
