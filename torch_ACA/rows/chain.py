"""The states that the backward pass meets, from the ends of the rows' last steps to the starts of their first.

The k-th last steps of all rows form one step of a chain, in which a row that has fewer steps waits at its start. Where
a budget has no room for the states of all accepted steps none of them is kept: the chain is gone through again from the
initial state, with checkpoints of the whole batch where `Storage` puts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .march import RowStep
from .stepper import side_of

if TYPE_CHECKING:
    from .solve import RowSolve


class RowChain:
    """The steps of all rows of one `RowSolve`, aligned at their ends."""

    storage: Any  # a `Storage`, whose steps are numbers here

    def __init__(self, run: RowSolve) -> None:
        self.problem, self.stepper, self.packed, self.storage = run.problem, run.stepper, run.packed, run.budget

    def backwards(self, states: dict[Any, Tensor]) -> Iterator[Tensor]:
        """Yield the states [size] at the ends of the last steps, and at the starts of the k-th last for every k.

        :param states: those that were kept, by the names of `RowSolve.release`
        """
        packed, rows, end = self.packed, self.stepper.rows, states.pop("end")
        if not packed.states.dropped:
            chunks = list(states.values())
            yield end
            for k in range(packed.most):
                yield rows.flat(packed.states.at(chunks, packed.from_end(k)[1]))
            return
        start, there = rows.rows(states.pop("start")), packed.elsewhere
        start = torch.where(packed.displaced[:, None], start[there], start)
        self.storage.steps = range(packed.most)
        chain = self.storage.backwards({0: rows.flat(start)}, self._advance)
        yield torch.where(rows.spread(packed.cut), next(chain), end)
        yield from chain

    def _advance(self, y: Tensor, first: int, last: int) -> Tensor:
        """The state behind the steps first to last - 1 of the chain, from the one before them, bit for bit."""
        packed, rows, stepper = self.packed, self.stepper.rows, self.stepper
        begins = None
        stepper.field.choice.keep(packed.from_end(packed.most - last)[0])  # all that move on the way
        for i in range(first, last):
            k = packed.most - 1 - i
            exists, at = packed.from_end(k)
            number = packed.counts - 1 - k
            t, h = packed.steps["t"][at], torch.where(exists, packed.steps["h"][at], 0.0)
            t_end = torch.where(exists, packed.end_of(number), t)
            after, before = packed.jumps(number, at, self.problem.row_times.starts_at_jump)
            if begins is None:
                begins = stepper.begin(t, y, side_of(after, 1.0))
            stepper.prepare(begins, t, y)
            y_end, slopes = stepper.step(t, h, t_end, y, begins, before_jump=before)
            moved = rows.spread(exists)
            y_end = torch.where(moved, y_end, y)
            if i + 1 < last:
                jumped = None if before is None else before & exists
                step = RowStep(exists, moved, t, h, t_end, y, y_end, slopes, None, before, jumped)
                begins = stepper.follow(begins, step)
            y = y_end
        return y
