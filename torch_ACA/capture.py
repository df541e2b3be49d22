"""The cut between the inside of a solve and the graph around it.

What f depends on besides the state and the time are leaves (parameters and the like) and tensors with a history of
their own: a context, a prepared weight, the output of a hypernetwork. Inside a solve the latter are replaced by
*stand-ins*, leaves of the same value, wherever f hands them to an operation. So every graph that an evaluation records
ends in leaves: none of them lies behind another, so that nothing counts twice; no backward pass walks through the
history of a captured tensor; and the hooks of that tensor run once, on the whole gradient, when the solve returns it.

Tensors are known beforehand, from what f can reach (`reach`), and from the graph of the first evaluation. Of those with
a history, the ones that no evaluation used are left out in the end: their history may be gone. Graphs that are recorded
later are looked at now and then (`Captured.check`), for tensors that were not to be found beforehand.
"""

import contextlib
import functools
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .cut import Cut, of_outer_solves, stand_in_of
from .errors import CaptureError, ReplayError, SideOutputError
from .graph import ArgumentWatch, graph_inputs, leaves_behind

LOOKED_AT_EVERY = 23  # graphs: the first and then one in so many are looked at; no method has as many stages


def _references_of_fleeting() -> int:
    """How many references to a leaf there are that a graph holds, and one list."""
    graph = torch.ones((), requires_grad=True, device="cpu").view(())
    leaves = leaves_behind([graph.grad_fn])
    return sys.getrefcount(leaves[0])


_FLEETING = _references_of_fleeting()


