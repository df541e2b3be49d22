"""The user's func as the solver sees it: on flat real vectors, counted, its side effects under control."""

import contextlib
import functools

import torch
from torch.autograd.graph import get_gradient_edge

from .capture import age_mark, graph_inputs, tensors_behind
from .saved_tensors import SavedTensors
from .side_effects import SideEffects, modules_of

# torch.autograd.grad without its checks of the arguments and its context, which cost more than a small f. Called with
# (outputs, cotangents, keep the graph, make a graph, inputs, inputs may be unused), inside a backward pass.
_run_backward = torch.autograd.Variable._execution_engine.run_backward


class VectorField:
    """f(t, y) on flat states.

    ``n_evals`` counts the calls. ``captured`` holds the tensors besides the state and the time that f depends on, once
    `first_evaluation` has looked; ``evaluation_bytes`` what the graph of one evaluation takes, where it was to find
    out. ``direction`` is the sign in which time runs.
    """

    def __init__(self, func, layout, direction=1):
        if not callable(func):
            raise TypeError(f"func must be callable as func(t, y), got {type(func).__name__}")
        self.func, self.layout = func, layout
        self.direction = direction
        self.n_evals = self.evaluation_bytes = 0
        self.captured = ()
        self._modules = modules_of(func)
        self.side_effects = SideEffects(self._modules, layout.device)
        self.autocast = _ambient_autocast(layout.device.type)

    def time(self, t, side=0):
        """0-d tensor of a time given as float, in the state's precision.

        :param side: 1 or -1: the next representable time in or against the direction of integration (f jumps at t)
        """
        time = torch.full((), t, dtype=self.layout.dtype, device=self.layout.device)
        return time if side == 0 else self._nudged(time, side)

    def __call__(self, t, y, out, side=0):
        """Write f(t, y) into out [size]; t a float. To be called with gradients off."""
        layout = self.layout
        layout.write(layout.tensors(self._call(self.time(t, side), layout.unflatten(y))), out)

    def traced(self, t, y, *, side=0):
        """f(t, y) as a new vector, differentiable in everything; t a 0-d tensor."""
        t = t.to(self.layout.dtype)
        if side:
            t = t + (self._nudged(t.detach(), side) - t.detach())
        return self.layout.flatten(self._call(t, self.layout.unflatten(y)))

    def record(self, t, y, out=None, *, time_grad=False, side=0):
        """Evaluate f at float t with a graph of its own: an `Evaluation`; the value goes into out. To be called with
        gradients off.

        :param time_grad: let `Evaluation.vjp` return the cotangent of the time, which takes the value: it is kept
        """
        layout = self.layout
        leaves = [leaf.requires_grad_() for leaf in layout.unflatten_leaves(y.detach())]
        time = self.time(t, side)
        if time_grad:
            time.requires_grad_()
        with torch.enable_grad():
            outputs = layout.tensors(self._call(time, layout.assemble(leaves)))
        if out is not None:
            layout.write(outputs, out)
        return Evaluation(self, leaves, time if time_grad else None, outputs)

    def first_evaluation(self, t, y, *, differentiable, time_grad=False, measure=False, numbers=False):
        """f(t0, y0), while watching what f changes and draws and, if differentiable, what it depends on. To be called
        with gradients off.

        :param time_grad: as for `record`
        :param measure: also find out what the graph of one evaluation takes
        :param numbers: also find out whether f changes numbers that it keeps
        :returns: slope [size], and the `Evaluation` with its graph (None unless differentiable)
        """
        k = torch.empty_like(y, requires_grad=False)
        if not differentiable:
            self.side_effects.watch(lambda: self(t, y, k), numbers=numbers)
            return k, None
        since = age_mark()
        with SavedTensors() if measure else contextlib.nullcontext() as saved:
            evaluation = self.side_effects.watch(
                lambda: self.record(t, y, k, time_grad=time_grad), numbers=numbers
            )
        found, history = graph_inputs(evaluation.edges(), [*evaluation.leaves, evaluation.time], since)
        if history:
            with self.side_effects.replay():
                found += tensors_behind(history, lambda: self.record(t, y))
        # parameters that this first call did not need may be needed at another time
        found += [p for module in self._modules for p in module.parameters() if p.requires_grad]
        self.captured = tuple({id(p): p for p in found}.values())
        if measure:  # the state it was taken at stays as well, and its value where that is kept
            kept = [*evaluation.leaves, *(evaluation.outputs or ())]
            self.evaluation_bytes = saved.held_with(kept, without=self.captured)
        return k, evaluation

    def _nudged(self, time, side):
        return torch.nextafter(time, torch.full_like(time, side * self.direction * float("inf")))

    def _call(self, t, state):
        self.n_evals += 1
        self.side_effects.before_evaluation()
        if self.autocast is None:
            return self.func(t, state)
        with self.autocast():
            return self.func(t, state)


