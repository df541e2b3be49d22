"""The asynchronous leapfrog (ALF): reversible steps of a state z and a velocity v that runs beside f.

z_h = z + h/2 v;  u = f(t + h/2, z_h);  v1 = 2 u - v;  z1 = z_h + h/2 v1   (Zhuang et al., MALI, ICLR 2021; Mutze 2013)

Second order, one evaluation per step, and solvable backwards for (z, v): `invert` gives them back up to rounding. The
difference u - v estimates the local error of the first-order solution, h (u - v) = O(h^2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import INVERT, Carry, Stepper, Trial

if TYPE_CHECKING:
    from ..evaluation import Evaluation, GradientSum
    from ..march import Step
    from ..vector_field import VectorField


@dataclass(frozen=True)
class Leapfrog:
    """The method, as `base.Method`."""

    name: str = "ALF"
    order: int = 2
    error_order: int = 2
    adaptive: bool = True
    stages: int = 1
    interpolant: None = None  # a cubic through states and velocities, not one of slopes
    dense_order: int = 2
    abilities: frozenset = frozenset({INVERT})

    def stepper(
        self, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False
    ) -> AsynchronousLeapfrog:
        """As `base.Method.stepper`; it keeps no graphs."""
        return AsynchronousLeapfrog(self, vector_field, time_grad=time_grad)


ALF = Leapfrog()


class AsynchronousLeapfrog(Stepper):
    """The carry's slope is the velocity v; it starts as f(t0, z0)."""

    own_stages = 1

    def step(self, carry: Carry, h: float, t_end: float, *, before_jump: bool = False) -> Trial:
        v = carry.slope
        middle = torch.add(carry.y, v, alpha=h / 2)
        u = torch.empty_like(middle)
        self.field(carry.t + h / 2, middle, u)
        v1 = 2 * u - v
        return Trial(Carry(t_end, torch.add(middle, v1, alpha=h / 2), v1), h * (u - v))

    def within(self, step: Step) -> Callable[[Tensor], Tensor]:
        return lambda theta: self.between(step.start, step.trial.end, step.h, theta)

    def between(self, start: Carry, end: Carry, h: float, theta: Tensor) -> Tensor:
        """The cubic through both states and their velocities: [m, n]."""
        values: Any = 0.0
        for w, piece in zip(_weights(theta, h, start.y), (end.y - start.y, start.slope, end.slope)):
            values = values + w[:, None] * piece
        return start.y + values

    def between_vjp(
        self, start: Carry, end: Carry, h: float, theta: Tensor, cotangents: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor | None, float | None]:
        """Cotangents of the states (start, end) and velocities (start, end) of `between`, of its times [m] and of
        the step size (the last two only with time_grad, else None)."""
        toward_end, of_v, of_v1 = (w @ cotangents for w in _weights(theta, h, start.y))
        time_bars = h_bar = None
        if self.time_grad:
            slopes = _slopes(theta, h, start.y)
            rates = sum(w[:, None] * piece for w, piece in zip(slopes, (end.y - start.y, start.slope, end.slope)))
            time_bars = (rates * cotangents).sum(-1).double().cpu()
            h_bar = float(of_v @ start.slope + of_v1 @ end.slope) / h - float((time_bars * theta).sum())
        return (cotangents.sum(0) - toward_end, toward_end, of_v, of_v1), time_bars, h_bar

    def invert(self, carry: Carry, h: float) -> tuple[Carry, Evaluation]:
        """The carry one step of size h earlier, and the evaluation (with its graph) that the step makes."""
        middle = torch.add(carry.y, carry.slope, alpha=-h / 2)
        u = torch.empty_like(middle)
        evaluation = self.field.record(carry.t - h / 2, middle, u, time_grad=self.time_grad)
        v = 2 * u - carry.slope
        return Carry(carry.t - h, torch.add(middle, v, alpha=-h / 2), v), evaluation

    def pull_back(
        self, start: Carry, end: Carry, h: float, evaluation: Evaluation, z_bar: Tensor, v_bar: Tensor,
        gradients: GradientSum,
    ) -> tuple[Tensor, Tensor, float, float]:  # fmt: skip
        """VJP of one step: cotangents of z and v at its start, of its start time and of its size (zero unless
        time_grad).
        """
        v1_bar = v_bar + h / 2 * z_bar
        middle_bar, time_bar = evaluation.vjp(2 * v1_bar, gradients)
        middle_bar = z_bar if middle_bar is None else z_bar + middle_bar
        t_bar = h_bar = 0.0
        if self.time_grad:
            t_bar = 0.0 if time_bar is None else float(time_bar)
            h_bar = 0.5 * (float(z_bar @ end.slope) + float(middle_bar @ start.slope) + t_bar)
        return middle_bar, h / 2 * middle_bar - v1_bar, t_bar, h_bar


def _weights(theta: Tensor, h: float, like: Tensor) -> list[Tensor]:
    """Weights [m] of (y1 - y), v and v1 at theta."""
    of_y1 = 3 * theta**2 - 2 * theta**3
    return [w.to(like) for w in (of_y1, h * theta * (1 - theta) ** 2, h * theta**2 * (theta - 1))]


def _slopes(theta: Tensor, h: float, like: Tensor) -> list[Tensor]:
    """Their time derivatives."""
    of_y1 = (6 * theta - 6 * theta**2) / h
    return [w.to(like) for w in (of_y1, (1 - theta) * (1 - 3 * theta), theta * (3 * theta - 2))]
