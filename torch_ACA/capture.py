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
import math
import threading
import types

import torch
from torch.overrides import TorchFunctionMode

from .errors import CaptureError, ReplayError, SideOutputError

LOOKED_AT_EVERY = 23  # graphs: one in so many is looked at; no method has as many stages


class Captured:
    """The tensors besides the state and the time that f depends on.

    Once `seal` has been called: ``tensors`` get the gradients; ``leaves`` are what an evaluation's backward pass is
    asked for in their place, leaves and stand-ins; ``sources`` what func itself holds.

    :param tensors: those known beforehand, all of which require grad
    :param params: only these get gradients (None: all)
    :param constants: what f can reach that does not require grad
    """

    def __init__(self, tensors=(), params=None, constants=()):
        self._params = None if params is None else {id(p): p for p in params if p.requires_grad}
        self._leaves, self._tracked = {}, {}
        self._ignored = {id(tensor): tensor for tensor in constants}  # none of them gets a gradient, whatever comes
        self._used = {}
        self.tensors = self.sources = None
        self.leaves = self._asked_for = ()
        self._met, self._stored = set(), set()
        self.keep_graph = False  # whether graphs go on into a history that others need too
        for tensor, target in zip(tensors, of_outer_solves(tensors)):
            self.add(tensor, target)
        for tensor in (self._params or {}).values():
            self.add(tensor)

    def add_stored(self, tensor):
        """Take in a tensor that func made and keeps, perhaps not for long: the backward pass need not see it again."""
        self.add(tensor)
        self._stored.add(id(tensor))

    def add(self, tensor, target=None):
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

    def ignore(self, leaf):
        """A leaf of the solver's own, which gets no gradient."""
        self._ignored[id(leaf)] = leaf

    @property
    def candidates(self):
        """All that may turn out to be used."""
        return (*self._leaves.values(), *(entry[0] for entry in self._tracked.values()))

    def cut(self):
        """Context in which f is evaluated: stand-ins for what has a history; None if there is none."""
        return Cut(self._tracked, self._used) if self._tracked else None

    def seal(self):
        """No more tensors will be used: fix the order of those that were."""
        kept = {key: self._tracked[key] for key in self._used if key in self._tracked}
        used = [] if self._params == {} else list(kept.values())
        originals = [target for target, _, _ in used]
        if self._params is not None:
            originals = self._only_to_params(originals)
        stand_ins = [_stand_in(entry) for entry in used]
        leaves = tuple(self._leaves.values())
        self.tensors, self.leaves = (*leaves, *originals), (*leaves, *stand_ins)
        self.sources = (*leaves, *(source for _, _, source in used))
        self._asked_for = self.leaves
        self._tracked.clear()  # in place: the cut goes on with what was used, and holds nothing else
        self._tracked.update(kept)

    def leave_out_frozen(self):
        """Leaves that have ceased to require grad since the forward pass get no gradient."""
        self.leaves = self._asked_for
        if not all(tensor.requires_grad for tensor in self.leaves):
            self.leaves = tuple(t if t.requires_grad else t.detach().requires_grad_() for t in self.leaves)

    def check_reached(self, gradients):
        """Refuse a backward pass that did not come to a tensor that the first evaluation used.

        :param gradients: of ``leaves``, None for those that no graph led to
        :raises ReplayError: func has changed
        """
        for tensor, leaf, gradient in zip(self.sources, self.leaves, gradients):
            if gradient is None and id(leaf) in self._met and id(tensor) not in self._stored:
                raise ReplayError(f"it no longer depends on a tensor of shape {tuple(tensor.shape)}")

    def uses(self, tensor):
        """Whether this tensor, which has a history, was handed to an operation by func."""
        return id(tensor) in self._used

    def meet(self, edges, known, since):
        """Look at the graph of an evaluation without a cut.

        :param edges: `GradientEdge`s of what it returned
        :param known: the tensors that were handed to it
        :param since: `age_mark` taken before it
        :returns: whether it used tensors that have a history, and the (node, output number) of those not known
        """
        leaves, history = graph_inputs(edges, known, since)
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

    def meet_history(self, history, evaluate):
        """Take in the tensors behind older nodes of a graph, seen where f hands them to an operation.

        :param evaluate: evaluates f once more
        """
        with _ArgumentWatch(history) as watch:
            evaluate()
        for tensor in watch.found.values():
            self.add(tensor)
            self._used[id(tensor)] = None

    def meet_hidden(self, edges, known, since):
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
        for leaf in leaves:
            if id(leaf) not in stand_ins and id(leaf) not in self._leaves and id(leaf) not in self._tracked:
                self.add(leaf)

    def check(self, evaluation, t):
        """Look at a graph that was recorded later: refuse what was not found beforehand.

        :param evaluation: `Evaluation` at time t
        :raises CaptureError: the graph depends on a leaf that gets no gradient
        """
        stand_ins = (stand_in for _, stand_in, _ in self._tracked.values())
        known = [*evaluation.inputs, *self.leaves, *self._leaves.values(), *stand_ins]
        self.accept(leaves_behind([edge.node for edge in evaluation.edges()]), known, t)

    def stands_in(self, replacements):
        """Context in which these take the place of `sources`, leaves too."""
        return Cut({id(tensor): [tensor, new] for tensor, new in zip(self.sources, replacements)}, {})

    def restriction(self):
        """Context in which what is not among the tensors to get gradients is a constant; None if all get them."""
        if self._params is None:
            return None
        entries = {key: [tensor, tensor.detach()] for key, tensor in self._ignored.items() if tensor.requires_grad}
        tracked = [target for key, (target, _, _) in self._tracked.items() if key not in self._params]
        for tensor, passed_on in zip(tracked, self._only_to_params(tracked)):
            entries[id(tensor)] = [tensor, passed_on]
        return Cut(entries, {})

    def accept(self, leaves, known, t=math.nan):
        """Refuse leaves that a graph depends on and that get no gradient.

        :param known: what else may be among them
        :param t: time at which func used them
        """
        accepted = set(map(id, known))
        for leaf in leaves:
            if id(leaf) not in accepted and id(leaf) not in self._ignored:
                raise CaptureError(leaf, t, replayed=self.tensors is not None)

    def _only_to_params(self, tensors):
        params = tuple(self._params.values())
        others = [tensor for tensor in tensors if id(tensor) not in self._params]
        if others:
            inner = [p for p in params if p.grad_fn is not None]
            behind = leaves_behind([p.grad_fn for p in inner])
            if any(id(leaf) in self._params for leaf in behind) or len(inner) > 1:
                raise ValueError("params must not hold tensors that may depend on each other: name the leaves")
        return [t if id(t) in self._params else _OnlyTo.apply([t], *params) if params else t.detach() for t in tensors]


