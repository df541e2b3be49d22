"""`aca` and `direct`: the exact gradient of the discrete solution, its accepted step sizes held constant.

Adaptive checkpoint adjoint (Zhuang et al., ICML 2020, algorithm 2): the forward pass remembers (t_i, y_i) of the accepted
steps only; the backward pass walks them in reverse, evaluates each again with a graph and pulls the cotangent through.
`direct` keeps the graphs of the accepted steps instead, and evaluates nothing twice.

For s stages that a step pays for (FSAL not counted), N accepted and R rejected steps and f of depth N_f:
cost N s + R (s - 1) + 2 evaluations forward; backward N s evaluations and VJPs (`direct`: VJPs only).
Memory: one state per step and the graph of one step; `direct`: the graphs of all steps, O(N s N_f).
Depth of any graph that autograd sees: one f.

Times: sizes of interior steps are frozen. A step that ends on a given time (the last one) depends on that time and on
where it starts; an output inside a step contributes the time derivative of the interpolant.
"""

from dataclasses import dataclass, field

import torch

from ..march import Stop, march
from ..steppers.runge_kutta import RungeKutta
from ..vector_field import GradientSum


@dataclass(slots=True)
class AcceptedStep:
    """What is remembered of a step besides the state at its start."""

    t: float
    h: float
    t_end: float
    stop: Stop | None
    after_jump: bool
    outputs: list = field(default_factory=list)  # indices of the outputs that its interpolant gives
    theta: torch.Tensor | None = None  # where in the step they lie
    evaluations: list | None = None  # kept graphs


def aca(problem):
    """States at the output times after the first: [m - 1, n], differentiable in ``problem.tensors``."""
    return _integrate(problem, keep_graphs=False)


def direct(problem):
    """As `aca`, with the graphs of the accepted steps kept."""
    return _integrate(problem, keep_graphs=True)


def _integrate(problem, keep_graphs):
    run = DiscreteSolve(problem, keep_graphs)
    if torch.is_grad_enabled() and any(t.requires_grad for t in problem.tensors):
        return _Function.apply(run, *problem.tensors)
    with torch.no_grad():
        return run.forward(remember=False)


