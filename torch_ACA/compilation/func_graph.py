"""func as a graph: traced by Dynamo, once as long as nothing changes that its guards look at.

Tracing is `torch.compile` of one evaluation of func, with a backend that does not run it. A call, one in a solve, looks
at the guards (code and closure of func, mode, attributes and hooks of modules, shapes and types of tensors) and finds
the graph of func as it is now, and the tensors that it depends on now: those are inputs of the graph. Methods that
are replaced in a class, names that come to be where they were missing, and the order of an OrderedDict, are no matter
of Dynamo's guards, and looked at besides; the signs of zeros, and what Dynamo leaves out for speed, are guarded because
that is asked for (`private_compiler`).
"""

import contextlib
import threading
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..reach import reach
from ..state import StateLayout
from .private_compiler import (
    HigherOrderOperator,
    failed_lookups,
    guarded_code,
    has_effects,
    hooks_of_all_modules,
    one_at_a_time,
    without_shortcuts,
    zeros_guarded,
)

# .given: time and state of the evaluation that this thread traces; .known: what was made around graphs; .missing: which
# lookups failed; .found: what came of it
_now = threading.local()


class NotCompilable(Exception):
    """func cannot be made a graph that stands for it; says why."""


class Differentiable(NamedTuple):
    """Whether func may be differentiated by its state, which is whether gradients are on, and by its time. It can ask
    for both."""

    by_state: bool
    by_time: bool

    @classmethod
    def now(cls, *, time_grad: bool) -> "Differentiable":
        """:param time_grad: gradients in the times are wanted"""
        is_on = torch.is_grad_enabled()
        return cls(is_on, is_on and time_grad)


class Tracer:
    """Traces funcs for states of one `StateLayout`.

    :param layout: `StateLayout`
    :param autocast: context in which func is called, or None
    """

    def __init__(self, layout: StateLayout, autocast: Any) -> None:
        autocast = autocast or contextlib.nullcontext

        def evaluate(func: Any, t: Any, y: Tensor, global_hooks: tuple[int, ...], revision: int, order: int) -> Any:
            if 0 in global_hooks or revision < 0 or order < 0:  # never, but Dynamo guards what is looked at
                return y
            with autocast():
                return layout.flatten(func(t, layout.unflatten(y)))

        self._is_complex = any(leaf.dtype.is_complex for leaf in layout.leaves)
        layout.leaves_of(None)  # lets the layout make what Dynamo cannot trace the making of
        # a code object of its own, which Dynamo's limit of recompilations is for
        own = types.FunctionType(evaluate.__code__.replace(), globals(), "evaluate", None, evaluate.__closure__)
        self._revision = 0  # of the classes of func: how often members of theirs were replaced
        self._orders: dict[tuple, int] = {(): 0}  # `Reach.orders`, by numbers
        self._order = 0  # the number of the last one
        self._own, self._traced = own, torch.compile(own, backend=_backend, dynamic=False, fullgraph=True)
        self._functions: dict = {}  # of graphs that are alike, such as those with gradients on and off: `functions`

    def __call__(self, func: Any, t: Any, y: Tensor, *, differentiable: Differentiable) -> Any:
        """`FuncGraph`, and the list of its inputs.

        :param t: time, 0-d in the precision of the state
        :param y: flat state [n], without a history
        :raises NotCompilable: func is no graph, or does more than compute its slope
        """
        if self._is_complex:
            raise NotCompilable("its state is complex, and PyTorch generates no code for complex numbers")
        by_state, by_time = differentiable
        graph, inputs = self._found(func, t.detach().requires_grad_(by_time), y.detach().requires_grad_(by_state))
        if graph.members is None or graph.may_be_reordered:
            found = reach(func)
            order = self._orders.setdefault(found.orders(), len(self._orders))
            if order != self._order:
                self._order = order
                return self(func, t, y, differentiable=differentiable)
        if graph.members is None:
            graph.members, graph.may_be_reordered = found.members(), found.may_be_reordered
        elif graph.members.are_replaced():
            self._revision += 1
            return self(func, t, y, differentiable=differentiable)
        return graph, inputs

    def _found(self, func: Any, t: Any, y: Tensor) -> Any:
        _now.given, _now.known, _now.found = (t, y), self._functions, None
        try:
            with torch.set_grad_enabled(y.requires_grad):
                given = func, t, y, hooks_of_all_modules(), self._revision, self._order
                known = guarded_code(self._own, given)
                if known is not None:
                    known(*given)
                else:
                    with one_at_a_time, without_shortcuts(), zeros_guarded(), failed_lookups() as _now.missing:
                        self._traced(*given)
            found = _now.found
        except NotCompilable:
            raise
        except Exception as failure:  # whatever PyTorch runs into; func's own comes again where it runs as it is
            raise NotCompilable(reason_of(failure)) from None
        finally:
            _now.given = _now.known = _now.missing = _now.found = None
        if found is None:
            raise NotCompilable("it computes nothing")
        return found


