"""States of several shapes and types, and how each maps to one real vector, independently of the solver's own way."""

import math
from dataclasses import dataclass

import torch

_COMPLEX_OF = {torch.float32: torch.complex64, torch.float64: torch.complex128}


@dataclass(frozen=True)
class _Leaf:
    shape: tuple
    is_complex: bool = False
    transposed: bool = False  # lies in memory with its first two dimensions exchanged

    @property
    def size(self):
        return math.prod(self.shape) * (2 if self.is_complex else 1)


_LEAVES = {
    "scalar": [_Leaf(())],
    "vector": [_Leaf((3,))],
    "matrix": [_Leaf((2, 3))],
    "cube": [_Leaf((2, 1, 2))],
    "batch": [_Leaf((4, 2))],
    "transposed": [_Leaf((3, 2), transposed=True)],
    "tuple": [_Leaf((2,)), _Leaf((2, 2))],
    "tuple with an empty part": [_Leaf((3,)), _Leaf((0,))],
    "dict": [_Leaf((2,)), _Leaf((2,))],
    "nested": [_Leaf((2,)), _Leaf((1,)), _Leaf(())],
    "complex": [_Leaf((2,), is_complex=True)],
    "complex and real": [_Leaf((2,), is_complex=True), _Leaf((3,))],
}
KINDS = tuple(_LEAVES)
MANY_PARTS = tuple(kind for kind, leaves in _LEAVES.items() if len(leaves) > 1)


class Layout:
    """A kind of state and its type: "float64", "float32", or "mixed" (the parts take turns).

    ``size`` counts its real numbers and ``dtype`` is the type that all of them fit in.
    """

    def __init__(self, kind, precision, *, other_key_order=False):
        self.kind, self.other_key_order = kind, other_key_order
        self._leaves = _LEAVES[kind]
        turns = {"float64": [torch.float64], "float32": [torch.float32], "mixed": [torch.float32, torch.float64]}
        reals = [turns[precision][i % len(turns[precision])] for i in range(len(self._leaves))]
        self.dtype = torch.float64 if torch.float64 in reals else torch.float32
        self.dtypes = [_COMPLEX_OF[r] if leaf.is_complex else r for leaf, r in zip(self._leaves, reals)]
        self.size = sum(leaf.size for leaf in self._leaves)

    def parts(self, state):
        """The tensors of a state, always in the same order."""
        if self.kind == "dict":
            return [state["x"], state["v"]]
        if self.kind == "nested":
            return [state[0], *state[1]["inner"]]
        return list(state) if isinstance(state, tuple) else [state]

    def assemble(self, parts):
        """The state of these tensors."""
        if self.kind == "dict":
            return {"x": parts[0], "v": parts[1]}
        if self.kind == "nested":
            return (parts[0], {"inner": [parts[1], parts[2]]})
        return tuple(parts) if len(self._leaves) > 1 else parts[0]

    def join(self, state):
        """The real vector of a state."""
        pieces = []
        for part in self.parts(state):
            real = torch.view_as_real(part) if part.is_complex() else part
            pieces.append(real.reshape(-1).to(self.dtype))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def split_parts(self, x):
        """The tensors of the state of a real vector."""
        if len(self._leaves) == 1 and x.shape == self._leaves[0].shape and x.dtype == self.dtypes[0]:
            return [x]
        parts = []
        for leaf, dtype, piece in zip(self._leaves, self.dtypes, x.split([leaf.size for leaf in self._leaves])):
            if leaf.is_complex:
                pairs = piece.reshape(*leaf.shape, 2)
                part = torch.complex(pairs[..., 0], pairs[..., 1])
            elif leaf.transposed:
                part = piece.reshape(leaf.shape).transpose(0, 1).contiguous().transpose(0, 1)
            else:
                part = piece.reshape(leaf.shape)
            parts.append(part.to(dtype))
        return parts

    def split(self, x):
        """The state of a real vector."""
        return self.assemble(self.split_parts(x))

    def slope(self, x):
        """As `split`, for what func returns: a dict may list its keys in another order than the state does."""
        state = self.split(x)
        return dict(reversed(state.items())) if self.other_key_order else state