class Cut(TorchFunctionMode):
    """Puts stand-ins in the place of tensors, wherever these are handed to an operation.

    :param entries: {id: [tensor, stand-in or None]}; missing ones are made
    :param used: {id: None}, filled with those that were met
    """

    def __init__(self, entries, used):
        super().__init__()
        self._entries, self._used = entries, used

    def __torch_function__(self, func, kinds, args=(), kwargs=None):
        if func in _WITHOUT_GRADIENT:
            return func(*args, **(kwargs or {}))
        if kwargs:
            return func(*map(self.of, args), **{name: self.of(value) for name, value in kwargs.items()})
        return func(*map(self.of, args))

    def of(self, value):
        """The value, or what stands in for it; lists and tuples too."""
        entry = self._entries.get(id(value))
        if entry is not None:
            self._used[id(value)] = None
            return _stand_in(entry)
        if type(value) in (list, tuple):
            return type(value)([self.of(part) for part in value])
        return value


def _stand_in(entry):
    if entry[1] is None:
        entry[1] = entry[0].detach().requires_grad_()
    return entry[1]


def outer_cuts():
    """The cuts of the solves around this one, the outermost first, as contexts to be entered again."""
    if not torch._C._len_torch_function_stack():
        return []
    modes = torch.overrides._get_current_function_mode_stack()
    return [Cut(mode._entries, mode._used) for mode in modes if isinstance(mode, Cut)]


