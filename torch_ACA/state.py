"""Nested state to one flat real vector, and back.

The solver works on a flat vector; users think in tensors, tuples, lists and dicts. Complex leaves become pairs of reals
(autograd's own convention, so gradients carry over), half-precision leaves are carried in float32, and a leaf keeps its
memory format (channels-last stays channels-last): it is flattened in the order in which it lies in memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .private_torch import pytree

_CARRIED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_REAL_OF = {torch.complex32: torch.float32, torch.complex64: torch.float32, torch.complex128: torch.float64}
_TYPES = {torch.float32, torch.float64, *_CARRIED_IN, *_REAL_OF}


class _Leaf:
    """Place, shape and type of one tensor of the state inside the flat vector."""

    __slots__ = ("start", "stop", "shape", "dtype", "stored_shape", "to_stored", "from_stored")

    def __init__(self, tensor: Any, start: int) -> None:
        identity = tensor.is_contiguous()
        if not identity:
            order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))
            identity = order == list(range(tensor.dim()))
        stored = tensor if identity else tensor.permute(order)
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.to_stored = None if identity else order
        self.from_stored = None if identity else sorted(range(tensor.dim()), key=order.__getitem__)
        self.stored_shape = (*stored.shape, 2) if tensor.is_complex() else tuple(stored.shape)
        self.start = start
        self.stop = start + math.prod(self.stored_shape)

    @property
    def signature(self) -> tuple[Any, ...]:
        return self.dtype, self.shape, tuple(self.to_stored or ())

    def flatten(self, tensor: Tensor) -> Tensor:
        """The leaf's entries in the order in which they are stored, as a real vector; differentiable."""
        if self.to_stored is not None:
            tensor = tensor.permute(self.to_stored)
        if self.dtype.is_complex:
            tensor = tensor.to(self.dtype)
            tensor = torch.stack([tensor.real, tensor.imag], -1)  # the backward of view_as_real needs even offsets
        return tensor.reshape(-1)

    def unflatten(self, flat: Tensor) -> Tensor:
        """The leaf from the last dimension of a flat tensor."""
        lead = flat.dim() - 1
        # not Tensor.unflatten, which PyTorch 2.11 cannot trace under a default device
        tensor = flat.view((*flat.shape[:-1], *self.stored_shape))
        if self.dtype.is_complex:
            pairs = tensor.to(_REAL_OF[self.dtype])
            aligned = pairs.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in pairs.stride()[:-1])
            tensor = torch.view_as_complex(pairs) if aligned else torch.complex(pairs[..., 0], pairs[..., 1])
        if self.from_stored is not None:
            tensor = tensor.permute(*range(lead), *(lead + d for d in self.from_stored))
        return tensor.to(self.dtype)

    def spread(self, value: Any, layout: StateLayout) -> Tensor:
        """A number or tensor, broadcast over this leaf's entries: flat vector (tolerances)."""
        full = torch.as_tensor(value, dtype=layout.dtype, device=layout.device).expand(self.shape)
        full = full if self.to_stored is None else full.permute(self.to_stored)
        if self.dtype.is_complex:
            full = full[..., None].expand(self.stored_shape)
        return full.reshape(-1)


def _alike(shape: torch.Size, other: torch.Size) -> bool:
    """Whether shapes differ by axes of size 1 alone."""
    return [n for n in shape if n != 1] == [n for n in other if n != 1]


def _in_order_of(skeleton: Any, nested: Any) -> list[Any] | None:
    """Leaves of what is nested like a skeleton of numbers, in the skeleton's order; None for what is not."""
    if isinstance(skeleton, int):
        return None if isinstance(nested, (dict, tuple, list)) else [nested]
    if isinstance(skeleton, dict):
        if not isinstance(nested, dict) or nested.keys() != skeleton.keys():
            return None
        pairs: Any = [(part, nested[key]) for key, part in skeleton.items()]
    elif isinstance(skeleton, (tuple, list)):
        if not isinstance(nested, (tuple, list)) or len(nested) != len(skeleton):
            return None
        pairs = zip(skeleton, nested)
    else:  # another kind of node, which pytree was told of
        leaves, structure = pytree.tree_flatten(nested)
        return leaves if structure == pytree.tree_structure(skeleton) else None
    leaves = []
    for part, value in pairs:
        found = _in_order_of(part, value)
        if found is None:
            return None
        leaves += found
    return leaves


