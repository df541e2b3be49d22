"""`naive`: ordinary back-propagation through everything the adaptive solver does, its step-size search included.

What the ACA paper compares with: each step size is a function of the error ratios before it, so the graph goes through
every try, rejected ones too, and grows to depth O(N_f N_t m) for m tries per step. Its own short loop, with the
controller inside the graph. The very first step size is a constant, and so are all where func hides its time from
autograd: the end of a step moves with its size, and func with its time. (torchdiffeq's `odeint` left the step size out
of its graph in August 2020 and is close to `direct` since.)
"""

from typing import Any

import torch
from torch import Tensor

from ..controller import FixedSteps, all_finite
from ..errors import NonFiniteError, SolverError
from ..march import check_limits, lands
from ..problem import Problem, explain
from ..steppers.base import Stepper
from .discrete import aca


def naive(problem: Problem) -> tuple[Tensor, Any]:
    """States at the times of the problem after the first [m - 1, n], an ordinary graph of everything; no trajectory."""
    if not torch.is_grad_enabled() and not problem.transformed:
        return aca(problem)  # the same steps, in less time
    ys, field = [], problem.field
    stepper = problem.method.stepper(field)
    try:
        with field.without_cut():
            _march(problem, stepper, ys)
    except SolverError as error:
        explain(error, stepper)
        if not problem.return_on_failure:
            raise
        problem.failure, problem.n_solved = error, len(ys)
    finally:
        stepper.report(problem.stats)
    problem.finish()
    return torch.stack(ys) if ys else problem.y0.new_empty(0, problem.y0.numel()), None


def _march(problem: Problem, stepper: Stepper, ys: list[Tensor]) -> None:
    """Append the outputs to ys."""
    controller: Any = problem.controller
    field, stats, times = problem.field, problem.stats, problem.times.double().unbind()
    fixed = isinstance(controller, FixedSteps)
    span = abs(problem.ts[-1] - problem.ts[0])
    t, y, after_jump = times[0], problem.y0, problem.starts_at_jump
    slope, problem.slope = problem.slope, None
    size: Any = torch.tensor(problem.first_step, dtype=torch.float64, device=t.device)
    previous: Any = 1.0
    origin, n_fixed = t, 0
    for stop in problem.stops:
        given = torch.tensor(stop.t, dtype=torch.float64, device=t.device)
        target = given if stop.index is None else times[stop.index]
        while t.item() != stop.t:
            prepared, rejected, finite = False, False, True
            while True:
                landing = lands(t.item(), stop.t, size.item())
                h = target - t if landing else field.direction * size
                t_end = target if landing else origin + (n_fixed + 1) * h if fixed else t + h
                jump = problem.perturb or (landing and stop.jump)
                problem.callbacks.step(t.item(), y, h.item())
                if not prepared:
                    slope = stepper.traced_start(t, y, slope, after_jump=after_jump)
                    prepared, mark = True, stepper.mark()
                check_limits(
                    t.item(), h.item(), span, field.n_evals, stats, problem.limits, rejected=rejected, finite=finite
                )
                made = stepper.traced(t, h, y, t_end, slope, before_jump=jump)
                if fixed:
                    if controller.check_finite and not all_finite(made.y.detach()):
                        raise NonFiniteError(t.item(), h.item(), stats.n_accepted, field.n_evals)
                    break
                ratio = controller.error_ratio(made.error, y, made.y).double()
                if ratio.item() == 0.0 or not problem.differentiates_sizes:  # a norm has no second derivative at 0
                    ratio = ratio.detach()
                verdict = controller.judge(ratio, previous, size, h, landing=landing, rejected=rejected)
                if verdict.accepted:
                    size, previous = verdict.proposed, verdict.previous
                    break
                if verdict.at_minimum:
                    raise NonFiniteError(t.item(), h.item(), stats.n_accepted, field.n_evals)
                problem.callbacks.reject(t.item(), y, h.item())
                stats.n_rejected += 1
                rejected, finite, size = True, verdict.finite, verdict.proposed
                stepper.rewind(mark)
            if landing and stop is problem.stops[-1] and not fixed and not all_finite(made.y.detach()):
                raise NonFiniteError(t.item(), h.item(), stats.n_accepted, field.n_evals)
            stats.n_accepted += 1
            problem.callbacks.accept(t.item(), y, h.item())
            n_fixed += 1
            if landing:
                origin, n_fixed = t_end, 0
            if stepper.needs_end_slope and problem.has_output_within(t_end.item()):
                made = stepper.with_end_slope(made, t_end, before_jump=jump)
                problem.check_end_slope(stepper, made.slopes[-1].detach(), t_end.item(), h.item())
            outputs = problem.outputs_within(t_end.item())
            ys += stepper.traced_interpolate(t, h, y, made.slopes, [times[i] for i in outputs])
            if problem.recorder is not None:
                problem.recorder.methods.append(stepper.current)
            stepper.accepted()
            after_jump = jump
            t, y, slope = t_end, made.y, None if jump else made.end_slope
            if landing and stop.index is not None:
                ys.append(y)
