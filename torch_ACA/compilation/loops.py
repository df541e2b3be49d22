"""The loop over steps as one compiled call, and the way back over them as another.

Forward, the loop goes on to a stop or until its buffers are full; each accepted step leaves its times (t, h, end), the
state at its start and, for outputs inside steps, its slopes. So neither the number of steps nor the memory for them is
to be known beforehand. Every step begins with a slope that is known: methods that do not end on one (no FSAL) have it
evaluated behind every try.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tensor_controller import is_stuck, next_step
from .controller_settings import controller_of
from .generate import graph_of
from .private_compiler import while_loop

BYTES = 2**22  # of states and slopes in a buffer, about
FEWEST, MOST = 4, 256  # steps in a buffer
EVERYWHERE = (-math.inf, math.inf)  # the times that a func which does not jump may see
OPTIONS = {"cpp_wrapper": True}  # of Inductor: no Python inside the loop


class Progress(NamedTuple):
    """Where a loop has come to, as numbers of one tensor: accepted steps and tries of the call, how the last try went
    (rejected, its error finite, no smaller one will follow: 0 or 1), time, size to try, error ratio to remember."""

    n_steps: Any
    n_tries: Any
    rejected: Any
    finite: Any
    hopeless: Any
    t: Any
    size: Any
    previous: Any


class Bounds(NamedTuple):
    """Of a call: the stop to go to, the length of the whole solve, the most steps and the most tries, and the first and
    the last time that func may see."""

    stop: float
    span: float
    most_steps: float
    most_tries: float
    earliest: float = -math.inf
    latest: float = math.inf


def packed(numbers: Sequence[Any]) -> Tensor:
    """0-d tensors as one, float64; a stack would be a tensor more for each of them."""
    index, found = torch.arange(len(numbers), device="cpu"), torch.zeros((), dtype=torch.float64, device="cpu")
    for i, number in enumerate(numbers):
        found = torch.where(index == i, number.double(), found)
    return found


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Vectors [n] as a matrix. In that of a stack the vectors would be views, at places that are not aligned, and the
    loop cannot carry such a view on."""
    index = torch.arange(len(rows), device=rows[0].device)[:, None]
    found = rows[0].new_zeros(())
    for i, row in enumerate(rows):
        found = torch.where(index == i, row, found)
    return found


