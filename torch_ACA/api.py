"""`solve`: checks what was asked, sets the problem up and hands it to a gradient method."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .autocast import ambient_autocast, without_autocast
from .callbacks import NO_CALLBACKS
from .controller import FixedSteps
from .errors import NonFiniteError, SolverError
from .few_steps import few_steps
from .gradients.adjoint import adjoint
from .gradients.discrete import aca, direct
from .gradients.mali import mali
from .gradients.naive import naive
from .hidden import with_hidden_as_constants
from .jacobian import Jacobian
from .linearisation import check_differentiable_twice
from .march import Stats, Stop, next_step
from .option_checks import check_arguments
from .plan import checked
from .private_torch import pytree
from .problem import Problem, StartOver, stops_of
from .record import Recorder
from .rows.layout import with_rows_outermost
from .rows.problem import RowProblem, problem_of_rows
from .rows.solve import aca_of_rows
from .settings import checked_times
from .side_effects import DrawsLate
from .solution import DenseOutput, Solution
from .solver_options import SolverOptions, outside_of_graphs, takes_options
from .state import StateLayout
from .steppers.base import LINEARISE
from .tableau import Tableau
from .transforms import check_tracing, check_transform, explained, forward_ad_disabled, under_transform
from .vector_field import VectorField

GRADIENT_METHODS = {"aca": aca, "direct": direct, "naive": naive, "adjoint": adjoint, "mali": mali}


@takes_options()
def solve(func: Callable, y0: Any, t: Any, **keywords: Any) -> Solution:
    """Solve y' = func(t, y), y(t[0]) = y0, and return y at all of t, differentiable in y0, t and all that func uses.

    :param func: func(t, y) -> dy/dt, nested and shaped like y; t is a 0-d tensor. A module, function or any callable
    :param y0: initial state: a tensor of any shape, or a tuple, list or dict of tensors; floating point or complex
    :param t: output times [m], m >= 2, strictly increasing or decreasing: tensor, array or sequence of floats and 0-d
        tensors; with per_sample also a tensor [b, m]
    :param keywords: options as in `SolverOptions`
    :returns: `Solution` with ts [m], ys (leaves [m, *shape]) and stats
    :raises ValueError: an argument that cannot be used
    :raises TypeError: an argument of the wrong type
    :raises SolverError: no solution up to t[-1]: `NonFiniteError`, `StepSizeUnderflowError`, `TooManyEvaluationsError`
    """
    asked = SolverOptions(**keywords)
    short = _short(func, y0, t, asked, end_only=False)
    if short is not None:
        return Solution(short.times, short.ys, short.stats)
    try:
        problem, layout, (ys, trajectory) = _solved(func, y0, t, asked)
    except SolverError as error:
        if asked.on_failure == "raise" or asked.per_sample:  # rows have errors of their own, this one is of func itself
            raise
        return _unsolved(y0, t, error)
    first = layout.flatten(y0) if problem.times_are_hidden else problem.y0
    ys = torch.cat([first[None], ys])
    if isinstance(problem, RowProblem):
        failure, errors = problem.failures.error(), tuple(problem.failures.errors)
        return Solution(problem.given_times, layout.unflatten(ys), problem.stats, error=failure, row_errors=errors)
    ts = problem.given_times if problem.failure is None else problem.given_times[: len(ys)]
    solution = Solution(ts, layout.unflatten(ys), problem.stats, error=problem.failure)
    if problem.recorder is not None:
        solution.record = problem.recorder.record(problem, layout, ys[1:])
    if trajectory is not None:
        solution.dense = DenseOutput(trajectory, layout)
    return solution


def _unsolved(y0: Any, t: Any, error: SolverError) -> Solution:
    """What there is of a solution whose first step, or first evaluation, failed."""
    times, _ = checked_times(t, StateLayout(y0))
    return Solution(
        times[:1], pytree.tree_map(lambda leaf: leaf[None], y0), Stats(n_f_evals=error.n_f_evals), error=error
    )


@takes_options(without=("dense", "on_failure", "record"))
def solve_endtime(
    func: Callable, y0: Any, t0: float | torch.Tensor, t1: float | torch.Tensor, **keywords: Any
) -> tuple[Any, Stats]:
    """y(t1) alone, shaped like y0, and the `Stats`; t0 and t1 are floats or 0-d tensors, with per_sample also [b].

    :param keywords: options as in `SolverOptions`
    """
    times: Any = (t0, t1)
    if any(isinstance(t, torch.Tensor) for t in times):
        times = torch.broadcast_tensors(*(torch.as_tensor(t, dtype=torch.float64, device="cpu") for t in times))
        times = torch.stack(times, -1)
    asked = SolverOptions(**keywords)
    short = _short(func, y0, times, asked, end_only=True)
    if short is not None:
        return short.end, short.stats
    problem, layout, (ys, _) = _solved(func, y0, times, asked)
    return layout.unflatten(ys.squeeze(0)), problem.stats


def _short(func: Callable, y0: Any, t: Any, asked: SolverOptions, *, end_only: bool) -> Any:
    """``times``, ``ys`` (or ``end`` alone) and ``stats`` of a solve that needs no `Problem`; None: it needs one."""
    if not asked.compile:
        return few_steps(func, y0, t, asked)
    if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing():
        return None
    from .compilation.one_call import one_call  # here, since Dynamo takes a second to import

    return one_call(func, y0, t, asked, end_only=end_only)


def _solved(
    func: Callable, y0: Any, t: Any, asked: SolverOptions, integrate: Callable | None = None
) -> tuple[Problem, StateLayout, Any]:
    """The `Problem`, the `StateLayout` and what the gradient method made of them; a break in a graph that
    `torch.compile` makes of what is around it.

    :param asked: `SolverOptions`
    :param integrate: what to do with the problem (None: what the gradient method does)
    """
    if torch.compiler.is_dynamo_compiling():
        return outside_of_graphs(_solved, func, y0, t, asked, integrate)
    check_tracing(asked.gradient, asked.per_sample)
    try:
        return _solve(func, y0, t, asked, integrate)
    except TypeError:
        check_arguments(func, "func(t, y)", asked.args)
        if callable(asked.jac):
            check_arguments(asked.jac, "jac(t, y)", asked.args)
        raise


def _solve(
    func: Callable, y0: Any, t: Any, asked: SolverOptions, integrate: Callable | None
) -> tuple[Problem, StateLayout, Any]:
    leaves, stream, whole = pytree.tree_leaves(y0), None, integrate is None
    device_type = leaves[0].device.type if leaves and isinstance(leaves[0], torch.Tensor) else "cpu"
    autocast = ambient_autocast(device_type)
    with without_autocast(device_type), explained() if under_transform() else contextlib.nullcontext():
        while True:
            if asked.per_sample:
                problem, layout = problem_of_rows(func, y0, t, asked, autocast=autocast, stream=stream, whole=whole)
            else:
                problem, layout = problem_of(func, y0, t, asked, autocast=autocast, stream=stream, whole=whole)
            try:
                if integrate is not None:
                    return problem, layout, integrate(problem)
                ys, trajectory = aca_of_rows(problem) if asked.per_sample else GRADIENT_METHODS[asked.gradient](problem)
                return problem, layout, (problem.moved_to_times(ys), trajectory)
            except DrawsLate as late:
                stream = late.start
            except StartOver:
                pass
            except SolverError:
                with contextlib.suppress(DrawsLate):
                    problem.field.side_effects.finish()
                if not asked.compile or asked.on_failure == "raise":
                    raise
                asked = replace(asked, compile=False)  # a compiled loop has nothing to return


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
    layout, gradient = StateLayout(with_rows_outermost(y0, "jac_structure='rows'") if by_rows else y0), asked.gradient
    plan = checked(asked, layout)
    settings, options = plan.settings, plan.settings.options
    times, ts = checked_times(t, layout)
    transformed = under_transform()
    if transformed:
        check_transform(gradient, plan.params)
    compile_options = None if transformed else plan.compile_options
    perturb = bool(options.get("perturb"))
    starts_at_jump = perturb or ts[0] in options.get("jump_t", ())
    flat, code, started = layout.initial(y0), None, None
    differentiable, fixed = torch.is_grad_enabled() and not transformed, isinstance(settings.controller, FixedSteps)
    stops = _stops(ts, options)
    called_first = fixed and plan.callbacks.step is not NO_CALLBACKS.step
    if called_first:  # it may change func
        _, h, _ = next_step(ts[0], stops[0].t, settings.first_step, ts[0])
        plan.callbacks.guarded(gradients=differentiable).step(ts[0], flat.clone(), h)
    only_by_callback = called_first and not perturb and isinstance(settings.method, Tableau)
    perturb |= only_by_callback  # so that no slope from before is taken for the one after
    if compile_options is not None and callable(func):
        from .compilation.start import check, start  # here, since Dynamo takes a second to import

        plain = not (starts_at_jump or times.requires_grad or plan.params is not None)
        code, started = start(
            func, layout, autocast, ts, flat.detach(), asked, plan, plain=plain, alone=whole,
            time_grad=times.requires_grad,
        )  # fmt: skip
    found = None if started is None else code.reach()
    direction = 1 if ts[-1] > ts[0] else -1
    field = VectorField(
        func, layout, direction, plan.params, autocast, found=found, code=code,
        jacobian=Jacobian(layout, asked.jac, by_rows=by_rows),
    )  # fmt: skip
    if only_by_callback:
        field.jumps = frozenset(options.get("jump_t", ()))
    if stream is not None:
        field.side_effects.restart(stream)
    linearises = LINEARISE in settings.method.abilities
    measure = not transformed and compile_options is None and (plan.memory.wants_size_of_graphs or linearises)
    slope_is_traced = gradient == "naive" and (differentiable or transformed)
    asks = transformed or flat.requires_grad or times.requires_grad or bool(field.captured.candidates)
    may_hide = transformed
    slope: torch.Tensor | None
    size: float | None
    if started is not None:
        slope, size = started
        evaluation, field.n_evals = None, 2 * (slope is not None)
    elif slope_is_traced:
        of_sizes = not fixed and differentiable and asks
        start_time, side = times[0].double(), int(starts_at_jump)
        slope, seen = field.first_traced(start_time, flat, side=side, watch=of_sizes)
        evaluation, may_hide = None, may_hide or seen
    else:
        with torch.no_grad(), forward_ad_disabled():
            slope, evaluation = field.first_evaluation(
                ts[0],
                flat.detach(),
                differentiable=differentiable,
                asked=flat.requires_grad or times.requires_grad,
                time_grad=times.requires_grad,
                measure=measure,
                numbers=compile_options is not None,
                side=int(starts_at_jump),
            )
        if code is not None:
            check(field)
    if slope is not None:
        check_finite = options.get("check_finite", True)
        if check_finite and not math.isfinite(slope.detach().sum()) and not bool(torch.isfinite(slope).all()):
            raise NonFiniteError(ts[0], 0.0, 0, field.n_evals, what=NonFiniteError.of_first_slope)
    if started is None:
        size = settings.first_step
        if size is None:
            size = _initial_step(settings.controller, field, ts, flat.detach(), slope.detach())
    recorder = Recorder() if asked.record else None
    sources = [x for x in (flat, times, *field.captured.candidates) if x.requires_grad and gradient != "adjoint"]
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
        slope,
        evaluation,
        dense=asked.dense,
        adjoint=plan.adjoint,
        memory=plan.memory,
        compile_options=compile_options,
        compile_loop=plan.compile_loop,
        transformed=transformed,
        starts_at_jump=starts_at_jump,
        perturb=perturb,
        slope_is_traced=slope_is_traced,
        differentiates_sizes=slope_is_traced and not fixed,
        may_hide=may_hide,
        limits=plan.limits,
        callbacks=callbacks if recorder is None else recorder.around(callbacks),
        recorder=recorder,
        return_on_failure=asked.on_failure == "return",
    )
    if linearises and gradient != "adjoint" and problem.differentiable:
        with torch.no_grad():
            check_differentiable_twice(field, ts[0], flat.detach(), side=int(starts_at_jump))
    return with_hidden_as_constants(problem) if whole else problem, layout


def _stops(ts: list[float], options: dict[str, Any]) -> list[Stop]:
    step_t, jump_t, grid = (options.get(name, []) for name in ("step_t", "jump_t", "grid"))
    if grid and (grid[0] != ts[0] or grid[-1] != ts[-1]):
        raise ValueError(f"grid must go from t[0] = {ts[0]:g} to t[-1] = {ts[-1]:g}, got {grid[0]:g} to {grid[-1]:g}")
    return stops_of(ts, land_on_outputs=options.get("land_on_t", False), step_t=step_t + grid, jump_t=jump_t)


def _initial_step(controller: Any, field: VectorField, ts: list[float], y0: torch.Tensor, slope: torch.Tensor) -> float:
    mark = field.side_effects.mark()

    def evaluate(t: float, y: torch.Tensor) -> torch.Tensor:
        k = torch.empty_like(y)
        field(t, y, k)
        return k

    with torch.no_grad(), forward_ad_disabled():
        size = controller.initial_step(evaluate, ts[0], ts[-1], y0, slope)
    field.side_effects.rewind(mark)
    return size
