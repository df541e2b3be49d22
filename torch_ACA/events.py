"""`solve_event`: solve until a function of the state crosses zero, differentiable twice in everything.

A search without gradients marches until an entry of the event function g changes its sign and locates the crossing t*
on the dense output of that step. A solve over the same steps then lands on t*, which is a constant to it, and carries
the gradients of the state there. What the event time T(p) adds, where g(T, y(T; p)) = 0, is added behind the solve.

Two simplified Newton steps, whose values are rounding or the tolerance, give T its derivatives. With the number
r = dg/dt along the solution, each step d <- d - g(t* + d, y(t* + d; p)) / r makes one more order in p right: the first
gives the implicit function theorem, dT/dp = -(dg/dp) / r (Chen, Amos and Nickel, ICLR 2021), the second the second
derivatives. The state at t* + d is that of an explicit midpoint step from t*, exact to second order in d. Its slope is
a value of func: the first derivatives hold for a func that detaches its time as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .api import GRADIENT_METHODS, _solved
from .callbacks import Callbacks
from .cut import UseWatch
from .errors import NoEventError, NonFiniteError, TooManyEvaluationsError
from .hidden import difference_size, func_hides_time, unknown_orders, with_hidden_as_constants
from .march import Stats, Step, Stop
from .notices import shown
from .option_checks import called, check_callable, tensor_of, time_of
from .plan import checked
from .private_torch import stacked
from .problem import Problem
from .solver_options import SolverOptions, takes_options
from .state import StateLayout
from .steppers.base import Stepper
from .transforms import check_no_transform
from .vector_field import VectorField

_FAR = 1e10  # no event lies farther away: the search ends at max_evals long before
_FEW = 8  # units of rounding
_HARDLY_A_STEP = 1e-9  # part of a step that is no way to an event, whatever the state does
# nodes of a graph behind which the entries stand in the same order
_IN_ORDER = frozenset(("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0", "ToCopyBackward0"))
HARDLY = 1e-7  # a slope that over the step makes so little of the way to zero is that of a turning point, and rounding


@takes_options(without=("dense", "on_failure", "record"))
def solve_event(
    func: Callable, y0: Any, t0: float | Tensor, event_fn: Callable, *, reverse_time: bool = False, **keywords: Any,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Solve from t0 until event_fn(t, y) crosses zero.

    The search leaves no trace: BatchNorm statistics, random streams and callbacks see one solve from t0 to the event.
    A crossing is a sign that differs from one end of a step to the other: two of them within one step go unseen, so
    bound the step (``options={"max_step": ...}``) where g oscillates faster than the solution.

    With per_sample each row has its event, and its event time.

    :param t0: float or 0-d tensor, with per_sample also [b]; the event time is differentiable in it
    :param event_fn: event_fn(t, y) -> tensor (or number) of any shape, real, integer or boolean; the first entry to
        cross, in the direction of integration, ends the solve. An entry that is zero at t0, to rounding, counts once
        it has left zero and crosses again. Where it has no graph (a comparison, ``float()``), the event time is a
        constant, and the state at the event is differentiable at that constant time. With per_sample values [b, ...],
        those of a row of its state alone
    :param reverse_time: search backwards from t0
    :param keywords: options as in `SolverOptions`
    :returns: event time (0-d, float64; with per_sample [b]) and the states (y0 and at the event: leaves [2, *shape]);
        both differentiable twice with gradient "aca", "direct" or "naive", once with "adjoint" or "mali". The event
        time lies where t0 does, that of a number where y0 does
    :raises TooManyEvaluationsError: no event within max_evals
    :raises NoEventError: none on the whole way, though steps grew so long that the search came to its end
    :raises NonFiniteError: event_fn returned NaN
    :raises ValueError: the event lies at t0 itself, or the solution touches it without a slope; in the backward pass:
        the event function is flat where it crosses, so that its time has no derivative
    :raises SecondDerivativeError: in the backward pass, for derivatives of a higher order than there are
    :raises TransformError: under a transform of `torch.func`, or in forward-mode AD
    """
    check_no_transform("solve_event")
    asked = SolverOptions(**keywords)
    if "grid" in (asked.options or {}):
        raise ValueError("a grid needs an end time, and an event has none: give step_size instead")
    check_callable(event_fn, "event_fn(t, y)")
    start = _start(t0, asked.per_sample)
    far = start.detach() + (-1.0 if reverse_time else 1.0) * start.detach().abs().clamp(min=_FAR)

    def integrate(problem: Problem) -> tuple[Tensor, Tensor]:
        if asked.per_sample:
            from .rows.events import to_events  # here, since it needs this module

            return to_events(problem, event_fn, checked(asked, problem.field.layout).settings.options)
        return _to_event(problem, event_fn, GRADIENT_METHODS[asked.gradient])

    times = torch.stack([start, far], -1)
    problem, layout, (t, y) = _solved(func, y0, times, asked, integrate)
    t = t.to(t0.device if isinstance(t0, torch.Tensor) else layout.device)
    return t, layout.unflatten(torch.stack([problem.y0, y]))


