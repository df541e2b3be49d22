"""Sets up a solve whose rows take their own steps, as `set_up.problem_of` does one of a joint state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..hidden import hides_time, warn_of_hidden_time
from ..linearisation import check_differentiable_twice
from ..plan import checked
from ..problem import Problem
from ..state import StateLayout
from ..steppers.base import LINEARISE
from ..transforms import check_no_transform
from .active import ActiveRows, Choice, checked_args
from .controller import RowController
from .failures import RowFailures
from .field import RowField
from .jacobian import RowJacobian
from .layout import RowLayout, with_rows_outermost
from .stepper import side_of
from .ties import Point, RowTies
from .times import RowTimes, checked_row_times

if TYPE_CHECKING:
    from ..plan import Plan
    from ..solver_options import SolverOptions


@dataclass
class RowProblem(Problem):
    """A `Problem` of rows that take their own steps: its ``row_times`` stand for ``ts`` and ``stops``, ``first_step``
    is [b], ``controller`` a `RowController`; ``failures`` says which rows have failed, ``ties`` (`RowTies`) whether
    func mixes them."""

    field: RowField
    method: Any  # one with `ROWS`
    controller: Any
    first_step: Any
    stops: Any
    row_times: RowTimes | None = None
    failures: RowFailures | None = None
    ties: RowTies | None = None

    def compiled_run(self) -> Any:
        """A `RowLoopSolve`, where the loop over tries is to be compiled and can be; or None."""
        if self.compile_options is None:
            return None
        from ..compilation.row_loop_solve import row_loop_solve

        return row_loop_solve(self)


def problem_of_rows(
    func: Callable, y0: Any, t: Any, asked: SolverOptions, *, autocast: Callable | None = None, stream: Any = None,
    whole: bool = False,
) -> tuple[RowProblem, StateLayout]:  # fmt: skip
    """The `RowProblem` of a solve, and the `StateLayout` of y0.

    func has been evaluated at the start, which has shown whether it mixes rows, and at a second point where the first
    step was not given.

    :param autocast, stream, whole: as for `set_up.problem_of`
    """
    plan: Any  # whose controller is a `Controller`
    check_no_transform("per_sample")
    y0 = with_rows_outermost(y0)
    layout = StateLayout(y0)
    plan, rows = checked(asked, layout), RowLayout(layout)
    times, row_times = checked_row_times(t, layout, rows.count, plan.settings.options)
    jac, choice = asked.jac, Choice()
    if asked.args is not None:
        args = checked_args(asked.args, rows.count)
        func, jac = ActiveRows(func, args), None if jac is None else ActiveRows(jac, args)
        choice = Choice([func] if jac is None else [func, jac])
    field = RowField(
        func, layout, rows, choice, direction=row_times.direction, params=plan.params, autocast=autocast,
        jacobian=RowJacobian(layout, jac),
    )  # fmt: skip
    if stream is not None:
        field.side_effects.restart(stream)
    flat = layout.initial(y0)
    differentiable, start = torch.is_grad_enabled(), flat.detach()
    side, linearises = side_of(row_times.starts_at_jump, 1.0), LINEARISE in plan.settings.method.abilities
    failures = RowFailures(row_times.start, plan.settings.method)
    compiles = plan.compile_options is not None and rows.count > 0
    apart = compiles and _shown_apart(field, row_times, start, plan, times.requires_grad)
    with torch.no_grad():
        slope, evaluation = field.first_evaluation(
            row_times.start, start, differentiable=differentiable, time_grad=True, side=side,
            asked=flat.requires_grad or times.requires_grad,
            measure=linearises or (plan.memory.wants_size_of_graphs and (times.requires_grad or "graph")),
        )  # fmt: skip
        if not (apart or torch.is_inference_mode_enabled()):
            with field.no_trace():
                if evaluation is None:  # func may take its state as numbers: then its values have to tell
                    with contextlib.suppress(ValueError):
                        evaluation = field.record(row_times.start, start, time_grad=True, side=side)
                if evaluation is not None:
                    field.check_rows(evaluation)
        ties = field.ties(apart)
        ties.look_at_start(Point(row_times.start, start, rows.rows(slope), side), row_times.end)
        with field.no_trace():
            choice.check(field, row_times.start, start, slope, side)
        slope = _without_failed(failures, field, row_times.start, slope)
        if failures and asked.on_failure == "raise":
            raise failures.error()
        controller = RowController(plan.settings.controller, rows)
        size = plan.settings.first_step
        if size is None:
            size = _initial_step(controller, field, row_times, start, slope)
        else:
            size = torch.full_like(row_times.start, size)
    problem = RowProblem(
        field, flat, times, [None] * (row_times.outputs.shape[1] + 1), plan.settings.method, controller, size, (),
        slope, evaluation, memory=plan.memory, compile_options=plan.compile_options, limits=plan.limits,
        return_on_failure=asked.on_failure == "return", row_times=row_times, failures=failures,
        ties=ties,
    )  # fmt: skip
    if linearises and problem.differentiable:
        with torch.no_grad():
            check_differentiable_twice(field, row_times.start, start, side=side)
    if whole:
        check_time_of(problem, row_times)
    return problem, layout


def _shown_apart(field: RowField, times: RowTimes, y: Tensor, plan: Plan, time_grad: bool) -> bool:
    """Whether what is compiled shows that rows do not depend on each other; func gets its `Code`."""
    from ..compilation.row_loop_start import are_apart, row_code  # here, since Dynamo takes a second to import

    field.code = row_code(field, times.start, y, plan, time_grad=time_grad)
    return are_apart(field, times.start, y)


def check_time_of(problem: RowProblem, times: RowTimes) -> None:
    """Refuse a func that hides its time from autograd if there are gradients in times, else warn of a method that needs
    its derivative by time.

    :param times: of the solve, whose ends are known
    """
    ends: list[Any]  # [b] each
    linearises, side = LINEARISE in problem.method.abilities, side_of(times.starts_at_jump, 1.0)
    by_time = torch.is_grad_enabled() and problem.times.requires_grad
    if torch.is_inference_mode_enabled() or not (by_time or linearises):
        return
    with torch.no_grad():
        y, slope, ends = problem.y0.detach(), problem.slope.detach(), [times.start, times.end]
        step = problem.field.rows.spread((times.direction * problem.first_step).to(y))
        hidden = hides_time(problem.field, ends, y, slope, side, problem.evaluation, partly=by_time, step=step)
    if hidden:
        if by_time:
            raise ValueError(
                "per_sample gives no gradient in times where func hides its time from autograd (it detaches it, or "
                "takes it as a number): detach t, or let func compute with its time"
            )
        warn_of_hidden_time(problem.method)


def _without_failed(failures: RowFailures, field: RowField, t: Tensor, slope: Tensor) -> Tensor:
    """The slope at the start, 0 for rows where it is not finite, which have failed."""
    infinite = ~torch.isfinite(field.rows.rows(slope)).all(1)
    if not bool(infinite.any()):
        return slope
    what = NonFiniteError.of_first_slope
    none = torch.zeros_like(t)
    failures.add(NonFiniteError, infinite, t, none, none, field.n_evals, what=what)
    return torch.where(field.rows.spread(infinite), 0.0, slope)


def _initial_step(controller: RowController, field: RowField, times: RowTimes, y0: Tensor, slope: Tensor) -> Tensor:
    mark = field.side_effects.mark()
    size = controller.initial_step(field.slope, times.start, times.end, y0, slope)
    field.side_effects.rewind(mark)
    return size
