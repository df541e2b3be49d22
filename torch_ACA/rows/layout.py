"""Which entries of a flat state belong to which row of the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..private_torch import pytree

if TYPE_CHECKING:
    from ..state import StateLayout


def with_rows_outermost(y0: Any, option: str = "per_sample") -> Any:
    """y0 with leaves whose first axis is the outermost in memory, where a view of a row is one piece.

    :param option: what asks for it, for the error
    :raises ValueError: leaves without a first axis of the same length
    """
    leaves, structure = pytree.tree_flatten(y0)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    shapes = [tuple(leaf.shape) for leaf in tensors]
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"{option} needs a first axis of the same length in all of y0, got shapes {shapes}")
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and leaf.stride(0) * leaf.shape[0] < leaf.numel():
            leaves[i] = leaf.contiguous()
    return pytree.tree_unflatten(leaves, structure)


class RowLayout:
    """Flat states [size] as rows [b, n], and back.

    :param layout: of leaves [b, ...]
    """

    def __init__(self, layout: StateLayout) -> None:
        self.count = b = layout.leaves[0].shape[0]
        # of one leaf the rows lie one after the other; generated code is to know these operations, not their indices
        self._sizes = [leaf.stop - leaf.start for leaf in layout.leaves]
        self._widths = [math.prod(leaf.stored_shape[1:]) for leaf in layout.leaves]
        self.width = sum(self._widths)
        self.halves, self._halves, self._numbers = (b - 1).bit_length(), [], torch.arange(b, device=layout.device)
        self._time_shape = (b, *[1] * (len(layout.leaves[0].shape) - 1))

    def half(self, number: int) -> Tensor:
        """About half of the rows [b]; any two rows are told apart by one of the first ``halves`` of them.

        The first takes the rows whose numbers have an odd count of binary ones, which tells neighbours apart, halves of
        a batch, and most of what is regular; the others go by single binary places.
        """
        while len(self._halves) <= number:
            places = range(self.halves) if not self._halves else [len(self._halves) - 1]
            self._halves.append(sum(self._numbers >> place & 1 for place in places) % 2 == 1)
        return self._halves[number]

    def rows(self, flat: Tensor) -> Tensor:
        """[..., size] to [..., b, n]."""
        parts = flat.split(self._sizes, -1) if len(self._sizes) > 1 else [flat]
        parts = [part.reshape(*flat.shape[:-1], self.count, width) for part, width in zip(parts, self._widths)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def flat(self, rows: Tensor) -> Tensor:
        """[..., b, n] to [..., size]."""
        parts = rows.split(self._widths, -1) if len(self._widths) > 1 else [rows]
        parts = [part.reshape(*rows.shape[:-2], size) for part, size in zip(parts, self._sizes)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def spread(self, values: Tensor) -> Tensor:
        """A number for each row [b], for each entry of the flat state: [size]."""
        parts = [values[:, None].expand(self.count, width).reshape(-1) for width in self._widths]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def norm(self, flat: Tensor) -> Tensor:
        """Root mean square of every row: [b], float64."""
        return torch.linalg.vector_norm(self.rows(flat), dim=-1).double() / max(self.width, 1) ** 0.5

    def dot(self, one: Tensor, other: Tensor) -> Tensor:
        """Scalar products row by row: [b], float64."""
        return self.rows(one * other).sum(-1, dtype=torch.float64)

    def time(self, t: Tensor) -> Tensor:
        """Times [b] in the shape that func gets: as many axes as the first leaf of the state."""
        return t.view(self._time_shape)