class Captured:
    """The tensors besides the state and the time that f depends on.

    Once `seal` has been called: ``tensors`` get the gradients; ``leaves`` are what an evaluation's backward pass is
    asked for in their place, leaves and stand-ins; ``sources`` what func itself holds.

    :param tensors: those known beforehand, all of which require grad
    :param params: only these get gradients (None: all)
    :param constants: what f can reach that does not require grad
    """

    def __init__(
        self, tensors: Sequence[Tensor] = (), params: Sequence[Tensor] | None = None, constants: Sequence[Tensor] = ()
    ) -> None:
        self._params = None if params is None else {id(p): p for p in params if p.requires_grad}
        self._leaves, self._tracked = {}, {}
        self._ignored = {id(tensor): tensor for tensor in constants}  # none of them gets a gradient, whatever comes
        self._used = {}
        self._knows_used = False  # whether a graph has told what is used
        self._makes_leaves = False  # whether func makes leaves of its own, new ones in every evaluation
        self._passed_on: list[tuple[Tensor, Tensor]] = []  # tensors, and what stands for them in `restriction`
        self.tensors: Any = None
        self.sources: Any = None
        self.leaves: Any = ()
        self._asked_for: Any = ()
        self._versions: list[tuple[Tensor, int]] = []
        self._met, self._stored, self._unused = set(), set(), set[int]()
        self.keep_graph = False  # whether graphs go on into a history that others need too
        for tensor, target in zip(tensors, of_outer_solves(tensors)):
            self.add(tensor, target)
        for tensor in (self._params or {}).values():
            self.add(tensor)

    def add_stored(self, tensor: Tensor) -> None:
        """Take in a tensor that func made and keeps, perhaps not for long: the backward pass need not see it again."""
        self.add(tensor)
        self._stored.add(id(tensor))

    def add(self, tensor: Tensor, target: Tensor | None = None) -> None:
        """Take another tensor in.

        :param target: what gets its gradient, where the solve is inside another one that has a stand-in for it
        """
        key, target = id(tensor), tensor if target is None else target
        if target.grad_fn is not None or target._backward_hooks:
            self._tracked.setdefault(key, [target, None, tensor])
        elif self._params is None or key in self._params:
            self._leaves[id(target)] = target
        else:
            self._ignored[key] = tensor

    def ignore(self, leaf: Tensor) -> None:
        """A leaf of the solver's own, which gets no gradient."""
        self._ignored[id(leaf)] = leaf

    @property
    def candidates(self) -> tuple[Tensor, ...]:
        """All that may turn out to be used."""
        return (*self._leaves.values(), *(entry[0] for entry in self._tracked.values()))

    def reached(self) -> Iterator[Tensor]:
        """All that f is known to reach, whether or not it gets a gradient."""
        yield from self._ignored.values()
        yield from self.candidates

    def cut(self) -> Cut | None:
        """Context in which f is evaluated: stand-ins for what has a history; None if there is none."""
        return Cut(self._tracked, self._used) if self._tracked else None

    def seal(self) -> None:
        """No more tensors will be used: fix the order of those that were."""
        kept = {key: self._tracked[key] for key in self._used if key in self._tracked}
        used = [] if self._params == {} else list(kept.values())
        originals = [target for target, _, _ in used]
        if self._params is not None:
            originals = self._only_to_params(originals)
        stand_ins = [stand_in_of(entry) for entry in used]
        leaves = tuple(self._leaves.values())
        self.tensors, self.leaves = (*leaves, *originals), (*leaves, *stand_ins)
        self.sources = (*leaves, *(source for _, _, source in used))
        self._asked_for = self.leaves
        if self._knows_used and not self.keep_graph:
            self._unused = self._tracked.keys() - kept.keys()
        self._tracked.clear()  # in place: the cut goes on with what was used, and holds nothing else
        self._tracked.update(kept)
        self._versions = [(x, x._version) for x in self._ignored.values() if not x.is_inference()]

    def constants_have_changed(self) -> bool:
        """Whether something was written to a tensor without gradients that func can reach, since `seal`; func need not
        use it."""
        return any(tensor._version != version for tensor, version in self._versions)

    def leave_out_frozen(self) -> None:
        """Leaves that have ceased to require grad since the forward pass get no gradient."""
        self.leaves = self._asked_for
        if not all(tensor.requires_grad for tensor in self.leaves):
            self.leaves = tuple(t if t.requires_grad else t.detach().requires_grad_() for t in self.leaves)

    def check_reached(self, gradients: Sequence[Any]) -> None:
        """Refuse a backward pass that did not come to a tensor that the first evaluation used.

        :param gradients: of ``leaves``, None for those that no graph led to
        :raises ReplayError: func has changed
        """
        for tensor in self.not_reached(gradients):
            raise ReplayError(f"it no longer depends on a tensor of shape {tuple(tensor.shape)}")

    def not_reached(self, gradients: Iterable[Tensor | None]) -> list[Tensor]:
        """The tensors that the first evaluation used, and that no graph since has led to.

        :param gradients: as for `check_reached`
        """
        return [
            tensor for tensor, leaf, gradient in zip(self.sources, self.leaves, gradients)
            if gradient is None and id(leaf) in self._met and id(tensor) not in self._stored
        ]  # fmt: skip

    def has_left_out(self, tensor: Tensor) -> bool:
        """Whether func could reach this tensor, which has a history, and did not use it: asked at `seal`."""
        return id(tensor) in self._unused

    def uses(self, tensor: Tensor) -> bool:
        """Whether this tensor, which has a history, was handed to an operation by func."""
        return id(tensor) in self._used

    def meet(
        self, edges: list[GradientEdge], known: Sequence[Tensor], since: int, again: Callable[[], list[GradientEdge]]
    ) -> tuple[bool, set]:
        """Look at the graph of an evaluation without a cut.

        :param edges: `GradientEdge`s of what it returned
        :param known: the tensors that were handed to it
        :param since: `age_mark` taken before it
        :param again: evaluates f once more, and returns those edges
        :returns: whether it used tensors that have a history, and the (node, output number) of those not known
        """
        self._knows_used = True
        leaves, history = graph_inputs(edges, known, since)
        if fleeting := self._fleeting(leaves):
            used_again = set(map(id, leaves_behind([edge.node for edge in again()])))
            own = {id(leaf) for leaf in fleeting} - used_again
            leaves, self._makes_leaves = [leaf for leaf in leaves if id(leaf) not in own], bool(own)
        for leaf in leaves:
            self.add(leaf)
            if id(leaf) in self._tracked:
                self._used[id(leaf)] = None
        for key, (target, _, _) in self._tracked.items():
            if target.grad_fn is not None and (target.grad_fn, target.output_nr) in history:
                self._used[key] = None
                history.discard((target.grad_fn, target.output_nr))
        self._met = set(map(id, leaves))
        return bool(self._used or history), history

    def use_all(self) -> Cut | None:
        """All tensors known beforehand are used; returns the `cut`."""
        self._used.update(dict.fromkeys(self._tracked))
        return self.cut()

    def meet_history(self, history: set, evaluate: Callable[[], Any]) -> None:
        """Take in the tensors behind older nodes of a graph, seen where f hands them to an operation.

        :param evaluate: evaluates f once more
        """
        with ArgumentWatch(history) as watch:
            evaluate()
        for tensor in watch.found.values():
            self.add(tensor)
            self._used[id(tensor)] = None

    def meet_hidden(self, edges: list[GradientEdge], known: Sequence[Tensor], since: int) -> None:
        """Look at the graph of an evaluation with the cut: where that did not reach (in a custom `autograd.Function`,
        in TorchScript), the graph goes on into older history, and the leaves behind that are taken in.

        :param edges, known, since: as for `meet`
        """
        leaves, history = graph_inputs(edges, known, since)
        self._met = set(map(id, leaves))
        if history:
            self.keep_graph = True
            leaves += leaves_behind([node for node, _ in history])
        stand_ins = {id(stand_in) for _, stand_in, _ in self._tracked.values()}
        for leaf in self._without_own(leaves):
            if id(leaf) not in stand_ins and id(leaf) not in self._leaves and id(leaf) not in self._tracked:
                self.add(leaf)

    def check(self, evaluation: Any, t: float) -> None:
        """Look at a graph that was recorded later: refuse what was not found beforehand.

        :param evaluation: `Evaluation` at time t
        :raises CaptureError: the graph depends on a leaf that gets no gradient
        """
        stand_ins = (stand_in for _, stand_in, _ in self._tracked.values())
        known = [*evaluation.inputs, *self.leaves, *self._leaves.values(), *stand_ins]
        self.accept(leaves_behind([edge.node for edge in evaluation.edges()]), known, t)

    def stands_in(self, replacements: Sequence[Tensor]) -> Cut:
        """Context in which these take the place of `sources`, leaves too."""
        return Cut({id(tensor): [tensor, new] for tensor, new in zip(self.sources, replacements)}, {})

    def restriction(self) -> Cut | None:
        """Context in which what is not among the tensors to get gradients is a constant; None if all get them."""
        if self._params is None:
            return None
        entries = {key: [tensor, tensor.detach()] for key, tensor in self._ignored.items() if tensor.requires_grad}
        tracked = [target for key, (target, _, _) in self._tracked.items() if key not in self._params]
        if [id(tensor) for tensor, _ in self._passed_on] != [id(tensor) for tensor in tracked]:
            self._passed_on = list(zip(tracked, self._only_to_params(tracked)))
        entries |= {id(tensor): [tensor, passed_on] for tensor, passed_on in self._passed_on}
        return Cut(entries, {})

    def accept(self, leaves: list[Tensor], known: Iterable[Tensor], t: float = math.nan) -> None:
        """Refuse leaves that a graph depends on and that get no gradient.

        :param known: what else may be among them
        :param t: time at which func used them
        """
        accepted = set(map(id, known))
        for leaf in self._without_own(leaves):
            if id(leaf) not in accepted and id(leaf) not in self._ignored:
                raise CaptureError(leaf, t, replayed=self.tensors is not None)

    def _fleeting(self, leaves: list[Tensor]) -> list[Tensor]:
        """Those of the leaves of a graph that nobody knows and nothing of Python's holds but this list: func has made
        them for itself, or something holds them that is not Python's."""
        known = self._leaves.keys() | self._tracked.keys() | self._ignored.keys()
        places = [i for i in range(len(leaves)) if sys.getrefcount(leaves[i]) <= _FLEETING]
        return [leaves[i] for i in places if id(leaves[i]) not in known]

    def _without_own(self, leaves: list[Tensor]) -> list[Tensor]:
        """Without the leaves that func makes for itself, as `meet` has seen it do."""
        if not self._makes_leaves:
            return leaves
        own = set(map(id, self._fleeting(leaves)))
        return [leaf for leaf in leaves if id(leaf) not in own]

    def _only_to_params(self, tensors: list[Tensor]) -> list[Tensor]:
        others = [tensor for tensor in tensors if id(tensor) not in self._params]
        params = tuple(self._params.values())
        passed_on = iter(_OnlyTo.apply(others, *params) if params and others else [t.detach() for t in others])
        return [tensor if id(tensor) in self._params else next(passed_on) for tensor in tensors]


