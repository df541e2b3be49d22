"""Tensors with a history that func makes while it is evaluated, and keeps: a weight for its later evaluations, which is
captured, or an output by the way, which has no gradient."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .capture import Captured, refuse_gradient
from .graph import leaves_behind
from .notices import warn_caller
from .reach import Reach, reach

_STORES = (
    "func stores tensors while the solver evaluates it. They are no part of the solution and have no gradient of their "
    "own: what a loss needs belongs into the state"
)


class SideOutputs:
    """Of one func in one solve.

    :param found: `Reach` of func before its first evaluation
    :param captured: `Captured`
    """

    def __init__(self, found: Reach, captured: Captured) -> None:
        self._found, self._captured = found, captured
        self._known = {id(tensor) for tensor in found.tensors}
        self._stored = []
        self._watched = self._may_be_more = False

    def meet(self, func: Callable, inputs: Sequence[Tensor]) -> bool:
        """Look at what func holds after its first evaluation, and capture what may be a weight.

        :param inputs: the leaves that it was given
        :returns: whether there is anything
        """
        self._watched = True
        if not self._found.has_grown():
            return False
        own = {id(tensor) for tensor in inputs}
        self._stored = [tensor for tensor in self._since(func) if id(tensor) not in own]
        for tensor in self._stored:
            if not any(id(leaf) in own for leaf in leaves_behind([tensor.grad_fn])):
                self._captured.add_stored(tensor)
        self._known.update(map(id, self._stored))
        return bool(self._stored)

    def finish(self, func: Callable) -> None:
        """To be called when the forward pass is over: what no evaluation used is refused a gradient, with a warning."""
        found, self._found = self._found, None
        stored = [tensor for tensor in self._stored if not self._captured.uses(tensor)]
        self._stored = []
        has_grown = self._watched and found.has_grown()
        late = self._since(func) if has_grown else []
        self._may_be_more = has_grown and not (stored or late)
        if stored or late:
            warn_caller(_STORES)
            for tensor in (*stored, *late):
                tensor.register_hook(refuse_gradient)

    def look_back(self, func: Callable) -> None:
        """To be called when a backward pass is over, whose evaluations have histories where those of the forward pass
        had none: warn of what they have stored."""
        may_be_more, self._may_be_more = self._may_be_more, False
        if may_be_more and self._since(func):
            warn_caller(_STORES)

    def _since(self, func: Callable) -> list[Tensor]:
        """Tensors with a history that func has come to reach since the solve began."""
        found = (tensor for tensor in reach(func).tensors if tensor.grad_fn is not None)
        return [tensor for tensor in found if id(tensor) not in self._known and not self._captured.uses(tensor)]
