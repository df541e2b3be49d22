"""The Jacobian of a func that acts row by row, each row at a time of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import JacobianError
from ..jacobian import Jacobian

if TYPE_CHECKING:
    from ..linearisation import Linearisation
    from ..state import StateLayout


class RowJacobian(Jacobian):
    """A `Jacobian` of blocks. Here VJPs tell df/dt of every row as well: those of unit vectors, the same in every row,
    pull back to the times [b] row by row.

    :param layout, function: as for `Jacobian`
    """

    asked = "per_sample"

    def __init__(self, layout: StateLayout, function: Callable | None = None) -> None:
        super().__init__(layout, function, by_rows=True)

    def of_time(self, at: Linearisation, products: Tensor, *, create_graph: bool) -> Tensor:
        return self.blocks.flat(products[:, at.leaf.numel() :].T)

    def time_products(self, cotangents: Tensor, of_time: Tensor) -> Tensor:
        return self.blocks.rows(cotangents * of_time).sum(-1)

    def wrong_times(self, wrong: Tensor, where: str) -> Exception:
        if self.is_users:  # df/dt is found as it is of one time
            return super().wrong_times(wrong, where)
        return JacobianError(f"per_sample, but {where} func couples rows by their times: row {int(wrong.nonzero()[0])}")


def block_times(sizes: Tensor, blocks: Tensor) -> Tensor:
    """Numbers [b] times blocks [b, m, m]."""
    return sizes.to(blocks)[:, None, None] * blocks


def block_dot(one: Tensor, other: Tensor) -> Tensor:
    """Scalar products of blocks [b, m, m]: [b], float64."""
    return (one * other).sum((-1, -2), dtype=torch.float64)
