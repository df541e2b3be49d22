"""Whether the graph of func shows that its rows do not depend on each other.

Of every value in the graph it is known whether it depends on times or state at all and, if so, along which of its axes
the rows lie. Operations are known by rules: entry by entry; views; what reduces, joins or orders along other axes;
products whose other factor all rows share. One that is not known, or that leads along the rows, leaves it open. What is
shown holds for all times and states, so that nothing need be looked at on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .generate import graph_of


class Lie(NamedTuple):
    """Where the rows lie: along this axis, each as a block of so many entries next to each other."""

    axis: int
    block: int


class _OpenError(Exception):
    """It cannot be told."""


def rows_are_apart(graph: Any, t: Tensor, y: Tensor, others: Sequence[Tensor], count: int) -> bool:
    """Whether the slope of each row depends on its own time and state alone.

    :param graph: `FuncGraph`
    :param t: times as func gets them [b, 1, ..., 1]
    :param y: the flat state [b * n] of one tensor
    :param others: what func depends on besides
    :param count: of rows, b
    """
    known: dict[Any, Any] = {}
    starts = iter((Lie(0, 1), Lie(0, len(y) // count), *(None for _ in others)))
    try:
        traced = graph_of(lambda t, y, *others: graph(t, y, others), (t, y, *others)).graph
        for node in traced.nodes:
            if node.op == "placeholder":
                known[node] = next(starts)
            elif node.op == "output":
                (found,) = {known[value] for value in node.all_input_nodes}
                return found is None or found == Lie(0, len(y) // count)
            elif any(known[value] is not None for value in node.all_input_nodes):
                known[node] = _lie_of(node, known)
            else:
                known[node] = None
                _check_pure(node)
    except Exception:  # whatever a rule, or PyTorch's tracing, does not fit
        pass
    return False


def _check_pure(node: Any) -> None:
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        raise _OpenError


def _lie_of(node: Any, known: dict) -> Any:
    """Of what a node makes: a `Lie`, of tensors or of all tensors of a tuple."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # an entry of a tuple
        if node.target.__name__ != "getitem":
            raise _OpenError
        return known[node.args[0]]
    _check_pure(node)
    rule = _RULES.get(schema.name.removeprefix("aten::"))
    if rule is None and torch.Tag.pointwise in node.target.tags:
        rule = _entry_by_entry
    if rule is None:
        raise _OpenError
    arguments = dict(zip((argument.name for argument in schema.arguments), node.args)) | node.kwargs
    for argument in schema.arguments:
        arguments.setdefault(argument.name, argument.default_value)
    return rule(_Call(node, arguments, known))


class _Call:
    """An operation: its arguments by name, and where the rows lie in those that are tensors."""

    def __init__(self, node: Any, arguments: dict[str, Any], known: dict) -> None:
        self._node, self._known, self.arguments = node, known, arguments

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def lie(self, name: str) -> Lie | None:
        value = self[name]
        return self._known[value] if isinstance(value, torch.fx.Node) else None

    def shape(self, name: str) -> torch.Size:
        return self[name].meta["val"].shape

    @property
    def made(self) -> Any:
        """Shape of what is made."""
        return self._node.meta["val"].shape

    @property
    def own(self) -> Lie:
        """Of the first argument, the only one that may depend on rows."""
        first, *others = self._node.all_input_nodes
        lie = self._known[first]
        if lie is None or any(self._known[other] is not None for other in others):
            raise _OpenError
        return lie

    def axes(self, name: str = "dim") -> list[int]:
        """Axes [of the first argument] that are named; all where none are."""
        n, given = len(self._node.all_input_nodes[0].meta["val"].shape), self[name]
        given = [given] if isinstance(given, int) else list(range(n) if given is None or given == [] else given)
        return [axis % n for axis in given]

    def tensors(self) -> list[tuple[Lie | None, torch.Size]]:
        return [(self._known[node], node.meta["val"].shape) for node in self._node.all_input_nodes]


def _entry_by_entry(call: _Call) -> Lie:
    made, found = call.made, set()
    for lie, shape in call.tensors():
        if lie is not None:
            axis = lie.axis + len(made) - len(shape)
            if shape[lie.axis] != made[axis]:
                raise _OpenError
            found.add(Lie(axis, lie.block))
    return _one(found)


def _one(found: set) -> Lie:
    if len(found) != 1:
        raise _OpenError
    return found.pop()


def _same(call: _Call) -> Lie:
    return call.own


