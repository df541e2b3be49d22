"""Derivatives with respect to times, for a func that hides from autograd how it depends on its time.

A func that detaches its time, or takes it as a number, gives no derivative of its slope in t; one that does so in a
part gives one that is not that of its values. The derivative of the discrete solution in its times needs the right one,
and would be wrong by as much as the steps are long. The solution's own slope needs none: y(t) moves by f(t, y) dt at an
output time, and by -f(t0, y0) dt0 at the start. Where func hides its time, the solve takes its times as constants, and
state and outputs are moved so. `naive`, which differentiates the sizes of steps, misses that derivative in the same
way; it takes them as constants then.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .graph import leads_to
from .notices import warn_caller
from .steppers.base import LINEARISE

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .problem import Problem
    from .steppers.base import Method
    from .vector_field import VectorField

_PROBES = (0.04, 0.13, 0.24, 0.31, 0.45, 0.57, 0.71, 0.83, 0.94)  # of the way through the interval
_FEW_PROBES = (0.13, 0.45, 0.71)
_HALVINGS = 6  # of the way from one of them to the next
_ROUNDING = 64
_SAME = 1e-6  # relative, of derivatives


def with_constant_times(problem: Problem) -> Problem:
    """The problem, whose end is known, as it is solved where func hides its time; else as it is."""
    field, times, side = problem.field, problem.times, int(problem.starts_at_jump)
    linearises, with_graphs = LINEARISE in problem.method.abilities, not problem.transformed
    by_time = times.requires_grad and with_graphs and torch.is_grad_enabled()
    looked_at = (linearises or problem.may_hide_time) and with_graphs and not torch.is_inference_mode_enabled()
    if not (by_time or looked_at) or problem.slope is None:
        return problem
    known = problem.evaluation if times.requires_grad else None
    with torch.no_grad():
        y, slope = problem.y0.detach(), problem.slope.detach()
        step, partly = field.direction * (problem.first_step or 0.0), by_time or problem.may_hide_time
        if not hides_time(field, problem.ts, y, slope, side, known, partly=partly, step=step):
            return problem
    if linearises:
        warn_of_hidden_time(problem.method)
    if problem.may_hide_time:
        warn_of_constant_sizes()
    changed: dict[str, Any] = {"sizes_are_constant": True}
    if by_time:
        with field.side_effects.replay(), field.without_cut():
            y0 = moved(field, problem.y0, times[0], sign=-1, side=side)
            if problem.slope_is_traced:  # from a state that does not move with its time
                changed["slope"] = field.traced(times[0].detach().double(), y0, side=side)
        changed |= {"times": times.detach(), "given_times": times, "y0": y0}
    return replace(problem, **changed)


def hides_time(
    field: VectorField, ts: list[float], y: Tensor, slope: Tensor, side: int, evaluation: Evaluation | None = None,
    *, partly: bool = False, step: Any = 0.0,
) -> bool:  # fmt: skip
    """Whether func changes with its time, and autograd does not know. To be called with gradients off.

    A func that is constant in time between the times at which it branches has nothing to hide.

    :param ts: times of the solve, floats
    :param y: state at ts[0] [n]
    :param slope: f there [n]
    :param evaluation: its `Evaluation`, with a time that requires grad, if there is one
    :param partly: whether to look for a part that autograd does not know, too
    :param step: the first one, a number or [n] numbers: func is looked at behind it, as a state at rest may hide more
    """
    n_evals = field.n_evals
    with field.side_effects.replay():
        if partly and evaluation is None:
            evaluation = field.record(ts[0], y, time_grad=True, side=side)
        if evaluation is not None and _leads_to_time(evaluation):
            middle = ts[0] + 0.5 * (ts[-1] - ts[0])
            may_hide = partly and any(field.makes_numbers_of_time(t, y) for t in (ts[0], middle))
            hidden = may_hide and _hides_a_part(field, ts, y, step)
        else:
            hidden = field.uses_time(ts[0], y) and (
                _changes(field, ts, y, slope) or partly and _changes(field, ts, y + step * slope, None)
            )
            if hidden and evaluation is None:
                hidden = not _leads_to_time(field.record(ts[0], y, time_grad=True, side=side))
    field.n_evals = n_evals
    return hidden


def _leads_to_time(evaluation: Evaluation) -> bool:
    time: Any = evaluation.time
    return leads_to([edge.node for edge in evaluation.edges()], time)


def _hides_a_part(field: VectorField, ts: list[float], y0: Tensor, step: Any) -> bool:
    """Whether the derivative by time that autograd knows is not that of the values, in any component, at one of a few
    times where that is smooth."""
    span, eps = ts[-1] - ts[0], torch.finfo(y0.dtype).eps
    weights = 1.0 + 0.5 * torch.sin(torch.arange(len(y0), dtype=y0.dtype, device=y0.device))  # no two parts cancel

    def change(t: Any, y: Tensor, by: Any) -> tuple[Tensor, Any]:
        after, before, (late, early) = torch.empty_like(y), torch.empty_like(y), (t + by, t - by)
        field(late, y, after)
        field(early, y, before)
        return after - before, field.time(late).double().reshape(-1) - field.time(early).double().reshape(-1)

    def differs(evaluation: Evaluation, there: Tensor, apart: Tensor, looked_at: Tensor, bound: Tensor) -> bool:
        weighted = torch.where(looked_at, weights / there.abs(), 0.0)
        pulled = evaluation.pull(weighted * there.sign(), keep_graph=True)
        by_time = None if pulled is None else pulled[2]
        known = 0.0 if by_time is None else float((apart * by_time.reshape(-1)).sum())
        return abs(known - float(weighted @ there.abs())) > float(weighted @ bound)

    for t in (ts[0] + fraction * span for fraction in _FEW_PROBES):
        near, value = difference_size(t, span, eps), torch.empty_like(y0)
        field(t, y0, value)
        y = y0 + step * value
        there, apart = change(t, y, near)
        evaluation = field.record(t, y, value, time_grad=True)
        rounding, size = _ROUNDING * eps * value.abs(), there.abs()
        moves = size > 100 * rounding
        if differs(evaluation, there, apart, moves, 10 * rounding + _SAME * size):
            half, _ = change(t, y, 0.5 * near)
            truncated = (2 * half - there).abs()
            smooth = moves & (truncated < 0.01 * size)  # else a jump or a kink is near
            if differs(evaluation, there, apart, smooth, 10 * (rounding + truncated) + _SAME * size):
                return True
    return False


def difference_size(t: Any, span: Any, eps: float) -> Any:
    """How far from a time, in the direction of a span, to take differences: far enough for the rounding of the time,
    and near enough for the curvature."""
    if isinstance(t, Tensor):
        return torch.where(span < 0, -1.0, 1.0) * torch.maximum(eps ** (1 / 3) * span.abs(), 256 * eps * t.abs())
    return math.copysign(max(eps ** (1 / 3) * abs(span), 256 * eps * abs(t)), span)


def _changes(field: VectorField, ts: list[float], y: Tensor, slope: Tensor | None) -> bool:
    """Whether func changes with its time alone, other than by jumps, anywhere that is looked at."""
    span, eps = ts[-1] - ts[0], torch.finfo(y.dtype).eps

    def slope_at(t: float) -> Tensor:
        found = torch.empty_like(y)
        field(t, y, found)
        return found

    def changes_at(t: float, there: Tensor) -> bool:  # on both sides: a jump may be near
        near = difference_size(t, span, eps)
        return differ(there, slope_at(t + near)) and differ(there, slope_at(t - near))

    def differ(one: Tensor, other: Tensor) -> bool:
        rounding = _ROUNDING * eps * torch.maximum(one.abs(), other.abs())
        return bool(((one - other).abs() > rounding).any())

    here, before = ts[0], slope_at(ts[0]) if slope is None else slope
    for t in (ts[0] + fraction * span for fraction in _PROBES):
        there = slope_at(t)
        if changes_at(t, there):
            return True
        low, high, at_low, at_high = here, t, before, there
        for _ in range(_HALVINGS):  # a jump between two places where it is constant, or a slope
            if not differ(at_low, at_high):
                break
            middle = 0.5 * (low + high)
            between = slope_at(middle)
            if changes_at(middle, between):
                return True
            if differ(at_low, between):
                high, at_high = middle, between
            else:
                low, at_low = middle, between
        here, before = t, there
    return False


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
