"""`solve`: checks what was asked, sets the problem up and hands it to a gradient method."""

import contextlib
import math
from collections.abc import Mapping

import torch
from torch.utils import _pytree as pytree

from .errors import NonFiniteError, SolverError
from .gradients.adjoint import AdjointSettings, adjoint
from .gradients.discrete import aca, direct
from .gradients.mali import mali
from .gradients.naive import naive
from .linearisation import check_differentiable_twice
from .march import Limits, Stats
from .notices import shown
from .problem import Problem, stops_of
from .rosenbrock_tableaus import RosenbrockTableau
from .scipy_solver import Scipy
from .settings import (
    SCIPY_OPTIONS,
    checked_callbacks,
    checked_compile,
    checked_max_evals,
    checked_memory,
    checked_params,
    checked_settings,
    checked_times,
)
from .side_effects import DrawsLate
from .solution import DenseOutput, Solution
from .state import StateLayout
from .transforms import check_transform, explained, forward_ad_disabled, under_transform
from .vector_field import VectorField, ambient_autocast, without_autocast

_OF_THE_TIMES = ("norm", "step_t", "jump_t", "land_on_t", "perturb", "interp")  # not for the backward solve
_ADJOINT_SETTINGS = ("rtol", "atol", "method", "h", "options", "callbacks")
GRADIENT_METHODS = {"aca": aca, "direct": direct, "naive": naive, "adjoint": adjoint, "mali": mali}


def solve(
    func,
    y0,
    t,
    *,
    method=None,
    rtol=1e-5,
    atol=1e-6,
    h=None,
    gradient="aca",
    options=None,
    max_evals=500_000,
    dense=False,
    on_failure="raise",
    callbacks=None,
    adjoint=None,
    params=None,
    memory=None,
    compile=False,
):
    """Solve y' = func(t, y), y(t[0]) = y0, and return y at all of t, differentiable in y0, t and all that func uses.

    :param func: func(t, y) -> dy/dt, nested and shaped like y; t is a 0-d tensor. A module, function or any callable
    :param y0: initial state: a tensor of any shape, or a tuple, list or dict of tensors; floating point or complex
    :param t: output times [m], m >= 2, strictly increasing or decreasing: tensor, array or sequence of floats and 0-d
        tensors
    :param method: one of `METHODS` (any case); None: ALF for gradient="mali", Dopri5 otherwise. With
        gradient="adjoint" also scipy_solver (options: solver, scipy's name, default LSODA; first_step, min_step,
        max_step)
    :param rtol, atol: tolerances of adaptive methods (floats, or nested like y0 and broadcastable to it)
    :param h: step size (positive) of fixed-step methods; first step of adaptive ones (None: Hairer's rule)
    :param gradient: one of `GRADIENTS`. ``aca``: exact for the discrete solution; remembers the accepted states and
        evaluates each step again in the backward pass. ``direct``: the same gradient; keeps the graphs of the accepted
        steps. ``naive``: the graph goes through the step-size search as well. ``adjoint``: continuous adjoint, solved
        backwards. ``mali``: reversible leapfrog, memory independent of the number of steps
    :param options: dict of first_step (as h), step_size (fixed steps, with any method), max_num_steps, min_step,
        max_step, safety, ifactor, dfactor, beta (PI controller), norm (state -> 0-d tensor), step_t (times to land on),
        jump_t (times where func jumps), land_on_t (True: land on every output time instead of interpolating), grid
        (fixed steps between these times, t[0] to t[-1]), perturb (fixed steps: evaluate func just inside each step),
        check_finite (fixed steps: False carries infinity and NaN on instead of raising), interp ("linear" or "cubic"
        instead of the method's own dense output). Sizes are positive: t gives the direction
    :param max_evals: evaluations of func after which the solve gives up
    :param dense: keep what is needed to call the solution at other times (``aca`` and ``direct``)
    :param on_failure: "raise", or "return": a `Solution` of the part that was solved, with its ``error`` set
    :param callbacks: `Callbacks`
    :param adjoint: for gradient="adjoint": dict of rtol, atol, method, h, options and callbacks of the backward solve
        (default: as forward); ``options={"norm": "seminorm"}`` leaves the parameters out of its error norm, a function
        there gets the tuple (a 0-d zero, leaves of the state, their cotangents, those of what func uses)
    :param params: only these tensors, besides y0 and t, get gradients (None: all that func uses)
    :param memory: for gradient="aca": a size such as "512MiB" for states and, with the room that they leave, graphs of
        accepted steps (faster); "unlimited"; or a number of states, fewer than steps (less memory, slower). None: every
        state, no graph. The gradient is the same. The graph's size is taken from the first evaluation
    :param compile: for gradient="aca": `torch.compile` the step, func included, and its VJP: seconds to minutes at the
        first solve with a func, method, shape and dtype, then several times faster where func is small. Or a mode of
        `torch.compile`, such as "reduce-overhead" (CUDA graphs), or a dict of its options. No graphs are kept then,
        whatever ``memory`` leaves room for. A func that cannot be compiled is evaluated as it is, with a warning
    :returns: `Solution` with ts [m], ys (leaves [m, *shape]) and stats
    :raises ValueError, TypeError: arguments that cannot be used
    :raises SolverError: no solution up to t[-1]: `NonFiniteError`, `StepSizeUnderflowError`, `TooManyEvaluationsError`
    """
    try:
        problem, layout, (ys, trajectory) = _solved(
            func,
            y0,
            t,
            method=method,
            rtol=rtol,
            atol=atol,
            h=h,
            gradient=gradient,
            options=options,
            max_evals=max_evals,
            dense=dense,
            on_failure=on_failure,
            callbacks=callbacks,
            adjoint=adjoint,
            params=params,
            memory=memory,
            compile=compile,
        )
    except SolverError as error:
        if on_failure == "raise":
            raise
        return _unsolved(y0, t, error)
    ys = torch.cat([problem.y0[None], ys])
    solution = Solution(problem.times[: len(ys)], layout.unflatten(ys), problem.stats, error=problem.failure)
    if trajectory is not None:
        solution.dense = DenseOutput(trajectory, layout)
    return solution


