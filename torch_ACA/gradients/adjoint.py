"""`adjoint`: the continuous adjoint (Chen et al., NeurIPS 2018), solved backwards in time together with the state.

a' = -a^T df/dy and theta_bar' = -a^T df/dtheta run from each output time to the one before, the state again beside them
from its value there. Optimise-then-discretise: the gradient of neither the discrete nor the exact solution, and the
state that is solved backwards drifts off the one that was solved forwards (section 3 of the ACA paper). Memory: the
outputs and the graph of one f. Cost: like the forward solve, with a VJP at every evaluation, rejected tries included.
"""

from dataclasses import dataclass

import torch

from ..controller import Controller, FixedSteps, rms_norm
from ..march import Callbacks, Stop, march
from ..side_effects import NO_SIDE_EFFECTS
from ..steppers.runge_kutta import RungeKutta
from ..tableaus import Tableau
from ..vector_field import GradientSum
from .discrete import DiscreteSolve
from .replay import Replay
from .second_order import no_second_derivatives
from .storage import STATES_ONLY


@dataclass(frozen=True)
class AdjointSettings:
    """Solver of the backward pass. ``seminorm`` leaves the parameters' part out of the error norm (Kidger et al.
    2021).
    """

    tableau: Tableau
    controller: Controller | FixedSteps
    first_step: float | None
    seminorm: bool = False
    callbacks: Callbacks = Callbacks()  # they get the state's part of the augmented vector


def adjoint(problem):
    """States at the times of the problem after the first [m - 1, n], differentiable once in ``problem.tensors``; no
    trajectory."""
    # the backward solve repeats nothing that could be compared, but func itself can be: at the start
    replay = Replay(problem.field.layout)
    slope = replay.sample(problem.slope)
    with torch.no_grad():
        ys, *_ = DiscreteSolve(problem, STATES_ONLY).forward(remember=False)
    problem.finish()
    if problem.differentiable:
        ys = _Function.apply(problem, replay, slope, [ys], *problem.tensors)
    return ys, None


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, problem, replay, slope, results, y0, times, *captured):
        ctx.problem, ctx.replay, ctx.slope = problem, replay, slope
        ctx.save_for_backward(*results, y0, times, *captured)
        return results[0]

    @staticmethod
    def backward(ctx, ys_bar):
        ys, *inputs = ctx.saved_tensors
        problem, y0 = ctx.problem, inputs[0].detach()
        with torch.no_grad(), problem.backward_pass():
            slope = torch.empty_like(y0)
            problem.field(problem.ts[0], y0, slope, side=int(problem.starts_at_jump))
            ctx.replay.compare_state(slope, ctx.slope, torch.zeros_like(slope), problem.ts[0])
            ctx.replay.conclude()
            bars = _backward(problem, y0, ys, ys_bar)
        return None, None, None, None, *no_second_derivatives("adjoint", bars, [ys_bar, *inputs])


def _backward(problem, y0, ys, ys_bar):
    """Cotangents of y0, of the times and of the captured tensors."""
    field, n = problem.field, len(y0)
    captured = field.captured.tensors
    settings = problem.adjoint
    augmented = _AugmentedField(field)
    before = field.n_evals
    times_bar = torch.zeros(len(problem.ts), dtype=torch.float64)
    controller, size = settings.controller, settings.first_step
    if isinstance(controller, Controller):
        controller = controller.with_norm(augmented.norm(settings.seminorm))
    callbacks = Callbacks(
        **{name: _of_state(callback, n) for name, callback in vars(settings.callbacks).items()}
    )
    state = ys.new_zeros(augmented.layout.size)
    slope = torch.empty_like(y0)
    jumps = [problem.ts[0]] * problem.starts_at_jump + [stop.t for stop in problem.stops if stop.jump]
    for k in range(len(ys), 0, -1):
        state[:n] = ys[k - 1]
        if problem.time_grad:
            field(problem.ts[k], ys[k - 1], slope, side=-int(problem.ts[k] in jumps))
            times_bar[k] += float(ys_bar[k - 1] @ slope)
        state[n : 2 * n] += ys_bar[k - 1]
        t, t_end = problem.ts[k], problem.ts[k - 1]
        stepper = RungeKutta(settings.tableau, augmented)
        k1 = torch.empty_like(state)
        augmented(t, state, k1, side=int(t in jumps))
        if size is None:
            size = controller.initial_step(augmented.slope, t, t_end, state, k1)
        inside = [jump for jump in reversed(jumps) if min(t, t_end) < jump < max(t, t_end)]
        steps = march(
            stepper,
            controller,
            stepper.start(t, state, k1),
            t,
            [*(Stop(jump, jump=True) for jump in inside), Stop(t_end, jump=t_end in jumps)],
            first_step=size,
            perturb=problem.perturb,
            limits=problem.limits,
            callbacks=callbacks,
        )
        for step in steps:
            size = step.proposed  # the last one is a good first size for the interval before
        state = step.trial.end.y.clone()
    a = state[n : 2 * n]
    if problem.time_grad:
        field(problem.ts[0], y0, slope, side=int(problem.starts_at_jump))
        times_bar[0] -= float(a @ slope)
    problem.stats.n_backward_f_evals = field.n_evals - before
    captured_bars = [
        piece.view(tensor.shape) if not tensor.is_complex() else torch.view_as_complex(piece.view(*tensor.shape, 2))
        for piece, tensor in zip(state[2 * n :].split(augmented.sizes), captured)
    ]
    captured_bars = [bar.to(tensor.dtype) for bar, tensor in zip(captured_bars, captured)]
    return [a, times_bar.to(problem.times) if problem.time_grad else None, *captured_bars]


def _of_state(callback, n):
    return lambda t, state, h: callback(t, state[:n], h)


@dataclass(frozen=True)
class _FlatLayout:
    size: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def target(flat):
        return flat


class _AugmentedField:
    """Derivative of (y, a, theta_bar) with respect to time, as a vector field for the Runge-Kutta stepper."""

    side_effects = NO_SIDE_EFFECTS

    def __init__(self, field):
        self.field = field
        self.n = field.layout.size
        self.sizes = [t.numel() * (2 if t.is_complex() else 1) for t in field.captured.tensors]
        self.layout = _FlatLayout(2 * self.n + sum(self.sizes), field.layout.dtype, field.layout.device)
        self.n_evals = 0

    def __call__(self, t, state, out, side=0):
        n = self.n
        self.n_evals += 1
        evaluation = self.field.record(t, state[:n], out[:n], side=-side)
        gradients = GradientSum(len(self.sizes))
        a_slope, _ = evaluation.vjp(-state[n : 2 * n], gradients)
        if a_slope is None:
            out[n : 2 * n].zero_()
        else:
            out[n : 2 * n].copy_(a_slope)
        for piece, total in zip(out[2 * n :].split(self.sizes), gradients.totals):
            if total is None:
                piece.zero_()
            else:
                piece.copy_((torch.view_as_real(total) if total.is_complex() else total).reshape(-1))

    def slope(self, t, state):
        out = torch.empty_like(state)
        self(t, state, out)
        return out

    def norm(self, seminorm):
        """The largest of the RMS norms of the parts; the seminorm leaves the parameters out."""
        n = self.n

        def mixed(x):
            parts = [x[:n], x[n : 2 * n]] if seminorm else [x[:n], x[n : 2 * n], x[2 * n :]]
            return torch.stack([rms_norm(part) for part in parts]).amax()

        return mixed
