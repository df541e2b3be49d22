"""`solve`: checks what was asked, sets the problem up and hands it to a gradient method."""

import math

import torch
from torch.utils import _pytree as pytree

from .controller import Controller, FixedSteps
from .errors import NonFiniteError
from .gradients.discrete import aca, direct
from .march import Callbacks, Limits
from .problem import Problem, stops_of
from .solution import Solution
from .state import StateLayout
from .tableaus import TABLEAUS
from .vector_field import VectorField

METHODS = tuple(TABLEAUS)
FIXED_STEP_METHODS = tuple(name for name, tableau in TABLEAUS.items() if not tableau.adaptive)
GRADIENTS = ("aca", "direct", "naive", "adjoint", "mali")

_INTEGRATE = {"aca": aca, "direct": direct}
_BY_LOWER_NAME = {name.lower(): tableau for name, tableau in TABLEAUS.items()}
_CONTROLLER_OPTIONS = ("safety", "ifactor", "dfactor", "beta", "min_step", "max_step", "norm")
_OPTIONS = (*_CONTROLLER_OPTIONS, "first_step", "step_size", "max_num_steps", "step_t", "jump_t", "land_on_t")


def solve(
    func, y0, t, *, method=None, rtol=1e-5, atol=1e-6, h=None, gradient="aca", options=None, max_evals=500_000
):
    """Solve y' = func(t, y), y(t[0]) = y0, and return y at all of t, differentiable.

    :param func: func(t, y) -> dy/dt, nested and shaped like y; t is a 0-d tensor. A module, function or any callable
    :param y0: initial state: a tensor of any shape, or a tuple, list or dict of tensors; floating point or complex
    :param t: output times [m], m >= 2, strictly increasing or decreasing: tensor or sequence of floats
    :param method: one of `METHODS` (any case); default Dopri5
    :param rtol, atol: tolerances of adaptive methods (floats, or nested like y0 and broadcastable to it)
    :param h: step size of fixed-step methods; first step of adaptive ones (None: Hairer's rule)
    :param gradient: one of `GRADIENTS`: ``aca`` remembers accepted states and recomputes steps in the backward pass;
        ``direct`` keeps the graphs of the accepted steps. Both give the exact gradient of the discrete solution with
        respect to y0, t and every tensor that func uses
    :param options: dict of first_step or step_size (as h), max_num_steps, min_step, max_step, safety, ifactor, dfactor,
        beta (PI controller), norm (state -> 0-d tensor), step_t (times to land on), jump_t (times where func jumps),
        land_on_t (land on every output time instead of interpolating)
    :param max_evals: evaluations of func after which the solve gives up
    :returns: `Solution` with ts [m], ys (leaves [m, *shape]) and stats
    :raises ValueError, TypeError: arguments that cannot be used
    :raises SolverError: no solution up to t[-1]: `NonFiniteError`, `StepSizeUnderflowError`, `TooManyEvaluationsError`
    """
    tableau = _tableau(method)
    integrate = _gradient_method(gradient)
    options = _checked_options(options)
    layout = StateLayout(y0)
    times, ts = _checked_times(t, layout)
    size = _step_size(h, options, tableau)
    controller = _controller(tableau, size, rtol, atol, options, layout)

    field = VectorField(func, layout)
    flat = layout.flatten(y0)
    slope, evaluation = field.first_evaluation(ts[0], flat.detach(), differentiable=torch.is_grad_enabled())
    if evaluation is not None and not times.requires_grad:
        evaluation.time = None
    if not bool(torch.isfinite(slope).all()):
        raise NonFiniteError(ts[0], 0.0, 0, field.n_evals, what="func returned infinity or NaN for the initial state")
    if size is None:
        size = _initial_step(controller, field, ts, flat.detach(), slope)
    problem = Problem(
        field,
        flat,
        times,
        ts,
        tableau,
        controller,
        size,
        stops_of(
            ts,
            land_on_outputs=options.get("land_on_t", False),
            step_t=_floats(options.get("step_t", ())),
            jump_t=_floats(options.get("jump_t", ())),
        ),
        slope,
        evaluation,
        limits=Limits(max_evals, options.get("max_num_steps", Limits.max_steps)),
        callbacks=Callbacks(),
    )
    ys = torch.cat([flat[None], integrate(problem)])
    return Solution(times, layout.unflatten(ys), problem.stats)


