"""Runge-Kutta steps compiled by `torch.compile`, f included: the step itself, and an accepted step with its VJP.

Compiled once per func, tableau, shape and dtype (and once more where func changes, as from training to evaluation);
times, step sizes and tolerances are inputs. What cannot be compiled is done as `runge_kutta` does it, with a warning.
On a GPU, CUDA graphs (an option of `torch.compile`) replay a step without launching its kernels one by one.
"""

import contextlib
import types
import warnings
import weakref

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..private_torch import pytree
from .base import Carry, Trial, combine
from .runge_kutta import RungeKutta

BACKEND = "inductor"  # of torch.compile
NOT_COMPILABLE = (TorchDynamoException, FailOnRecompileLimitHit, GuardOnDataDependentSymNode)


class CompiledRungeKutta(RungeKutta):
    """As `RungeKutta`, without graphs that are kept: an accepted step is always evaluated again.

    :param with_slopes: there is dense output, so that slopes matter
    :param options: of `torch.compile`, a dict
    """

    def __init__(self, tableau, vector_field, *, with_slopes, options, time_grad=False):
        super().__init__(tableau, vector_field, time_grad=time_grad)
        self.with_slopes = with_slopes
        self._end = None  # of the step that was last replayed
        self._compiled = _compiled_for(vector_field, tableau, with_slopes, time_grad, options)
        effects = vector_field.side_effects
        self._hopeless = effects.draws or effects.counts
        if effects.draws:  # the same numbers at every evaluation, see `side_effects`
            _warn(vector_field.func, "it draws random numbers")
        elif effects.counts:  # would be compiled again for every count
            _warn(vector_field.func, "it changes a number that it keeps, such as a count of its calls")

    @property
    def _usable(self):
        return self._compiled.usable and not self._hopeless

    def _give_up(self, failure):
        self._compiled.usable = False
        lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
        _warn(self.field.func, lines[0] if lines else type(failure).__name__)

    def prepare(self, carry):
        """Evaluate f just behind a jump; elsewhere a first stage that is not known yet is compiled with the others, at
        the price of evaluating it again after a rejected try.
        """
        if carry.slope is None and carry.after_jump:
            super().prepare(carry)
            self._own(carry)

    def step(self, carry, h, t_end, *, before_jump=False):
        if before_jump or not self._usable:
            super().prepare(carry)
            trial = super().step(carry, h, t_end, before_jump=before_jump)
            self._own(trial.end)
            return trial
        try:
            y = carry.y.detach()  # y0 may have a history, which would be another case to compile
            y1, slopes, error = self._compiled.step(self.field.func, self._times(carry.t, h, t_end), y, carry.slope)
        except NOT_COMPILABLE as failure:
            self._give_up(failure)
            return self.step(carry, h, t_end)
        self.field.n_evals += self.tableau.stages - (carry.slope is not None)
        if self.with_slopes:
            self.slopes[: len(slopes)].copy_(slopes)
            slopes = slopes[-1]
        return Trial(Carry(t_end, y1, slopes if self.tableau.fsal else None), error)

    def end_slope(self, carry, *, before_jump=False):
        if carry.slope is None:
            super().end_slope(carry, before_jump=before_jump)
            self._own(carry)

    @staticmethod
    def _own(carry):
        """Take the slope out of the buffer, which later steps overwrite."""
        if carry.slope is not None:
            carry.slope = carry.slope.clone()

    def replay(self, t, h, y, t_end, *, after_jump=False, before_jump=False, every=1):
        """Put off to `vjp`, which evaluates the step and pulls back through it in one."""
        if after_jump or before_jump or not self._usable:
            return super().replay(t, h, y, t_end, after_jump=after_jump, before_jump=before_jump, every=every)
        return t, y.detach(), t_end

    def vjp(self, h, replayed, y_bar, slope_bars, first_bar, gradients):
        self._end = None
        if isinstance(replayed, list):  # evaluations of a step that is not compiled
            return super().vjp(h, replayed, y_bar, slope_bars, first_bar, gradients)
        t, y, t_end = replayed
        slopes_bar = None
        if self.with_slopes:
            slopes_bar = torch.zeros_like(self.slopes) if slope_bars is None else slope_bars.clone()
            slopes_bar = slopes_bar[: self.own_stages]
            if first_bar is not None:
                slopes_bar[0] += first_bar
        captured = self.field.captured.sources
        try:
            found, self._end, slopes = self._compiled.vjp(
                self.field.func, captured, self._times(t, h, t_end), y, y_bar, slopes_bar
            )
        except NOT_COMPILABLE as failure:
            self._give_up(failure)
            return super().vjp(h, super().replay(t, h, y, t_end), y_bar, slope_bars, first_bar, gradients)
        self.field.n_evals += self.own_stages
        if slopes is not None:
            self.slopes[: self.own_stages].copy_(slopes)
        gradients.add(found[1 : 1 + len(captured)])
        t_bar, h_bar, t_end_bar = found[-1] if self.time_grad else (0.0, 0.0, 0.0)
        return found[0], t_bar + t_end_bar, h_bar + t_end_bar

    def replayed_end(self, y, h, every=1):
        if self._end is None:  # a step that is not compiled
            return super().replayed_end(y, h, every)
        return self._end if every == 1 else (self._end[::every], self._end.sum(dtype=torch.float64))

    def _times(self, t, h, t_end):
        """Time, step size and end time as a tensor [3]; on a GPU for CUDA graphs, which take nothing from elsewhere."""
        times = torch.tensor([t, h, t_end], dtype=torch.float64)
        if self.slopes.device.type != "cuda":
            return times
        return times.pin_memory().to(self.slopes.device, non_blocking=True)  # does not wait for the GPU