def _viewed(call: _Call) -> Lie:
    """Each row is a block of so many entries of what follows after ``lead`` repetitions."""
    lie, shape, made = call.own, call.shape("self"), call.made
    lead, count = math.prod(shape[: lie.axis]), shape[lie.axis] // lie.block
    each = lie.block * math.prod(shape[lie.axis + 1 :])  # entries of a row
    for axis in range(len(made)):
        rest = math.prod(made[axis + 1 :])
        if math.prod(made[:axis]) == lead and rest and each % rest == 0 and made[axis] * rest == count * each:
            return Lie(axis, each // rest)
    raise _OpenError


def _along_others(call: _Call) -> Lie:
    """Orders, adds up or chooses along axes that are not the rows'."""
    lie = call.own
    if lie.axis in call.axes("dims" if "dims" in call.arguments else "dim"):
        raise _OpenError
    return lie


def _reduced(call: _Call) -> Lie:
    lie = _along_others(call)
    return lie if call["keepdim"] else _without(lie, call.axes())


def _without(lie: Lie, axes: Sequence[int]) -> Lie:
    return Lie(lie.axis - sum(axis < lie.axis for axis in axes), lie.block)


def _selected(call: _Call) -> Lie:
    return _without(_along_others(call), call.axes())


def _sliced(call: _Call) -> Lie:
    lie, (axis,) = call.own, call.axes()
    if axis == lie.axis and call.made != call.shape("self"):
        raise _OpenError
    return lie


def _squeezed(call: _Call) -> Lie:
    lie, shape = call.own, call.shape("self")
    axes = [axis for axis in (call.axes() if "dim" in call.arguments else range(len(shape))) if shape[axis] == 1]
    if lie.axis in axes:
        raise _OpenError
    return _without(lie, axes)


def _unsqueezed(call: _Call) -> Lie:
    lie, axis = call.own, call["dim"] % len(call.made)
    return Lie(lie.axis + (axis <= lie.axis), lie.block)


def _permuted(call: _Call) -> Lie:
    return Lie(call.axes("dims").index(call.own.axis), call.own.block)


def _transposed(call: _Call) -> Lie:
    lie, n = call.own, len(call.shape("self"))
    one, other = (call["dim0"] % n, call["dim1"] % n) if "dim0" in call.arguments else (n - 1, 0)
    return Lie({one: other, other: one}.get(lie.axis, lie.axis), lie.block)


def _joined(call: _Call) -> Lie:
    lie, n = _one({lie for lie, _ in call.tensors() if lie is not None}), len(call.made)
    if call["dim"] % n == lie.axis or any(len(shape) != n for _, shape in call.tensors()):
        raise _OpenError
    return lie


def _stacked(call: _Call) -> Lie:
    lie, axis = _one({lie for lie, _ in call.tensors() if lie is not None}), call["dim"] % len(call.made)
    return Lie(lie.axis + (axis <= lie.axis), lie.block)


def _product(one: str, other: str, added: str | None = None) -> Callable:
    """Of matrices [..., m, k] and [..., k, n], to which something may be added."""

    def rule(call: _Call) -> Lie:
        found, n = set(), len(call.made)
        for name, summed in ((one, n - 1), (other, n - 2)):
            lie = call.lie(name)
            if lie is not None:
                if lie.axis == summed or lie.axis >= n - 2 and call.lie(other if name == one else one) is not None:
                    raise _OpenError
                found.add(lie)
        if added is not None and (lie := call.lie(added)) is not None:
            axis = lie.axis + n - len(call.shape(added))
            if call.shape(added)[lie.axis] != call.made[axis]:
                raise _OpenError
            found.add(Lie(axis, lie.block))
        return _one(found)

    return rule


def _normalised(call: _Call) -> Lie:
    """Layer normalisation, over the last axes."""
    lie = call.own
    if lie.axis >= len(call.shape("input")) - len(call["normalized_shape"]):
        raise _OpenError
    return lie


def _of_images(call: _Call) -> Lie:
    """Convolutions and group normalisation: the batch comes first."""
    if call.own != Lie(0, 1):
        raise _OpenError
    return call.own


_RULES: dict[str, Callable] = {
    **dict.fromkeys(("alias", "clone", "detach", "contiguous", "_to_copy", "lift_fresh"), _same),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "_reshape_alias"), _viewed),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "flip"), _along_others),
    **dict.fromkeys(("split", "split_with_sizes"), _along_others),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "logsumexp", "linalg_vector_norm"), _reduced),
    **dict.fromkeys(("select", "unbind"), _selected),
    "slice": _sliced, "squeeze": _squeezed, "unsqueeze": _unsqueezed, "permute": _permuted,
    "expand": _entry_by_entry, "t": _transposed, "transpose": _transposed, "cat": _joined, "stack": _stacked,
    "mm": _product("self", "mat2"), "bmm": _product("self", "mat2"), "addmm": _product("mat1", "mat2", "self"),
    "native_layer_norm": _normalised, "native_group_norm": _of_images, "convolution": _of_images,
}  # fmt: skip
