"""The adaptive loop over steps as one compiled call, and the way back over its steps as another.

Forward, the loop goes on to a stop or until its buffers are full; each accepted step leaves its times (t, h, end), the
state at its start and, for outputs inside steps, its slopes. So neither the number of steps nor the memory for them is
to be known beforehand. Every step begins with a slope that is known: methods that do not end on one (no FSAL) have it
evaluated behind every try.
"""

import torch

from . import choice
from .generate import graph_of
from .private_compiler import while_loop

BYTES = 2**22  # of states and slopes in a buffer, about
FEWEST, MOST = 4, 256  # steps in a buffer
OPTIONS = {"cpp_wrapper": True}  # of Inductor: no Python inside the loop


def _number(value=0.0):
    return torch.tensor(value, dtype=torch.float64)


class Loops:
    """For one func, method and kind of state.

    :param code: `Code`
    :param tableau: `Tableau`, adaptive
    :param y: a flat state [n]
    :param with_slopes: there are outputs inside steps
    :param time_grad: gradients in the times are wanted
    """

    def __init__(self, code, tableau, y, *, with_slopes, time_grad):
        self.code, self.tableau, self.y = code, tableau, y
        self.steps = code.steps(tableau)
        self.with_slopes, self.time_grad = with_slopes, time_grad
        self.own, self.rows = self.steps.own, tableau.interpolant.slopes
        per_step = y.numel() * y.element_size() * (1 + with_slopes * self.rows)
        self.capacity = max(FEWEST, min(MOST, BYTES // per_step))
        self.evaluations = tableau.stages - 1 if tableau.fsal else tableau.stages  # of func in a try
        self._key = (tableau, with_slopes, time_grad)

    def buffers(self):
        """Times [capacity, 3], states [capacity, n] and, with slopes, these [capacity, rows, n] of as many steps."""
        times = torch.empty(self.capacity, 3, dtype=torch.float64)
        states = self.y.new_empty(self.capacity, self.y.numel())
        slopes = (self.y.new_empty(self.capacity, self.rows, self.y.numel()),) if self.with_slopes else ()
        return times, states, *slopes

    def forward(self, numbers, limits, settings, y, slope, buffers):
        """Go on from a state.

        :param numbers: t, stop, size to try, error ratio to remember, length of the whole solve
        :param limits: most steps and most tries of this call
        :param settings: `choice.settings_of` the controller
        :returns: how it went [n steps, n tries, last try rejected, its error finite, no smaller try will follow];
            t, size and error ratio to go on with [3]; the state, its slope
        """
        given = [torch.tensor(numbers, dtype=torch.float64), torch.tensor(limits), settings, y, slope, *buffers]
        call = self.code.function(("forward", *self._key), self._forward, lambda: given, bare=True, options=OPTIONS)
        counts, numbers, y, slope = call([*given, *self.code.others])
        return counts.tolist(), numbers.tolist(), y, slope

    def _forward(self, numbers, limits, settings, y, slope, *given):
        t, stop, size, previous, span = numbers.unbind()
        zero, no = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.bool)
        carried = (zero, zero.clone(), no, ~no, no.clone(), t.clone(), size.clone(), previous.clone(), y.clone(), slope.clone())
        given = (stop.clone(), span.clone(), limits, settings, *given)
        condition, body = graph_of(self._goes_on, (*carried, *given)), graph_of(self._try, (*carried, *given))
        written = range(4, 6 + self.with_slopes)
        *counts, t, size, previous, y, slope = while_loop(condition, body, carried, given, written)
        return torch.stack([count.long() for count in counts]), torch.stack([t, size, previous]), y, slope

    def _goes_on(self, n_steps, n_tries, rejected, finite, hopeless, t, size, previous, y, slope, stop, span, limits, *rest):
        h = choice.next_step(t, stop, size)[1]
        within = (n_steps < limits[0]) & (n_tries < limits[1])
        return (t != stop) & within & ~hopeless & ~choice.is_stuck(t, h, span, rejected)

    def _try(self, n_steps, n_tries, rejected, finite, hopeless, t, size, previous, y, slope, stop, span, limits, settings, *rest):
        times, states, *kept_slopes = rest[: 2 + self.with_slopes]
        others = rest[2 + self.with_slopes :]
        controller = choice.controller_of(settings, self.tableau.error_order)
        landing, h, end = choice.next_step(t, stop, size)
        y1, slopes, error = self.steps.step((t, h, end), y, slope, others)
        if not self.tableau.fsal:
            slopes.append(self.steps.graph(end, y1, others))
        ratio = choice.error_ratio(controller, error, y, y1)
        found = choice.verdict(controller, ratio, previous, size, h, landing=landing, rejected=rejected)
        place = n_steps.reshape(1)
        times.index_copy_(0, place, torch.stack([t, h, end])[None])
        states.index_copy_(0, place, y[None])
        for buffer in kept_slopes:
            buffer.index_copy_(0, place, torch.stack(slopes[: self.rows])[None])
        accepted = found.accepted
        return (
            n_steps + accepted.long(),
            n_tries + 1,
            ~accepted,
            found.finite,
            found.at_minimum & ~accepted,
            torch.where(accepted, end, t),
            found.proposed,
            found.previous,
            torch.where(accepted, y1, y),
            torch.where(accepted, slopes[-1], slope),
        )

    def backward(self, n_steps, y_bar, totals, times, states, inside):
        """Go back over the first steps in buffers.

        :param y_bar: cotangent of the state behind them [n]
        :param totals: gradients so far, as `Code.zeros` begins them
        :param times, states: the buffers
        :param inside: cotangents of states [capacity, n] and slopes [capacity, own, n] from outputs inside steps; or ()
        :returns: cotangent of the state at the start of the first, new totals, and the cotangents of the times
            [capacity, 3] (None unless asked)
        """
        times_bar = [torch.empty(self.capacity, 3, dtype=torch.float64)] if self.time_grad else []
        given = [torch.tensor(n_steps - 1), y_bar, *totals, *times_bar, times, states, *inside]
        key = ("backward", *self._key, len(inside))
        call = self.code.function(key, self._backward, lambda: given, bare=True, options=OPTIONS)
        y_bar, *totals = call([*given, *self.code.others])
        return y_bar, totals, *(times_bar or [None])

    def _backward(self, at, y_bar, *given):
        count = len(self.code.sources)
        totals, given = given[:count], given[count:]
        carried = (at.clone(), y_bar.clone(), *(total.clone() for total in totals))
        condition = graph_of(lambda i, *rest: i >= 0, (*carried, *given))
        body = graph_of(self._back, (*carried, *given))
        _, y_bar, *totals = while_loop(condition, body, carried, given, range(self.time_grad))
        return y_bar, *totals

    def _back(self, at, y_bar, *given):
        count = len(self.code.sources)
        totals, given, others = given[:count], given[count:], ()
        times_bar, given = (given[0], given[1:]) if self.time_grad else (None, given)
        n_buffers = 4 if self.with_slopes else 2
        buffers, others = given[:n_buffers], given[n_buffers:]
        place = at.reshape(1)
        times, y, *inside = (buffer.index_select(0, place).squeeze(0) for buffer in buffers)
        slopes_bar = inside[1] if inside else None
        y_bar, totals, bar, _, _ = self.steps.vjp(times, y, y_bar, slopes_bar, totals, others, self.time_grad)
        if times_bar is not None:
            times_bar.index_copy_(0, place, bar[None])
        return at - 1, y_bar + inside[0] if inside else y_bar.clone(), *(total.clone() for total in totals)

    def through_slope(self, t, y, bar, totals):
        """Pull the cotangent [n] of the slope behind the last step back: cotangent of the state there, new totals, and
        the cotangent of the time (None unless asked)."""
        given = [_number(t), y, bar, *totals]
        call = self.code.function(("slope", *self._key), self._through_slope, lambda: given, bare=True)
        y_bar, *found = call([*given, *self.code.others])
        count = len(totals)
        return y_bar, found[:count], found[count].item() if self.time_grad else None

    def _through_slope(self, t, y, bar, *given):
        count = len(self.code.sources)
        totals, others = given[:count], given[count:]
        y_bar, totals, t_bar, _ = self.steps.slope_vjp(t, y, bar, totals, others, self.time_grad)
        return y_bar, *totals, *([t_bar] if self.time_grad else [])
