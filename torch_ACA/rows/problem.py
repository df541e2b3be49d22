"""Sets up a solve whose rows take their own steps, as `api.problem_of` does one of a joint state."""

import torch

from ..errors import NonFiniteError, TransformError
from ..hidden_time import hides_time
from ..option_checks import times_of
from ..plan import checked
from ..problem import Problem
from ..settings import checked_times
from ..state import StateLayout
from ..transforms import under_transform
from .controller import RowController
from .field import RowField
from .layout import RowLayout, with_rows_outermost


def problem_of_rows(func, y0, t, asked, *, autocast=None, stream=None):
    """The `Problem` of a solve by rows, and the `StateLayout` of y0. Its ``ts`` are the columns of the times, tensors
    [b] in float64; ``first_step`` is [b]; ``controller`` a `RowController`.

    func has been evaluated at the start, once more to see whether it mixes rows, and at a second point where the first
    step was not given.

    :param autocast, stream: as for `api.problem_of`
    """
    if under_transform():
        raise TransformError("per_sample does not go through torch.func and forward-mode AD: use backward()")
    y0 = with_rows_outermost(y0)
    layout = StateLayout(y0)
    plan, rows = checked(asked, layout), RowLayout(layout)
    times = _checked_times(t, layout, rows.count)
    columns = times.detach().to(layout.device, torch.float64).expand(rows.count, -1).unbind(1)
    field = RowField(func, layout, rows, params=plan.params, autocast=autocast)
    if stream is not None:
        field.side_effects.restart(stream)
    flat = layout.flatten(y0)
    differentiable, start = torch.is_grad_enabled(), flat.detach()
    with torch.no_grad():
        slope, evaluation = field.first_evaluation(
            columns[0], start, differentiable=differentiable, time_grad=times.requires_grad
        )
        if not torch.is_inference_mode_enabled():
            _check_func(field, columns, start, slope, hides=differentiable and times.requires_grad)
        _check_finite(field, columns[0], slope)
        controller = RowController(plan.settings.controller, rows)
        size = plan.settings.first_step
        if size is None:
            size = _initial_step(controller, field, columns, start, slope)
        else:
            size = torch.full_like(columns[0], size)
    problem = Problem(
        field, flat, times, list(columns), plan.settings.method, controller, size, (), slope, evaluation,
        limits=plan.limits,
    )  # fmt: skip
    return problem, layout


def _checked_times(t, layout, count):
    """Times as a tensor [m] or [b, m].

    :raises ValueError, TypeError: as `checked_times`; rows of times that run in different directions
    """
    times = times_of("t", t)
    if times.dim() != 2:
        return checked_times(times, layout)[0]
    if len(times) != count:
        raise ValueError(f"t must be [m] or [b, m] with b = {count} rows as in y0, got shape {tuple(times.shape)}")
    checked_rows = [checked_times(row, layout) for row in times]
    if len({ts[-1] > ts[0] for _, ts in checked_rows}) > 1:
        raise ValueError("t must run in the same direction in all rows")
    return times if times.is_floating_point() else times.to(layout.dtype)


def _check_func(field, columns, y, slope, *, hides):
    """Refuse a func that mixes rows and, if ``hides``, one that hides its time from autograd."""
    with field.side_effects.replay():
        evaluation = field.record(columns[0], y, time_grad=True)
        if hides and hides_time(field, columns, y, slope, 0, evaluation):
            raise ValueError(
                "per_sample gives no gradient in times where func hides its time from autograd (it detaches it, or "
                "takes it as a number): detach t, or let func compute with its time"
            )
        field.check_rows(evaluation)


def _check_finite(field, t, slope):
    finite = torch.isfinite(field.rows.rows(slope)).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero()[:, 0].tolist()
        what = f"rows {shown_rows(bad)}: func returned infinity or NaN for the initial state"
        raise NonFiniteError(float(t[bad[0]]), 0.0, 0, field.n_evals, what=what)


def shown_rows(rows):
    """Numbers of rows, as a message names them: the first ten."""
    return ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")


def _initial_step(controller, field, columns, y0, slope):
    mark = field.side_effects.mark()

    def evaluate(t, y):
        k = torch.empty_like(y)
        field(t, y, k)
        return k

    size = controller.initial_step(evaluate, columns[0], columns[-1], y0, slope)
    field.side_effects.rewind(mark)
    return size
