"""Finds every tensor that f uses and that requires grad: parameters, closures, outputs of a hypernetwork.

The graph that one evaluation of f records is walked. It ends in leaves (parameters and the like) and, where f uses a
tensor that has a history of its own, in nodes older than the evaluation. The tensors behind those nodes are found by
evaluating once more under a mode that sees the arguments of every operation.
"""

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def age_mark():
    """A sequence number: autograd nodes recorded later have larger ones."""
    with torch.enable_grad():
        return torch.zeros((), requires_grad=True).view(()).grad_fn._sequence_nr()


def graph_inputs(edges, known, since):
    """Leaves that a graph depends on, and (node, output number) of older history, both without what is in known.

    :param edges: `GradientEdge`s of what the evaluation returned
    :param known: tensors that were handed to it (state, time)
    :param since: `age_mark` taken before it
    """
    known = {id(t) for t in known}
    leaves, history, seen, stack = {}, set(), set(), []

    def meet(node, number):
        if node is None or (node, number) in seen:
            return
        seen.add((node, number))
        if type(node).__name__ == "AccumulateGrad":
            if id(node.variable) not in known:
                leaves[id(node.variable)] = node.variable
        elif node._sequence_nr() <= since:
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


def tensors_behind(history, evaluate):
    """The tensors whose (grad_fn, output_nr) are in history, seen as arguments while evaluate() runs."""
    with _ArgumentWatch(history) as watch:
        evaluate()
    if len(watch.found) < len(history):
        raise ValueError(
            "func uses a tensor with a gradient history that could not be identified; "
            "make it part of the state or a parameter of func"
        )
    return list(watch.found.values())


class _ArgumentWatch(TorchDispatchMode):
    def __init__(self, history):
        super().__init__()
        self.history, self.found = history, {}

    def __torch_dispatch__(self, op, kinds, args=(), kwargs=None):
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                key = (value.grad_fn, value.output_nr)
                if key in self.history:
                    self.found.setdefault(key, value)
        return op(*args, **(kwargs or {}))