def solve_endtime(func, y0, t0, t1, **keywords):
    """y(t1) alone, shaped like y0, and the `Stats`; keywords as for `solve`."""
    solution = solve(func, y0, (t0, t1), **keywords)
    return pytree.tree_map(lambda leaf: leaf[-1], solution.ys), solution.stats


def check_solver(*, method=None, rtol=1e-5, atol=1e-6, h=None, gradient="aca", options=None):
    """Raise the ValueError that `solve` would raise for these settings, before there is anything to solve."""
    tableau = _tableau(method)
    _gradient_method(gradient)
    _step_size(h, _checked_options(options), tableau)
    for name, value in (("rtol", rtol), ("atol", atol)):
        _check_tolerance(name, value)


def _tableau(method):
    name = "Dopri5" if method is None else method
    tableau = _BY_LOWER_NAME.get(name.lower()) if isinstance(name, str) else None
    if tableau is None:
        raise ValueError(f"unknown method {method!r}; accepted: {', '.join(METHODS)}")
    return tableau


def _gradient_method(gradient):
    if gradient not in GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}; accepted: {', '.join(GRADIENTS)}")
    if gradient not in _INTEGRATE:
        raise ValueError(f"gradient {gradient!r} is not available yet; available: {', '.join(_INTEGRATE)}")
    return _INTEGRATE[gradient]


def _checked_options(options):
    options = dict(options or {})
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; accepted: {', '.join(_OPTIONS)}")
    return options


def _checked_times(t, layout):
    times = t if isinstance(t, torch.Tensor) else torch.tensor([float(value) for value in t], dtype=torch.float64)
    if times.dim() != 1 or len(times) < 2:
        raise ValueError(f"t must be 1-D with at least two times, got shape {tuple(times.shape)}")
    if not times.is_floating_point():
        times = times.to(layout.dtype)
    ts = times.detach().double().tolist()
    if not all(math.isfinite(value) for value in ts):
        raise ValueError(f"t must be finite, got {ts}")
    steps = [b - a for a, b in zip(ts, ts[1:])]
    if not (all(s > 0 for s in steps) or all(s < 0 for s in steps)):
        raise ValueError("t must be strictly increasing or strictly decreasing")
    return times, ts


def _step_size(h, options, tableau):
    given = [value for value in (h, options.get("first_step"), options.get("step_size")) if value is not None]
    if len(given) > 1:
        raise ValueError("give one of h, first_step and step_size, not several")
    if not given:
        if not tableau.adaptive:
            raise ValueError(f"{tableau.name} takes fixed steps: give the step size h")
        return None
    size = abs(float(given[0]))
    if not (math.isfinite(size) and size > 0):
        raise ValueError(f"the step size h must be a finite number other than 0, got {given[0]}")
    return size


def _controller(tableau, size, rtol, atol, options, layout):
    if not tableau.adaptive:
        return FixedSteps(size)
    keywords = {name: options[name] for name in _CONTROLLER_OPTIONS if name in options}
    if "norm" in keywords:
        norm = keywords["norm"]
        keywords["norm"] = lambda flat: norm(layout.unflatten(flat))
    return Controller(
        _tolerance("rtol", rtol, layout), _tolerance("atol", atol, layout), tableau.error_order, **keywords
    )


def _tolerance(name, value, layout):
    """A float, or a flat vector from what is nested like the state."""
    _check_tolerance(name, value)
    if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.dim() == 0):
        return float(value)
    parts = pytree.tree_leaves(value)
    if len(parts) not in (1, len(layout.leaves)):
        raise ValueError(f"{name} must be a number or nested like y0, got {len(parts)} parts for {len(layout.leaves)}")
    parts = parts * (len(layout.leaves) // len(parts))
    return torch.cat([leaf.spread(part, layout) for leaf, part in zip(layout.leaves, parts)])


def _check_tolerance(name, value):
    for part in pytree.tree_leaves(value):
        if isinstance(part, torch.Tensor) and part.requires_grad:
            raise ValueError(f"{name} must not require grad")
        values = torch.as_tensor(part, dtype=torch.float64)
        if not bool((torch.isfinite(values) & (values >= 0)).all()):
            raise ValueError(f"{name} must be finite and not negative, got {value}")


def _initial_step(controller, field, ts, y0, slope):
    mark = field.side_effects.mark()

    def evaluate(t, y):
        k = torch.empty_like(y)
        field(t, y, k)
        return k

    size = controller.initial_step(evaluate, ts[0], ts[-1], y0, slope)
    field.side_effects.rewind(mark)
    return size


def _floats(times):
    return torch.as_tensor(times, dtype=torch.float64).reshape(-1).tolist()
