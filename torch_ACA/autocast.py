"""Autocast is for func alone: the solver's own sums keep their precision."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from .graph import types_behind

if TYPE_CHECKING:
    from .vector_field import VectorField


def without_autocast(device_type: str) -> AbstractContextManager:
    """Context without autocast, which is for func alone: the solver's own sums keep their precision."""
    if not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def ambient_autocast(device_type: str) -> functools.partial | None:
    """The autocast around the solve, for the recomputation too; no weight cache (it would outlive a stage's graph)."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return functools.partial(
        torch.autocast, device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=False
    )


def dtype_of(autocast: functools.partial | None) -> torch.dtype | None:
    """The type in which an `ambient_autocast` lets func compute; None where there is none."""
    return None if autocast is None else autocast.keywords["dtype"]


def coarsest_rounding(field: VectorField, value: torch.Tensor | None = None) -> float:
    """Relative rounding of the coarsest arithmetic that func is known to be in, by the types of what it can reach.

    :param value: of func, whose graph is looked at as well
    """
    kinds = {leaf.dtype for leaf in field.layout.leaves}
    kinds |= {dtype_of(field.autocast)} if field.autocast else set()
    kinds |= set() if value is None else types_behind(value)
    return max(coarsest(field.captured.reached()), *map(_rounding, kinds))


def coarsest(tensors: Iterable[torch.Tensor]) -> float:
    """Relative rounding of the coarsest floating type among those of tensors."""
    return max(map(_rounding, {tensor.dtype for tensor in tensors}), default=0.0)


def _rounding(kind: torch.dtype) -> float:
    return torch.finfo(kind).eps if kind.is_floating_point or kind.is_complex else 0.0