class Loops:
    """For one func, method and kind of state.

    ``begin_evaluations``: evaluations of func by which `begin` finds slope and step size.

    :param code: `Code`
    :param steps: `Steps` of an adaptive method
    :param y: a flat state [n]
    :param with_slopes: there are outputs inside steps
    :param time_grad: gradients in the times are wanted
    :param jumps: func jumps at some of the stops
    :param with_starts: there are outputs at the ends of steps on the way
    :param most: steps in a buffer, at most
    """

    begin_evaluations = 2
    first_written = 2  # place behind what is carried of the buffers that the loop writes to

    def __init__(
        self, code: Any, steps: Any, y: Tensor, *, with_slopes: bool, time_grad: bool, jumps: bool = False,
        with_starts: bool = False, most: float = math.inf,
    ) -> None:  # fmt: skip
        self.code, self.steps, self.tableau, self.y = code, steps, steps.tableau, y
        self.with_slopes, self.time_grad, self.jumps = with_slopes, time_grad, jumps
        self.with_starts = with_slopes or with_starts  # whether outputs say something to the states at starts of steps
        self.own, self.rows = steps.own, self.tableau.interpolant.slopes
        per_step = y.numel() * y.element_size() * (1 + with_slopes * self.rows)
        self.capacity = int(min(max(FEWEST, min(MOST, BYTES // max(per_step, 1))), most))
        self.evaluations = steps.evaluations  # of func in a try
        self.key = (*steps.key, with_slopes, time_grad, jumps, self.with_starts, self.capacity)

    def buffers(self) -> tuple[Tensor, ...]:
        """Times [capacity, 3], states [capacity, n] and, with slopes, these [capacity, rows, n] of as many steps."""
        return self.times(), *self.kept_buffers()

    def times(self) -> Tensor:
        """The buffer of times."""
        return torch.empty(self.capacity, 3, dtype=torch.float64, device="cpu")

    def kept_buffers(self) -> tuple[Tensor, ...]:
        """Those of states and slopes."""
        states = self.y.new_empty(self.capacity, self.y.numel())
        slopes = (self.y.new_empty(self.capacity, self.rows, self.y.numel()),) if self.with_slopes else ()
        return states, *slopes

    def prepare(self, settings: Tensor, t: Any, y: Tensor, slope: Tensor) -> None:
        """Generate the code of `forward`.

        :raises NotCompilable: there can be none
        """
        if ("forward", len(settings), *self.key) not in self.code.graph.functions:
            bounds = Bounds(t + 2.0, 2.0, 1, 1, t, t + 2.0)
            self._forward_code(self._given((t, 1.0, 1.0), bounds, settings, y, slope, self.buffers()))

    @staticmethod
    def _given(begin: Any, bounds: Bounds, settings: Tensor, y: Tensor, slope: Tensor, buffers: Any) -> list[Tensor]:
        numbers = torch.tensor([0, 0, 0, 1, 0, *begin], dtype=torch.float64, device="cpu")
        return [numbers, y, slope, torch.tensor(bounds, dtype=torch.float64, device="cpu"), settings, *buffers]

    def _forward_code(self, given: Any) -> Any:
        key = ("forward", len(given[4]), *self.key)
        return self.code.function(key, self._forward, lambda: given, options=OPTIONS)

    def forward(
        self, begin: tuple[float, float, float], bounds: Bounds, settings: Tensor, y: Tensor, slope: Tensor,
        buffers: Any,
    ) -> Any:  # fmt: skip
        """Go on from a state.

        :param begin: time, step size to try, error ratio to remember
        :param settings: `settings_of` the controller
        :returns: the numbers to go on with (`Progress`), the state, its slope
        """
        given = self._given(begin, bounds, settings, y, slope, buffers)
        numbers, y, slope = self._forward_code(given)([*given, *self.code.others])
        return Progress(*numbers.tolist()), y, slope

    def begin(self, ends: tuple[float, float], bounds: Bounds, settings: Tensor, y: Tensor, buffers: Any) -> Any:
        """As `forward` from the start of a solve to one end or the other, where slope and first step size are found by
        the same call; if the slope is not finite, nothing is tried.

        :param ends: times of the whole solve
        :returns: what `forward` returns, the first step size and the slope at the start
        """
        given = self._given_first(ends, bounds, settings, y, buffers)
        numbers, y, slope, first_slope = self._first_code(given)([*given, *self.code.others])
        *progress, size = numbers.tolist()
        return Progress(*progress), y, slope, size, first_slope

    def prepare_first(self, settings: Tensor, t: Any, y: Tensor) -> None:
        """Generate the code of `begin`.

        :raises NotCompilable: there can be none
        """
        if ("begin", len(settings), *self.key) not in self.code.graph.functions:
            bounds = Bounds(t + 2.0, 2.0, 1, 1, t, t + 2.0)
            self._first_code(self._given_first((t, t + 2.0), bounds, settings, y, self.buffers()))

    @staticmethod
    def _given_first(ends: Any, bounds: Bounds, settings: Tensor, y: Tensor, buffers: Any) -> list[Tensor]:
        return [torch.tensor([*bounds, *ends], dtype=torch.float64, device="cpu"), y, settings, *buffers]

    def _first_code(self, given: Any) -> Any:
        key = ("begin", len(given[2]), *self.key)
        return self.code.function(key, self._begin, lambda: given, options=OPTIONS)

    def _begin(self, bounds: Tensor, y: Tensor, settings: Tensor, *given: Any) -> Any:
        bounds, times = bounds[:-2].clone(), bounds[-2:]
        first_slope, size = self._started(times, settings, y, given[2 + self.with_slopes :])
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        start = Progress(zero, zero, zero, zero + 1, self._is_bad(first_slope), times[0], size, zero + 1)
        numbers, y, slope = self._forward(packed(start), y, first_slope, bounds, settings, *given)
        return packed([*numbers.unbind(), size]), y, slope, first_slope

    def _started(self, times: Tensor, settings: Tensor, y: Tensor, others: Sequence[Tensor]) -> Any:
        """Slope at the start, and first step size."""
        return self.steps.start(times, settings, y, others)

    def _is_bad(self, values: Tensor) -> Tensor:
        """Whether there is no going on with a vector."""
        return ~torch.isfinite(values).all()

    def _forward(self, numbers: Tensor, y: Tensor, slope: Tensor, *given: Any) -> Any:
        carried = numbers.clone(), y.clone(), slope.clone()
        condition, body = graph_of(self._goes_on, (*carried, *given)), graph_of(self._try, (*carried, *given))
        return while_loop(condition, body, carried, given, range(self.first_written, 4 + self.with_slopes))

    def _goes_on(self, numbers: Tensor, y: Tensor, slope: Tensor, bounds: Tensor, *rest: Any) -> Any:
        now, (stop, span, most_steps, most_tries, *_) = Progress(*numbers.unbind()), bounds.unbind()
        h = next_step(now.t, stop, now.size)[1]
        within = (now.n_steps < most_steps) & (now.n_tries < most_tries)
        stuck = is_stuck(now.t, h, span, now.rejected != 0)
        return (now.t != stop) & within & (now.hopeless == 0) & ~stuck

    def _try(
        self,
        numbers: Tensor,
        y: Tensor,
        slope: Tensor,
        bounds: Tensor,
        settings: Tensor,
        times: Tensor,
        states: Tensor,
        *rest: Any,
    ) -> Any:
        now, stop = Progress(*numbers.unbind()), bounds[0]
        kept_slopes, others = rest[: self.with_slopes], rest[self.with_slopes :]
        controller = controller_of(settings, self.tableau.error_order)
        landing, h, end = next_step(now.t, stop, now.size)
        steps = self.steps.within(bounds[-2:]) if self.jumps else self.steps
        y1, slopes, error, next_slope = steps.trial((now.t, h, end), y, slope, others)
        ratio, rejected = controller.error_ratio(error, y, y1), now.rejected != 0
        found: Any = controller.judge(ratio, now.previous, now.size, h, landing=landing, rejected=rejected)
        place, accepted = now.n_steps.long().reshape(1), found.accepted
        times.index_copy_(0, place, packed([now.t, h, end])[None])
        states.index_copy_(0, place, y[None])
        self._keep(kept_slopes, place, slopes)
        progress = Progress(
            now.n_steps + accepted,
            now.n_tries + 1,
            ~accepted,
            found.finite,
            found.at_minimum & ~accepted,
            torch.where(accepted, end, now.t),
            found.proposed,
            found.previous,
        )
        return packed(progress), torch.where(accepted, y1, y), torch.where(accepted, next_slope, slope)

    def _keep(self, kept_slopes: Sequence[Tensor], place: Tensor, slopes: Sequence[Tensor]) -> None:
        for buffer in kept_slopes:
            buffer.index_copy_(0, place, stacked(slopes[: self.rows])[None])

    def backward(
        self, n_steps: int, y_bar: Tensor, totals: Sequence[Tensor], times: Tensor, states: Tensor, inside: Any,
        window: Any = EVERYWHERE,
    ) -> Any:  # fmt: skip
        """Go back over the first steps in buffers.

        :param y_bar: cotangent of the state behind them [n]
        :param totals: gradients so far, as `Code.zeros` begins them
        :param times, states, window: as of the way forward
        :param inside: cotangents of states [capacity, n] and slopes [capacity, own, n] from outputs, as far as there
            may be some
        :returns: cotangent of the state at the start of the first, new totals, and the cotangents of the times
            [capacity, 3] (None unless asked)
        """
        times_bar = [self.times()] if self.time_grad else []
        given = [torch.tensor(n_steps - 1, device="cpu"), y_bar, *totals, *times_bar, times, states, *inside]
        given += self._window(window)
        key = ("backward", *self.key, len(inside))
        call = self.code.function(key, self._backward, lambda: given, options=OPTIONS)
        y_bar, *totals = call([*given, *self.code.others])
        return y_bar, totals, *(times_bar or [None])

    def _window(self, window: Any) -> list[Tensor]:
        return [torch.tensor(window, dtype=torch.float64, device="cpu")] if self.jumps else []

    def _windowed(self, given: Any, place: Tensor | None = None) -> Any:
        """The steps of a call, and what is given behind its window.

        :param place: of a step in the buffers, [1]
        """
        return (self.steps.within(given[0]), given[1:]) if self.jumps else (self.steps, given)

    def _backward(self, at: Tensor, y_bar: Tensor, *given: Any) -> Any:
        count = len(self.code.sources)
        totals, given = given[:count], given[count:]
        carried = (at.clone(), y_bar.clone(), *(total.clone() for total in totals))
        condition = graph_of(lambda i, *rest: i >= 0, (*carried, *given))
        body = graph_of(self._back, (*carried, *given))
        _, y_bar, *totals = while_loop(condition, body, carried, given, range(self.time_grad))
        return y_bar, *totals

    def _back(self, at: Tensor, y_bar: Tensor, *given: Any) -> Any:
        count = len(self.code.sources)
        totals, given = given[:count], given[count:]
        times_bar, given = (given[0], given[1:]) if self.time_grad else (None, given)
        n_buffers = 2 + self.with_starts + self.with_slopes
        buffers, given = given[:n_buffers], given[n_buffers:]
        place = at.reshape(1)
        steps, others = self._windowed(given, place)
        times, y, *inside = (buffer.index_select(0, place).squeeze(0) for buffer in buffers)
        slopes_bar = inside[1] if self.with_slopes else None
        y_bar, totals, bar, _, _ = steps.vjp(times, y, y_bar, slopes_bar, totals, others, self.time_grad)
        self.steps.reached = steps.reached
        if times_bar is not None:
            times_bar.index_copy_(0, place, bar[None])
        return at - 1, y_bar + inside[0] if inside else y_bar.clone(), *(total.clone() for total in totals)

    def through_slope(
        self, t: Any, y: Tensor, bar: Tensor, totals: Sequence[Tensor], window: tuple[float, float]
    ) -> Any:
        """Pull the cotangent [n] of the slope behind a step back: cotangent of the state there, new totals, and the
        cotangent of the time (None unless asked)."""
        given = [torch.tensor(t, dtype=torch.float64, device="cpu"), y, bar, *totals, *self._window(window)]
        call = self.code.function(("slope", *self.key), self._through_slope, lambda: given)
        y_bar, *found = call([*given, *self.code.others])
        count = len(totals)
        return y_bar, found[:count], found[count].item() if self.time_grad else None

    def _through_slope(self, t: Any, y: Tensor, bar: Tensor, *given: Any) -> Any:
        count = len(self.code.sources)
        totals, (steps, others) = given[:count], self._windowed(given[count:])
        y_bar, totals, t_bar, _ = steps.slope_vjp(t, y, bar, totals, others, self.time_grad)
        return y_bar, *totals, *([t_bar] if self.time_grad else [])
