"""Tolerances as a caller gives them: floats, or numbers and tensors nested like the state."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .notices import shown
from .option_checks import as_float, as_tensor, refuse_grad
from .private_torch import pytree
from .state import StateLayout


def tolerances(rtol: Any, atol: Any, layout: StateLayout | None) -> tuple[Any, Any]:
    """Both as floats, or as flat vectors of what is nested like the state (as given, without a layout)."""
    rtol, atol = _tolerance("rtol", rtol, layout), _tolerance("atol", atol, layout)
    plain = isinstance(rtol, float) and isinstance(atol, float)
    if rtol == atol == 0.0 if plain else layout is not None and bool((rtol + atol == 0).any()):
        raise ValueError("rtol and atol must not both be 0: no step would be accepted")
    return rtol, atol


def _tolerance(name: str, value: Any, layout: StateLayout | None) -> Any:
    number = as_float(name, value)
    if number is not None:
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {shown(value)}")
        return number
    if layout is None:  # checked when there is a state
        return value
    parts = [value] if layout.structure.is_leaf() else layout.leaves_of(value)
    if parts is None and isinstance(value, (list, tuple)):  # flat, though the state is nested deeper
        parts = pytree.tree_leaves(value)
        parts = parts * len(layout.leaves) if len(parts) == 1 else parts
    if parts is None or len(parts) != len(layout.leaves):
        raise ValueError(f"{name} must be a number or nested like y0, got {shown(value)}")
    return torch.cat([_spread(name, leaf, part, layout) for leaf, part in zip(layout.leaves, parts)])


def _spread(name: str, leaf: Any, part: Any, layout: StateLayout) -> Tensor:
    """One part of a tolerance as a flat vector over a leaf of the state."""
    for entry in pytree.tree_leaves(part):
        refuse_grad(name, entry)
    try:
        spread = part if isinstance(part, Tensor) else as_tensor(part)
        if spread.is_complex() or spread.dtype == torch.bool:
            raise TypeError
        spread = leaf.spread(spread, layout)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{name} must be a number, or numbers and tensors nested like y0 and broadcastable to it; "
            f"got {shown(part)} for shape {tuple(leaf.shape)}"
        ) from None
    if not bool((torch.isfinite(spread) & (spread >= 0)).all()):
        raise ValueError(f"{name} must be finite and not negative, got {shown(part)}")
    return spread
