"""One evaluation of func with its graph, and the sums of what is pulled back through such graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .graph import age_mark, held_by_functions
from .private_torch import pulled_back, pytree
from .saved_tensors import SavedOnce

if TYPE_CHECKING:
    from .vector_field import VectorField

# Bytes beside the tensors: what an evaluation takes, and each tensor saved, for the nodes of the graph and the objects
# of Python around them. Measured as resident memory of 3,000 steps of four funcs (2 to 7 tensors: 5 to 18 KB).
OF_EVALUATION, OF_OPERATION = 1000, 2400


class Evaluation:
    """One evaluation of f with the graph it recorded, and with its value if the cotangent of its time is wanted.

    The graph is held by its ``roots``, a gradient edge and a dtype for each output (None: depends on nothing): a value
    that f's own backward pass does not need is freed as soon as it has been read.
    """

    __slots__ = ("field", "leaves", "time", "roots", "outputs", "sample")

    def __init__(self, field: VectorField, leaves: list[Tensor], time: Tensor | None, outputs: list[Tensor]) -> None:
        self.field, self.leaves, self.time = field, leaves, time
        self.sample: Any
        self.outputs = None if time is None else [output.detach() for output in outputs]
        self.roots = [(get_gradient_edge(o), o.dtype) if o.requires_grad else None for o in outputs]

    def edges(self) -> list[GradientEdge]:
        """Gradient edges of the outputs that depend on anything."""
        return [root[0] for root in self.roots if root is not None]

    @property
    def inputs(self) -> list[Tensor]:
        """The leaves that func was given."""
        return self.leaves if self.time is None else [*self.leaves, self.time]

    def write(self, out: Tensor) -> Tensor:
        """Copy the value into out [size]; returns out. To be called with gradients off."""
        self.field.layout.write(self.outputs, out)
        return out

    def value(self) -> Tensor:
        """The value [size]."""
        layout = self.field.layout
        return self.write(torch.empty(layout.size, dtype=layout.dtype, device=layout.device))

    def pull(
        self, cotangent: Tensor, *, keep_graph: bool = False
    ) -> tuple[list[Tensor] | None, tuple[Tensor | None, ...], Tensor | None] | None:
        """Cotangents of the leaves of the state, of what is captured and of the time; None for what the value does not
        depend on, and instead of all where it depends on nothing. They may share memory with others.

        :param keep_graph: there will be another pull
        """
        layout, captured = self.field.layout, self.field.captured.leaves
        edges, cotangents = [], []
        pieces = (cotangent,) if layout.is_a_vector else layout.unflatten_leaves(cotangent)
        for root, piece in zip(self.roots, pieces):
            if root is not None:
                edge, dtype = root
                edges.append(edge)
                cotangents.append(piece if piece.dtype == dtype else piece.to(dtype))
        if not edges:
            return None
        times = () if self.time is None else (self.time,)
        wanted = (*self.leaves, *captured, *times)
        keep_graph = keep_graph or self.field.captured.keep_graph
        found = pulled_back(tuple(edges), tuple(cotangents), keep_graph, wanted)
        n = len(self.leaves)
        states: Any = found[:n]
        if any(g is None for g in states):
            none = all(g is None for g in states)
            states = None if none else [torch.zeros_like(x) if g is None else g for x, g in zip(self.leaves, states)]
        return states, found[n : n + len(captured)], found[-1] if times else None

    def vjp(
        self, cotangent: Tensor, gradients: GradientSum, out: Tensor | None = None, *, keep_graph: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pull a cotangent [size] of f's value back.

        Adds to ``gradients`` (a `GradientSum` over what is captured); returns the cotangents of the state ([size],
        written into ``out`` if given, or None for zero; without ``out`` it may share memory with others) and of the
        time (0-d, or None). ``keep_graph`` is as for `pull`.
        """
        found = self.pull(cotangent, keep_graph=keep_graph)
        if found is None:
            return None, None
        states, captured, time_cotangent = found
        gradients.add(captured)
        if states is None:
            return None, time_cotangent
        layout = self.field.layout
        if out is None:
            return layout.join(states), time_cotangent
        layout.write(states, out)
        return out, time_cotangent


def measured(record: Callable[[], Evaluation], with_value: bool = True) -> tuple[Evaluation, float]:
    """The evaluation that ``record`` makes, and the bytes that it keeps besides what func holds.

    :param with_value: its value counts, where that is kept

    Infinity for a func with a transform inside of it: it cannot be measured, and keeps no graphs.
    """
    since = age_mark()
    try:
        with SavedOnce() as saved:
            evaluation = record()
            held = held_by_functions([edge.node for edge in evaluation.edges()], since)
            saved.add(leaf for leaf in pytree.tree_leaves(held) if isinstance(leaf, torch.Tensor))
            # the state it was taken at stays as well, and its value where that is kept
            kept = [*evaluation.leaves, *(with_value and evaluation.outputs or ())]
            n_bytes = saved.n_bytes(kept, without=evaluation.field.captured.candidates)
            return evaluation, n_bytes + OF_EVALUATION + saved.n_tensors * OF_OPERATION
    except RuntimeError:
        return record(), math.inf


class GradientSum:
    """Sum of gradients with respect to a tuple of tensors, in buffers of its own (never in ``.grad``)."""

    def __init__(self, count: int) -> None:
        self.totals: list[Any] = [None] * count
        self._owned = [False] * count
        self._in_place = False  # whether all can be added to together

    def replace(self, totals: Sequence[Any]) -> None:
        """Take sums that hold the old ones; None where nothing was added."""
        self.totals = [old if new is None else new for new, old in zip(totals, self.totals)]
        self._owned = [total is not None for total in self.totals]
        self._look_at_totals()

    def add(self, gradients: Sequence[Any]) -> None:
        if self._in_place and self.totals and not any(g is None for g in gradients):
            torch._foreach_add_(self.totals, gradients)
            return
        for i, g in enumerate(gradients):
            if g is None:
                continue
            if self.totals[i] is None:
                self.totals[i] = g
            elif self.totals[i].is_sparse and not g.is_sparse:  # PyTorch adds up in one order alone
                self.totals[i], self._owned[i] = g + self.totals[i], True
            elif self._owned[i]:
                self.totals[i].add_(g)
            else:  # the first gradient may share memory with something else
                self.totals[i], self._owned[i] = self.totals[i] + g, True
        self._look_at_totals()

    def _look_at_totals(self) -> None:
        self._in_place = all(self._owned) and not any(total.is_sparse for total in self.totals)
