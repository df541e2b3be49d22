"""The graphs of the first tries, where there is room for them: the way back over these evaluates nothing again.

A try has its graph as a whole: rows that it did not move have cotangents of zero there. The slope that a row's step
begins with was evaluated in an earlier try, at the end of the row's step before, or at the start of the solve. Its
cotangent waits, row by row, until the way back comes there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class KeptTry:
    """A try in which rows were ``accepted`` [b], with the sizes [b] of their steps (0 for the others), what these end
    on and where func jumps (as in `march.RowStep`), and its outputs inside steps, by their places. ``evaluations`` as
    of `RowStepper`; ``first``: the first slope [size] (None without time gradients)."""

    accepted: Tensor
    h: Tensor
    ends_on: Tensor | None
    jumped: Tensor | None
    outputs: range
    evaluations: Any
    first: Tensor | None


@dataclass(slots=True, eq=False)
class KeptTries:
    """The tries whose graphs were kept, and the `Evaluation` at the start; ``counts`` [b]: steps among them."""

    tries: list[KeptTry]
    start: Any
    counts: Any = 0

    def add(self, kept: KeptTry) -> None:
        self.tries.append(kept)
        self.counts = self.counts + kept.accepted.int()

    def drop_last(self) -> None:
        """The last try is to be made again."""
        self.counts = self.counts - self.tries.pop().accepted.int()

    @property
    def may_spoil(self) -> bool:
        """Whether 0 times infinity may come from rows that stood still: func's derivatives at a rejected state, or
        behind the end of a row, may be infinite or NaN."""
        return not bool(torch.stack([kept.accepted for kept in self.tries]).all())


class UnfitGraphsError(Exception):
    """Kept graphs cannot be used, or not beside what func has become."""
