"""Events of rows: each row is solved until the event function of its own state crosses zero.

As `events`, for all rows at once: a search without gradients marches every row until an entry of the event function
changes its sign, the crossings are located on the dense output of these steps, and a solve by rows lands on them. The
two simplified Newton steps that give the event times their derivatives are taken row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..autocast import coarsest, coarsest_rounding
from ..cut import UseWatch
from ..errors import NoEventError, NonFiniteError
from ..events import HARDLY, flat_event, hidden_rate, is_met, with_graph, without_graph
from ..hidden import func_hides_time, unknown_orders
from ..inference_mode import outside_inference_mode
from ..march import Stats
from ..option_checks import called, tensor_of
from ..reach import reach
from ..steppers.dense_output import combine
from .failures import RowFailures, shown_rows
from .march import march_rows
from .problem import check_time_of
from .solve import aca_of_rows
from .ties import Point, RowTies
from .times import checked_row_times

if TYPE_CHECKING:
    from .field import RowField
    from .problem import RowProblem


def to_events(problem: Any, event_fn: Callable, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Event times [b], float64, and the states [size] there.

    :param problem: `RowProblem` of a solve that would go on for ever
    :param options: the checked options of that solve
    """
    field, rows = problem.field, problem.field.rows
    if not rows.count:
        return problem.times[..., 0].expand(0), aca_of_rows(problem)[0][-1]
    event, start = _RowEvent(event_fn, field), problem.row_times.start
    with torch.no_grad(), field.side_effects.replay():
        crossing = _search(problem, event)
    at_start = crossing.t == start
    if bool(at_start.any()):
        raise ValueError(f"the event lies at t0 itself: {shown_rows(at_start)}")
    end = crossing.t.to(problem.times)
    times = torch.stack([problem.times[..., 0].expand(rows.count), end], 1)
    _, row_times = checked_row_times(times.detach(), field.layout, rows.count, options)
    check_time_of(problem, row_times)
    limits = replace(problem.limits, max_evals=problem.limits.max_evals + field.n_evals)
    ys, _ = aca_of_rows(replace(problem, times=times, given_times=times, row_times=row_times, limits=limits))
    with field.again(), field.side_effects.replay():
        hides = func_hides_time(field, [start, end], ys[-1])
        with field.without_cut():
            return _at_events(field, event, crossing, hides, ys[-1])


class _RowEvent:
    """The event function on flat states: values [b, k] in double precision, 1 and -1 for True and False."""

    def __init__(self, event_fn: Callable, field: RowField) -> None:
        self.event_fn, self.field, self.rows = event_fn, field, field.rows

    def __call__(self, t: Tensor, flat: Tensor) -> Tensor:
        """t [b]; the event function may change its arguments in place."""
        time = self.rows.time(t.to(self.field.layout.dtype, copy=True))
        returned = called(self.event_fn, "event_fn(t, y)", time, self.field.layout.unflatten(flat.clone()))
        values = tensor_of(returned, "event_fn")
        count = self.rows.count
        if values.is_complex() or values.dim() == 0 or len(values) != count or values.numel() == 0:
            shape = tuple(values.shape)
            raise TypeError(
                f"with per_sample event_fn must return real numbers [b, ...] for b = {count} rows, got {shape} of type "
                f"{values.dtype}"
            )
        values = values.reshape(count, -1)
        return 2.0 * values.double() - 1.0 if values.dtype == torch.bool else values.double()

    def ties(self) -> RowTies:
        """`RowTies` of the event function, which must be of each row alone."""

        def refuse(row: int, what: str, t: float) -> None:
            shown = f"that of row {row} sees the {what} of others, at t = {t:.6g}"
            raise ValueError(f"per_sample needs an event_fn of each row alone, but {shown}")

        found = reach(self.event_fn)
        eps = max(coarsest_rounding(self.field), coarsest((*found.tensors, *found.constants)))
        return RowTies(lambda t, y, side: self(t, y), self.rows, eps, refuse)


@dataclass(frozen=True)
class _Crossings:
    """As `events._Crossing`, every member [b]."""

    t: torch.Tensor
    index: torch.Tensor
    h: torch.Tensor
    way: torch.Tensor


