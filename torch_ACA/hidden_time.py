"""Derivatives with respect to times, for a func that hides from autograd how it depends on its time.

A func that detaches its time, or takes it as a number, gives no derivative of its slope in t. The derivative of the
discrete solution in its times needs one, and would be wrong by as much as the steps are long. The solution's own slope
needs none: y(t) moves by f(t, y) dt at an output time, and by -f(t0, y0) dt0 at the start. Where func hides its time,
the solve takes its times as constants, and state and outputs are moved so. `naive`, which differentiates the sizes of
steps, misses that derivative in the same way; it takes them as constants then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .graph import leads_to
from .notices import warn_caller

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .steppers.base import Method
    from .vector_field import VectorField

_PROBES = (0.31, 0.83)  # of the way through the interval
_ROUNDING = 64


def hides_time(
    field: VectorField, ts: list[float], y: Tensor, slope: Tensor, side: int, evaluation: Evaluation | None = None
) -> bool:
    """Whether func changes with its time, and autograd does not know. To be called with gradients off.

    A func that is constant in time between the times at which it branches has nothing to hide.

    :param ts: times of the solve, floats
    :param y: state at ts[0] [n]
    :param slope: f there [n]
    :param evaluation: its `Evaluation`, with a time that requires grad, if there is one
    """
    n_evals = field.n_evals
    with field.side_effects.replay():
        hidden = (evaluation is None or not _leads_to_time(evaluation)) and _changes(field, ts, y, slope)
        if hidden and evaluation is None:
            hidden = not _leads_to_time(field.record(ts[0], y, time_grad=True, side=side))
    field.n_evals = n_evals
    return hidden


def _leads_to_time(evaluation: Evaluation) -> bool:
    time: Any = evaluation.time
    return leads_to([edge.node for edge in evaluation.edges()], time)


def _changes(field: VectorField, ts: list[float], y: Tensor, slope: Tensor) -> bool:
    """Whether func changes with its time alone, everywhere."""
    span, eps = ts[-1] - ts[0], torch.finfo(slope.dtype).eps

    def slope_at(t: float) -> Tensor:
        found = torch.empty_like(slope)
        field(t, y, found)
        return found

    def differ(one: Tensor, other: Tensor) -> bool:
        rounding = _ROUNDING * eps * torch.maximum(one.abs(), other.abs())
        return bool(((one - other).abs() > rounding).any())

    for t in (ts[0] + fraction * span for fraction in _PROBES):
        there = slope_at(t)
        if not differ(slope, there) or not differ(there, slope_at(t + eps ** (1 / 3) * span)):
            return False
    return True


def warn_of_hidden_time(method: Method) -> None:
    """Warn that a method that differentiates func misses its derivative by time."""
    _warn(f"{method.name} needs that derivative, and takes very small steps without it")


def warn_of_constant_sizes() -> None:
    """Warn that `naive` does not differentiate the sizes of its steps."""
    _warn("gradient='naive' takes the sizes of its steps as constants, as 'direct' does")


def _warn(what: str) -> None:
    warn_caller(
        f"func changes with its time, and autograd does not know (it detaches it, or takes it as a number): {what}"
    )


def moved(field: VectorField, y: Tensor, time: Tensor, sign: int = 1, side: int = 0) -> Tensor:
    """The state [n], as large as it is, as a function of its time (0-d, requires grad): a midpoint step of no length,
    so that second derivatives hold as far as func lets them.

    :param sign: 1: the time at which it is reached; -1: from which it starts
    """
    t = time.detach().double()
    half = 0.5 * sign * (time.double() - t)
    slope = field.traced(t, y, side=side)
    middle = field.traced(t + sign * half, y + half.to(y) * slope, side=side)
    return y + (2 * half).to(y) * middle
