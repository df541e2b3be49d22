"""The loop over tries of rows that take their own steps as one compiled call, and the way back over their steps.

The steps are those of explicit methods' `rows.stepper.RowStepper`, with the graph of func for the field, or Rosenbrock
steps with a block for each row. Forward, every try leaves its times (t, h, whether each row was accepted), states and,
for outputs inside steps, its slopes in buffers; it ends when all rows are done, one has failed or the buffers are full.
Backward, a step of each row stands in one place of the buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..rows.jacobian import RowJacobian
from ..steppers.base import LINEARISE
from ..steppers.rosenbrock import taken
from ..tensor_controller import is_stuck, next_step
from .controller_settings import controller_of
from .generate import graph_of
from .loops import OPTIONS, Loops, stacked
from .private_compiler import while_loop
from .rosenbrock_steps import RosenbrockSteps
from .steps import RungeKuttaSteps, Steps

if TYPE_CHECKING:
    from ..rows.field import RowField
    from ..rows.layout import RowLayout
    from ..rows.times import RowTimes
    from ..state import StateLayout
    from ..tableau import Tableau

WAITED, REJECTED, ACCEPTED, LANDED = -1.0, 0.0, 1.0, 2.0  # what came of a row's try
# how a row stands: its last try was accepted, or rejected; it waits where func jumps; it has come to its end
FRESH, AGAIN, JUMPED, DONE, FAILED = 0.0, 1.0, 2.0, 3.0, 4.0


class _Field:
    """What a `RowStepper` needs of a field, made of a graph."""

    def __init__(self, graph: Any, others: Sequence[Tensor], layout: StateLayout, rows: RowLayout) -> None:
        self._graph, self._others, self.layout, self.rows = graph, others, layout, rows

    def traced(self, t: Tensor, y: Tensor, *, side: int = 0) -> Tensor:
        return self._graph(t, y, self._others)


class _GraphByRows:
    """The graph of func as a function of times [b]."""

    def __init__(self, graph: Any, rows: RowLayout) -> None:
        self._graph, self._rows, self.wanted = graph, rows, graph.wanted

    def __call__(self, t: Tensor, y: Tensor, others: Sequence[Tensor]) -> Tensor:
        return self._graph(self._rows.time(t), y, others)


class RowSteps(RungeKuttaSteps):
    """Of all rows at once, for an explicit method; times are [b].

    :param layout, rows: of the state
    """

    def __init__(self, graph: Any, tableau: Tableau, layout: StateLayout, rows: RowLayout) -> None:
        self.layout, self.rows = layout, rows
        super().__init__(_GraphByRows(graph, rows), tableau)
        self.key = (tableau, "rows")

    def step(self, times: Sequence[Tensor], y: Tensor, slope: Any, others: Sequence[Tensor]) -> Any:
        t, h, end = times
        stepper = self.tableau.row_stepper(_Field(self.graph, others, self.layout, self.rows))
        first = stepper.traced_start(t, y, 0) if slope is None else slope
        y1, slopes = stepper.traced(t, h, end, y, first)
        return y1, slopes, stepper.error(h, slopes)


class RowRosenbrockSteps(RosenbrockSteps):
    """As `RowSteps`, for a Rosenbrock method, with a block for each row."""

    def __init__(self, graph: Any, tableau: Any, layout: StateLayout, rows: RowLayout) -> None:
        super().__init__(_GraphByRows(graph, rows), tableau, layout, by_rows=True)
        self.rows, self.jacobian, self.key = rows, RowJacobian(layout), (tableau, "rows")

    def step(self, times: Sequence[Tensor], y: Tensor, slope: Any, others: Sequence[Tensor]) -> Any:
        def evaluate(time: Tensor, x: Tensor, at_end: bool) -> Tensor:
            return self.graph(self.rows.rows(time)[:, 0], x, others)

        t, h, end = map(self.rows.spread, times)
        start = self._linearised(times[0], y, others)
        return taken(self.tableau, evaluate, start, self._solves, t, h.to(y.dtype), y, end)

    def _solves(self, h: Tensor, J: Tensor) -> Callable:
        return super()._solves(self.rows.rows(h)[:, :1, None], J)


def row_steps(graph: Any, tableau: Any, layout: StateLayout, rows: RowLayout) -> Steps:
    """The steps of a method."""
    kind = RowRosenbrockSteps if LINEARISE in tableau.abilities else RowSteps
    return kind(graph, tableau, layout, rows)


class RowProgress(NamedTuple):
    """Where the rows have come to: each [b], float64, but for the number of tries so far of the call, 0-d, state and
    slope [size], and ``place``, the number of stops behind each row, int64. ``standing``: `FRESH` and so on."""

    n_tries: Tensor
    place: Tensor
    t: Tensor
    size: Tensor
    previous: Tensor
    standing: Tensor
    y: Tensor
    slope: Tensor


def stops_of_rows(times: RowTimes, field: RowField) -> Tensor:
    """What `RowLoops` are to know of the stops of rows: [b, q, 2], float64, of each its time and how a row stands that
    has landed on it; [b, q, 4] where func jumps, the last two the window of times that it may see on the way there.

    There are more than the rows have, up to a power of two: code is generated for every q."""
    stops, place = times.stops, torch.arange(times.stops.shape[1], device="cpu")
    standing = torch.where(place < times.n_stops[:, None] - 1, FRESH, DONE).double()
    parts = [stops, standing]
    if times.jumps is not None:
        parts[1] = torch.where(times.jumps & (standing == FRESH), JUMPED, standing)
        before = torch.cat([times.start[:, None], stops[:, :-1]], 1)
        behind_jump = torch.cat([times.starts_at_jump[:, None], times.jumps[:, :-1]], 1)
        far = math.inf * times.direction[:, None]
        begin = torch.where(behind_jump, field.beside(before.T, 1.0 * behind_jump.T).T.double(), -far)
        end = torch.where(times.jumps, field.beside(stops.T, -1.0 * times.jumps.T).T.double(), far)
        parts += [torch.minimum(begin, end), torch.maximum(begin, end)]
    found = torch.stack(parts, 2)
    missing = (1 << (len(place) - 1).bit_length()) - len(place)
    return torch.cat([found, found[:, -1:].expand(-1, missing, -1)], 1).contiguous()


class RowLoops(Loops):
    """For one func, method and kind of state, whose steps are those of `row_steps`. Times are [capacity, 3, b]; where
    func jumps, a window is [2, b], and that of the way back [capacity, 2, b].

    ``weighed``: slopes of a step that get cotangents with it on the way back. The one at its end is the first of the
    next step, which gets them, unless func may jump in between."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.weighed = self.own + (self.jumps and self.with_slopes and self.rows > self.own)

    def times(self) -> Tensor:
        return torch.empty(self.capacity, 3, self.steps.rows.count, dtype=torch.float64, device="cpu")

    def prepare_rows(self, settings: Tensor, now: RowProgress, stops: Tensor, buffers: Any) -> None:
        """Generate the code of `run`.

        :raises NotCompilable: there can be none
        """
        self._run_code(self._given_rows(now, stops, now.t, 1, settings, buffers))

    @staticmethod
    def _given_rows(now: RowProgress, stops: Tensor, span: Tensor, most: int, settings: Tensor, buffers: Any) -> list:
        return [*now, stops, span, torch.tensor(most, dtype=torch.float64, device="cpu"), settings, *buffers]

    def _run_code(self, given: list) -> Any:
        n = len(RowProgress._fields)
        key = ("run", given[n].shape[1], len(given[n + 3]), *self.key)
        return self.code.function(key, self._run, lambda: given, options=OPTIONS)

    def run(
        self, now: RowProgress, stops: Tensor, span: Tensor, most: int, settings: Tensor, buffers: Any
    ) -> RowProgress:
        """Go on with all rows to their ends, or to times where func jumps.

        :param stops: `stops_of_rows`
        :param span: length of the whole solve of each row [b]
        :param most: tries of this call
        """
        given = self._given_rows(now, stops, span, most, settings, buffers)
        return RowProgress(*self._run_code(given)([*given, *self.code.others]))

    def _run(self, *given: Tensor) -> Any:
        n = len(RowProgress._fields)
        carried, given = tuple(x.clone() for x in given[:n]), given[n:]
        condition, body = graph_of(self._some_go_on, (*carried, *given)), graph_of(self._try_rows, (*carried, *given))
        return while_loop(condition, body, carried, given, range(4, 6 + self.with_slopes))

    @staticmethod
    def _some_go_on(*given: Tensor) -> Tensor:
        n = len(RowProgress._fields)
        now, most = RowProgress(*given[:n]), given[n + 2]
        return (now.n_tries < most) & (now.standing < JUMPED).any() & (now.standing < FAILED).all()

    def _try_rows(self, *given: Tensor) -> Any:
        n, rows = len(RowProgress._fields), self.steps.rows
        now, (stops, span, _, settings, times, states), rest = RowProgress(*given[:n]), given[n : n + 6], given[n + 6 :]
        kept_slopes, others = rest[: self.with_slopes], rest[self.with_slopes :]
        controller = controller_of(settings, self.tableau.error_order, rows.norm)
        stop, standing_there, *window = self._aim(stops, now.place)
        steps = self.steps.within(torch.stack(window)) if self.jumps else self.steps
        running, rejected = now.standing < JUMPED, now.standing == AGAIN
        landing, h, end = next_step(now.t, stop, now.size)
        stuck = is_stuck(now.t, h, span, rejected)
        h, end = torch.where(running, h, 0.0), torch.where(running, end, now.t)
        y1, slopes, error, next_slope = steps.trial((now.t, h, end), now.y, now.slope, others)
        ratio = controller.error_ratio(error, now.y, y1)
        found: Any = controller.judge(ratio, now.previous, now.size, h, landing=landing, rejected=rejected)
        accepted = found.accepted & running
        landed = accepted & landing
        infinite = landed & (standing_there == DONE) & ~torch.isfinite(rows.rows(y1)).all(1)
        failed = running & (stuck | infinite | (found.at_minimum & ~accepted))
        place = now.n_tries.long().reshape(1)
        outcome = torch.where(landed, LANDED, torch.where(accepted, ACCEPTED, REJECTED))
        outcome = torch.where(running, outcome, WAITED).double()
        times.index_copy_(0, place, stacked([now.t, h, outcome])[None])
        states.index_copy_(0, place, now.y[None])
        for buffer in kept_slopes:
            buffer.index_copy_(0, place, stacked(slopes[: self.rows])[None])
        standing = torch.where(landed, standing_there, torch.where(accepted, FRESH, AGAIN))
        standing = torch.where(running, torch.where(failed, FAILED, standing), now.standing)
        moved = rows.spread(accepted)
        return (
            now.n_tries + 1,
            now.place + landed,
            torch.where(accepted, end, now.t),
            torch.where(running, found.proposed, now.size),
            torch.where(running, found.previous, now.previous),
            standing,
            torch.where(moved, y1, now.y),
            torch.where(moved, next_slope, now.slope),
        )

    @staticmethod
    def _aim(stops: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        """What `stops_of_rows` says of the stops that the rows are on their way to: [b] each."""
        b, q, n = stops.shape
        if q == 1:
            return stops[:, 0].unbind(1)
        # a row that has come to its end is behind its last one
        return stops.gather(1, place.clamp(max=q - 1)[:, None, None].expand(b, 1, n))[:, 0].unbind(1)

    def _window(self, window: Any) -> list[Tensor]:
        return [window] if self.jumps else []

    def _windowed(self, given: Any, place: Tensor | None = None) -> Any:
        if self.jumps:
            given = given[0].index_select(0, place).squeeze(0), *given[1:]
        return super()._windowed(given)

    def through_slopes(self, t: Tensor, y: Tensor, bar: Tensor, totals: Sequence[Tensor]) -> Any:
        """Pull the cotangents [size] of the slopes behind the last steps back: cotangent of the states there, new
        totals, and the cotangents of the times [b] (None unless asked). It does not look whether func jumps."""
        given = [t, y, bar, *totals]
        call = self.code.function(("slope", *self.key), self._through_slope, lambda: given)
        y_bar, *found = call([*given, *self.code.others])
        return y_bar, found[: len(totals)], found[len(totals)] if self.time_grad else None