def _search(problem: RowProblem, event: _RowEvent) -> _Crossings:
    """The first crossing of each row."""
    parts: Sequence[Tensor]
    counts: Any  # tensors of rows among them
    field, rows, start = problem.field, problem.field.rows, problem.row_times.start
    problem = replace(problem, stats=Stats(), failures=RowFailures(start, problem.method))
    stepper = problem.method.row_stepper(field)

    def values_at(t: Tensor, flat: Tensor) -> Tensor:
        values = event(t, flat)
        unknown = values.isnan().any(1)
        if bool(unknown.any()):
            row = int(unknown.nonzero()[0])
            what = f"{shown_rows(unknown)}: event_fn returned NaN"
            hint = "Check event_fn near this time and state."
            raise NonFiniteError(float(t[row]), 0.0, 0, field.n_evals, what=what, hint=hint)
        return values

    before = values_at(start, problem.y0.detach())
    ties, n_steps = event.ties(), 0
    at_start = now = Point(start, problem.y0.detach(), before)
    ties.look_at_start(at_start, problem.row_times.end)
    signs, found = torch.sign(before), []  # of the last values that were not zero
    searching = torch.ones_like(start, dtype=torch.bool)
    waiting, some_wait, slope = searching.clone(), True, rows.rows(problem.slope.detach())  # for their first step
    h = torch.zeros_like(start)  # of the last steps
    for step in march_rows(problem, stepper):
        after, h = values_at(step.t_end, step.y_end), torch.where(step.accepted, step.h, h)
        now, n_steps = Point(step.t_end, step.y_end, after), n_steps + 1
        if ties.due(n_steps):
            ties.look(at_start, now)
        if some_wait:
            met = is_met(before, after, step.t[:, None], step.h[:, None], rows.rows(step.y), slope)
            signs = torch.where(met & (waiting & step.accepted)[:, None], 0.0, signs)
            waiting = waiting & ~step.accepted
            some_wait = bool(waiting.any())
        changed = (signs != 0) & (torch.sign(after) != signs) & step.accepted[:, None]
        if bool(changed.any()):
            step.finished = changed.any(1)
            row = step.finished.nonzero()[:, 0]
            parts = (step.t, step.h, step.t_end, rows.rows(step.y), signs, changed, before, after)
            slopes = torch.stack([rows.rows(slope)[row] for slope in step.slopes], 1)
            bad = ~torch.isfinite(slopes[:, : problem.method.interpolant.slopes]).flatten(1).all(1)
            if bool(bad.any()):
                step.infinite = torch.zeros_like(searching).index_fill(0, row[bad], True)
            found.append([row, slopes, *(part[row] for part in parts)])
            searching[row] = False
        signs = torch.where(signs == 0, torch.sign(after), signs)
        before = after
    if problem.failures:
        error = problem.failures.error()
        error.add_hint("No event was met so far in these rows.")
        raise error
    ties.look(at_start, now, last=True)
    if bool(searching.any()):
        counts, what = (problem.stats.n_accepted, field.n_evals), NoEventError.since(float(start[searching][0]))
        problem.failures.add(NoEventError, searching, problem.row_times.end, h, *counts, what=what)
        raise problem.failures.error()
    row, *parts = (torch.cat(pieces) for pieces in zip(*found))
    order = torch.argsort(row)
    return _located(problem, values_at, *(part[order] for part in parts))


def _located(
    problem: RowProblem, values_at: Callable[[Tensor, Tensor], Tensor], slopes: Tensor, t: Tensor, h: Tensor,
    t_end: Tensor, y: Tensor, signs: Tensor, changed: Tensor, before: Tensor, after: Tensor,
) -> _Crossings:  # fmt: skip
    """The crossings in a step of each row, by bisection: the points behind them, no farther than the precision of the
    state from points before."""
    rows, interpolant = problem.field.rows, problem.method.interpolant

    def values(x: Tensor) -> Tensor:
        weights = [w.to(y)[:, None] for w in interpolant.traced_weights(x)]
        state = y + h.to(y)[:, None] * combine(weights, slopes.unbind(1))
        return values_at(t + x * h, rows.flat(state))

    low, high, at_high = torch.zeros_like(t), torch.ones_like(t), after
    for _ in range(math.ceil(-math.log2(torch.finfo(y.dtype).eps))):
        middle = 0.5 * (low + high)
        there = values(middle)
        behind = (changed & (there * signs <= 0.0)).any(1)
        low, high = torch.where(behind, low, middle), torch.where(behind, middle, high)
        at_high = torch.where(behind[:, None], there, at_high)
    index = (changed & (at_high * signs <= 0.0)).int().argmax(1)
    way = before.gather(1, index[:, None])[:, 0].abs()
    return _Crossings(torch.where(high == 1.0, t_end, t + high * h), index, h, way)