def _start(t0: Any, per_sample: bool) -> Tensor:
    try:
        start = time_of(t0)
        return start if per_sample else start.reshape(())
    except (TypeError, ValueError, RuntimeError):
        accepted = "a number or a tensor, 0-d or [b]" if per_sample else "a number or a 0-d tensor"
        raise TypeError(f"t0 must be {accepted}, got {shown(t0)}") from None


def _to_event(problem: Problem, event_fn: Callable, integrate: Callable) -> tuple[Tensor, Tensor]:
    """Event time and state [n] there.

    :param problem: of a solve that would go on for ever
    :param integrate: the gradient method
    """
    field, start = problem.field, problem.ts[0]
    event = _Event(event_fn, field.layout, field.time(start))
    with torch.no_grad(), field.side_effects.replay():
        crossing = _search(problem, event)
    if crossing.t == start:
        raise ValueError("the event lies at t0 itself")
    end = problem.times.new_tensor(crossing.t)
    ys, _ = integrate(_until(problem, torch.stack([problem.times[0], end]), crossing))
    with field.again(), field.side_effects.replay():
        hides = func_hides_time(field, [start, crossing.t], ys[-1])
        with field.without_cut():
            return _at_event(field, event, crossing, hides, end, ys[-1])


class _Event:
    """The event function on flat states: values [k] in double precision, 1 and -1 for True and False."""

    def __init__(self, event_fn: Callable, layout: StateLayout, like: Tensor) -> None:
        self.event_fn, self.layout = event_fn, layout
        self.like = like  # a time as func gets it: the event function gets the same type, on the same device

    def __call__(self, t: float | Tensor, flat: Tensor) -> Tensor:
        """t a float or 0-d tensor; the event function may change its arguments in place."""
        t = t.to(self.like, copy=True) if isinstance(t, torch.Tensor) else torch.full_like(self.like, t)
        returned = called(self.event_fn, "event_fn(t, y)", t, self.layout.unflatten(flat.clone()))
        values = tensor_of(returned, "event_fn").reshape(-1)
        if values.is_complex() or values.numel() == 0:
            raise TypeError(f"event_fn must return real numbers, got {values.numel()} of type {values.dtype}")
        return 2.0 * values.double() - 1.0 if values.dtype == torch.bool else values.double()


@dataclass(frozen=True)
class _Crossing:
    """Where an entry (``index``) of the event function first leaves its sign, the size of the step around it, and the
    entry's distance from zero at the start of that step.
    """

    t: float
    index: int
    h: float
    way: float


def _search(problem: Problem, event: _Event) -> _Crossing:
    """The first `_Crossing` in the direction of integration. To be called with gradients off."""
    problem = replace(problem, callbacks=Callbacks(), stats=Stats())
    stepper = problem.method.stepper(problem.field)

    def values_at(t: float, flat: Tensor) -> Tensor:
        values = event(t, flat).cpu()
        if bool(values.isnan().any()):
            stats, n_evals = problem.stats, problem.field.n_evals
            what, hint = "event_fn returned NaN", "Check event_fn near this time and state."
            raise NonFiniteError(t, 0.0, stats.n_accepted, n_evals, what=what, hint=hint)
        return values

    y0 = problem.y0.detach()
    start = values_at(problem.ts[0], y0)
    signs = torch.sign(start)  # of the last values that were not zero
    slope = problem.slope.detach()
    try:
        for step in problem.march(stepper, stepper.start(problem.ts[0], y0, slope)):
            end = values_at(step.t_end, step.trial.end.y)
            if step.t == problem.ts[0]:
                signs = torch.where(is_met(start, end, step.t, step.h, y0, slope), 0.0, signs)
            crossed = (signs != 0) & (torch.sign(end) != signs)
            if bool(crossed.any()):
                return _first_crossing(step, crossed, signs, start, end, values_at, _inside(problem, stepper, step))
            signs = torch.where(signs == 0, torch.sign(end), signs)
            start = end
    except TooManyEvaluationsError as error:
        error.replace_hint(error.no_event)
        raise
    counts = problem.stats.n_accepted, problem.field.n_evals
    raise NoEventError(step.t_end, step.h, *counts, what=NoEventError.since(problem.ts[0]))


