"""Sets up a solve of a joint state: its `Problem`, of what was asked, with func evaluated at the start."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .callbacks import NO_CALLBACKS
from .controller import FixedSteps
from .errors import NonFiniteError
from .evaluation import Evaluation
from .hidden import with_hidden_as_constants
from .jacobian import Jacobian
from .linearisation import check_differentiable_twice
from .march import Stop, next_step
from .plan import Plan, checked
from .problem import Problem, stops_of
from .record import Recorder
from .rows.layout import with_rows_outermost
from .settings import checked_times
from .solver_options import SolverOptions
from .state import StateLayout
from .steppers.base import LINEARISE
from .tableau import Tableau
from .transforms import check_transform, forward_ad_disabled, under_transform
from .vector_field import VectorField


class _FirstSlope(NamedTuple):
    """What func gives where a solve begins, as `Problem` has it."""

    slope: Tensor | None
    evaluation: Evaluation | None = None
    may_hide: bool = False


def problem_of(
    func: Callable, y0: Any, t: Any, asked: SolverOptions, *, autocast: Callable | None = None, stream: Any = None,
    whole: bool = False,
) -> tuple[Problem, StateLayout]:  # fmt: skip
    """The `Problem` that `solve` with these `SolverOptions` hands to its gradient method, and the `StateLayout` of y0.

    func has been evaluated at the start, and at a second point where the first step was not given; not where generated
    code of the whole solve does so.

    :param autocast: context for func alone (None: none)
    :param stream: where the random streams stand at the start, of a func that is known to draw from them (None: as
        they are, and it is not known)
    :param whole: for `integrate` of the gradient method, up to the last of its times, and not for another use. For a
        solve whose end is not known yet, whether func hides its time is left to find out by then
    """
    by_rows = asked.jac_structure == "rows"
    layout = StateLayout(with_rows_outermost(y0, "jac_structure='rows'") if by_rows else y0)
    plan = checked(asked, layout)
    settings, options = plan.settings, plan.settings.options
    times, ts = checked_times(t, layout)
    transformed = under_transform()
    if transformed:
        check_transform(asked.gradient, plan.params)
    compile_options = None if transformed else plan.compile_options
    flat, stops = layout.initial(y0), _stops(ts, options)
    differentiable = torch.is_grad_enabled() and not transformed
    fixed, linearises = isinstance(settings.controller, FixedSteps), LINEARISE in settings.method.abilities
    perturb, jumps = bool(options.get("perturb")), frozenset(options.get("jump_t", ()))
    starts_at_jump = perturb or ts[0] in jumps
    called_first = fixed and _call_first(plan, ts[0], stops[0], flat, gradients=differentiable)
    # so that no slope from before a callback is taken for the one behind it, and times stay what they are
    perturbs_for_callback = called_first and not perturb and isinstance(settings.method, Tableau)
    code, known = None, None
    if compile_options is not None and callable(func):
        from .compilation.start import start  # here, since Dynamo takes a second to import

        plain = not (starts_at_jump or times.requires_grad or plan.params is not None)
        code, known = start(
            func, layout, autocast, ts, flat.detach(), asked, plan, plain=plain, alone=whole,
            time_grad=times.requires_grad,
        )  # fmt: skip
    field = VectorField(
        func, layout, 1 if ts[-1] > ts[0] else -1, plan.params, autocast,
        found=None if known is None else code.reach(), code=code, jacobian=Jacobian(layout, asked.jac, by_rows=by_rows),
    )  # fmt: skip
    if perturbs_for_callback:
        field.jumps = jumps
    if stream is not None:
        field.side_effects.restart(stream)
    slope_is_traced = asked.gradient == "naive" and (differentiable or transformed)
    start_side, size = int(starts_at_jump), settings.first_step
    if known is not None:
        slope, size = known
        first = _FirstSlope(slope)
        field.n_evals = 0 if slope is None else 2
    elif slope_is_traced:
        first = _traced_slope(field, flat, times, start_side, transformed=transformed, fixed=fixed)
    else:
        first = _recorded_slope(
            field, flat, times, ts[0], start_side, plan, gradients=differentiable, compiles=compile_options is not None
        )
    if first.slope is not None:
        if options.get("check_finite", True):
            _check_finite(first.slope, ts[0], field.n_evals)
        if size is None:
            size = _initial_step(settings.controller, field, ts, flat.detach(), first.slope.detach())
    recorder = Recorder() if asked.record else None
    sources = [x for x in (flat, times, *field.captured.candidates) if x.requires_grad and asked.gradient != "adjoint"]
    callbacks = plan.callbacks.guarded(gradients=differentiable, sources=sources)
    if called_first:
        callbacks = callbacks.but_for_first()
    problem = Problem(
        field,
        flat,
        times,
        ts,
        settings.method,
        settings.controller,
        size,
        stops,
        first.slope,
        first.evaluation,
        dense=asked.dense,
        adjoint=plan.adjoint,
        memory=plan.memory,
        compile_options=compile_options,
        compile_loop=plan.compile_loop,
        transformed=transformed,
        starts_at_jump=starts_at_jump,
        perturb=perturb or perturbs_for_callback,
        slope_is_traced=slope_is_traced,
        differentiates_sizes=slope_is_traced and not fixed,
        may_hide=first.may_hide,
        limits=plan.limits,
        callbacks=callbacks if recorder is None else recorder.around(callbacks),
        recorder=recorder,
        return_on_failure=asked.on_failure == "return",
    )
    if linearises and asked.gradient != "adjoint" and problem.differentiable:
        with torch.no_grad():
            check_differentiable_twice(field, ts[0], flat.detach(), side=start_side)
    return with_hidden_as_constants(problem) if whole else problem, layout


def _call_first(plan: Plan, t0: float, stop: Stop, y0: Tensor, *, gradients: bool) -> bool:
    """Call the callback of the first of fixed steps, if there is one, before func: it may change func."""
    callbacks = plan.callbacks
    if callbacks.step is NO_CALLBACKS.step:
        return False
    _, h, _ = next_step(t0, stop.t, plan.settings.first_step, t0)
    callbacks.guarded(gradients=gradients).step(t0, y0.clone(), h)
    return True


def _traced_slope(
    field: VectorField, y0: Tensor, times: Tensor, side: int, *, transformed: bool, fixed: bool
) -> _FirstSlope:
    """In autograd's own graph."""
    asks = y0.requires_grad or times.requires_grad or bool(field.captured.candidates)
    watch = asks and not fixed and not transformed
    slope, may_hide = field.first_traced(times[0].double(), y0, side=side, watch=watch)
    return _FirstSlope(slope, None, may_hide or transformed)  # under a transform nobody knows


