"""Step-size control row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..tensor_controller import TensorController

if TYPE_CHECKING:
    from ..controller import Controller
    from .layout import RowLayout

_AT_ONCE = 64  # numbers: a multiple of what any vector kernel takes


class RowController(TensorController):
    """Judges the tries of all rows at once: numbers are [b]."""

    spread: Any  # `RowLayout.spread`

    def __init__(self, controller: Controller, rows: RowLayout) -> None:
        super().__init__(controller, rows.norm)
        self.spread = rows.spread

    def error_ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """Errors, which are overwritten, in units of the tolerance."""
        return self.norm(error.div_(self.controller.scale(torch.maximum(y0.abs(), y1.abs()))))

    def each(self, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """A function of numbers, with bits that do not depend on a number's place.

        The last entries of a tensor, fewer than a vector kernel takes at once, go through another kernel, whose powers
        may be rounded otherwise: here they are not the last.
        """
        b = len(arguments[0])
        padded = [torch.nn.functional.pad(x, (0, -b % _AT_ONCE), value=1.0) for x in arguments]
        return function(*padded)[:b]
