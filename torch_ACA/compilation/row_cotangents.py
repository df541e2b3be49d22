"""What the outputs inside steps of rows say, as the loop that goes back takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from .row_loops import RowLoops


class InsideBars:
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
        if loops.rows <= loops.own or not bool(last.any()):
            return None
        row, bars = self._row[last], torch.zeros_like(self._like)
        has = torch.zeros(len(bars), dtype=torch.bool, device=bars.device).index_fill(0, row, True)
        return has, loops.steps.rows.flat(bars.index_put((row,), self._of_end(last), accumulate=True))

    def _of_end(self, chosen: Tensor) -> Tensor:
        return self._weights[chosen, -1:] * self._bars[chosen]

    def around(self, from_end: Tensor, loops: RowLoops) -> tuple[Tensor, Tensor]:
        """Buffers of the cotangents of states [capacity, size] and slopes [capacity, own, size].

        :param from_end: numbers of the steps in a chunk [n], one less from each to the next
        """
        shape, first = tuple(self._like.shape), int(from_end[0])
        states = self._like.new_zeros(loops.capacity, *shape)
        slopes = self._like.new_zeros(loops.capacity, loops.own, *shape)
        place = first - self._from_end
        here = (place >= 0) & (place < len(from_end))
        at = place[here], self._row[here]
        states.index_put_(at, self._bars[here], accumulate=True)
        for i in range(min(loops.own, loops.rows)):
            slopes[:, i].index_put_(at, self._weights[here, i : i + 1] * self._bars[here], accumulate=True)
        if loops.rows > loops.own:  # the slope at the end of a step is the first one of the next
            here = (place >= -1) & (place + 1 < len(from_end)) & (self._from_end > 0)
            slopes[:, 0].index_put_((place[here] + 1, self._row[here]), self._of_end(here), accumulate=True)
        return loops.steps.rows.flat(states), loops.steps.rows.flat(slopes)


class TimeBars:
    """Cotangents of times, gathered row by row [b], float64: of those at the starts of all steps, of the sizes of the
    last ones, which end on given times, and of the times reached (``of_end``). Other sizes are constants.

    :param count: of rows
    """

    def __init__(self, count: int) -> None:
        self._of_start, self._of_size, self.of_end = torch.zeros(3, count, dtype=torch.float64, device="cpu")

    def add_steps(self, bars: Tensor, *, ends_rows: bool) -> None:
        """Those of (t, h, end) of steps [n, 3, b]; a row without such a step has zeros, but for its size.

        :param ends_rows: the last of them are those of the rows
        """
        t, h, end = bars.unbind(1)
        self._of_start += (t + end).sum(0)
        if ends_rows:
            self._of_size += h[-1] + end[-1]

    def add_outputs(self, row: Tensor, in_last: Tensor, of_start: Tensor, of_size: Tensor) -> None:
        """What outputs inside steps of rows [p] add; ``in_last``: they lie in the last steps."""
        self._of_start.index_add_(0, row, of_start)
        self._of_size.index_add_(0, row, torch.where(in_last, of_size, 0.0))

    def gathered(self, times_bar: Tensor, given: Tensor) -> Tensor:
        """Those of all times [b, m], added to what is known of them. The size of a last step is what is left to its
        end, which is the time with the number ``given`` [b, 1] (0: none of them)."""
        at_end = torch.where(given > 0, (self.of_end + self._of_size)[:, None], 0.0)
        times_bar.scatter_add_(1, given, at_end)
        times_bar[:, 0] += self._of_start - self._of_size
        return times_bar