def _recorded_slope(
    field: VectorField, y0: Tensor, times: Tensor, t0: float, side: int, plan: Plan, *, gradients: bool, compiles: bool
) -> _FirstSlope:
    """With a graph of its own, if gradients may be wanted."""
    measures = plan.memory.wants_size_of_graphs or LINEARISE in plan.settings.method.abilities
    with torch.no_grad(), forward_ad_disabled():
        slope, evaluation = field.first_evaluation(
            t0,
            y0.detach(),
            differentiable=gradients,
            asked=y0.requires_grad or times.requires_grad,
            time_grad=times.requires_grad,
            measure=measures and not compiles and not under_transform(),
            numbers=compiles,
            side=side,
        )
    if field.code is not None:
        from .compilation.start import check

        check(field)
    return _FirstSlope(slope, evaluation)


def _check_finite(slope: Tensor, t0: float, n_evals: int) -> None:
    if not math.isfinite(slope.detach().sum()) and not bool(torch.isfinite(slope).all()):
        raise NonFiniteError(t0, 0.0, 0, n_evals, what=NonFiniteError.of_first_slope)


def _stops(ts: list[float], options: dict[str, Any]) -> list[Stop]:
    step_t, jump_t, grid = (options.get(name, []) for name in ("step_t", "jump_t", "grid"))
    if grid and (grid[0] != ts[0] or grid[-1] != ts[-1]):
        raise ValueError(f"grid must go from t[0] = {ts[0]:g} to t[-1] = {ts[-1]:g}, got {grid[0]:g} to {grid[-1]:g}")
    return stops_of(ts, land_on_outputs=options.get("land_on_t", False), step_t=step_t + grid, jump_t=jump_t)


def _initial_step(controller: Any, field: VectorField, ts: list[float], y0: Tensor, slope: Tensor) -> float:
    mark = field.side_effects.mark()

    def evaluate(t: float, y: Tensor) -> Tensor:
        k = torch.empty_like(y)
        field(t, y, k)
        return k

    with torch.no_grad(), forward_ad_disabled():
        size = controller.initial_step(evaluate, ts[0], ts[-1], y0, slope)
    field.side_effects.rewind(mark)
    return size
