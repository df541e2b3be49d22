"""Tensors that func makes while it is evaluated, and keeps.

A weight for its later evaluations is captured; an output by the way has no gradient.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from .capture import Captured, refuse_gradient
from .cut import Cut
from .graph import leaves_behind
from .notices import warn_caller
from .reach import Reach, reach

_STORES = (
    "func stores tensors while the solver evaluates it. They are no part of the solution and have no gradient of their "
    "own: what a loss needs belongs into the state"
)
_MAKES_LATE = (
    "func makes a tensor in a later evaluation than its first, keeps it and uses it from then on: no gradient goes "
    "back through it to what it is made of. Make it in the first evaluation, or use gradient='naive'"
)


class SideOutputs:
    """Of one func in one solve.

    :param found: `Reach` of func before its first evaluation
    :param captured: `Captured`
    """

    def __init__(self, found: Reach, captured: Captured) -> None:
        self._found, self._captured = found, captured
        self._known = {id(tensor) for tensor in found.tensors}
        self._outputs: list[Tensor] = []
        self._made_early: list[Tensor] = []
        self._watched = self._may_be_more = False
        self._made_late = Cut({}, {})  # stands nothing in: it knows what was used

    def meet(self, func: Callable, inputs: Sequence[Tensor]) -> bool:
        """Look at what func holds after its first evaluation, and capture what may be a weight.

        :param inputs: the leaves that it was given
        :returns: whether there is anything
        """
        self._watched = True
        if not self._found.has_grown():
            return False
        self._made_early = self._found.gained()  # constants: they have no history though there was one to be had
        own, stored = {id(tensor) for tensor in inputs}, self._since(func)
        self._known.update(map(id, stored))
        for tensor in stored:
            if any(id(leaf) in own for leaf in _leaves_of(tensor)):
                self._outputs.append(tensor)
            elif tensor.grad_fn is not None:
                self._captured.add_stored(tensor)
        return any(tensor.grad_fn is not None for tensor in stored)

    def finish(self, func: Callable) -> None:
        """To be called when the forward pass is over: what depends on a state that func was given is refused a
        gradient, with a warning. Graphs that were kept go on into the history of what is a weight since."""
        found, self._found = self._found, None
        outputs, self._outputs = self._outputs, []
        outputs = [tensor for tensor in outputs if not self._captured.uses(tensor)]
        if self._watched and found.has_grown():
            since = self._since(func)
            late = self._outputs_among(since)
            self._captured.keep_graph |= len(late) < len(since)
            outputs += late
            self._may_be_more = not outputs
            early = {id(tensor) for tensor in self._made_early}
            late = [tensor for tensor in found.gained() if tensor.is_floating_point() or tensor.is_complex()]
            self._made_late = Cut({id(tensor): [tensor, tensor] for tensor in late if id(tensor) not in early}, {})
        self._made_early = []
        if outputs:
            warn_caller(_STORES)
            for tensor in outputs:
                tensor.register_hook(refuse_gradient)

    def watches(self) -> list[Cut]:
        """Contexts in which a backward pass evaluates func again, so that `look_back` knows what it uses."""
        return [self._made_late] if self._made_late.entries else []

    def look_back(self, func: Callable) -> None:
        """To be called when a backward pass is over, whose evaluations have histories where those of the forward pass
        had none: warn of what they have stored, and of what has none though they use it."""
        may_be_more, self._may_be_more = self._may_be_more, False
        made_late, self._made_late = self._made_late, Cut({}, {})
        if made_late.used:
            warn_caller(_MAKES_LATE)
        elif may_be_more and self._outputs_among(self._since(func)):
            warn_caller(_STORES)

    def _outputs_among(self, stored: list[Tensor]) -> list[Tensor]:
        """Those that depend on more than what is captured: on a state that func was given."""
        known = {id(tensor) for tensor in (*self._captured.leaves, *self._captured.reached())}
        return [tensor for tensor in stored if any(id(leaf) not in known for leaf in _leaves_of(tensor))]

    def _since(self, func: Callable) -> list[Tensor]:
        """Tensors that require grad and that func has come to reach since the solve began."""
        found = reach(func).tensors
        return [tensor for tensor in found if id(tensor) not in self._known and not self._captured.uses(tensor)]


def _leaves_of(tensor: Tensor) -> list[Tensor]:
    """The leaves that a tensor depends on; itself, if it is one."""
    return [tensor] if tensor.grad_fn is None else leaves_behind([tensor.grad_fn])
