"""Solves whose loop is one compiled call, without what only other solves need.

Most compiled solves are such: plain options, a state that is one tensor, and no more steps than a buffer holds. To set
up what `LoopSolve` has for all the others takes longer than the loop itself where the state is small. Where anything is
out of the ordinary, `LoopSolve` takes over: from the start, or, from what was remembered here, a backward pass that is
to be differentiated itself or meets a func that has changed.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autocast import ambient_autocast
from ..controller import all_finite
from ..cut import outer_cuts
from ..default_device import default_device
from ..gradients.discrete import differentiable
from ..jacobian import Jacobian
from ..kept_func import KeptFunc
from ..march import Stats
from ..plan import Plan, checked
from ..problem import Problem, stops_of
from ..settings import checked_times
from ..solver_options import SolverOptions
from ..state import StateLayout
from ..steppers.base import LINEARISE
from ..transforms import under_transform
from ..vector_field import VectorField
from .chunks import Chunk
from .code import Code, code_for
from .controller_settings import SETTINGS, is_plain, settings_of
from .fingerprint import fingerprint
from .func_graph import Differentiable, NotCompilable
from .inside import Inside
from .loop_solve import LoopSolve
from .loops import EVERYWHERE, Bounds, Loops
from .start import reason_against

_NOT_ASKED = ("per_sample", "dense", "record", "params", "callbacks", "memory", "h", "jac", "args")
_OPTIONS = frozenset({*SETTINGS, "max_num_steps", "interp"})


@dataclass(frozen=True)
class Found:
    """What came out: the states at all ``times`` [m, *shape], or the last one alone [*shape]."""

    times: Tensor
    states: Tensor
    stats: Stats

    @property
    def ys(self) -> Tensor:
        return self.states

    @property
    def end(self) -> Tensor:
        return self.states


def one_call(func: Callable, y0: Any, t: Any, asked: SolverOptions, *, end_only: bool) -> Found | None:
    """The solve, if it is such a one. None: it is not, or it fails, and nothing was done that counts.

    :param end_only: the last state is asked for, of two times
    """
    if not _may_be_one_call(func, y0, asked):
        return None
    layout = _layout_of(y0.shape, y0.dtype)
    plan = checked(asked, layout)
    settings = plan.settings
    known = settings.first_step is None and is_plain(settings.controller)
    if not (known and plan.compile_loop) or LINEARISE in settings.method.abilities:
        return None
    times, ts = checked_times(t, layout)
    if times.requires_grad:
        return None
    start = layout.flatten(y0.detach()).contiguous()
    options, by = plan.compile_options or {}, Differentiable.now(time_grad=False)
    code = code_for(func, layout, None, ts[0], start, options, settings.controller, False, by)
    if code is None or reason_against(asked, plan, code, start) is not None or not _are_plain(code.sources):
        return None
    run = OneCall(layout, plan, code, times, ts, start, end_only=end_only)
    with torch.no_grad():
        states = run.forward()
    if states is None:
        return None
    run.tell_compile_time()
    if torch.is_grad_enabled() and (code.sources or y0.requires_grad):
        run.remember(func)
        (states,) = differentiable(run, (states,), (y0, times, *code.sources))
    return Found(times, states, run.stats)


def _may_be_one_call(func: Callable, y0: Any, asked: SolverOptions) -> bool:
    """Whether neither options, state nor surroundings stand against it, as far as that is quickly seen."""
    if asked.compile not in (True, "loop") or asked.gradient != "aca":
        return False
    left_out = (getattr(asked, name) for name in _NOT_ASKED)
    if any(value is not None and value is not False for value in left_out) or not callable(func):
        return False
    if asked.options and not (type(asked.options) is dict and _OPTIONS.issuperset(asked.options)):
        return False
    usual = type(y0) in (Tensor, torch.nn.Parameter) and y0.dtype in (torch.float32, torch.float64)
    if not usual or y0.device.type != "cpu" or not y0.numel() or y0.layout is not torch.strided:
        return False
    special = torch.is_inference_mode_enabled() or y0.is_inference() or torch.compiler.is_dynamo_compiling()
    return not (special or under_transform() or outer_cuts() or ambient_autocast("cpu") or default_device())


@functools.lru_cache(256)
def _layout_of(shape: torch.Size, dtype: torch.dtype) -> StateLayout:
    return StateLayout(torch.empty(shape, dtype=dtype, device="cpu"))


def _are_plain(sources: Sequence[Tensor]) -> bool:
    """Whether autograd asks for the gradient of each of these once, and for nothing else."""
    return len({id(s) for s in sources if s.grad_fn is None and not s._backward_hooks}) == len(sources)


class OneCall:
    """A run of such a solve, as `gradients.discrete.differentiable` takes it.

    It gives states in their own shapes: every view behind it would be one more node for autograd to go through.

    :param y: the flat state at the first of the times ts, without a history
    :param end_only: the last state is asked for, of two times
    """

    def __init__(
        self, layout: StateLayout, plan: Plan, code: Code, times: Tensor, ts: list[float], y: Tensor, *, end_only: bool
    ) -> None:
        self._layout, self._plan, self._code, self._times, self._ts, self._y = layout, plan, code, times, ts, y
        self._end_only = end_only
        self._method: Any = plan.settings.method
        self._loops = Loops(code, code.steps(self._method), y, with_slopes=len(ts) > 2, time_grad=False)
        self._inside = Inside(self._loops, len(ts) - 2, self._direction) if self._loops.with_slopes else None
        self.stats = Stats()
        self._chunk: Any = None
        self._states: dict[Any, Tensor] = {}  # and the last one, once more
        self._end: Any = None
        self._func: Any = None  # as `KeptFunc`, once it is to be remembered
        self._fingerprint: Any = None

    @property
    def _direction(self) -> int:
        return 1 if self._ts[-1] > self._ts[0] else -1

    def forward(self) -> Tensor | None:
        """The states asked for, if all goes well."""
        loops, ts, limits, controller = self._loops, self._ts, self._plan.limits, self._plan.settings.controller
        of_func, many = self._code.graph.functions, ("many calls", *loops.key)
        if many in of_func:
            return None
        buffers, settings, n_evals = loops.buffers(), settings_of(controller), loops.begin_evaluations
        most_tries = -(-(limits.max_evals - n_evals) // loops.evaluations)
        bounds = Bounds(ts[-1], abs(ts[-1] - ts[0]), min(loops.capacity, limits.max_steps), most_tries)
        try:
            now, y, _, size, _ = loops.begin((ts[0], ts[-1]), bounds, settings, self._y, buffers)
        except NotCompilable as failure:
            self._code.compiler.against_loops = str(failure)
            return None
        n, n_tries = int(now.n_steps), int(now.n_tries)
        if n == loops.capacity and now.t != ts[-1]:
            of_func[many] = True
        if now.t != ts[-1] or not all_finite(y):
            return None
        stop = stops_of(ts)[0]
        self._chunk = Chunk(n, buffers[0], (ts[0], size, 1.0), stop, {n - 1: stop}, EVERYWHERE)
        self._states, self._end = {0: buffers[1], "end": y}, y
        inside: tuple[Tensor, ...] = ()
        if self._inside is not None:
            inside, are_finite = self._outputs_inside(*buffers[1:])
            if not are_finite:
                return None
        self.stats.n_accepted, self.stats.n_rejected = n, n_tries - n
        self.stats.n_f_evals = n_evals + n_tries * loops.evaluations
        shaped = self._layout.unflatten
        if self._end_only:
            return shaped(y).clone()  # a view could not be written to
        return torch.cat([shaped(part) for part in (self._y[None], *inside, y[None])])

    def _outputs_inside(self, states: Tensor, slopes: Tensor) -> tuple[tuple[Tensor], bool]:
        """The outputs inside steps [m - 2, n], and whether the slopes that they need are finite."""
        chunk, inside, method, ts = self._chunk, self._inside, self._method, self._ts
        wanted = torch.tensor(ts[1:-1], dtype=torch.float64, device="cpu")
        found, chunk.places, chunk.theta, chunk.weights = inside.outputs(wanted, chunk.times, chunk.n, states, slopes)
        chunk.outputs = list(range(1, len(ts) - 1))
        unseen = method.needs_end_slope and self._plan.settings.controller.leaves_unseen(method.error_sees_end_slope)
        return (found,), not unseen or all_finite(slopes[chunk.places, -1])

    def remember(self, func: Callable) -> None:
        """To be called where there may be a backward pass."""
        self._func, self._fingerprint = KeptFunc(func, _unused), fingerprint(self._code)

    def tell_compile_time(self) -> None:
        self._code.compiler.stopwatch.tell()

    def not_within_itself(self) -> AbstractContextManager:
        """func is not evaluated in an ordinary backward pass."""
        return contextlib.nullcontext()

    @property
    def storage(self) -> "OneCall":
        return self

    def release(self) -> dict[Any, Tensor]:
        """As of a `Storage`."""
        states, self._states = self._states, {}
        return states

    def backward(self, states: dict[Any, Tensor], bars: Tensor, dense_bars: Sequence[Tensor]) -> Any:
        """As of `LoopSolve`, from cotangents of the states asked for to those of the state in its own shape."""
        ys_bar = bars.reshape(-1, len(self._y))
        if not self._end_only:
            ys_bar = ys_bar[1:]
        y_bar, times_bar, *others = self._backward(states, ys_bar, dense_bars)
        y_bar = self._layout.unflatten(y_bar)
        return y_bar if self._end_only else y_bar + bars[0], times_bar, *others

    def _backward(self, states: dict[Any, Tensor], ys_bar: Tensor, dense_bars: Sequence[Tensor]) -> Any:
        if fingerprint(self._code) == self._fingerprint:
            with contextlib.suppress(NotCompilable):
                return self._looped_back(states, ys_bar)
        with self.problem.not_within_itself():
            return self._whole.backward(states, ys_bar, dense_bars)

    def _looped_back(self, states: dict[Any, Tensor], ys_bar: Tensor) -> Any:
        loops, code, chunk = self._loops, self._code, self._chunk
        totals, y_bar, of_steps, n_evals = code.zeros(), ys_bar[-1], (), chunk.n * loops.own
        if self._inside is not None:
            nothing = torch.zeros_like(y_bar)
            *of_steps, pending = self._inside.cotangents(ys_bar[:-1], chunk.places, chunk.weights, chunk.n, nothing)
            if loops.rows > loops.own and chunk.reaches_into_last_step:
                bar, totals, _ = loops.through_slope(self._ts[-1], states["end"], pending, totals, chunk.window)
                y_bar, n_evals = y_bar + bar, n_evals + 1
        y_bar, totals, _ = loops.backward(
            chunk.n, y_bar.contiguous(), totals, chunk.times, states[0], of_steps, chunk.window
        )
        self.stats.n_backward_f_evals = n_evals
        reached: Any = loops.steps.reached
        return y_bar, None, [total if is_reached else None for total, is_reached in zip(totals, reached)]

    def traced(self, y0: Tensor, times: Tensor) -> Any:
        """As of `LoopSolve`, the states asked for from the one in its own shape."""
        y = self._layout.flatten(y0)
        (ys,) = self._whole.traced(y, times)
        return (self._layout.unflatten(ys[-1] if self._end_only else torch.cat([y[None], ys])),)

    @property
    def problem(self) -> Problem:
        return self._whole.problem

    @functools.cached_property
    def _whole(self) -> LoopSolve:
        """What goes on with a backward pass that is not an ordinary one."""
        plan, layout, chunk, controller = self._plan, self._layout, self._chunk, self._plan.settings.controller
        field = VectorField(
            self._func(), layout, self._direction, found=self._code.reach(), code=self._code, jacobian=Jacobian(layout)
        )
        field.n_evals = self.stats.n_f_evals
        problem = Problem(
            field, self._y, self._times, self._ts, self._method, controller, chunk.begin[1], [chunk.aim], None,
            memory=plan.memory, compile_options=plan.compile_options, compile_loop=True, limits=plan.limits,
            stats=self.stats,
        )  # fmt: skip
        problem.finish()
        run = LoopSolve(problem)
        run.go_on(chunk, self._end, self._fingerprint)
        return run


def _unused(tensor: Tensor) -> bool:
    """Whether generated code does not use a tensor that has a history: it uses none."""
    return True