def _unsolved(y0, t, error):
    """What there is of a solution whose first step, or first evaluation, failed."""
    times, _ = checked_times(t, StateLayout(y0))
    return Solution(
        times[:1], pytree.tree_map(lambda leaf: leaf[None], y0), Stats(n_f_evals=error.n_f_evals), error=error
    )


def solve_endtime(func, y0, t0, t1, **keywords):
    """y(t1) alone, shaped like y0, and the `Stats`; t0 and t1 floats or 0-d tensors, keywords as for `solve`, but for
    dense and on_failure.
    """
    for name in ("dense", "on_failure"):
        if name in keywords:
            raise TypeError(f"{name} is for solve; solve_endtime returns the state at t1 alone")
    times = (t0, t1)
    if any(isinstance(t, torch.Tensor) for t in times):
        times = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in times])
    problem, layout, (ys, _) = _solved(func, y0, times, **keywords)
    return layout.unflatten(ys.squeeze(0)), problem.stats


def _solved(*arguments, **keywords):
    """The `Problem`, the `StateLayout` and what the gradient method made of them; a break in a graph that
    `torch.compile` makes of what is around it."""
    if torch.compiler.is_dynamo_compiling():
        return _outside_of_graphs(_solved, *arguments, **keywords)
    return _solve(*arguments, **keywords)


def _outside_of_graphs(function, *arguments, **keywords):
    return torch.compiler.disable(function)(*arguments, **keywords)


_outside_of_graphs._torchdynamo_disable = True


def _solve(func, y0, t, *, gradient="aca", integrate=None, **keywords):
    leaves, stream = pytree.tree_leaves(y0), None
    device_type = leaves[0].device.type if leaves and isinstance(leaves[0], torch.Tensor) else "cpu"
    autocast = ambient_autocast(device_type)
    with without_autocast(device_type), explained() if under_transform() else contextlib.nullcontext():
        while True:
            problem, layout = problem_of(func, y0, t, gradient=gradient, autocast=autocast, stream=stream, **keywords)
            try:
                return problem, layout, (integrate or GRADIENT_METHODS[gradient])(problem)
            except DrawsLate as late:
                stream = late.start
            except SolverError:
                with contextlib.suppress(DrawsLate):
                    problem.field.side_effects.finish()
                raise


