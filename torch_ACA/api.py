"""`solve`: checks what was asked, sets the problem up and hands it to a gradient method."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .autocast import ambient_autocast, without_autocast
from .errors import SolverError
from .few_steps import few_steps
from .gradients.adjoint import adjoint
from .gradients.discrete import aca, direct
from .gradients.mali import mali
from .gradients.naive import naive
from .march import Stats
from .option_checks import check_arguments
from .private_torch import pytree
from .problem import Problem, StartOver
from .rows.problem import RowProblem, problem_of_rows
from .rows.solve import aca_of_rows
from .set_up import problem_of
from .settings import checked_times
from .side_effects import DrawsLate
from .solution import DenseOutput, Solution
from .solver_options import SolverOptions, outside_of_graphs, takes_options
from .state import StateLayout
from .transforms import check_tracing, explained, under_transform

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
    problem: Any  # a `RowProblem`, or another
    leaves, stream, whole = pytree.tree_leaves(y0), None, integrate is None
    usual = bool(leaves) and isinstance(leaves[0], torch.Tensor) and not leaves[0].is_meta  # else refused later on
    device_type = leaves[0].device.type if usual else "cpu"
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
