"""Events: solve until a function of the state crosses zero, differentiable in everything by the implicit function
theorem.

The crossing is located without gradients on the dense output of the step in which the sign changes. A solve that
lands on it then carries the gradients, and one Newton step, whose value is zero up to the tolerance, gives the event
time its own: dt/dp = -(dg/dp) / (dg/dt along the solution) (Chen, Amos and Nickel, ICLR 2021).
"""

import math

import torch
from scipy.optimize import brentq
from torch.utils import _pytree as pytree

from .api import problem_of, solve
from .errors import TooManyEvaluationsError
from .steppers.runge_kutta import RungeKutta

_FAR = 1e10  # no event lies beyond: the search ends at max_evals long before


def solve_event(func, y0, t0, event_fn, *, reverse_time=False, **keywords):
    """Solve from t0 until event_fn(t, y) crosses zero.

    :param event_fn: event_fn(t, y) -> tensor; with several entries the first to cross ends the solve. An entry that is
        zero at t0 counts once it has left zero and crosses again
    :param reverse_time: search backwards from t0
    :param keywords: as for `solve`; adaptive and fixed-step methods both work
    :returns: event time (0-d) and the states (y0 and at the event: leaves [2, *shape]), both differentiable once
    :raises TooManyEvaluationsError: no event within max_evals
    """
    t0 = torch.as_tensor(t0, dtype=torch.float64)
    with torch.no_grad():
        found = _search(func, y0, t0.item(), event_fn, -_FAR if reverse_time else _FAR, keywords)
    times = torch.stack([t0, t0.new_tensor(found)])
    if found == t0.item():
        raise ValueError("the event lies at t0 itself")
    solution = solve(func, y0, times, **keywords)
    if not torch.is_grad_enabled():
        return times[1], solution.ys
    start = pytree.tree_map(lambda leaf: leaf[0], solution.ys)
    end = pytree.tree_map(lambda leaf: leaf[1], solution.ys)
    leaves, structure = pytree.tree_flatten(end)
    event_t = times[1].detach()
    with torch.no_grad():
        slopes = pytree.tree_leaves(func(event_t.to(_real(leaves[0])), end))
    values = event_fn(event_t, end).reshape(-1)
    first = int(values.detach().abs().argmin())
    rate = _rate(event_fn, event_t, leaves, structure, slopes, first)
    event_t = event_t - values[first] / rate
    moved = [leaf + slope * (event_t - event_t.detach()).to(leaf.dtype) for leaf, slope in zip(leaves, slopes)]
    both = pytree.tree_map(lambda a, b: torch.stack([a, b]), start, pytree.tree_unflatten(moved, structure))
    return event_t, both


def _search(func, y0, t0, event_fn, t_end, keywords):
    problem, layout = problem_of(func, y0, (t0, t_end), **keywords)
    stepper = RungeKutta(problem.tableau, problem.field)

    def value(t, flat):
        time = torch.tensor(t, dtype=layout.dtype, device=layout.device)
        return event_fn(time, layout.unflatten(flat)).reshape(-1).double()

    signs = torch.sign(value(t0, problem.y0))
    carry = stepper.start(t0, problem.y0, problem.slope)
    problem.slope = None
    try:
        for step in problem.march(stepper, carry):
            end = torch.sign(value(step.t_end, step.trial.end.y))
            crossed = (signs != 0) & (end != signs)
            if bool(crossed.any()):
                if stepper.needs_end_slope:
                    stepper.end_slope(step.trial.end)
                return min(_root(stepper, step, value, int(i)) for i in crossed.nonzero())
            signs = torch.where(signs == 0, end, signs)
    except TooManyEvaluationsError as error:
        error.add_hint("No event was met so far.")
        raise
    raise ValueError(f"no event between t = {t0:g} and {t_end:g}")


def _root(stepper, step, value, index):
    """Time in the step at which entry index of the event crosses zero, on the dense output."""

    def at(theta):
        weights = stepper.interpolation_weights(torch.tensor([theta], dtype=torch.float64))
        state = stepper.interpolate(step.start.y, step.h, weights)[0]
        return float(value(step.t + theta * step.h, state)[index])

    start, end = at(0.0), at(1.0)
    if start == 0.0 or math.copysign(1.0, start) == math.copysign(1.0, end):
        return step.t_end if start != 0.0 else step.t
    return step.t + brentq(at, 0.0, 1.0, xtol=1e-15, rtol=8.9e-16) * step.h


def _rate(event_fn, t, leaves, structure, slopes, index):
    """d(event)/dt along the solution, a number without a graph."""
    with torch.enable_grad():
        t = t.clone().requires_grad_()
        inputs = [leaf.detach().requires_grad_() for leaf in leaves]
        value = event_fn(t, pytree.tree_unflatten(inputs, structure)).reshape(-1)[index]
        bars = torch.autograd.grad(value, [t, *inputs], allow_unused=True)
    rate = 0.0 if bars[0] is None else float(bars[0])
    for bar, slope in zip(bars[1:], (slope.detach() for slope in slopes)):
        if bar is not None:
            rate += float((bar.conj() * slope).real.sum())
    if rate == 0.0:
        raise ValueError("the solution touches the event without crossing it: its time has no gradient")
    return rate


def _real(leaf):
    return leaf.real.dtype if leaf.is_complex() else leaf.dtype