class _OnlyTo(torch.autograd.Function):
    """Tensors whose gradients go on to some tensors of their history alone: of all at once, so that hooks in between
    are called once, on the whole gradient."""

    @staticmethod
    def forward(ctx: Any, tensors: list[Tensor], *params: Tensor) -> tuple[Tensor, ...]:
        ctx.tensors = tensors  # in a list: autograd is not to go on from here
        ctx.save_for_backward(*params)
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> Any:
        params, asked = ctx.saved_tensors, [i for i, bar in enumerate(bars) if bar is not None]
        with _ends_of_gradients(params):
            found = torch.autograd.grad(
                [ctx.tensors[i] for i in asked], params, [bars[i] for i in asked], retain_graph=True,
                create_graph=torch.is_grad_enabled(), allow_unused=True,
            )  # fmt: skip
        return None, *found


@contextlib.contextmanager
def _ends_of_gradients(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Context in which gradients go as far as to the first of these tensors, and their hooks are not called: behind it
    comes the history of the tensors, with hooks, in the backward pass that asked."""
    hooks = [(tensor._backward_hooks, dict(tensor._backward_hooks)) for tensor in tensors if tensor._backward_hooks]
    kept = [(tensor, tensor.grad) for tensor in tensors if tensor.retains_grad]
    handles = []
    try:
        for place, _ in hooks:
            place.clear()
        for tensor in tensors:
            if tensor.grad_fn is not None:
                handles.append(tensor.grad_fn.register_prehook(functools.partial(_nothing_at, tensor.output_nr)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for place, entries in hooks:
            place.update(entries)
        for tensor, grad in kept:
            tensor.grad = grad


def _nothing_at(place: int, bars: tuple) -> tuple:
    return tuple(None if i == place else bar for i, bar in enumerate(bars))


_own = threading.local()  # .backward: whether this thread is in a backward pass of the solver


def refuse_gradient(gradient: Tensor) -> None:
    """A hook for tensors that func stored by the way: only the solver may go back through them."""
    if not getattr(_own, "backward", False):
        raise SideOutputError()


@contextlib.contextmanager
def solvers_backward(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context of the solver's own backward pass. Keeps hooks still that leaves have been given since the forward pass:
    they are for the whole gradient, which autograd hands to them afterwards.

    :param tensors: those that gradients are asked for
    """
    before, _own.backward = getattr(_own, "backward", False), True
    silenced = [(t._backward_hooks, dict(t._backward_hooks)) for t in tensors if t._backward_hooks]
    for hooks, _ in silenced:
        hooks.clear()
    try:
        yield
    finally:
        _own.backward = before
        for hooks, kept in silenced:
            hooks.update(kept)
