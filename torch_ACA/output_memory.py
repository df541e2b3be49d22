"""Whether func returns the same memory again, which it then fills anew."""

from __future__ import annotations

from typing import Any

import torch

from .private_torch import pytree


class OutputMemory:
    """Of one func. ``unknown`` until its second call was looked at; ``comes_again``: it returns the same memory.

    :param watch: False: it cannot be found out, as under a transform, whose tensors have no memory of their own. So it
        may come again
    """

    def __init__(self, watch: bool) -> None:
        self.unknown, self.comes_again = watch, not watch
        self._first: list[torch.Tensor] | None = None

    def look_at(self, state: Any) -> None:
        """At what a call returned."""
        leaves = [state] if isinstance(state, torch.Tensor) else pytree.tree_leaves(state)
        leaves = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if self._first is None:
            self._first = [leaf.detach() for leaf in leaves]
            return
        pairs = zip(leaves, self._first)
        self.comes_again = any(a.data_ptr() == b.data_ptr() and a.numel() > 0 for a, b in pairs)
        self.unknown, self._first = False, None
