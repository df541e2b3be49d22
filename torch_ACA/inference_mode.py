"""What needs a derivative inside of `torch.inference_mode` leaves the mode for it.

Autograd records nothing in there, not even where gradients are on, and cannot record with tensors that were made there.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .cut import Cut


class _Normal(Cut):
    """Puts copies in the place of tensors that were made in inference mode."""

    def __init__(self) -> None:
        super().__init__({}, {})
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # by id: the tensor, so that it lives

    def of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return super().of(value)
        if not value.is_inference():
            return value
        known = self._copies.get(id(value))
        if known is None:
            known = self._copies[id(value)] = value, normal(value)
        return known[1]


def normal(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that autograd can record with; to be called outside of inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Context in which autograd records what func does, whatever mode the solve runs in."""
    inside = torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad(), _Normal() if inside else contextlib.nullcontext():
        yield


def outside_inference_mode(backward: Callable) -> Callable:
    """Decorator of the backward of an `autograd.Function`: it runs outside of inference mode, where func can be
    evaluated with a graph."""

    @functools.wraps(backward)
    def run(ctx: Any, *bars: Tensor | None) -> Any:
        if not torch.is_inference_mode_enabled():
            return backward(ctx, *bars)
        create_graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(create_graph):
            return backward(ctx, *(bar if bar is None else normal(bar) for bar in bars))

    return run
