"""What PyTorch's function transforms and forward-mode AD ask of a solve.

A custom backward pass is not seen by `torch.func` (grad, vjp, jacrev, jvp, vmap), nor are tangents. Under them the
accepted grid is found without derivatives, and then run once more as ordinary operations, which every transform goes
through.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import private_torch
from .errors import TransformError
from .private_torch import forward_ad_level, is_dynamo_imported, is_transformed, without_tangents


def untraced(function: Callable) -> Callable:
    """Decorator of what autograd calls: Dynamo leaves it alone where `torch.compile` is given a whole training step."""
    disabled: Any = None

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal disabled
        if not is_dynamo_imported():  # to import it takes seconds
            return function(*arguments)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*arguments)

    return call


def under_transform() -> bool:
    """Whether a transform of `torch.func`, or a level of forward-mode AD, is active."""
    return forward_ad_level() >= 0 or is_transformed()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Context of a solve under a transform.

    :raises TransformError: instead of what PyTorch says where the transform does not go through
    """
    try:
        yield
    except RuntimeError as failure:
        if not any(word in str(failure) for word in ("vmap", "tracing tensor")):
            raise
        raise TransformError(
            "torch.vmap and linearize cannot run over a solve, whose step sizes are numbers that depend on the state: "
            "solve the batch at once, as a state of shape [batch, ...], or give jacrev a chunk_size of 1"
        ) from failure


def check_no_transform(what: str) -> None:
    """Refuse what no transform goes through.

    :raises TransformError: under a transform
    """
    if under_transform():
        raise TransformError(f"{what} does not go through torch.func and forward-mode AD: use backward()")


def check_transform(gradient: str, params: Any) -> None:
    """Refuse gradient methods that exist as a custom backward pass alone, and what is for a backward pass.

    :raises TransformError: under a transform, for such a method
    """
    if gradient in ("adjoint", "mali"):
        raise TransformError(
            f"gradient={gradient!r} has no forward-mode AD and does not go through torch.func; use gradient='aca', "
            "'direct' or 'naive'"
        )
    if params is not None:
        raise TransformError(
            "params= is for backward(): torch.func and forward-mode AD differentiate in what they are asked to. Detach "
            "inside func what is to be a constant"
        )


def check_tracing(gradient: str, per_sample: bool) -> None:
    """Refuse what `torch.jit.trace` cannot record: it takes tensors with a graph of their own for constants, and the
    count of rows for a tensor.

    :raises TransformError: it is tracing, and cannot
    """
    if not torch.jit.is_tracing():
        return
    if per_sample:
        raise TransformError("torch.jit.trace cannot record a solve with per_sample=True: trace a joint solve")
    if torch.is_grad_enabled() and gradient != "naive":
        raise TransformError(
            f"torch.jit.trace cannot record the gradient of gradient={gradient!r}: trace under torch.no_grad(), or "
            "with gradient='naive', and with check_trace=False"
        )


def check_exporting() -> None:
    """Refuse `torch.export`.

    :raises TransformError: it is at work
    """
    if torch.compiler.is_exporting():
        raise TransformError(
            "torch.export cannot record a solve, which reads times and step sizes as numbers: export func alone, and "
            "solve around it"
        )


def check_cotangents(gradient: str, bar: Tensor) -> None:
    """Refuse many cotangents at once (is_grads_batched=True, jacobian(vectorize=True)).

    :raises TransformError: vmap runs over the cotangents
    """
    if is_batched(bar):
        raise TransformError(
            f"gradient={gradient!r} takes one cotangent at a time; use gradient='aca', 'direct' or 'naive' for many"
        )


def is_batched(tensor: Tensor | None) -> bool:
    """Whether vmap runs over a tensor (as for `torch.autograd.grad(..., is_grads_batched=True)`)."""
    return tensor is not None and private_torch.is_batched(tensor)


@contextlib.contextmanager
def forward_ad_disabled() -> Iterator[None]:
    """Context in which tangents are not carried on."""
    if forward_ad_level() < 0:
        yield
        return
    with without_tangents():
        yield
