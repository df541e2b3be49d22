"""What func hides from autograd: how it depends on its time, and, where that matters, on its state.

A func that detaches its time, or takes it as a number, gives no derivative of its slope in t; one that does so in a
part gives one that is not that of its values. The derivative of the discrete solution in its times needs the right one,
and would be wrong by as much as the steps are long. The solution's own slope needs none: y(t) moves by f(t, y) dt at an
output time, and by -f(t0, y0) dt0 at the start. Where func hides its time, the solve takes its times as constants, and
state and outputs are moved so.

`naive`, which differentiates the sizes of steps, needs the derivative of the slope along the solution in the same way,
in the time and in the state. It takes the sizes as constants where func hides a part of either.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .autocast import coarsest_rounding
from .errors import SecondDerivativeError
from .graph import leads_to
from .notices import warn_caller
from .private_torch import is_transformed
from .steppers.base import LINEARISE
from .transforms import forward_ad_disabled

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .problem import Problem
    from .steppers.base import Method
    from .vector_field import VectorField

# of the way through the interval, on no grid that a table may have its knots on
_PROBES = (0.0412387, 0.1304721, 0.2419573, 0.3128619, 0.4518331, 0.5731927, 0.7135943, 0.8312579, 0.9427813)
_FEW_PROBES = (0.1304721, 0.4518331, 0.7135943)
_OF_STATE = (0.1304721, 0.7135943)
_COARSE = 1e-3  # rounding that drowns differences
_HALVINGS = 6  # of the way from one of them to the next
_MOST_HALVED = 2  # such ways
_ROUNDING = 64
_SAME = 1e-6  # relative, of derivatives


def with_hidden_as_constants(problem: Problem) -> Problem:
    """The problem, whose end is known, as it is solved where func hides what gradients need; else as it is."""
    field, times, side = problem.field, problem.times, int(problem.starts_at_jump)
    linearises, of_sizes = LINEARISE in problem.method.abilities, problem.differentiates_sizes and problem.may_hide
    by_time = problem.transformed or (times.requires_grad and torch.is_grad_enabled())  # a transform does not tell
    if problem.slope is None or torch.is_inference_mode_enabled() or not (by_time or linearises or of_sizes):
        return problem
    with torch.no_grad(), forward_ad_disabled():
        y, slope = problem.y0.detach(), problem.slope.detach()
        step, known = field.direction * (problem.first_step or 0.0), problem.evaluation if by_time else None
        hidden = hides_time(field, problem.ts, y, slope, side, known, partly=by_time or of_sizes, step=step)
        of_state = of_sizes and not hidden and _hides_state(field, problem.ts, y, step)
    changed: dict[str, Any] = {}
    if of_sizes and (hidden or of_state):
        warn_of_constant_sizes("time" if hidden else "state")
        changed["differentiates_sizes"] = False
    if hidden and linearises:
        warn_of_hidden_time(problem.method)
    if hidden and by_time:
        with field.side_effects.replay(), field.without_cut():
            y0 = moved(field, problem.y0, times[0], sign=-1, side=side)
            if problem.slope_is_traced:  # from a state that does not move with its time
                changed["slope"] = field.traced(times[0].detach().double(), y0, side=side)
        changed |= {"times": times.detach(), "given_times": times, "y0": y0}
    return replace(problem, **changed) if changed else problem


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
    with _unseen(field):
        if is_transformed():
            return field.uses_time(ts[0], y) and _hides_a_part(field, ts, y, step, _PROBES)
        shows_time = None if evaluation is None else _leads_to_time(evaluation)
        if partly and evaluation is None:
            shows_time = _shows_time(field, ts[0], y, side)
        if shows_time:
            return partly and _makes_numbers(field, ts, y) and _hides_a_part(field, ts, y, step)
        hidden = field.uses_time(ts[0], y) and _of_probe(lambda: _changes(field, ts, y + step * slope))
        return hidden and (shows_time is not None or not _shows_time(field, ts[0], y, side))


def func_hides_time(field: VectorField, ts: list[Any], y: Tensor) -> bool:
    """Whether func hides its time, or a part of it, between the ends of a solve, where there may be second derivatives.

    :param y: state at one of them [n]
    """
    if not torch.is_grad_enabled():
        return False
    with torch.no_grad():
        return hides_time(field, ts, y.detach(), torch.zeros_like(y), 0, partly=True)


def _hides_state(field: VectorField, ts: list[float], y: Tensor, step: float) -> bool:
    """Whether the slope changes along the solution in a way that autograd does not know. Arguments as for
    `hides_time`."""
    with _unseen(field):
        may_hide = is_transformed() or _makes_numbers(field, ts, y, of_state=True)
        return may_hide and _hides_a_part(field, ts, y, step, _OF_STATE, of_state=True)


@contextlib.contextmanager
def _unseen(field: VectorField) -> Iterator[None]:
    """Context of evaluations that leave no trace."""
    n_evals = field.n_evals
    with field.side_effects.replay():
        yield
    field.n_evals = n_evals


def _shows_time(field: VectorField, t: Any, y: Tensor, side: int) -> bool:
    """Whether autograd knows that the slope depends on the time."""
    try:
        return _leads_to_time(field.record(t, y, time_grad=True, side=side))
    except ValueError:  # func takes it as an array of NumPy
        return False


def _leads_to_time(evaluation: Evaluation) -> bool:
    time: Any = evaluation.time
    return leads_to([edge.node for edge in evaluation.edges()], time)


def _makes_numbers(field: VectorField, ts: list[float], y: Tensor, *, of_state: bool = False) -> bool:
    try:
        found = field.makes_numbers(ts[0], y, of_state=of_state)
    except ValueError:  # func takes its time as an array of NumPy
        return True
    middle = ts[0] + 0.5 * (ts[-1] - ts[0])
    return found or _of_probe(lambda: field.makes_numbers(middle, y, of_state=of_state))


def _of_probe(look: Callable[[], bool]) -> bool:
    """What is seen at a state and a time that no solution may come to; False where func is not made for them, or fills
    memory that it keeps, under a transform."""
    try:
        return look()
    except Exception:
        return False


def _hides_a_part(
    field: VectorField, ts: list[float], y0: Tensor, step: Any, probes: Sequence[float] = _FEW_PROBES,
    *, of_state: bool = False,
) -> bool:  # fmt: skip
    """Whether the derivative of func by its time that autograd knows is not that of its values, in any component, at
    one of a few times where that is smooth.

    :param of_state: the derivative along the solution instead, in time and state
    """
    span, eps = ts[-1] - ts[0], max(torch.finfo(y0.dtype).eps, coarsest_rounding(field))
    if eps >= _COARSE:
        return False
    look = functools.partial(_hides_a_part_at, field, y0=y0, step=step, span=span, eps=eps, of_state=of_state)
    return any(_of_probe(functools.partial(look, ts[0] + part * span)) for part in probes)


def _hides_a_part_at(
    field: VectorField, t: Any, y0: Tensor, step: Any, span: Any, eps: float, of_state: bool
) -> bool:
    indices = torch.arange(len(y0), dtype=y0.dtype, device=y0.device)
    weights = 1.0 + 0.5 * torch.sin(indices)  # no two parts cancel
    signs = 1.0 - 2.0 * (torch.sin(3.0 * indices + 1.0) < 0).to(weights)
    direction = _value(field, t, y0)
    y = y0 + step * direction
    value, pull = field.pullback(t, y)
    # a state moves by a part of the first step, as it may change much in the whole interval
    size = eps ** (1 / 6) * step if of_state else difference_size(t, span, eps)
    rounding = _ROUNDING * eps * value.abs()
    still = 100 * rounding  # what changes by no more may do so by rounding

    def change(by: Any) -> tuple[Tensor, Tensor, Tensor]:
        late, early, shift = t + by, t - by, by * direction if of_state else torch.zeros_like(y)
        apart = field.time(late).double() - field.time(early).double()
        return _value(field, late, y + shift) - _value(field, early, y - shift), apart, 2 * shift

    there, apart, shift = change(size)
    moves, rests = there.abs() > still, (there.abs() <= still) & (still > 0)

    def known(cotangent: Tensor) -> float:
        by_time, by_state = pull(cotangent)
        of_time = 0.0 if by_time is None else float((apart * by_time).sum())
        return of_time + (0.0 if by_state is None else float(shift @ by_state))

    def differs(moves: Tensor, rests: Tensor, bound: Tensor) -> bool:
        weighted = torch.where(moves, weights / there.abs(), 0.0)
        if abs(known(weighted * there.sign()) - float(weighted @ there.abs())) > float(weighted @ bound):
            return True
        # rounding is less by far than the bound of each, and does not add up
        weighted = torch.where(rests, signs * weights / still, 0.0)
        return abs(known(weighted) - float(weighted @ there)) > 2 * float(torch.linalg.vector_norm(weighted * still))

    if not differs(moves, rests, 10 * rounding + _SAME * there.abs()):
        return False
    half, *_ = change(0.5 * size)
    truncated = (2 * half - there).abs()
    smooth = truncated < 0.01 * there.abs()  # else a jump or a kink is near
    bound = 10 * (rounding + truncated) + _SAME * there.abs()
    return differs(moves & smooth, rests & (half.abs() <= still), bound)


def _value(field: VectorField, t: Any, y: Tensor) -> Tensor:
    value = torch.empty_like(y)
    field(t, y, value)
    return value


def difference_size(t: Any, span: Any, eps: float) -> Any:
    """How far from a time, in the direction of a span, to take differences: far enough for the rounding of the time,
    and near enough for the curvature."""
    if isinstance(t, Tensor):
        return torch.where(span < 0, -1.0, 1.0) * torch.maximum(eps ** (1 / 3) * span.abs(), 256 * eps * t.abs())
    return math.copysign(max(eps ** (1 / 3) * abs(span), 256 * eps * abs(t)), span)


def _changes(field: VectorField, ts: list[float], y: Tensor) -> bool:
    """Whether func changes with its time alone, other than by jumps, anywhere that is looked at."""
    span, eps = ts[-1] - ts[0], max(torch.finfo(y.dtype).eps, coarsest_rounding(field))

    def changes_at(t: float, there: Tensor) -> bool:  # on both sides: a jump may be near
        near = difference_size(t, span, eps)
        return differ(there, _value(field, t + near, y)) and differ(there, _value(field, t - near, y))

    def differ(one: Tensor, other: Tensor) -> bool:
        rounding = _ROUNDING * eps * torch.maximum(one.abs(), other.abs())
        return bool(((one - other).abs() > rounding).any())

    n_halved, here, before = 0, ts[0], _value(field, ts[0], y)
    for t in (ts[0] + fraction * span for fraction in _PROBES):
        there = _value(field, t, y)
        if changes_at(t, there):
            return True
        low, high, at_low = here, t, before
        is_halved = n_halved < _MOST_HALVED and differ(before, there)
        n_halved += is_halved
        for _ in range(_HALVINGS * is_halved):  # a jump between two places where it is constant, or a slope
            middle = 0.5 * (low + high)
            between = _value(field, middle, y)
            if changes_at(middle, between):
                return True
            if differ(at_low, between):
                high = middle
            else:
                low, at_low = middle, between
        here, before = t, there
    return False


def warn_of_hidden_time(method: Method) -> None:
    """Warn that a method that differentiates func misses its derivative by time."""
    _warn("time", f"{method.name} needs that derivative, and takes very small steps without it")


def warn_of_constant_sizes(argument: str) -> None:
    """Warn that `naive` does not differentiate the sizes of its steps.

    :param argument: what func hides, "time" or "state"
    """
    _warn(argument, "gradient='naive' takes the sizes of its steps as constants, as 'direct' does")


def _warn(argument: str, what: str) -> None:
    warn_caller(
        f"func changes with its {argument}, and autograd does not know "
        f"(it detaches it, or takes it as a number): {what}"
    )


def moved(field: VectorField, y: Tensor, time: Tensor, sign: int = 1, side: int = 0) -> Tensor:
    """The state [n], as large as it is, as a function of its time (0-d, requires grad): a midpoint step of no length,
    so that second derivatives hold as far as func lets them. The one in the time twice needs what func hides: refused.

    :param sign: 1: the time at which it is reached; -1: from which it starts
    """
    t = time.detach().double()
    half = 0.5 * sign * (time.double() - t)
    slope = field.traced(t, y, side=side)
    middle = field.traced(t + sign * half, y + half.to(y) * slope, side=side)
    way = 2 * half + Unknown.apply(time.double(), 1, "where func hides its time, a solution has one derivative in it")
    return y + way.to(y) * middle


class Unknown(torch.autograd.Function):
    """A term of higher order in x that nobody knows: zero, as are its first ``orders`` derivatives; the next one is
    refused with a message.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, orders: int, message: str) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.orders, ctx.message = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        return bar * _next_unknown(ctx), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Any:
        return tangent * _next_unknown(ctx)


def _next_unknown(ctx: Any) -> Tensor:
    if ctx.orders == 0:
        raise SecondDerivativeError(ctx.message)
    return Unknown.apply(*ctx.saved_tensors, ctx.orders - 1, ctx.message)


def unknown_orders(first: Tensor, time_is_hidden: bool) -> Tensor:
    """What a Newton step leaves out, zero, in which an order of derivatives that nobody knows is refused.

    :param first: what it depends on
    :param time_is_hidden: by func or the event function, so that one order is known, not two
    """
    which = "first and second order only, and of first order alone where func or its function hides its time"
    return Unknown.apply(first, 1 if time_is_hidden else 2, f"an event has derivatives of {which}")
