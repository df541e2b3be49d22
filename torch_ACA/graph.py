"""Walks through autograd's graphs: what an evaluation depends on, and what is older than it."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .private_torch import age, made_types, set_grad_enabled

_LEAF = torch.zeros((), requires_grad=True, device="cpu")
_LEAF_NODE: Any = type(_LEAF.view(()).grad_fn.next_functions[0][0])  # AccumulateGrad


def age_mark() -> int:
    """A sequence number: autograd nodes that this thread records later have larger ones."""
    before = torch.is_grad_enabled()
    set_grad_enabled(True)  # a context of it takes as long as an operation
    mark = age(_LEAF.view(()).grad_fn)
    set_grad_enabled(before)
    return mark


def graph_inputs(
    edges: Iterable[GradientEdge], known: Iterable[Tensor], since: int
) -> tuple[list[Tensor], set[tuple[Any, int]]]:
    """Leaves that a graph depends on, and (node, output number) of older history, both without what is in known.

    :param edges: `GradientEdge`s of what the evaluation returned
    :param known: tensors that were handed to it (state, time)
    :param since: `age_mark` taken before it
    """
    own = {id(t) for t in known}
    leaves, history, seen, stack = {}, set(), set(), []

    def meet(node: Any, number: int) -> None:
        if node is None or (node, number) in seen:
            return
        seen.add((node, number))
        if type(node) is _LEAF_NODE:
            if id(node.variable) not in own:
                leaves[id(node.variable)] = node.variable
        elif age(node) <= since:
            history.add((node, number))
        else:
            stack.append(node)

    for edge in edges:
        meet(edge.node, edge.output_nr)
    walked = set()
    while stack:
        node = stack.pop()
        if node not in walked:
            walked.add(node)
            for following, number in node.next_functions:
                meet(following, number)
    return list(leaves.values()), history


def nodes_behind(nodes: Iterable[Any], *, until: Iterable[Any] = (), since: int = -1) -> Iterator[Any]:
    """These nodes of a graph and all that they lead to, each once.

    :param until: nodes behind which the walk does not go, and that it leaves out
    :param since: `age_mark`; nor does it go to nodes that are older
    """
    seen, stack = {None, *until}, list(nodes)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if since < 0 or age(node) > since:
                yield node
                stack.extend(following for following, _ in node.next_functions)


def saves_constants(value: Tensor) -> bool:
    """Whether an `autograd.Function` of Python's among those that made a tensor has saved what to autograd is a
    constant, and may depend on its inputs."""
    custom = (n for n in nodes_behind([value.grad_fn]) if isinstance(n, torch.autograd.function.BackwardCFunction))
    saved = (x for node in custom for x in node.saved_tensors)
    return any(x is not None and x.is_floating_point() and not x.requires_grad for x in saved)


def leaves_behind(nodes: Iterable[Any], *, until: Iterable[Any] = ()) -> list[Tensor]:
    """All leaves that nodes of a graph lead to, but for what lies behind the nodes ``until``."""
    found = (node.variable for node in nodes_behind(nodes, until=until) if type(node) is _LEAF_NODE)
    return list({id(leaf): leaf for leaf in found}.values())


def leads_to(nodes: Iterable[Any], tensor: Tensor) -> bool:
    """Whether nodes of a graph lead to a tensor that requires grad."""
    made_by = get_gradient_edge(tensor).node
    return any(node is made_by for node in nodes_behind(nodes))


def held_by_functions(nodes: Iterable[Any], since: int) -> list[Any]:
    """What custom `autograd.Function`s among the nodes of a graph hold as attributes: PyTorch tells no hook of it.

    :param since: `age_mark` taken before the graph was made; what is older is not looked at
    """
    return [held for node in nodes_behind(nodes, since=since) for held in getattr(node, "__dict__", {}).values()]


def types_behind(value: Tensor) -> set[torch.dtype]:
    """The types of what the operations of a tensor's graph made."""
    return {value.dtype}.union(*map(made_types, nodes_behind([value.grad_fn])))


class ArgumentWatch(TorchFunctionMode):
    """Notes the tensors whose (grad_fn, output number) are in a set, where they are handed to an operation."""

    def __init__(self, history: set[tuple[Any, int]]) -> None:
        super().__init__()
        self.history, self.found = history, {}

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._look(args)
        if kwargs:
            self._look(kwargs.values())
        return func(*args, **(kwargs or {}))

    def _look(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                key = (value.grad_fn, value.output_nr)
                if key in self.history:
                    self.found.setdefault(key, value)
            elif type(value) in (list, tuple):
                self._look(value)
