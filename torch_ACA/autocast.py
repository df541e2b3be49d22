"""Autocast is for func alone: the solver's own sums keep their precision."""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


def without_autocast(device_type: str) -> AbstractContextManager:
    """Context without autocast, which is for func alone: the solver's own sums keep their precision."""
    if not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def ambient_autocast(device_type: str) -> Callable[[], torch.autocast] | None:
    """The autocast around the solve, for the recomputation too; no weight cache (it would outlive a stage's graph)."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return functools.partial(
        torch.autocast, device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=False
    )
