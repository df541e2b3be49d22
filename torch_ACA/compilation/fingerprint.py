"""By what a backward pass of compiled code knows that the tensors which func depends on are what they were.

Also where they were written to unseen by autograd, as through ``.data``.
"""

import functools
from typing import Any

import torch
from torch import Tensor

EXACTLY = 2**14  # numbers: up to so many are compared bit by bit
_AT_ONCE = 2**10
_OF_NUMPY = frozenset((torch.float32, torch.float64, torch.int64, torch.int32, torch.bool))
_OF_SUMS = frozenset((torch.float32, torch.float64))  # narrower floats would round the sums


def fingerprint(code: Any) -> Any:
    """Of the ``others`` of a `Code`."""
    return [(0 if x.is_inference() else x._version, _contents(x)) for x in code.others]


def _contents(x: Tensor) -> Any:
    """The bits of a few numbers; of more, their norm and a sum in which each place counts otherwise."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    x = x.resolve_neg()
    if x.numel() <= EXACTLY:
        plain = x if x.dtype in _OF_NUMPY else x.contiguous().view(-1).view(torch.uint8)
        return plain.clone().numpy().tobytes()  # what NumPy has seen cannot be resized, as FSDP does
    x = (x if x.dtype in _OF_SUMS else x.double()).reshape(-1)
    weights, n_whole = _weights(x.dtype), len(x) // _AT_ONCE
    whole, rest = x[: n_whole * _AT_ONCE].view(-1, _AT_ONCE), x[n_whole * _AT_ONCE :]
    sums = torch.cat([whole @ weights, (rest @ weights[: len(rest)])[None]]).double()
    places = torch.arange(1, len(sums) + 1, dtype=torch.float64, device=x.device)
    return torch.linalg.vector_norm(x).item(), (sums @ torch.cos(places)).item()


@functools.cache
def _weights(dtype: torch.dtype) -> Tensor:
    return torch.cos(torch.arange(1, _AT_ONCE + 1, dtype=torch.float64, device="cpu")).to(dtype)
