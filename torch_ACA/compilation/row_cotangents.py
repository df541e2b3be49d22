"""What the outputs of rows say, as the loop that goes back takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from .row_loops import RowLoops


class OutputBars:
    """Cotangents of outputs inside steps, as those of the states at the starts of steps and of the slopes.

    :param from_end, row: which step each output lies in [p], counted from the end of its row
    :param bars, weights: its cotangent [p, n], and what the slopes of the step weigh in it [p, slopes]
    :param like: rows [b, n]
    """

    def __init__(self, from_end: Tensor, row: Tensor, bars: Tensor, weights: Tensor, like: Tensor) -> None:
        self._from_end, self._row, self._bars, self._weights, self._like = from_end, row, bars, weights, like

    def at_ends(self, loops: RowLoops) -> tuple[Tensor, Tensor] | None:
        """Which rows [b] have outputs that weigh the slopes behind their last steps, and the cotangents of these
        slopes [size]; None for nothing."""
        last = self._from_end == 0
        if loops.rows <= loops.weighed or not bool(last.any()):
            return None
        row, bars = self._row[last], torch.zeros_like(self._like)
        has = torch.zeros(len(bars), dtype=torch.bool, device=bars.device).index_fill(0, row, True)
        return has, loops.steps.rows.flat(bars.index_put((row,), self._of_end(last), accumulate=True))

    def _of_end(self, chosen: Tensor) -> Tensor:
        return self._weights[chosen, -1:] * self._bars[chosen]

    def around(self, from_end: Tensor, loops: RowLoops) -> tuple[Tensor, ...]:
        """Cotangents of states [capacity, b, n] and, with dense output, of slopes [capacity, weighed, b, n].

        :param from_end: numbers of the steps in a chunk [n], one less from each to the next
        """
        shape, first = tuple(self._like.shape), int(from_end[0])
        states = self._like.new_zeros(loops.capacity, *shape)
        if not loops.with_slopes:
            return (states,)
        slopes = self._like.new_zeros(loops.capacity, loops.weighed, *shape)
        place = first - self._from_end
        here = (place >= 0) & (place < len(from_end))
        at = place[here], self._row[here]
        states.index_put_(at, self._bars[here], accumulate=True)
        for i in range(min(loops.weighed, loops.rows)):
            slopes[:, i].index_put_(at, self._weights[here, i : i + 1] * self._bars[here], accumulate=True)
        if loops.rows > loops.weighed:  # the slope at the end of a step is the first one of the next
            here = (place >= -1) & (place + 1 < len(from_end)) & (self._from_end > 0)
            slopes[:, 0].index_put_((place[here] + 1, self._row[here]), self._of_end(here), accumulate=True)
        return states, slopes


class TimeBars:
    """Cotangents of times, gathered by row and by the stop that a step is on its way to [b, q], float64: of those at
    the starts of all steps, of the sizes of those that land, and of the stops themselves. Other sizes are constants.

    :param given: numbers of the stops [b, q] among the times given, 0 for none of them
    """

    def __init__(self, given: Tensor) -> None:
        self._given = given
        self._of_start, self._of_size, self._of_stop = torch.zeros(3, *given.shape, dtype=torch.float64, device="cpu")

    def add_steps(self, bars: Tensor, stop: Tensor, lands: Tensor) -> None:
        """Those of (t, h, end) of steps [n, 3, b].

        :param stop: how many stops lie before a step [n, b]
        :param lands: which steps end on the next one [n, b]; a row without a step lands nowhere
        """
        t, h, end = bars.unbind(1)
        self._of_start.scatter_add_(1, stop.T, (t + end).T)
        self._of_size.scatter_add_(1, stop.T, torch.where(lands, h + end, 0.0).T)

    def add_stops(self, bars: Tensor, stop: Tensor) -> None:
        """Those of the stops with these numbers [b] themselves."""
        self._of_stop.scatter_add_(1, stop[:, None], bars[:, None])

    def add_outputs(self, row: Tensor, stop: Tensor, lands: Tensor, of_start: Tensor, of_size: Tensor) -> None:
        """What outputs inside steps of rows [p] add; ``stop``, ``lands``: of their steps, as for `add_steps`."""
        self._of_start.index_put_((row, stop), of_start, accumulate=True)
        self._of_size.index_put_((row, stop), torch.where(lands, of_size, 0.0), accumulate=True)

    def gathered(self, times_bar: Tensor) -> Tensor:
        """Those of all times [b, m], added to what is known of them. The size of a step that lands is what is left to
        the stop, from a time that is as far from the stop before as all steps in between."""
        given, before = self._given, self._given[:, :-1]
        times_bar.scatter_add_(1, given, torch.where(given > 0, self._of_stop + self._of_size, 0.0))
        from_before = self._of_start - self._of_size
        times_bar.scatter_add_(1, before, torch.where(before > 0, from_before[:, 1:], 0.0))
        times_bar[:, 0] += from_before[:, 0]
        return times_bar