_AS_NUMBER = "it takes a tensor as a number, as float(t) does"
_REASONS = {  # by what PyTorch says
    "found no compiled frames": "PyTorch compiles nothing here",
    "Data-dependent branching": "it branches on the values of tensors",
    **dict.fromkeys(("memo disaster", "data-dependent expression", "Unbacked"), _AS_NUMBER),
}


def reason_of(failure: Exception) -> str:
    """Why there is no graph of func, in a line: of PyTorch's compiler the first one that it says."""
    line = next((line.strip() for line in str(failure).splitlines() if line.strip()), "")
    for word, reason in _REASONS.items():
        if word in f"{type(failure).__name__} {line}":
            return reason
    is_of_python = type(failure).__module__ == "builtins"
    return f"{type(failure).__name__}: {line}" if is_of_python or not line else line


def _backend(module: Any, examples: Any) -> Any:
    failure, graph = _failure_while_traced(), None

    def run(*inputs: Any) -> Any:
        """Hand out the graph, and some slope to go on with. What func does besides is left undone by an exception."""
        nonlocal graph
        if failure is not None:
            raise NotCompilable(failure)
        if graph is None:
            signature = _signature(module, inputs)
            graph = FuncGraph(module, inputs, *_now.given)
            if signature is not None:
                graph.functions = _now.known.setdefault(signature, graph.functions)
        if graph.failure is not None:
            raise NotCompilable(graph.failure)
        _now.found = graph, inputs
        return (_now.given[1],)

    return run


def _failure_while_traced() -> str | None:
    """Why what Dynamo has just traced cannot be used, or None."""
    if has_effects():
        return "it changes what it keeps, such as a count of its calls"
    if _now.missing:
        return f"it catches the {_now.missing[0]} of what is missing, and PyTorch does not look whether that comes"
    return None


def _signature(module: Any, inputs: Any) -> Any:
    """What makes a graph of Dynamo's what it is, hashable; its tensors set apart. None where it holds more than
    operations."""
    nodes, (t, y) = module.graph.nodes, _now.given
    if any(node.op in ("get_attr", "call_module") for node in nodes):
        return None
    kinds = [
        (x is t, x is y, x.requires_grad and x is not t and x is not y, x.shape, x.stride(), x.dtype, x.device)
        for x in inputs
    ]
    ambient = torch.get_default_dtype(), torch.get_default_device(), torch.are_deterministic_algorithms_enabled()
    return module.code, tuple(node.target for node in nodes), tuple(kinds), ambient


class FuncGraph:
    """The slope [n] as a function of time, state and other tensors.

    ``others``: what it takes besides time and state, by their places in its inputs; ``wanted``: which of these require
    grad; ``changed``: which of these it writes to; ``failure``: why it cannot be used, or None; ``functions``: what has
    been made around it; ``members``: of the classes of func, `Members`; ``may_be_reordered``: it holds an OrderedDict.

    :param module: Dynamo's graph, of torch's functions
    :param inputs: those of its first call
    :param t, y: the time and the state among them
    """

    def __init__(self, module: Any, inputs: Any, t: Any, y: Tensor) -> None:
        self._module, self._constants = module, _without_constants(module)
        inputs = [*inputs, *self._constants]
        self._n_inputs = len(inputs)
        self._t_at, self._y_at = (next((i for i, x in enumerate(inputs) if x is given), None) for given in (t, y))
        self.others_at = [i for i in range(len(inputs)) if i not in (self._t_at, self._y_at)]
        others = [inputs[i] for i in self.others_at]
        self.wanted = [i for i, tensor in enumerate(others) if tensor.requires_grad]
        self.functions, self.members, self.may_be_reordered = {}, None, False
        self.changed, self.failure = [], _failure_of(module, inputs)
        if self.failure is None:
            written, self.failure = _looked_at(module, inputs)
            self.changed = [i for i, place in enumerate(self.others_at) if place in written]
            if written & {self._t_at, self._y_at}:
                self.failure = "it changes its argument in place"

    def others(self, inputs: Any) -> list[Tensor]:
        """Those of the inputs that are neither time nor state, and func's constants."""
        inputs = [*inputs, *self._constants]
        return [inputs[i] for i in self.others_at]

    def __call__(self, t: Any, y: Tensor, others: Sequence[Tensor]) -> Any:
        """The slope [n]; t a 0-d tensor of any precision."""
        inputs: list[Tensor | None] = [None] * self._n_inputs
        for place, tensor in zip(self.others_at, others):
            inputs[place] = tensor
        if self._t_at is not None:
            inputs[self._t_at] = t.to(y)
        if self._y_at is not None:
            inputs[self._y_at] = y
        return self._module(*inputs)[0]