class _Compiled:
    """The compiled functions of one tableau and state layout; func is an argument, so that one made anew for every
    solve, such as a lambda, need not be compiled anew. ``usable`` until func turns out not to be."""

    usable = True

    def __init__(self, field, tableau, with_slopes, time_grad, options):
        layout, autocast = field.layout, field.autocast or contextlib.nullcontext
        a, b, c = [_floats(row) for row in tableau.a], _floats(tableau.b), _floats(tableau.c)
        b_error = _floats(tableau.b_error) if tableau.adaptive else None
        own = tableau.stages - tableau.fsal
        self._time_grad = time_grad

        def stages(func, times, y, slopes, count):
            (t, h, t_end), stage = times, y
            for i in range(len(slopes), count):
                stage = y + h.to(y) * combine(a[i], slopes) if i else y
                time = t_end if c[i] == 1.0 else t + c[i] * h
                with autocast():
                    slope = func(time.to(y), layout.unflatten(stage))
                slopes.append(layout.flatten(slope))
            return stage

        def step(func, times, y, slope):
            h, slopes = times[1], [] if slope is None else [slope]
            y1 = stages(func, times, y, slopes, tableau.stages)
            if not tableau.fsal:
                y1 = y + h.to(y) * combine(b, slopes)
            error = h.to(y) * combine(b_error, slopes) if b_error else None
            return y1, torch.stack(slopes) if with_slopes else slopes[-1], error

        def vjp(func, captured, times, y, y_bar, slopes_bar):
            with torch.enable_grad():
                h, slopes = times[1], []
                stages(func, times, y, slopes, own)
                outputs, bars = [y + h.to(y) * combine(b[:own], slopes)], [y_bar]
                if with_slopes:
                    outputs.append(torch.stack(slopes))
                    bars.append(slopes_bar)
                wanted = [y, *captured, times] if time_grad else [y, *captured]
                found = torch.autograd.grad(outputs, wanted, bars, allow_unused=True)
            return found, outputs[0].detach(), outputs[1].detach() if with_slopes and time_grad else None

        self.step, self._vjp = _compile(step, options), _compile(vjp, options)

    def vjp(self, func, captured, times, y, y_bar, slopes_bar):
        """(cotangents of y, of what func captures and, with time_grad, of the times [3]; state at the end of the
        step; slopes or None)"""
        times, y = times.detach().requires_grad_(self._time_grad), y.detach().requires_grad_()
        before = dynamo_config.trace_autograd_ops  # its `patch` takes three times as long
        dynamo_config.trace_autograd_ops = True
        try:
            return self._vjp(func, captured, times, y, y_bar, slopes_bar)
        finally:
            dynamo_config.trace_autograd_ops = before


def _floats(fractions):
    """Numbers that Dynamo can trace, of PyTorch 2.11 too."""
    return [float(value) for value in fractions]


def _compile(function, options):
    """`torch.compile` of a function with a code object of its own, which Dynamo's limit of recompilations is for."""
    copy = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    compiled = torch.compile(copy, backend=BACKEND, dynamic=False, fullgraph=True, options=options or None)
    return _with_results_kept(compiled) if options.get("triton.cudagraphs") else compiled


def _with_results_kept(compiled):
    """The same function where its results are memory of a CUDA graph, which the next call overwrites."""

    def call(*arguments):
        torch.compiler.cudagraph_mark_step_begin()
        return pytree.tree_map_only(torch.Tensor, torch.clone, compiled(*arguments))

    return call


_COMPILED = weakref.WeakKeyDictionary()  # by what func is made of


def _compiled_for(field, tableau, with_slopes, time_grad, options):
    """The `_Compiled` for a vector field, made when first needed."""
    autocast = field.autocast and field.autocast.keywords["dtype"]
    key = (tableau, with_slopes, time_grad, field.layout.signature, autocast, repr(sorted(options.items())))
    known = _COMPILED.setdefault(_owner(field.func), {})
    if key not in known:
        known[key] = _Compiled(field, tableau, with_slopes, time_grad, options)
    return known[key]


def _owner(func):
    """What compiled code belongs to: a module, the code of a function or method, the class of another callable."""
    if isinstance(func, torch.nn.Module):
        return func
    return getattr(getattr(func, "__func__", func), "__code__", type(func))


def _warn(func, reason):
    name = getattr(func, "__name__", type(func).__name__)
    warnings.warn(f"compile=True: {name} cannot be compiled and runs as it is ({reason})", stacklevel=2)
