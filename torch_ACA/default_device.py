"""The default device that surrounds a solve is for func, wherever it is evaluated again.

Another thread, or a backward pass outside of the context, may have another one.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from .private_torch import has_function_modes


def default_device() -> torch.device | None:
    """What `torch.set_default_device` or a device as a context chose; None where nothing did."""
    return torch.get_default_device() if has_function_modes() else None


def with_default_device(device: torch.device | None) -> AbstractContextManager:
    """Context in which the default device is what `default_device` once returned."""
    if device == default_device():
        return contextlib.nullcontext()
    return torch.device("cpu") if device is None else device