class Evaluation:
    """One evaluation of f with the graph it recorded, and with its value if the cotangent of its time is wanted.

    The graph is held by its ``roots``, a gradient edge and a dtype for each output (None: depends on nothing): a value
    that f's own backward pass does not need is freed as soon as it has been read.
    """

    __slots__ = ("field", "leaves", "time", "roots", "outputs")

    def __init__(self, field, leaves, time, outputs):
        self.field, self.leaves, self.time = field, leaves, time
        self.outputs = None if time is None else outputs
        self.roots = [(get_gradient_edge(o), o.dtype) if o.requires_grad else None for o in outputs]

    def edges(self):
        """Gradient edges of the outputs that depend on anything."""
        return [root[0] for root in self.roots if root is not None]

    def write(self, out):
        """Copy the value into out [size]; returns out. To be called with gradients off."""
        self.field.layout.write(self.outputs, out)
        return out

    def value(self):
        """The value [size]."""
        layout = self.field.layout
        return self.write(torch.empty(layout.size, dtype=layout.dtype, device=layout.device))

    def vjp(self, cotangent, gradients, out=None):
        """Pull a cotangent [size] of f's value back.

        Adds to ``gradients`` (a `GradientSum` over ``field.captured``); returns the cotangents of the state ([size],
        written into ``out`` if given, or None for zero; without ``out`` it may share memory with others) and of the
        time (0-d, or None).
        """
        layout, captured = self.field.layout, self.field.captured
        edges, cotangents = [], []
        for root, piece in zip(self.roots, layout.unflatten_leaves(cotangent)):
            if root is not None:
                edge, dtype = root
                edges.append(edge)
                cotangents.append(piece if piece.dtype == dtype else piece.to(dtype))
        if not edges:
            return None, None
        times = () if self.time is None else (self.time,)
        wanted = (*self.leaves, *captured, *times)
        found = _run_backward(tuple(edges), tuple(cotangents), False, False, wanted, True, accumulate_grad=False)
        n = len(self.leaves)
        gradients.add(found[n : n + len(captured)])
        states, time_cotangent = found[:n], found[-1] if times else None
        if any(g is None for g in states):
            if all(g is None for g in states):
                return None, time_cotangent
            states = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(self.leaves, states)]
        if out is None:
            return layout.join(states), time_cotangent
        layout.write(states, out)
        return out, time_cotangent


class GradientSum:
    """Sum of gradients with respect to a tuple of tensors, in buffers of its own (never in ``.grad``)."""

    def __init__(self, count):
        self.totals = [None] * count
        self._owned = [False] * count
        self._all_owned = False

    def add(self, gradients):
        if self._all_owned and all(g is not None for g in gradients):
            torch._foreach_add_(self.totals, gradients)
            return
        for i, g in enumerate(gradients):
            if g is None:
                continue
            if self.totals[i] is None:
                self.totals[i] = g
            elif self._owned[i]:
                self.totals[i].add_(g)
            else:  # the first gradient may share memory with something else
                self.totals[i], self._owned[i] = self.totals[i] + g, True
        self._all_owned = bool(gradients) and all(self._owned)


def _ambient_autocast(device_type):
    """The autocast around the solve, for the recomputation too; no weight cache (it would outlive a stage's graph)."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return functools.partial(
        torch.autocast, device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=False
    )
