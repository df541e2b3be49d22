"""Solves of a few fixed steps on a small state, as ordinary operations.

Where the sizes of the steps are given, `aca`, `direct` and `naive` differentiate one and the same thing. A solve of a
handful of evaluations leaves its graph to autograd: it takes about what the graph of one step of a method of high order
takes, which the backward pass needs anyway, and the solver need not know what func depends on. Solves between the
observations of a recurrent model are like that, and there are thousands of them.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .autocast import ambient_autocast, without_autocast
from .callbacks import NO_CALLBACKS, Callbacks
from .controller import FixedSteps
from .errors import NonFiniteError, SolverError
from .march import Stats, next_step
from .option_checks import check_arguments
from .plan import Plan, checked
from .random_streams import SameNumbers
from .settings import Settings, checked_times
from .solver_options import SolverOptions
from .state import StateLayout, copied_if_view
from .steppers.runge_kutta import taken
from .tableau import Tableau
from .transforms import under_transform

MOST_EVALUATIONS = 8
LARGEST = 2**13  # numbers in a state
_LEFT_OUT = ("dense", "record", "compile", "per_sample", "params")
_OPTIONS = frozenset({"step_size", "grid", "land_on_t", "check_finite"})


@dataclass(frozen=True)
class FewSteps:
    """What came out: the state at every one of ``times``, as vectors or as tensors shaped like y0."""

    times: torch.Tensor
    states: list
    stats: Stats
    nested: Callable

    @property
    def ys(self) -> Any:
        """The states, nested like y0; leaves [m, *shape]."""
        return self.nested(torch.stack(self.states))

    @property
    def end(self) -> Any:
        """The last state, nested like y0."""
        return self.nested(self.states[-1])


def few_steps(func: Callable, y0: Any, t: Any, asked: SolverOptions) -> FewSteps | None:
    """The solve, if it is one of a few fixed steps. None: it is not, and nothing was evaluated that counts."""
    if not _may_be_few(asked) or under_transform() or torch.compiler.is_dynamo_compiling() or not callable(func):
        return None
    layout = StateLayout(y0)
    plan = checked(asked, layout)
    if not _takes_fixed_steps(plan.settings) or layout.size > LARGEST:
        return None
    times, ts = checked_times(t, layout)
    steps = None if times.requires_grad else _steps(ts, plan)
    if steps is None:
        return None
    device_type = layout.device.type
    autocast = ambient_autocast(device_type)
    with without_autocast(device_type):
        try:
            return _Run(func, layout, plan, autocast).solve(y0, times, steps)
        except _FirstEvaluationFailed:  # func may need what this way does not give it, such as gradients of its own
            return None


def _may_be_few(asked: SolverOptions) -> bool:
    if asked.h is None and not asked.options:
        return False
    left_out = (getattr(asked, name) for name in _LEFT_OUT)
    common = asked.gradient in ("aca", "direct", "naive") and asked.on_failure == "raise"
    return common and all(value is None or value is False for value in left_out)


def _takes_fixed_steps(settings: Settings) -> bool:
    known = isinstance(settings.method, Tableau) and isinstance(settings.controller, FixedSteps)
    return known and _OPTIONS.issuperset(settings.options)


def _steps(ts: list[float], plan: Plan) -> list[tuple[float, float, float, bool]] | None:
    """The steps as (t, h, end, whether there is an output); None: there are too many, or an output inside of one."""
    controller: Any = plan.settings.controller
    options, size = plan.settings.options, controller.size
    stops = options.get("grid") or (ts if options.get("land_on_t") else (ts[0], ts[-1]))
    outputs = set(ts[1:])
    if stops[0] != ts[0] or stops[-1] != ts[-1] or not outputs.issubset(stops):
        return None
    tableau = plan.settings.method
    own_stages = tableau.stages - 1 if tableau.fsal else tableau.stages
    most = min((MOST_EVALUATIONS - tableau.fsal) // own_stages, plan.limits.max_steps)
    if plan.limits.max_evals < MOST_EVALUATIONS:
        return None
    steps = []
    for origin, stop in zip(stops, stops[1:]):
        t, n = origin, 0
        while t != stop:
            if len(steps) == most:
                return None
            landing, h, t_end = next_step(t, stop, size, origin, n)
            steps.append((t, h, t_end, landing and stop in outputs))
            t, n = t_end, n + 1
    return steps


class _FirstEvaluationFailed(Exception):
    pass


class _Run:
    """One solve: func, how it is called, and how often it was."""

    def __init__(self, func: Callable, layout: StateLayout, plan: Plan, autocast: Callable | None) -> None:
        self._func, self._layout, self._autocast = func, layout, autocast
        controller: Any = plan.settings.controller
        self._tableau, self._check_finite = plan.settings.method, controller.check_finite
        self._callbacks: Callbacks | None = None
        if plan.callbacks != NO_CALLBACKS:
            self._callbacks = plan.callbacks.guarded(gradients=torch.is_grad_enabled())
        self._n_evals, self._copies = 0, False
        self._numbers: SameNumbers | None = None
        self._counts_writes = not torch.is_inference_mode_enabled()

    def solve(self, y0: Any, times: torch.Tensor, steps: list[tuple[float, float, float, bool]]) -> FewSteps:
        layout, tableau = self._layout, self._tableau
        y = copied_if_view(y0) if layout.is_a_tensor else layout.initial(y0)
        states, slope, t0 = [y], None, steps[0][0]
        if len(steps) * tableau.stages > 1:
            self._numbers = SameNumbers(layout.device)
        with contextlib.nullcontext() if self._numbers is None else self._numbers:
            for n_accepted, (t, h, t_end, is_output) in enumerate(steps):
                start = y
                if self._callbacks is not None:
                    self._callbacks.step(t, start.reshape(-1), h)
                y, slopes = taken(tableau, self._evaluate, t, h, y, t_end, slope)
                if self._check_finite and not _is_finite(y):
                    if t == t0 and not _is_finite(slopes[0]):
                        what = NonFiniteError.of_first_slope
                        raise NonFiniteError(t, 0.0, 0, self._n_evals, what=what)
                    raise NonFiniteError(t, h, n_accepted, self._n_evals)
                if self._callbacks is not None:
                    self._callbacks.accept(t, start.reshape(-1), h)
                slope = slopes[-1] if tableau.fsal and self._callbacks is None else None  # func may change
                if is_output:
                    states.append(y)
        stats = Stats(n_f_evals=self._n_evals, n_accepted=len(steps))
        return FewSteps(times, states, stats, _as_it_is if layout.is_a_tensor else layout.unflatten)

    def _evaluate(self, t: Any, y: torch.Tensor, at_end: bool) -> torch.Tensor:
        """f(t, y), t a float; shaped as y is."""
        layout = self._layout
        time = torch.scalar_tensor(t, dtype=layout.dtype, device=layout.device)
        first, self._n_evals = self._n_evals == 0, self._n_evals + 1
        # the first one is the caller's, and func may change what it is given
        given = y.clone() if first or self._copies else y
        version = self._counts_writes and given._version
        state = given if layout.is_a_tensor else layout.unflatten(given)
        try:
            returned = self._called(time, state)
        except TypeError:
            check_arguments(self._func, "func(t, y)")
            raise
        except RuntimeError as failure:
            if first and not isinstance(failure, SolverError):
                raise _FirstEvaluationFailed from failure
            raise
        if self._counts_writes and given._version != version:
            if not first and not self._copies:
                raise ValueError(f"func changes its argument y in place, at t = {t:.6g}: return a new tensor instead")
            self._copies = True
        leaves = layout.tensors(returned)
        slope = leaves[0] if layout.is_a_tensor else layout.join(leaves)
        # it may be memory that func fills anew, while the other slopes of the step are found
        return slope.clone() if self._tableau.stages > 1 else slope

    def _called(self, time: torch.Tensor, state: Any) -> Any:
        call = self._func if self._autocast is None else functools.partial(self._under_autocast, self._func)
        return call(time, state) if self._numbers is None else self._numbers.evaluate(call, time, state)

    def _under_autocast(self, func: Callable, time: torch.Tensor, state: Any) -> Any:
        with self._autocast():
            return func(time, state)


def _as_it_is(states: Any) -> Any:
    return states


def _is_finite(y: torch.Tensor) -> bool:
    return math.isfinite(y.detach().sum()) or bool(torch.isfinite(y).all())