def _place_in(index: int, skeleton: Any, name: str = "y0") -> str | None:
    """How a caller writes a leaf of what is nested like a skeleton of numbers: y0['position'][1]; None where the
    skeleton does not have it."""
    if isinstance(skeleton, int):
        return name if skeleton == index else None
    if isinstance(skeleton, (dict, tuple, list)):
        parts = skeleton.items() if isinstance(skeleton, dict) else enumerate(skeleton)
        places = (_place_in(index, part, f"{name}[{key!r}]") for key, part in parts)
        return next((place for place in places if place is not None), None)
    return f"a part of {name}" if index in pytree.tree_leaves(skeleton) else None


def copied_if_view(tensor: Tensor) -> Tensor:
    """A tensor that a backward pass will need: a copy of a view. Its base may be written to before, as by an RNN that
    fills one tensor with all its states."""
    return tensor.clone() if torch.is_grad_enabled() and tensor._is_view() else tensor


class StateLayout:
    """How one particular nested state maps to a flat vector of ``size`` numbers of type ``dtype`` on ``device``.

    Layouts with the same ``signature`` are interchangeable.
    """

    def __init__(self, y0: Any) -> None:
        leaves, self.structure = pytree.tree_flatten(y0)
        if not leaves:
            raise ValueError("y0 holds no tensor; give a tensor, or a tuple, list or dict of tensors")
        self._count = len(leaves)
        for i, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor):
                raise TypeError(f"y0 must hold tensors only, got {type(leaf).__name__} for {self._place(i)}")
            if leaf.layout is not torch.strided or leaf.is_nested or leaf.is_meta:
                kind = "nested" if leaf.is_nested else "on the meta device" if leaf.is_meta else leaf.layout
                raise TypeError(
                    f"{self._place(i)} must be a dense tensor that holds numbers, got one that is {kind}; func may "
                    "close over tensors of any kind"
                )
            if leaf.dtype not in _TYPES:
                raise TypeError(
                    f"{self._place(i)} must be floating point or complex, of at least 16 bits, got {leaf.dtype}; "
                    "convert it with .float(), or let func close over what does not change"
                )
            if leaf.device != leaves[0].device:
                raise ValueError(
                    f"all of y0 must be on one device, got {leaves[0].device}, and {leaf.device} for {self._place(i)}"
                )
        self.device = leaves[0].device
        carried = [_REAL_OF.get(leaf.dtype, _CARRIED_IN.get(leaf.dtype, leaf.dtype)) for leaf in leaves]
        self.dtype = torch.float64 if torch.float64 in carried else torch.float32
        self.leaves, stop = [], 0
        for leaf in leaves:
            self.leaves.append(_Leaf(leaf, stop))
            stop = self.leaves[-1].stop
        self.size = stop
        only = self.leaves[0]
        plain = len(leaves) == 1 and only.to_stored is None and only.dtype == self.dtype and self.structure.is_leaf()
        self._shape = only.shape if plain else None  # of a state that is one tensor, stored as the vector is
        self.is_a_tensor = plain
        self.is_a_vector = self._shape is not None and len(self._shape) == 1

    @functools.cached_property
    def signature(self) -> tuple[Any, ...]:
        return (self.device, str(self.structure), *(leaf.signature for leaf in self.leaves))

    @functools.cached_property
    def _skeleton(self) -> Any:
        """y0 with numbers for leaves."""
        return pytree.tree_unflatten(list(range(self._count)), self.structure)

    def _place(self, index: int) -> str | None:
        """What a caller calls a leaf of y0."""
        return _place_in(index, self._skeleton)

    def _of_several(self, index: int) -> str:
        """Which of several leaves a message is about; nothing where there is one."""
        return f" for {self._place(index)}" if self._count > 1 else ""

    def flatten(self, state: Any) -> Tensor:
        """[size] vector of a state of this layout; differentiable."""
        return self.join(self.tensors(state))

    def initial(self, y0: Any) -> Tensor:
        """`flatten` of a state that is kept for a backward pass."""
        tensors = self.tensors(y0)  # several are copied anyway
        return self.join([copied_if_view(tensors[0])] if self._count == 1 else tensors)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """[size] vector of leaves; differentiable."""
        if self._shape is not None:
            return tensors[0].reshape(-1).to(self.dtype)
        parts = [leaf.flatten(tensor).to(self.dtype) for leaf, tensor in zip(self.leaves, tensors)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def unflatten(self, flat: Tensor) -> Any:
        """State of a vector [..., size]; leading dimensions (output times) go in front of each leaf's own."""
        if self._shape is not None and flat.dim() == 1:
            return flat.view(self._shape)
        return pytree.tree_unflatten(self.unflatten_leaves(flat), self.structure)

    def unflatten_leaves(self, flat: Tensor) -> list[Tensor]:
        """The leaves of `unflatten`, as a list."""
        if self._shape is not None:
            return [flat.view((*flat.shape[:-1], *self._shape) if flat.dim() > 1 else self._shape)]
        if len(self.leaves) == 1:
            return [self.leaves[0].unflatten(flat)]
        return [leaf.unflatten(flat[..., leaf.start : leaf.stop]) for leaf in self.leaves]

    def assemble(self, tensors: Sequence[Tensor]) -> Any:
        """State from its leaves."""
        if self._shape is not None:
            return tensors[0]
        return pytree.tree_unflatten(tensors, self.structure)

    def tensors(self, state: Any) -> list[Tensor]:
        """Leaves of a state (what func returned), checked against the layout: dicts are matched by key, lists and
        tuples of any kind by place.

        Of several leaves one may have axes of size 1 more or fewer than in y0.

        :raises TypeError, ValueError: another nesting, other keys or shapes than those of y0; complex for a real state
        """
        if isinstance(state, torch.Tensor) and state.shape == self._shape and state.dtype is self.dtype:
            return [state]
        tensors = self.leaves_of(state)
        if tensors is None:
            shapes = pytree.tree_map(lambda i: tuple(self.leaves[i].shape), self._skeleton)
            found = pytree.tree_map(lambda part: tuple(getattr(part, "shape", (type(part).__name__,))), state)
            raise ValueError(f"func must return a state nested like y0, of shapes {shapes}, got {found}")
        for i, (leaf, tensor) in enumerate(zip(self.leaves, tensors)):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"func must return tensors, got {type(tensor).__name__}{self._of_several(i)}")
            if tensor.shape != leaf.shape and len(tensors) > 1 and _alike(tensor.shape, leaf.shape):
                tensors[i] = tensor = tensor.reshape(leaf.shape)  # a part of a state, as torchdiffeq takes it
            if tensor.shape != leaf.shape:
                raise ValueError(
                    f"func returned shape {tuple(tensor.shape)}{self._of_several(i)}, but the state has "
                    f"{tuple(leaf.shape)}: func is called as func(t, y)"
                )
            if tensor.is_complex() and not leaf.dtype.is_complex:
                place = self._place(i)
                raise TypeError(
                    f"func returned a complex slope for a real state: make {place} complex, or return its .real"
                )
        return tensors

    def leaves_of(self, nested: Any) -> list[Any] | None:
        """Leaves of what is nested like the state, in its order; None for what is not."""
        return _in_order_of(self._skeleton, nested)

    def sample(self, tensors: Sequence[Tensor], every: int) -> tuple[Tensor, Any]:
        """Of leaves: one entry in `every` of the flat vector, and the sum of all (0-d, float64); no autograd."""
        flats = [leaf.flatten(tensor.detach()) for leaf, tensor in zip(self.leaves, tensors)]
        entries = [flat[-leaf.start % every :: every].to(self.dtype) for leaf, flat in zip(self.leaves, flats)]
        return torch.cat(entries), sum(flat.sum(dtype=torch.float64) for flat in flats)

    def target(self, flat: Tensor) -> Tensor:
        """A vector [size] as `write` likes it best: prepare one that is written often."""
        return flat if self._shape is None else flat.view(self._shape)

    def write(self, tensors: Sequence[Tensor], out: Tensor) -> None:
        """Copy leaves into a flat vector [size] or its `target`, in place (no autograd)."""
        if self._shape is not None:
            (out if out.shape == self._shape else out.view(self._shape)).copy_(tensors[0])
            return
        for leaf, tensor in zip(self.leaves, tensors):
            out[leaf.start : leaf.stop].copy_(leaf.flatten(tensor))
