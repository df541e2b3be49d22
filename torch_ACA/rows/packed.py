"""What is remembered of the forward pass: the accepted steps of all rows and the outputs inside them, packed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CHUNK = 2**18  # numbers: fewer are one chunk
_PARTS = 8  # of what there is, the part that may be there twice for a moment


class PackedStates:
    """States [count, n], added piece by piece and held in a few chunks: to make one tensor of all would take their
    memory twice. More than ``most`` are not held: then there are none (``dropped``)."""

    def __init__(self, most: float = math.inf) -> None:
        self.chunks, self.starts, self._pieces = [], [], []
        self.count = self._n_loose = 0
        self.most, self.dropped = most, False

    def add(self, states: Tensor) -> None:
        """Add states [c, n]."""
        self.count += len(states)
        if self.count > self.most:
            self.chunks, self.starts, self._pieces, self._n_loose, self.dropped = [], [], [], 0, True
            return
        self._pieces.append(states)
        self._n_loose += len(states)
        if self._n_loose * states.shape[1] > max(_CHUNK, self.count * states.shape[1] // _PARTS):
            self.close()

    def close(self) -> None:
        if self._n_loose:
            self.starts.append(self.count - self._n_loose)
            self.chunks.append(torch.cat(self._pieces))
            self._pieces, self._n_loose = [], 0

    def release(self) -> list[Tensor]:
        """The chunks, which are forgotten here."""
        chunks, self.chunks = self.chunks, None
        return chunks

    def at(self, chunks: Sequence[Tensor], places: Tensor) -> Tensor:
        """States [p, n] at places [p].

        :param chunks: what `release` gave
        """
        if len(chunks) == 1:
            return chunks[0][places]
        which = torch.bucketize(places, torch.tensor(self.starts, device=places.device), right=True) - 1
        found = chunks[0].new_empty(len(places), chunks[0].shape[1])
        for i in which.unique().tolist():
            here = (which == i).nonzero()[:, 0]
            found[here] = chunks[i][places[here] - self.starts[i]]
        return found


class PackedSteps:
    """The accepted steps of all rows, in the order of their tries, and the outputs inside them; to be read after
    `pack`. A step has its row, time, size and what it ends on (as in `RowStep`; pieces may be None), an output its row,
    number (from 0, the first behind the start), the place of its step and the fraction of the step at which it lies.

    After `pack`, ``counts`` [b] are the numbers of steps of the rows, ``most`` the largest, ``ends`` [b] the times at
    the ends of their last ones; ``cut`` [b] are the rows whose last steps are forgotten. A row without steps waits
    where it made its first one; those that made none are ``displaced`` [b]: they wait where the row ``elsewhere`` made
    its first, which has the most, since at their own starts func may be infinite.

    :param most: states that are held, at most
    """

    def __init__(self, most: float = math.inf) -> None:
        self.states = PackedStates(most)
        self.steps: dict[str, Any] = {name: [] for name in ("row", "t", "h", "ends_on", "before_jump")}
        self.outputs: dict[str, Any] = {name: [] for name in ("row", "number", "step", "theta")}
        self.n_outputs = 0

    @property
    def some_stuck(self) -> bool:
        """Whether there are rows without steps, and others with."""
        return self.most > 0 and bool((self.counts == 0).any())

    @property
    def count(self) -> int:
        """Number of steps so far."""
        return self.states.count

    def add(self, y: Tensor, **values: Tensor | None) -> None:
        """Steps from states y [c, n]."""
        self.states.add(y)
        for name, value in values.items():
            self.steps[name].append(value)

    def add_outputs(self, **values: Tensor) -> None:
        self.n_outputs += len(values["row"])
        for name, value in values.items():
            self.outputs[name].append(value)

    def wait_at(self, row: Tensor, t: Tensor, y: Tensor) -> None:
        """Let rows [c] that have made no step wait, as if they had, at times [c] and states [c, n]."""
        jumps = {"before_jump": torch.zeros_like(row, dtype=torch.bool)} if self.steps["before_jump"] else {}
        self.add(y, row=row.int(), t=t, h=torch.zeros_like(t), ends_on=None, **jumps)

    def pack(self, ends: Tensor, y_end: Tensor, failed: Sequence[int]) -> Tensor:
        """Put the pieces together; returns the states at the ends of the last steps [b, n], which for the rows that are
        cut are known only where states are held.

        :param ends, y_end: times [b] and states [b, n] that the rows have reached
        :param failed: rows of which only the steps up to the last output are needed
        """
        self.states.close()
        pieces = zip(self.steps["ends_on"], self.steps["row"])
        self.steps["ends_on"] = [torch.full_like(row, -1) if piece is None else piece for piece, row in pieces]
        self.steps = {name: torch.cat(pieces) if pieces else None for name, pieces in self.steps.items()}
        self.outputs = {name: torch.cat(pieces) if pieces else None for name, pieces in self.outputs.items()}
        row = self.steps.pop("row")
        self.counts, self.ends, self.most = torch.zeros_like(ends, dtype=torch.long), ends, 0
        self.cut, self.displaced = torch.zeros_like(ends, dtype=torch.bool), torch.ones_like(ends, dtype=torch.bool)
        self.elsewhere = 0
        if row is None:
            return y_end
        self.counts = torch.bincount(row, minlength=len(ends))
        self.displaced = self.counts == 0
        self.by_row = torch.argsort(row, stable=True)
        self.first = torch.cumsum(self.counts, 0) - self.counts
        if self.outputs["row"] is not None:
            rank = torch.empty_like(self.by_row)
            rank[self.by_row] = torch.arange(len(row), device=row.device)
            step = self.outputs["step"]
            self.number_in_row = rank[step] - self.first[row[step]]
        for number in failed:
            y_end = self._cut(number, y_end)
        self.most, self.elsewhere = (int(x) for x in self.counts.max(0))
        self.first = torch.where(self.displaced, self.first[self.elsewhere], self.first)
        self._last = self.first + self.counts - 1
        return y_end

    def of(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """Of the steps with a number in each row [b]: which there are, and where they are packed. A row without one is
        given its first step."""
        exists = (number >= 0) & (number < self.counts)
        return exists, self.by_row[self.first + torch.where(exists, number, 0)]

    def from_end(self, k: int | Tensor) -> tuple[Tensor, Tensor]:
        """As `of` for the k-th last steps of all rows."""
        exists = self.counts > k
        return exists, self.by_row[torch.maximum(self._last - k, self.first)]

    def end_of(self, number: Tensor) -> Tensor:
        """Times [b] at the ends of the steps with a number in each row."""
        follows, at = self.of(number + 1)
        return torch.where(follows, self.steps["t"][at], self.ends)

    def stops_before(self) -> Tensor:
        """How many stops of its row lie before each of the steps [count], as they are packed."""
        landed = (self.steps["ends_on"] >= 0).long()[self.by_row]
        before = torch.cumsum(landed, 0) - landed
        in_order = before - before[self.first].repeat_interleave(self.counts)
        return torch.empty_like(in_order).index_copy_(0, self.by_row, in_order)

    def jumps(self, number: Tensor, at: Tensor, starts_at_jump: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Which rows jump at the starts, and which at the ends, of steps that `of` found at places [b]; both None
        where there are no jumps."""
        before = self.steps["before_jump"]
        if before is None:
            return None, None
        earlier, place = self.of(number - 1)
        return torch.where(earlier, before[place], starts_at_jump & (number <= 0)), before[at]

    def outputs_in(self, number: Tensor) -> Any:
        """Places among the outputs of those in the steps with a number in each row [b]."""
        if self.outputs["row"] is None:
            return ()
        return (self.number_in_row == number[self.outputs["row"]]).nonzero()[:, 0]

    def have(self, outputs: Any) -> Tensor:
        """Which rows the outputs at these places belong to: [b], bool."""
        return torch.zeros_like(self.cut).index_fill(0, self.outputs["row"][outputs], True)

    def _cut(self, row: Any, y_end: Tensor) -> Tensor:
        """Forget the steps of a row behind its last output."""
        count, first = int(self.counts[row]), int(self.first[row])
        steps = self.by_row[first : first + count]
        wanted = (self.steps["ends_on"][steps] > 0).nonzero()[:, 0]
        if self.outputs["row"] is not None:
            wanted = torch.cat([wanted, self.number_in_row[self.outputs["row"] == row]])
        kept = int(wanted.max()) + 1 if len(wanted) else 0
        if kept < count:
            self.counts[row] = kept
            place = steps[kept : kept + 1]
            row = place.new_tensor([row])
            self.cut[row], self.ends = True, self.ends.index_copy(0, row, self.steps["t"][place])
            if not self.states.dropped:
                y_end = y_end.index_copy(0, row, self.states.at(self.states.chunks, place))
        return y_end