def problem_of(
    func,
    y0,
    t,
    *,
    method=None,
    rtol=1e-5,
    atol=1e-6,
    h=None,
    gradient="aca",
    options=None,
    max_evals=500_000,
    dense=False,
    on_failure="raise",
    callbacks=None,
    adjoint=None,
    params=None,
    memory=None,
    compile=False,
    autocast=None,
    stream=None,
):
    """The `Problem` that `solve` with these arguments hands to its gradient method, and the `StateLayout` of y0.

    func has been evaluated at the start, and at a second point where the first step was not given.

    :param autocast: context for func alone (None: none)
    :param stream: where the random streams stand at the start, of a func that is known to draw from them (None: as
        they are, and it is not known)
    """
    layout = StateLayout(y0)
    settings = checked_settings(method, gradient, rtol, atol, h, options, layout)
    times, ts = checked_times(t, layout)
    options = settings.options
    if on_failure not in ("raise", "return"):
        raise ValueError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    if dense and gradient not in ("aca", "direct"):
        raise ValueError(f"dense=True needs gradient='aca' or 'direct', got {gradient!r}")
    budget = checked_memory(memory, gradient)
    transformed = under_transform()
    if transformed:
        check_transform(gradient)
    compile_options = None if transformed else checked_compile(compile, gradient, settings.method)
    limits = Limits(checked_max_evals(max_evals), options.get("max_num_steps", Limits.max_steps))
    callbacks = checked_callbacks(callbacks)
    backward = _adjoint_settings(adjoint, gradient, method, rtol, atol, h, options, layout)

    params = None if params is None else checked_params(params)
    field = VectorField(func, layout, direction=1 if ts[-1] > ts[0] else -1, params=params, autocast=autocast)
    if stream is not None:
        field.side_effects.restart(stream)
    flat = layout.flatten(y0)
    differentiable = torch.is_grad_enabled() and not transformed
    linearises = isinstance(settings.method, RosenbrockTableau)
    perturb = bool(options.get("perturb"))
    starts_at_jump = perturb or ts[0] in options.get("jump_t", ())
    if gradient == "naive" and (differentiable or transformed):
        slope, evaluation = field.first_traced(times[0].double(), flat, side=int(starts_at_jump)), None
    else:
        with torch.no_grad(), forward_ad_disabled():
            slope, evaluation = field.first_evaluation(
                ts[0],
                flat.detach(),
                differentiable=differentiable,
                time_grad=times.requires_grad,
                measure=not transformed and (budget.wants_size_of_graphs or linearises) and compile_options is None,
                numbers=compile_options is not None,
                side=int(starts_at_jump),
            )
    check_finite = options.get("check_finite", True)
    if check_finite and not math.isfinite(slope.detach().sum()) and not bool(torch.isfinite(slope).all()):
        raise NonFiniteError(ts[0], 0.0, 0, field.n_evals, what="func returned infinity or NaN for the initial state")
    size = settings.first_step
    if size is None:
        size = _initial_step(settings.controller, field, ts, flat.detach(), slope.detach())
    problem = Problem(
        field,
        flat,
        times,
        ts,
        settings.method,
        settings.controller,
        size,
        _stops(ts, options),
        slope,
        evaluation,
        dense=dense,
        adjoint=backward,
        memory=budget,
        compile_options=compile_options,
        transformed=transformed,
        starts_at_jump=starts_at_jump,
        perturb=perturb,
        limits=limits,
        callbacks=callbacks,
        return_on_failure=on_failure == "return",
    )
    if linearises and gradient != "adjoint" and problem.differentiable:
        with torch.no_grad():
            check_differentiable_twice(field, ts[0], flat.detach(), side=int(starts_at_jump))
    return problem, layout


def _adjoint_settings(adjoint, gradient, method, rtol, atol, h, options, layout):
    if not isinstance(adjoint, Mapping | None):
        raise TypeError(f"adjoint must be a dict, got {shown(adjoint)}")
    if gradient != "adjoint":
        if adjoint:
            raise ValueError(f"settings of the adjoint were given, but gradient is {gradient!r}")
        return None
    unknown = sorted(set(adjoint or {}) - set(_ADJOINT_SETTINGS))
    if unknown:
        accepted = ", ".join(_ADJOINT_SETTINGS)
        raise ValueError(f"unknown setting of the adjoint {', '.join(unknown)}; accepted: {accepted}")
    chosen = {"method": method, "rtol": rtol, "atol": atol, "options": None, "h": h} | dict(adjoint or {})
    callbacks = checked_callbacks(chosen.get("callbacks"))
    if chosen["options"] is None:
        chosen["options"] = {name: value for name, value in options.items() if name not in _OF_THE_TIMES}
        if Scipy.name in (method, chosen["method"]) and method != chosen["method"]:  # what both sides know
            chosen["options"] = {name: options[name] for name in SCIPY_OPTIONS[1:] if name in options}
    if not isinstance(chosen["options"], Mapping):
        raise TypeError(f"options of the adjoint must be a dict, got {shown(chosen['options'])}")
    options = dict(chosen["options"])
    norm = options.pop("norm", None)
    if norm not in (None, "seminorm") and not callable(norm):
        raise ValueError(f"the norm of the adjoint must be 'seminorm', a function or left out, got {shown(norm)}")
    settings = checked_settings(
        chosen["method"], gradient, chosen["rtol"], chosen["atol"], chosen["h"], options, layout
    )
    if isinstance(settings.method, RosenbrockTableau):
        raise ValueError(
            f"the backward solve of gradient='adjoint' takes explicit methods and scipy_solver, got "
            f"{settings.method.name}: give adjoint={{'method': ...}}, or use gradient='aca'"
        )
    grid = tuple(settings.options.get("grid", ()))
    return AdjointSettings(settings.method, settings.controller, settings.first_step, norm, grid, callbacks)


def _stops(ts, options):
    step_t, jump_t, grid = (options.get(name, []) for name in ("step_t", "jump_t", "grid"))
    if grid and (grid[0] != ts[0] or grid[-1] != ts[-1]):
        raise ValueError(f"grid must go from t[0] = {ts[0]:g} to t[-1] = {ts[-1]:g}, got {grid[0]:g} to {grid[-1]:g}")
    return stops_of(ts, land_on_outputs=options.get("land_on_t", False), step_t=step_t + grid, jump_t=jump_t)


def _initial_step(controller, field, ts, y0, slope):
    mark = field.side_effects.mark()

    def evaluate(t, y):
        k = torch.empty_like(y)
        field(t, y, k)
        return k

    with torch.no_grad(), forward_ad_disabled():
        size = controller.initial_step(evaluate, ts[0], ts[-1], y0, slope)
    field.side_effects.rewind(mark)
    return size
