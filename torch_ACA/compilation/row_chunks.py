"""What a call of the loop over tries of rows leaves, and one of the loop back over their steps is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .row_loops import ACCEPTED, LANDED, REJECTED

if TYPE_CHECKING:
    from ..rows.times import RowTimes


class RowTries:
    """What the buffer of times says of the tries of a call: [n, b] each, times float64.

    ``running``: which rows were tried; ``reached``: where they are behind it; ``ends_on``, ``jumps``: of those that
    landed, as of `rows.march.RowStep`.

    :param buffer: [n, 3, b]
    :param place: number of stops behind each row before the first try [b]
    """

    def __init__(self, buffer: Tensor, place: Tensor, times: RowTimes) -> None:
        self.t, self.h, outcome = buffer.unbind(1)
        self.running, self.accepted, landed = outcome >= REJECTED, outcome >= ACCEPTED, outcome == LANDED
        before = place + torch.cumsum(landed, 0) - landed.long()
        stop, given, jumps = times.stop(before)
        self.ends_on = torch.where(landed, given, -1)
        self.jumps = None if jumps is None else jumps & landed
        self.reached = torch.where(landed, stop, torch.where(self.accepted, self.t + self.h, self.t))

    def next_accepted(self, at: Tensor, row: Tensor) -> Tensor:
        """The tries [p], or those behind them, in which rows [p] were accepted; n where there is none."""
        n = len(self.t)
        places = torch.where(self.accepted, torch.arange(n, device=at.device)[:, None], n)
        return places.flip(0).cummin(0).values.flip(0)[at, row]


class RowChunk(NamedTuple):
    """A chunk of n steps of all rows. A row without such a step waits at the start of its first one, with a step of
    size 0.

    ``times`` [capacity, 3, b], ``states`` [capacity, size], ``windows`` [capacity, 2, b] (None: func does not jump):
    buffers for `RowLoops.backward`; ``ends_on``: as of `PackedSteps`, and ``stops``, how many stops lie before a step:
    [n, b]
    """

    times: Tensor
    states: Tensor
    windows: Tensor | None
    ends_on: Tensor
    stops: Tensor

    @property
    def lands(self) -> Tensor:
        return self.ends_on >= 0