def _at_events(
    field: RowField, event: _RowEvent, crossing: _Crossings, hides: bool, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Event times [b] and states [size] there, from the states that the solve gave at the crossings."""
    t, rows = crossing.t, field.rows
    if torch.is_inference_mode_enabled():  # no derivative of the event function can be had: t is good to the tolerance
        return t, y
    with torch.no_grad():
        slope = field.slope(t, y.detach())

    def entries(t: Tensor, y: Tensor) -> Tensor:
        return event(t, y).gather(1, crossing.index[:, None])[:, 0]

    values = event(t, y)
    value = values.gather(1, crossing.index[:, None])[:, 0]
    rate, flat, hidden = _rates(entries, field, t, y.detach(), slope, crossing.h.abs())
    touching = ~flat & ((rate * crossing.h).abs() <= HARDLY * crossing.way)
    if bool(touching.any()):
        if torch.is_grad_enabled():
            raise ValueError(
                "the solution touches the event without a slope there: its time has no gradient: "
                f"{shown_rows(touching)}"
            )
        flat = flat | touching  # its time is good to the tolerance
    # beside a small rate the error of the solution may say nothing of the time: the value of the search stays
    trusted = value.detach().abs() <= (rate * crossing.h).abs()
    rate = torch.where(flat, 1.0, rate)

    def newton(value: Tensor) -> Tensor:
        return torch.where(flat, 0.0, -torch.where(trusted, value, value - value.detach()) / rate)

    shift = first = newton(value)
    half = 0.5 * shift
    middle = field.traced(t + half, y + rows.spread(half.to(y)) * slope)
    value = entries(t + shift, y + rows.spread(shift.to(y)) * middle)
    shift = shift + newton(value + hidden * (shift - shift.detach()))
    shift = shift + unknown_orders(first, hides or bool(hidden.any()))
    constants = torch.tensor(without_graph(values), dtype=torch.int64, device=flat.device)
    unknown = flat & ~torch.isin(crossing.index, constants)
    if bool(unknown.any()):
        t = _FlatRows.apply(t, value, unknown)
    return t + shift, y + rows.spread(shift.to(y)) * middle


def _rates(
    entries: Callable[[Tensor, Tensor], Tensor], field: RowField, t: Tensor, y: Tensor, slope: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """d(event)/dt of each row along its solution; which rows' events are flat here or have no graph; and the part of
    the rate that is hidden from autograd: [b] each."""
    rows = field.rows
    with torch.enable_grad():
        t, y = t.clone().requires_grad_(), y.clone().requires_grad_()
        with UseWatch(t, None) as watch:
            value = with_graph(lambda: entries(t, y))
        if value is None:
            return torch.zeros_like(t.detach()), torch.ones_like(t, dtype=torch.bool), torch.zeros_like(t.detach())
        t_bar, y_bar = torch.autograd.grad(value.sum(), [t, y], allow_unused=True)
    t_bar = torch.zeros_like(t) if t_bar is None else t_bar
    y_bar = torch.zeros_like(slope) if y_bar is None else y_bar
    flat = (t_bar == 0.0) & (rows.rows(y_bar) == 0.0).all(1)
    hidden = torch.zeros_like(t_bar)
    if watch.sees_way_out:
        hidden = hidden_rate(lambda t: entries(t, y), t.detach(), sizes, t_bar, field.layout.dtype)
    return t_bar + hidden + rows.dot(y_bar, slope), flat, hidden


class _FlatRows(torch.autograd.Function):
    """Event times of which some depend on something in a way that the event function does not tell."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, value: Tensor, flat: Tensor) -> Tensor:
        ctx.save_for_backward(t, flat)
        return t.view_as(t)

    @staticmethod
    @outside_inference_mode
    def backward(ctx: Any, bar: Tensor) -> Any:
        t, flat = ctx.saved_tensors
        asked = flat & (bar != 0.0)
        if bool(asked.any()):
            first = float(t[asked][0])
            raise flat_event(f"at t = {first:.6g}, {shown_rows(asked)}", "their event times have")
        return bar, None, None