def of_outer_solves(tensors):
    """What stands in for tensors in the solves around this one."""
    for cut in outer_cuts():
        tensors = [cut.of(tensor) for tensor in tensors]
    return tuple(tensors)


def _made_without_gradient():
    """Operations on a tensor that no gradient comes back from."""
    differentiable = ("T", "mT", "H", "mH", "real", "imag")
    attributes = (getattr(torch.Tensor, name) for name in dir(torch.Tensor) if name not in differentiable)
    found = {a.__get__ for a in attributes if isinstance(a, (property, types.GetSetDescriptorType))}
    names = ("detach", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous")
    names += ("item", "tolist", "numpy", "register_hook", "retain_grad", "data_ptr", "is_complex", "is_floating_point")
    names += ("__len__", "__bool__", "__float__", "__int__", "__index__", "__hash__", "__repr__", "__format__")
    return found | {getattr(torch.Tensor, name) for name in names} | {torch.detach, torch.numel}


_WITHOUT_GRADIENT = frozenset(_made_without_gradient())


class _OnlyTo(torch.autograd.Function):
    """A tensor whose gradient goes on to some tensors of its history alone."""

    @staticmethod
    def forward(ctx, tensors, *params):
        ctx.tensors = tensors  # in a list: autograd is not to go on from here
        ctx.save_for_backward(*params)
        return tensors[0].detach()

    @staticmethod
    def backward(ctx, bar):
        params = ctx.saved_tensors
        found = torch.autograd.grad(
            ctx.tensors, params, bar, retain_graph=True, create_graph=torch.is_grad_enabled(), allow_unused=True
        )
        return None, *found


_own = threading.local()  # .backward: whether this thread is in a backward pass of the solver


def refuse_gradient(gradient):
    """A hook for tensors that func stored by the way: only the solver may go back through them."""
    if not getattr(_own, "backward", False):
        raise SideOutputError()


@contextlib.contextmanager
def solvers_backward(tensors):
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


_LEAF = torch.zeros((), requires_grad=True)
_LEAF_NODE = type(_LEAF.view(()).grad_fn.next_functions[0][0])  # AccumulateGrad


def age_mark():
    """A sequence number: autograd nodes that this thread records later have larger ones."""
    with torch.enable_grad():
        return _LEAF.view(()).grad_fn._sequence_nr()


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
        if type(node) is _LEAF_NODE:
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


def leaves_behind(nodes, *, until=()):
    """All leaves that nodes of a graph lead to, but for what lies behind the nodes ``until``."""
    leaves, seen, stack = {}, set(until), list(nodes)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node) is _LEAF_NODE:
            variable = node.variable
            leaves[id(variable)] = variable
        else:
            stack.extend(following for following, _ in node.next_functions)
    return list(leaves.values())


class _ArgumentWatch(TorchFunctionMode):
    """Notes the tensors whose (grad_fn, output number) are in a set, where they are handed to an operation."""

    def __init__(self, history):
        super().__init__()
        self.history, self.found = history, {}

    def __torch_function__(self, func, kinds, args=(), kwargs=None):
        self._look(args)
        if kwargs:
            self._look(kwargs.values())
        return func(*args, **(kwargs or {}))

    def _look(self, values):
        for value in values:
            if isinstance(value, torch.Tensor):
                key = (value.grad_fn, value.output_nr)
                if key in self.history:
                    self.found.setdefault(key, value)
            elif type(value) in (list, tuple):
                self._look(value)
