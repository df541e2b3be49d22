"""`mali`: memory-efficient ALF integrator (Zhuang et al., ICLR 2021).

The asynchronous leapfrog can be run backwards exactly, so the backward pass rebuilds each state from the final one:
nothing but the step sizes is remembered, and the gradient is that of the discrete solution up to rounding. Memory:
one state and velocity and the graph of one f, whatever the number of steps. Cost: N + R + 2 evaluations forward, N +
1 evaluations and VJPs backward.

Not for stiff or strongly contracting problems: there ALF needs very small steps, and running it backwards amplifies
rounding as fast as the flow contracts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..autocast import dtype_of
from ..errors import TooManyEvaluationsError
from ..evaluation import GradientSum
from ..inference_mode import outside_inference_mode
from ..march import Stop
from ..steppers.base import Carry
from ..transforms import check_cotangents, untraced
from .replay import Replay
from .second_order import no_second_derivatives
from .times import TimeCotangents

if TYPE_CHECKING:
    from ..problem import Problem


def mali(problem: Problem) -> tuple[Tensor, None]:
    """States at the times of the problem after the first [m - 1, n], differentiable once in ``problem.tensors``; no
    trajectory."""
    if problem.starts_at_jump or any(stop.jump for stop in problem.stops):
        raise ValueError("jumps are not available with gradient='mali': a new velocity at a jump cannot be inverted")
    run = _Solve(problem)
    with torch.no_grad():
        ys, end = run.forward()
    problem.finish()
    if problem.differentiable:
        ys = _Function.apply(run, [ys], end, *problem.tensors)
        if problem.recorder is not None:
            problem.recorder.replay = lambda states: run.rebuilt(end)
    return ys, None


@dataclass(slots=True)
class _Step:
    h: float
    stop: Stop | None
    outputs: list = field(default_factory=list)
    theta: torch.Tensor | None = None

    @property
    def output_rows(self) -> slice:
        return slice(self.outputs[0] - 1, self.outputs[-1])


class _Solve:
    def __init__(self, problem: Problem) -> None:
        self.problem, self.steps = problem, []
        self.stepper: Any = problem.method.stepper(problem.field, time_grad=problem.time_grad)
        field = problem.field
        self.replay = Replay(field.layout, dtype_of(field.autocast))

    def forward(self) -> tuple[Tensor, Carry]:
        """The outputs [m - 1, n] and the final `Carry`."""
        problem, stepper = self.problem, self.stepper
        carry = end = stepper.start(problem.ts[0], problem.y0.detach(), problem.slope)
        problem.slope = problem.evaluation = None
        ys = problem.new_outputs()
        try:
            for step in problem.march(stepper, carry):
                record = _Step(step.h, step.stop, problem.outputs_within(step.t_end))
                carry = step.trial.end
                if record.outputs:
                    record.theta = problem.fractions(record.outputs, step)
                    ys[record.output_rows] = stepper.between(step.start, carry, step.h, record.theta)
                problem.land(ys, step)
                self.steps.append(record)
                if len(self.steps) == problem.n_steps_to_last_output:
                    end = carry
        except TooManyEvaluationsError as error:
            error.add_hint(
                "The asynchronous leapfrog is not made for stiff or strongly contracting problems: use aca, on a stiff "
                "one with method='Rodas5P'."
            )
            raise
        del self.steps[problem.n_steps_to_last_output :]  # what follows ran into a failure
        return problem.solved(ys), end

    def backward(self, end: Carry, ys_bar: Tensor) -> tuple[Tensor, Tensor | None, list[Any]]:
        problem, stepper = self.problem, self.stepper
        gradients = GradientSum(len(problem.field.captured.tensors))
        before, last = problem.field.n_evals, end
        times = TimeCotangents(len(problem.ts))
        z_bar, v_bar = torch.zeros_like(end.y), torch.zeros_like(end.y)
        for step in reversed(self.steps):
            given_end = None if step.stop is None else step.stop.index
            if given_end is not None:
                z_bar = z_bar + ys_bar[given_end - 1]
            start, evaluation = stepper.invert(end, step.h)
            start_z_bar = start_v_bar = 0.0
            start_t_bar = h_bar = 0.0
            if step.outputs:
                bars, time_bars, h_bar = stepper.between_vjp(start, end, step.h, step.theta, ys_bar[step.output_rows])
                start_z_bar, end_z_bar, start_v_bar, end_v_bar = bars
                z_bar, v_bar = z_bar + end_z_bar, v_bar + end_v_bar
                if problem.time_grad:
                    times.given[step.outputs] += time_bars
                    start_t_bar = -float(time_bars.sum())
            z_bar, v_bar, step_t_bar, step_h_bar = stepper.pull_back(
                start, end, step.h, evaluation, z_bar, v_bar, gradients
            )
            z_bar, v_bar = z_bar + start_z_bar, v_bar + start_v_bar
            if problem.time_grad:
                times.through(step.stop, start_t_bar + step_t_bar, h_bar + step_h_bar)
            end = start
        self._compare_start(end, last)
        first = problem.field.record(problem.ts[0], problem.y0, time_grad=problem.time_grad)
        state_bar, time_bar = first.vjp(v_bar, gradients)
        if state_bar is not None:
            z_bar = z_bar + state_bar
        problem.field.captured.check_reached(gradients.totals)
        times.given[0] += times.now + (0.0 if time_bar is None else float(time_bar))
        times_bar = times.given.to(problem.times) if problem.time_grad else None
        problem.stats.n_backward_f_evals = problem.field.n_evals - before
        return z_bar, times_bar, gradients.totals

    @torch.no_grad()
    def rebuilt(self, end: Carry) -> Tensor:
        """The states [N + 1, n] from the final `Carry` backwards, in forward order."""
        states = [end.y]
        with self.problem.backward_pass():
            for step in reversed(self.steps):
                end, _ = self.stepper.invert(end, step.h)
                states.append(end.y)
        return torch.stack(states[::-1])

    def _compare_start(self, start: Carry, end: Carry) -> None:
        """The state rebuilt at the start, from the one at the end, must be the initial state, but for rounding."""
        y0 = self.problem.y0.detach()
        farther = torch.maximum(end.y.abs(), y0.abs())  # what rounding is relative to
        self.replay.compare_state(start.y, y0, y0 - farther, self.problem.ts[0])
        self.replay.conclude()


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: _Solve, results: list[Tensor], end: Carry, y0: Tensor, times: Tensor, *captured: Tensor
    ) -> Tensor:
        ctx.run, ctx.t_end = run, end.t
        ctx.save_for_backward(end.y, end.slope, y0, times, *captured)
        return results[0]

    @staticmethod
    @untraced
    @outside_inference_mode
    def backward(ctx: Any, ys_bar: Tensor) -> Any:
        check_cotangents("mali", ys_bar)
        z, v, *inputs = ctx.saved_tensors
        problem = ctx.run.problem
        with torch.no_grad(), problem.not_within_itself(), problem.backward_pass():
            y_bar, times_bar, captured_bars = ctx.run.backward(Carry(ctx.t_end, z, v), ys_bar)
        bars = no_second_derivatives("mali", [y_bar, times_bar, *captured_bars], [ys_bar, *inputs])
        return None, None, None, *bars