def is_met(start: Tensor, end: Tensor, t: Any, h: Any, y: Tensor, slope: Tensor) -> Tensor:
    """Whether entries [..., k] of the event function are zero at t0 but for rounding, so that a solve that goes on from
    an event does not meet it again.

    :param start, end: their values at both ends of the first step, from t of size h
    :param y, slope: the state at t0, and its slope
    """
    part = (start / (start - end)).abs()  # of the step, to zero; not finite where the values do not change
    t, h = (torch.as_tensor(x, dtype=part.dtype, device=part.device).abs() for x in (t, h))
    change = (slope.abs().amax(-1, True) / y.abs().amax(-1, True)).to(part) * h  # of the state over the step, relative
    of_time = torch.finfo(torch.float64).eps * (t / h).clamp(min=1.0)  # parts of the step that times do not tell apart
    of_state = (torch.finfo(y.dtype).eps / change).nan_to_num(0.0).clamp(max=_HARDLY_A_STEP)  # nor do states
    return part <= _FEW * torch.maximum(of_time, of_state)


def _inside(problem: Problem, stepper: Stepper, step: Step) -> Callable[[float], Tensor]:
    """State [n] at a fraction of the step that was just taken."""
    problem.close(stepper, step)
    return lambda x: stepper.within(step)(torch.tensor([x], dtype=torch.float64, device="cpu"))[0]


def _first_crossing(
    step: Step, crossed: Tensor, signs: Tensor, start: Tensor, end: Tensor,
    values_at: Callable[[float, Tensor], Tensor], state_at: Callable[[float], Tensor],
) -> _Crossing:  # fmt: skip
    """The `_Crossing` in a step of the first of the entries that crossed.

    :param crossed, signs, start, end: of the entries [k]: whether they crossed, their signs before, their values at
        both ends of the step
    :param values_at: values_at(t, state) -> the values [k]
    :param state_at: state_at(x) -> the state [n] at fraction x of the step
    """
    found = {1.0: end}

    def smallest(x: float) -> float:  # positive until the first of the entries leaves its sign
        found[x] = values_at(step.t + x * step.h, state_at(x))
        return float((found[x] * signs)[crossed].min())

    at_0, at_1 = (float((values * signs)[crossed].min()) for values in (start, end))
    resolution = torch.finfo(step.start.y.dtype).eps  # a finer x tells no two states apart
    x = _first_not_positive(smallest, at_0, at_1, resolution)
    index = int((crossed & (torch.sign(found[x]) != signs)).nonzero()[0])
    return _Crossing(step.t_end if x == 1.0 else step.t + x * step.h, index, step.h, abs(float(start[index])))


def _first_not_positive(f: Callable[[float], float], at_0: float, at_1: float, resolution: float) -> float:
    """Where in [0, 1] f, positive at 0 and not at 1, changes: a point where it is not positive, no farther than the
    resolution from one where it is.

    The method ITP, superlinear where f is smooth and never worse than bisection (Oliveira, Takahashi, ACM TOMS 47,
    2020). A value of zero counts as changed and does not end the search: f may stay zero (integers).
    """
    low, high, f_low, f_high = 0.0, 1.0, at_0, at_1
    slack = 1.0
    while high - low > resolution:
        middle, width = 0.5 * (low + high), high - low
        falsi = low + width * (f_low / (f_low - f_high))
        nudge = max(0.2 * width**2, resolution)
        x = falsi + math.copysign(nudge, middle - falsi) if nudge <= abs(middle - falsi) else middle
        reach = max(slack - 0.5 * width, 0.0)  # how far from the middle keeps up with bisection
        if abs(x - middle) > reach:
            x = middle + math.copysign(reach, x - middle)
        slack *= 0.5
        value = f(x)
        if value > 0.0:
            low, f_low = x, value
        else:
            high, f_high = x, value
    return high


def _until(problem: Problem, times: Tensor, crossing: _Crossing) -> Problem:
    """The problem of the same solve that ends at the crossing."""
    t, sign = crossing.t, problem.field.direction
    stops = [stop for stop in problem.stops if sign * stop.t < sign * t]
    stops.append(Stop(t, 1, jump=any(stop.jump for stop in problem.stops if stop.t == t)))
    limits = replace(problem.limits, max_evals=problem.limits.max_evals + problem.field.n_evals)
    ts = [problem.ts[0], t]
    return with_hidden_as_constants(replace(problem, times=times, given_times=times, ts=ts, stops=stops, limits=limits))


