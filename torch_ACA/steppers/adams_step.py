"""One step of an Adams method, as ordinary operations on floats or on tensors that are differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..adams_weights import MIN_ORDER, weighed, weights_of
from ..tableaus import RK4_THREE_EIGHTHS as STARTER
from .base import Time
from .dense_output import combine

if TYPE_CHECKING:
    from .adams import Adams

Evaluate = Callable[[Any, Tensor, int], Tensor]  # evaluate(t, y, side) -> slope [n]


class Past(NamedTuple):
    """The slopes [n] of the steps before and their times, the latest first; ``slope``: that here, where it is known
    (of `AdamsStepper.traced`; None: not known)."""

    slopes: tuple[Tensor, ...] = ()
    times: tuple[Time, ...] = ()
    slope: Tensor | None = None

    def detached(self) -> Past:
        """For the next step, without graphs."""
        return self._replace(slopes=tuple(slope.detach() for slope in self.slopes), slope=None)


class Decided(NamedTuple):
    """What is constant in the gradient of a step: the times of the slopes before it, how many corrections it made
    (None: of the starter, or explicit), and how many slopes the next step gets."""

    times: tuple[Time, ...]
    corrections: int | None
    passed_on: int


def taken(
    method: Adams, evaluate: Evaluate, t: Time, h: Time, y: Tensor, t_end: Time, past: Past, side: int,
    decided: Decided | None, unsettled: Callable[[int, Time], None],
) -> tuple[Tensor, Decided]:  # fmt: skip
    """What a step of size h from y [n] at t to t_end adds to y, and what it decided.

    :param t, h, t_end: floats or 0-d float64 tensors, as are the times in the past
    :param past: with its ``slope``
    :param side: 0, or -1: f jumps at t_end
    :param decided: what it is to decide (None: it is free)
    :param unsettled: called with the number of corrections and t, where they did not settle
    """
    slopes = [past.slope, *past.slopes]
    corrections, settled = None, True
    if len(slopes) < MIN_ORDER - 1:
        change = _start_up(evaluate, t, h, y, t_end, past.slope, side)
    else:
        change = weighed(weights_of(t, h, past.times), slopes)
        if method.implicit:
            change, corrections, settled = _corrected(
                method, evaluate, change, t, h, y, t_end, past.times, slopes, side, decided and decided.corrections
            )
            if decided is None and not settled:
                unsettled(corrections, t)
    if decided is None:
        # torchdiffeq's rule: where the corrections do not settle, the order does not grow
        passed_on = min(len(slopes), method.max_order - 2) if settled else len(slopes) - 1
        decided = Decided(past.times, corrections, passed_on)
    return change, decided


def _start_up(evaluate: Evaluate, t: Time, h: Time, y: Tensor, t_end: Time, slope: Tensor, side: int) -> Tensor:
    """What a Runge-Kutta step adds to y."""
    slopes = [slope]
    for a, c in zip(STARTER.a[1:], STARTER.c[1:]):
        time, at = (t_end, side) if c == 1 else (t + float(c) * h, 0)
        slopes.append(evaluate(time, y + h * combine(a, slopes), at))
    return h * combine(STARTER.b, slopes)


def _corrected(
    method: Adams, evaluate: Evaluate, change: Tensor, t: Time, h: Time, y: Tensor, t_end: Time, times: Sequence[Time],
    slopes: Sequence[Tensor], side: int, corrections: int | None,
) -> tuple[Tensor, int, bool]:  # fmt: skip
    """What is added to y in the end, how often it was corrected, and whether the last correction was small.

    :param corrections: how many to make (None: until one is small)
    """
    of_end, *weights = weights_of(t, h, times, with_end=True)
    known, most = weighed(weights, slopes), method.max_iters if corrections is None else corrections
    for i in range(most):
        before, change = change, of_end * evaluate(t_end, y + change, side) + known
        if corrections is None and _agree(before.detach(), change.detach(), method.rtol, method.atol):
            return change, i + 1, True
    return change, most, False


def _agree(one: Tensor, other: Tensor, rtol: Any, atol: Any) -> bool:
    size = torch.maximum(one.abs(), other.abs())
    return bool(((one - other).abs() <= atol + rtol * size).all())
