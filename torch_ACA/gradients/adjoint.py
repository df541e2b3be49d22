"""`adjoint`: the continuous adjoint (Chen et al., NeurIPS 2018), solved backwards in time together with the state.

a' = -a^T df/dy and theta_bar' = -a^T df/dtheta run from each output time to the one before, the state again beside them
from its value there. Optimise-then-discretise: the gradient of neither the discrete nor the exact solution, and the
state that is solved backwards drifts off the one that was solved forwards (section 3 of the ACA paper). Memory: the
outputs and the graph of one f. Cost: like the forward solve, with a VJP at every evaluation, rejected tries included.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callbacks import NO_CALLBACKS, Callbacks
from ..controller import Controller, FixedSteps, all_finite, rms_norm
from ..errors import SolverError
from ..inference_mode import outside_inference_mode
from ..march import Stop, march
from ..scipy_solver import Scipy, ScipySolve
from ..steppers.base import Method
from ..transforms import check_cotangents, untraced
from .augmented import AugmentedField
from .discrete import DiscreteSolve
from .replay import Replay
from .second_order import no_second_derivatives
from .storage import STATES_ONLY

if TYPE_CHECKING:
    from ..problem import Problem
_BACKWARDS = (
    "This was the backward solve of the adjoint, which is unstable where the solution contracts; gradient='aca' has "
    "none (on a stiff problem with method='Rodas5P')."
)


@dataclass(frozen=True)
class AdjointSettings:
    """Solver of the backward pass. ``norm``: of the error; "seminorm" leaves the parameters out (Kidger et al. 2021), a
    function gets the tuple of the parts of the augmented state: the time's (0-d, always zero here: its cotangents need
    no integral), the leaves of the state, their cotangents, and those of the captured tensors. ``grid``: times to step
    through.
    """

    method: Method | Scipy
    controller: Controller | FixedSteps | None
    first_step: float | None
    norm: Callable | str | None = None
    grid: tuple = ()
    callbacks: Callbacks = Callbacks()  # they get the state's part of the augmented vector


def adjoint(problem: Problem) -> tuple[Tensor, None]:
    """States at the times of the problem after the first [m - 1, n], differentiable once in ``problem.tensors``; no
    trajectory."""
    # the backward solve repeats nothing that could be compared, but func itself can be, at both ends
    replay, differentiable, first, last = Replay(problem.field.layout), problem.differentiable, None, None
    with torch.no_grad():
        if differentiable and problem.slope is not None:
            first = replay.sample(problem.slope)
        run = ScipySolve(problem) if isinstance(problem.method, Scipy) else DiscreteSolve(problem, STATES_ONLY)
        ys, *_ = run.forward(remember=False)
        if differentiable and len(ys):
            last = replay.sample(_last_slope(problem, ys) if run.end_slope is None else run.end_slope)
    problem.finish()
    if differentiable:
        ys = _Function.apply(problem, replay, (first, last), [ys], *problem.tensors)
    return ys, None


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, replay: Replay, slopes: tuple, results: list[Tensor], y0: Tensor, times: Tensor,
        *captured: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.problem, ctx.replay, ctx.slopes = problem, replay, slopes
        ctx.save_for_backward(*results, y0, times, *captured)
        return results[0]

    @staticmethod
    @untraced
    @outside_inference_mode
    def backward(ctx: Any, ys_bar: Tensor) -> Any:
        check_cotangents("adjoint", ys_bar)
        ys, *inputs = ctx.saved_tensors
        problem, y0 = ctx.problem, inputs[0].detach()
        with torch.no_grad(), problem.not_within_itself(), problem.backward_pass():
            try:
                bars = _backward(problem, y0, ys, ys_bar, ctx.replay, *ctx.slopes)
            except SolverError:
                if all_finite(ys_bar):
                    raise
                # as where the scale of a loss overflows, which GradScaler looks for: no steps lead back from there
                bars = [torch.full(x.shape, math.nan, dtype=x.dtype, device=x.device) for x in inputs]
        return None, None, None, None, *no_second_derivatives("adjoint", bars, [ys_bar, *inputs])


def _last_slope(problem: Problem, ys: Tensor) -> Tensor:
    """The slope in the last of the outputs; nothing that func changes stays changed."""
    t, slope = problem.ts[len(ys)], torch.empty_like(ys[-1])
    jumps = problem.perturb or any(stop.jump for stop in problem.stops if stop.t == t)
    with problem.field.side_effects.replay():
        problem.field(t, ys[-1], slope, side=-int(jumps))
    problem.stats.n_f_evals = problem.field.n_evals
    return slope


def _backward(
    problem: Problem, y0: Tensor, ys: Tensor, ys_bar: Tensor, replay: Replay, first_slope: Any, last_slope: Any
) -> list[Tensor | None]:
    """Cotangents of y0, of the times and of the captured tensors.

    :param first_slope, last_slope: samples of the slopes at the start and in the last of the outputs, which must be
        found again (None: not known)
    """
    field, n = problem.field, len(y0)
    augmented = AugmentedField(field)

    def compare(found: Tensor) -> None:
        replay.compare_state(found, last_slope, torch.zeros_like(found), problem.ts[len(ys)])
        replay.conclude()

    augmented.watch_first = compare
    jumps = {problem.ts[0]} if problem.starts_at_jump else set()
    jumps.update(stop.t for stop in problem.stops if stop.jump)
    solver = (_ByScipy if isinstance(problem.adjoint.method, Scipy) else _ByMarching)(problem, augmented, jumps)
    before = field.n_evals
    times_bar = torch.zeros(len(problem.ts), dtype=torch.float64, device="cpu")
    state = ys.new_zeros(augmented.layout.size)
    slope = torch.empty_like(y0)
    for k in range(len(ys), 0, -1):
        state[:n] = ys[k - 1]
        if problem.time_grad:
            field(problem.ts[k], ys[k - 1], slope, side=-int(problem.perturb or problem.ts[k] in jumps))
            times_bar[k] += float(ys_bar[k - 1] @ slope)
        state[n : 2 * n] += ys_bar[k - 1]
        try:
            state = solver.through(state, problem.ts[k], problem.ts[k - 1])
        except SolverError as error:
            error.add_hint(_BACKWARDS)
            raise
    a = state[n : 2 * n]
    if problem.time_grad or first_slope is not None:
        field(problem.ts[0], y0, slope, side=int(problem.starts_at_jump))
    if first_slope is not None:
        replay.compare_state(slope, first_slope, torch.zeros_like(slope), problem.ts[0])
        replay.conclude()
    if problem.time_grad:
        times_bar[0] -= float(a @ slope)
    field.captured.check_reached(augmented.reached)
    problem.stats.n_backward_f_evals = field.n_evals - before
    captured_bars = [bar.to(tensor) for bar, tensor in zip(augmented.captured_parts(state), field.captured.tensors)]
    return [a, times_bar.to(problem.times) if problem.time_grad else None, *captured_bars]


class _ByMarching:
    """Integrates the augmented state by Runge-Kutta steps.

    :param jumps: times at which func jumps, a set
    """

    def __init__(self, problem: Problem, augmented: AugmentedField, jumps: set[float]) -> None:
        settings = problem.adjoint
        self.augmented, self.limits, self.perturb = augmented, problem.limits, problem.perturb
        self.jumps, self.stops = jumps, sorted(jumps.union(settings.grid))
        self.stepper = augmented.widened(settings.method).stepper(augmented)
        self.controller, self.size = settings.controller, settings.first_step
        if isinstance(self.controller, Controller):
            of_state = problem.controller.norm if isinstance(problem.controller, Controller) else rms_norm
            self.controller = replace(
                self.controller,
                norm=augmented.norm(settings.norm, of_state),
                rtol=augmented.tolerance(self.controller.rtol),
                atol=augmented.tolerance(self.controller.atol),
            )
        self.called = settings.callbacks.step is not NO_CALLBACKS.step
        self.callbacks = Callbacks(
            **{name: _of_state(callback, augmented.n) for name, callback in vars(settings.callbacks).items()}
        )

    def through(self, state: Tensor, t: float, t_end: float) -> Tensor:
        """The augmented state at t_end, from that at t."""
        k1 = torch.empty_like(state)
        self.augmented(t, state, k1, side=int(self.perturb or t in self.jumps))
        if self.size is None:
            self.size = self.controller.initial_step(self.augmented.slope, t, t_end, state, k1)
        fixed = isinstance(self.controller, FixedSteps)
        known = None if fixed and self.called else k1  # a callback may change func before the first step
        low, high = sorted((t, t_end))
        inside = self.stops[bisect_right(self.stops, low) : bisect_left(self.stops, high)]
        steps = march(
            self.stepper,
            self.controller,
            self.stepper.start(t, state, known),
            t,
            [Stop(time, jump=time in self.jumps) for time in (*(inside if t < t_end else inside[::-1]), t_end)],
            first_step=self.size,
            perturb=self.perturb,
            limits=self.limits,
            callbacks=self.callbacks,
        )
        for step in steps:
            self.size = step.proposed  # the last one is a good first size for the interval before
        return step.trial.end.y.clone()


class _ByScipy:
    """Integrates the augmented state by scipy, which steps across jumps as its error control allows."""

    def __init__(self, problem: Problem, augmented: AugmentedField, jumps: set[float]) -> None:
        self.augmented, self.limits = augmented, problem.limits
        self.method = augmented.widened(problem.adjoint.method)

    def through(self, state: Tensor, t: float, t_end: float) -> Tensor:
        states, failure = self.method.states(self.augmented, state, (t, t_end), self.limits)
        if failure is not None:
            raise failure
        return states[0]


def _of_state(callback: Callable, n: int) -> Callable:
    return lambda t, state, h: callback(t, state[:n], h)