_MAKES_CONSTANTS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)
_TYPES = (torch.Tensor, torch.FloatTensor, torch.DoubleTensor, torch.LongTensor, torch.IntTensor, torch.BoolTensor)


def _without_constants(module: Any) -> list[Tensor]:
    """Make inputs, behind the others, of what a graph makes of numbers, such as torch.tensor(9.81), and return these.
    Inductor takes no constants within loops."""
    graph, constants, nodes = module.graph, [], list(module.graph.nodes)
    behind_inputs = next(node for node in nodes if node.op != "placeholder")
    for node in nodes:
        if _makes_constant(node):
            constants.append(node.target(*node.args, **node.kwargs).detach())
            with graph.inserting_before(behind_inputs):
                constant = graph.placeholder(f"constant_{len(constants)}")
                own = graph.call_method("clone", (constant,))  # func may write to it
            node.replace_all_uses_with(own)
            graph.erase_node(node)
    if constants:
        module.recompile()
    return constants


def _makes_constant(node: Any) -> bool:
    if node.op != "call_function" or node.all_input_nodes or node.kwargs.get("requires_grad"):
        return False
    of_values = node.args and isinstance(node.args[0], list | tuple)  # and not of a shape, which leaves them open
    return node.target in _MAKES_CONSTANTS or (node.target in _TYPES and bool(of_values))


def _failure_of(module: Any, inputs: Any) -> str | None:
    """Why a graph of Dynamo's cannot be used, as far as is seen from outside."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    if len(output.args[0]) != 1:
        return "it keeps what it computes"
    if any(map(_governs_gradients, module.graph.nodes)):
        return "it governs gradients itself: by no_grad, torch.func, hooks or an autograd.Function"
    if any(type(x) is not torch.Tensor and not isinstance(x, torch.nn.Parameter | torch.nn.Buffer) for x in inputs):
        return "it uses tensors of a kind of their own"
    return None


_BY_METHOD = frozenset(("register_hook", "requires_grad_", "retain_grad", "backward"))


def _governs_gradients(node: Any) -> bool:
    """Whether a node of Dynamo's graph says how gradients go, which is lost where the graph is differentiated."""
    if node.op == "call_method":
        return node.target in _BY_METHOD
    if node.op != "call_function":
        return False
    if isinstance(node.target, HigherOrderOperator):
        return True
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", None) or ""
    return "functorch" in home or "grad_enabled" in name or "inference" in name or "nesting" in name


# which running statistics they write to, where their schema does not tell: (arguments, the one that says whether)
_WRITES = {"native_batch_norm": ((3, 4), 5), "cudnn_batch_norm": ((3, 4), 5), "miopen_batch_norm": ((3, 4), 5)}


def _looked_at(module: Any, inputs: Any) -> Any:
    """Places of the inputs that a graph writes to, and why it cannot be used, or None."""
    with torch.no_grad():
        detached = [x.detach() for x in inputs]
        graph = make_fx(lambda *given: module(*given), tracing_mode="fake")(*detached).graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    written = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
        if schema is None:
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return written, "it draws random numbers"
        arguments = dict(zip(schema.arguments, node.args))
        values = [v for argument, v in arguments.items() if argument.alias_info and argument.alias_info.is_write]
        places, switch = _WRITES.get(schema.name.removeprefix("aten::"), ((), None))
        values += [node.args[i] for i in places if node.args[switch]]
        written.update(placeholders.index(value) for value in map(_base, values) if value in placeholders)
    return written, None


def _base(node: Any) -> Any:
    """What a view is a view of."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.returns or schema.returns[0].alias_info is None:
            return node
        node = node.args[0]
    return node
