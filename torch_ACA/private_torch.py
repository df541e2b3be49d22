"""Names of PyTorch that are not public, in one place, and what takes over where one is missing: slower, never wrong."""

import contextlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import batchnorm
from torch.nn.utils import parametrize

from .errors import TransformError

try:
    from torch.utils import _pytree as pytree
except ImportError:
    from . import trees as pytree  # type: ignore[no-redef]
try:
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack as _clear_transforms
except ImportError:
    _clear_transforms = None  # type: ignore[assignment]

__all__ = ["age", "batch_norms", "forward_ad_level", "has_function_modes", "has_saved_tensors_hooks", "is_batched"]
__all__ += ["is_dynamo_imported", "is_transformed", "made_types", "outside_transforms", "parametrize_cache"]
__all__ += ["pulled_back", "pytree", "set_grad_enabled", "within_checkpoint", "without_tangents"]


def _found(path: str) -> Any:
    """What stands at a dotted path below torch; None where nothing does."""
    thing: Any = torch
    for name in path.split("."):
        thing = getattr(thing, name, None)
    return thing


# torch.autograd.grad without its checks of the arguments and its context, which cost more than a small f
_run_backward = _found("autograd.Variable._execution_engine.run_backward")
# torch.set_grad_enabled as a plain function: a context takes as long as an operation
set_grad_enabled = _found("_C._set_grad_enabled") or torch.set_grad_enabled
_are_transforms_active = _found("_C._are_functorch_transforms_active")
_dispatch_keys = _found("_C._dispatch_keys")
_forward_ad_switch = getattr(forward_ad, "_set_fwd_grad_enabled", None)
# of any operation, for they all have it or none has
_sequence_number = getattr(torch.zeros((), requires_grad=True, device="cpu").view(()).grad_fn, "_sequence_nr", None)
_top_hooks = _found("_C._autograd._top_saved_tensors_default_hooks")
_CHECKPOINT = "torch.utils.checkpoint"  # where its hooks are made
_function_modes = _found("_C._len_torch_function_stack")
batch_norms = getattr(batchnorm, "_NormBase", (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d))


def has_saved_tensors_hooks() -> bool:
    """Whether hooks, those of a checkpoint among them, see what autograd saves in this thread; True if not known."""
    return _top_hooks is None or _top_hooks(False) is not None


def within_checkpoint() -> bool:
    """Whether `torch.utils.checkpoint` will make what runs in this thread again, for its backward pass; True if not
    known."""
    hooks = None if _top_hooks is None else _top_hooks(False)
    return _top_hooks is None or hooks is not None and getattr(hooks[0], "__module__", "") == _CHECKPOINT


def pulled_back(
    edges: Sequence[Any], cotangents: Sequence[torch.Tensor | None], keep_graph: bool, wanted: Sequence[Any]
) -> tuple[torch.Tensor | None, ...]:
    """Cotangents of ``wanted``, None for those not reached. To be called inside a backward pass, gradients off."""
    if _run_backward is None:
        return torch.autograd.grad(edges, wanted, cotangents, retain_graph=keep_graph, allow_unused=True)
    return _run_backward(edges, cotangents, keep_graph, False, wanted, True, accumulate_grad=False)


def age(node: Any) -> int:
    """The sequence number of a node of autograd's graph: later ones of the same thread have larger numbers."""
    return node._sequence_nr()


def made_types(node: Any) -> list[torch.dtype]:
    """The types of what the operation of a node made; none where they are not known."""
    return [made.dtype for made in getattr(node, "_input_metadata", ())]


def forward_ad_level() -> int:
    """The level of forward-mode AD that is active; -1: none. Where it is not known: 0 for any level."""
    level = getattr(forward_ad, "_current_level", None)
    if level is not None:
        return level
    try:
        forward_ad.make_dual(torch.zeros((), device="cpu"), torch.zeros((), device="cpu"))
    except RuntimeError:  # there is no level
        return -1
    return 0


def without_tangents() -> AbstractContextManager:
    """Context in which forward-mode AD carries no tangents on.

    :raises TransformError: this PyTorch has none
    """
    if _forward_ad_switch is None:
        raise TransformError(
            "a solve in forward-mode AD needs another version of PyTorch; backward() works with this one"
        )
    return _forward_ad_switch(False)


def has_function_modes() -> bool:
    """Whether a mode may be active that sees all functions, as a default device is. Not known: yes."""
    return _function_modes is None or _function_modes() > 0


def is_dynamo_imported() -> bool:
    """Whether the front end of `torch.compile` is imported in this process: it traces nothing before."""
    return "torch._dynamo" in sys.modules


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is active. Where that is not known: yes, as the graph of all steps that a
    solve then makes is right without one too. So it is where `age` is not known."""
    return _sequence_number is None or _are_transforms_active is None or _are_transforms_active()


def outside_transforms() -> AbstractContextManager:
    """Context in which transforms of `torch.func` that are active are not."""
    if _clear_transforms is None or not is_transformed():
        return contextlib.nullcontext()
    return _clear_transforms()


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether vmap, of either kind that PyTorch has, runs over a tensor."""
    return _dispatch_keys is None or "Batched" in str(_dispatch_keys(tensor))


def parametrize_cache() -> dict | None:
    """What `torch.nn.utils.parametrize.cached` keeps at this moment; None outside of it."""
    return parametrize._cache if getattr(parametrize, "_cache_enabled", 0) else None


def stacked(node: Any) -> tuple[tuple[int, ...], int] | None:
    """Of a node of `torch.stack`: the shape of what it made, and the dimension along which its parts lie. None of other
    nodes, and where PyTorch does not tell."""
    if node.name() != "StackBackward0" or not hasattr(node, "_input_metadata") or not hasattr(node, "_saved_dim"):
        return None
    shape, dim = tuple(node._input_metadata[0].shape), node._saved_dim
    return shape, (dim - 2**64 if dim >= 2**63 else dim) % len(shape)