def _at_event(
    field: VectorField, event: _Event, crossing: _Crossing, hides: bool, t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Event time and state [n] there, from the state y [n] that the solve gave at t (0-d, a constant).

    :param hides: whether func hides its time
    """
    if torch.is_inference_mode_enabled():  # no derivative of the event function can be had: t is good to the tolerance
        return t, y
    slope = torch.empty_like(y, requires_grad=False)
    with torch.no_grad():
        field(crossing.t, y.detach(), slope)
    values = event(t, y)
    value = values[crossing.index]
    rate, flat, hidden = _rate(event, crossing, y.detach(), slope)
    if flat:
        return t if crossing.index in without_graph(values) else _Flat.apply(t, value), y
    if abs(rate * crossing.h) <= HARDLY * crossing.way:
        if torch.is_grad_enabled():
            raise ValueError("the solution touches the event without a slope there: its time has no gradient")
        return t, y
    # beside a small rate the error of the solution may say nothing of the time: the value of the search stays
    trusted = abs(float(value.detach())) <= abs(rate * crossing.h)

    def newton(value: Tensor) -> Tensor:
        return -(value if trusted else value - value.detach()) / rate

    shift = newton(value)
    half = 0.5 * shift
    middle = field.traced((t + half.to(t)).to(event.like), y + half.to(y) * slope)
    first = shift
    value = event(t + shift.to(t), y + shift.to(y) * middle)[crossing.index]
    shift = shift + newton(value + hidden * (shift - shift.detach()).to(value))
    shift = shift + unknown_orders(first, hides or bool(hidden))
    return t + shift.to(t), y + shift.to(y) * middle


def _rate(event: _Event, crossing: _Crossing, y: Tensor, slope: Tensor) -> tuple[float, bool, float]:
    """d(event)/dt along the solution, a number; whether the event function is flat here or has no graph; and the part
    of the rate that is hidden from autograd."""
    with torch.enable_grad():
        t, y = torch.full_like(event.like, crossing.t).requires_grad_(), y.requires_grad_()
        with UseWatch(t, None) as watch:
            value = with_graph(lambda: event(t, y)[crossing.index])
        if value is None:
            return 0.0, True, 0.0
        t_bar, y_bar = torch.autograd.grad(value, [t, y], allow_unused=True)
    t_bar, hidden = torch.zeros_like(t) if t_bar is None else t_bar, 0.0
    if watch.sees_way_out:
        near = torch.full_like(t_bar, abs(crossing.h))
        hidden = float(hidden_rate(lambda t: event(t, y)[crossing.index], t.detach(), near, t_bar, t.dtype))
    rate = float(t_bar) + hidden + (0.0 if y_bar is None else float(y_bar @ slope))
    return rate, not any(bar is not None and bool(bar.any()) for bar in (t_bar, y_bar)), hidden


def hidden_rate(
    values: Callable[[Tensor], Tensor], t: Tensor, sizes: Tensor, known: Tensor, dtype: torch.dtype
) -> Tensor:
    """What the derivative of an event function by its time alone, as autograd knows it, lacks of that of its values:
    zero where these agree, or are not smooth.

    :param t: times, to which as many values belong
    :param sizes: those of the steps around them
    :param dtype: of the times that the event function gets
    """
    eps = torch.finfo(dtype).eps
    near = difference_size(t, sizes, eps).double()

    def rate(by: Tensor) -> Tensor:
        after, before = ((t + d).to(dtype).to(t) for d in (by, -by))
        return (values(after) - values(before)).double() / (after.double() - before.double())

    with torch.no_grad():
        found, half = rate(near), rate(0.5 * near)
    lacks = half - known
    rounding = 64 * eps * (t * known).abs() / near
    return torch.where(lacks.abs() > 10 * (found - half).abs() + rounding + 1e-6 * half.abs(), lacks, 0.0)


def with_graph(evaluate: Callable[[], Tensor]) -> Tensor | None:
    """What an event function returns for arguments that require grad, if it has a graph; not so where it takes them as
    numbers, though it be through NumPy."""
    try:
        value = evaluate()
    except ValueError:
        return None
    return value if value.requires_grad else None


def without_graph(values: Tensor) -> list[int]:
    """Numbers of the entries, in the last dimension of values [k] or [b, k], that are known to have no graph, though
    others have: constants that `torch.stack` has put beside them."""
    count = values.shape[-1]
    if not values.requires_grad:
        return list(range(count))
    node = values.grad_fn
    while node is not None and node.name() in _IN_ORDER:
        node = node.next_functions[0][0]
    stack = None if node is None else stacked(node)
    if stack is None or stack[0][stack[1]] != count or values.dim() == 2 and stack[1] == 0:  # parts are not entries
        return []
    return [i for i, (before, _) in enumerate(node.next_functions) if before is None]


class _Flat(torch.autograd.Function):
    """An event time that depends on something in a way that the event function does not tell."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, value: Tensor) -> Tensor:
        ctx.t = float(t)
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        raise flat_event(f"at t = {ctx.t:.6g}", "the event time has")


def flat_event(where: str, what: str) -> ValueError:
    """The error of an event function whose derivatives are all zero where it crosses."""
    return ValueError(
        f"event_fn has no slope where it comes to zero, {where}: its derivatives by t and y are 0 there (a plateau of "
        f"torch.where, torch.sign, a detached state), so {what} no derivative. Return a value that crosses zero with a "
        "slope, or detach what event_fn returns, for a time that is a constant"
    )
