"""Cotangents of the times of a solve, gathered on the way back over its steps.

The size of a step is a constant, but where the step ends on a time that it was made to end on: h = stop - t.
"""

import torch
from torch import Tensor

from ..march import Stop


class TimeCotangents:
    """``given`` [m]: those of the times of the caller; ``now``: that of the time where the walk has come to."""

    def __init__(self, count: int) -> None:
        self.given = torch.zeros(count, dtype=torch.float64, device="cpu")
        self.now = 0.0

    def through(self, stop: Stop | None, t_bar: float, h_bar: float) -> None:
        """Walk over a step.

        :param stop: `march.Stop` that its size was chosen for, or None
        :param t_bar, h_bar: cotangents of its start time and of its size, as functions of each other independent
        """
        if stop is None:
            self.now += t_bar
            return
        if stop.index is not None:
            self.given[stop.index] += self.now + h_bar
        self.now = t_bar - h_bar


    def finished(self) -> Tensor:
        """Those of the times of the caller [m], once the walk has come to the first."""
        self.given[0] += self.now
        self.now = 0.0
        return self.given


def reached(t: Tensor, start: float, h: float, t_end: float) -> Tensor:
    """t + h (0-d, float64), where it is to be t_end for the start that the forward pass knew: its rounding may be
    another, as fixed steps are counted from where they began, and func may jump there."""
    return t_end + (t + h - (start + h))