class DiscreteSolve:
    """One solve with all that its backward pass needs, but for the tensors that autograd looks after."""

    def __init__(self, problem, keep_graphs):
        self.problem, self.keep_graphs = problem, keep_graphs
        self.steps = []
        self.states = []
        self.end_evaluation = None

    def forward(self, *, remember=True):
        """March and fill the outputs; with remember, also the steps, states and (if kept) graphs."""
        problem = self.problem
        keep_graphs = remember and self.keep_graphs
        stepper = self._stepper(keep_graphs)
        carry = stepper.start(problem.ts[0], problem.y0, problem.slope, problem.evaluation if keep_graphs else None)
        problem.slope = problem.evaluation = None
        inner = problem.outputs_by_interpolation()
        ys = problem.y0.new_empty(len(problem.ts) - 1, problem.y0.numel())
        for step in march(
            stepper,
            problem.controller,
            carry,
            problem.ts[0],
            problem.stops,
            first_step=problem.first_step,
            limits=problem.limits,
            stats=problem.stats,
            callbacks=problem.callbacks,
        ):
            record = AcceptedStep(step.t, step.h, step.t_end, step.stop, step.after_jump)
            sign = 1.0 if step.h > 0 else -1.0
            while inner and sign * problem.ts[inner[0]] <= sign * step.t_end:
                record.outputs.append(inner.pop(0))
            if record.outputs:
                times = torch.tensor([problem.ts[i] for i in record.outputs], dtype=torch.float64)
                record.theta = (times - step.t) / step.h
                if stepper.needs_end_slope:
                    stepper.end_slope(step.trial.end)
                first = record.outputs[0] - 1
                ys[first : first + len(times)] = stepper.interpolate(step.start.y, step.h, record.theta)
            if step.stop is not None and step.stop.index is not None:
                ys[step.stop.index - 1] = step.trial.end.y
            if remember:
                record.evaluations = step.trial.evaluations
                self.steps.append(record)
                self.states.append(step.start.y)
        if remember and record.outputs:
            self.states.append(step.trial.end.y)
            self.end_evaluation = step.trial.end.evaluation
        problem.stats.n_f_evals = problem.field.n_evals
        return ys

    def backward(self, states, ys_bar):
        """Cotangents of y0 [n], of the times [m] (None unless asked) and of the captured tensors.

        :param states: states at the starts of the steps, and the last one at the end if outputs lie in the last step
        :param ys_bar: cotangents of the outputs [m - 1, n]
        """
        problem, stepper = self.problem, self._stepper(False)
        vector_field = problem.field
        gradients = GradientSum(len(vector_field.captured))
        before = vector_field.n_evals
        times_bar = torch.zeros(len(problem.ts), dtype=torch.float64) if problem.time_grad else None
        y_bar = torch.zeros_like(states[0])
        t_bar = 0.0  # of the time at the end of the step at hand
        slope_bar, evaluation = None, self.end_evaluation  # of the slope there: the next step's first stage
        self.end_evaluation = None

        def pull_slope():
            nonlocal y_bar, t_bar
            state_bar, time_bar = evaluation.vjp(slope_bar, gradients)
            if state_bar is not None:
                y_bar = y_bar + state_bar
            if time_bar is not None:
                t_bar = t_bar + float(time_bar)

        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            if step.stop is not None and step.stop.index is not None:
                y_bar = y_bar + ys_bar[step.stop.index - 1]
            own, step.evaluations = step.evaluations, None
            if own is None:
                own = stepper.replay(step.t, step.h, states[i])
            elif problem.time_grad:
                stepper.reload(own)
            start_bar = slope_bars = None
            output_time_bar = h_bar_outputs = 0.0
            if step.outputs:
                if stepper.needs_end_slope:
                    if evaluation is None:
                        evaluation = vector_field.record(step.t_end, states[i + 1], time_grad=problem.time_grad)
                    if problem.time_grad:
                        evaluation.write(stepper.slopes[-1])
                first = step.outputs[0] - 1
                start_bar, slope_bars, time_bars = stepper.interpolate_vjp(
                    step.h, step.theta, ys_bar[first : first + len(step.outputs)]
                )
                if stepper.needs_end_slope:
                    slope_bar = slope_bars[-1] if slope_bar is None else slope_bar + slope_bars[-1]
                    if problem.time_grad:
                        h_bar_outputs += float(slope_bars[-1] @ stepper.slopes[-1]) / step.h
                if problem.time_grad:
                    time_bars = time_bars.double().cpu()
                    times_bar[step.outputs] += time_bars
                    output_time_bar = float(time_bars.sum())
                    h_bar_outputs -= float((time_bars * step.theta).sum())
            if slope_bar is not None:
                pull_slope()
            y_bar, slope_bar, start_t_bar, h_bar = stepper.vjp(step.h, own, y_bar, slope_bars, gradients)
            if start_bar is not None:
                y_bar = y_bar + start_bar
            if problem.time_grad:
                start_t_bar = float(start_t_bar) - output_time_bar
                h_bar = float(h_bar) + h_bar_outputs
                if step.stop is not None:  # h = stop - t
                    if step.stop.index is not None:
                        times_bar[step.stop.index] += t_bar + h_bar
                    t_bar = start_t_bar - h_bar
                else:
                    t_bar = t_bar + start_t_bar
            evaluation = own[0]
            if step.after_jump:
                pull_slope()
                slope_bar = evaluation = None
        if slope_bar is not None:
            pull_slope()
        if times_bar is not None:
            times_bar[0] += t_bar
            times_bar = times_bar.to(problem.times)
        problem.stats.n_backward_f_evals = vector_field.n_evals - before
        return y_bar, times_bar, gradients.totals

    def traced(self, y0, times):
        """The outputs again on the accepted grid, as a graph of everything: for derivatives of the gradient."""
        problem, stepper = self.problem, self._stepper(False)
        ys, t, y, slope, pending = {}, times[0], y0, None, None
        for step in self.steps:
            h = step.h if step.stop is None or step.stop.index is None else times[step.stop.index] - t
            y1, slopes, _ = stepper.traced(t, h, y, slope)
            slope = slopes[-1] if problem.tableau.fsal else None
            if step.outputs and stepper.needs_end_slope and slope is None:
                slope = problem.field.traced(t + h, y1)
                slopes.append(slope)
            for i, value in zip(
                step.outputs, stepper.traced_interpolate(t, h, y, slopes, [times[j] for j in step.outputs])
            ):
                ys[i] = value
            t, y = t + h, y1
            if step.stop is not None:
                if step.stop.index is not None:
                    ys[step.stop.index] = y
                if step.stop.jump:
                    slope = None
        return torch.stack([ys[i] for i in range(1, len(problem.ts))])

    def _stepper(self, keep_graphs):
        problem = self.problem
        return RungeKutta(problem.tableau, problem.field, keep_graphs=keep_graphs, time_grad=problem.time_grad)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, y0, times, *captured):
        ys = run.forward()
        ctx.run = run
        ctx.n_inputs = 2 + len(captured)
        # with autograd, so that the states go when the graph goes
        ctx.save_for_backward(y0, times, *captured, *run.states)
        run.states = None
        return ys

    @staticmethod
    def backward(ctx, ys_bar):
        run, saved = ctx.run, ctx.saved_tensors
        inputs, states = saved[: ctx.n_inputs], saved[ctx.n_inputs :]
        with run.problem.field.side_effects.replay():
            if torch.is_grad_enabled():
                return None, *_differentiable(run, inputs, ys_bar)
            y_bar, times_bar, captured_bars = run.backward(states, ys_bar)
        return None, y_bar, times_bar, *captured_bars


def _differentiable(run, inputs, ys_bar):
    """The same cotangents as functions of everything (create_graph=True): the accepted grid runs again with a graph."""
    before = run.problem.field.n_evals
    ys = run.traced(inputs[0], inputs[1])
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(ys, wanted, ys_bar, create_graph=True, allow_unused=True))
    run.problem.stats.n_backward_f_evals = run.problem.field.n_evals - before
    return [next(found) if t.requires_grad else None for t in inputs]
