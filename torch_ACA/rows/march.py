"""The loop over tries, in which every row stands at its own time."""

import torch

from ..errors import NonFiniteError, StepSizeUnderflowError, TooManyEvaluationsError
from ..march import Stop, lands
from ..problem import explain
from ..steppers.runge_kutta import RungeKutta
from .problem import shown_rows

_EPS = 2.0**-52


def march_rows(stepper, controller, ts, y, slope, *, first_step, limits, stats, accept):
    """Take every row from the first of its times to the last; returns the states there [size].

    :param stepper: `RowStepper`
    :param controller: `RowController`
    :param ts: times, list of [b]
    :param y, slope: state and slope at the start [size]
    :param first_step: sizes [b]
    :param stats: ``n_accepted`` and ``n_rejected`` become [b]
    :param accept: accept(accepted [b], t, h, y, t_end, y_end, slopes), after a try in which rows were accepted
    :raises SolverError: as soon as a row fails
    """
    field, rows, effects = stepper.field, stepper.rows, stepper.field.side_effects
    end, fsal = Stop(ts[-1]), stepper.tableau.fsal
    t, size, span = ts[0], first_step, (ts[-1] - ts[0]).abs()
    previous = torch.ones_like(t)
    running, rejected = torch.ones_like(t, dtype=torch.bool), torch.zeros_like(t, dtype=torch.bool)
    finite = running
    n_accepted, n_rejected = (torch.zeros_like(t, dtype=torch.long) for _ in range(2))

    def fail(kind, failed, what=None):
        failed = failed.nonzero()[:, 0].tolist()
        first = failed[0]
        where = f"rows {shown_rows(failed)}: {what or kind.what}"
        error = kind(float(t[first]), float(h[first]), int(n_accepted[first]), field.n_evals, what=where)
        explain(error, RungeKutta)
        raise error

    while True:
        landing = lands(t, end.t, size)
        h = torch.where(landing, end.t - t, torch.copysign(size, end.t - t))
        h = torch.where(running, h, 0.0)
        if field.n_evals >= limits.max_evals:
            fail(TooManyEvaluationsError, running, f"max_evals = {limits.max_evals} was reached")
        exhausted = running & (n_accepted >= limits.max_steps)
        small = h.abs() <= 10 * _EPS * torch.maximum(t.abs(), span.clamp(max=1.0))
        stuck = running & rejected & (small | (t + h == t))
        if bool((exhausted | stuck).any()):
            if bool(exhausted.any()):
                fail(TooManyEvaluationsError, exhausted, f"max_num_steps = {limits.max_steps} was reached")
            stays_finite = bool(finite[stuck].all())
            fail(StepSizeUnderflowError if stays_finite else NonFiniteError, stuck)
        effects.check_stream()
        mark = effects.mark()
        y_end, slopes = stepper.step(t, h, y, slope)
        ratio = controller.error_ratio(stepper.error(h, slopes), y, y_end)
        verdict = controller.judge(ratio, previous, size, h, landing=landing, rejected=rejected)
        accepted, finite = verdict.accepted & running, verdict.finite
        hopeless = running & verdict.at_minimum & ~accepted
        if bool(hopeless.any()):
            fail(NonFiniteError, hopeless)
        n_accepted += accepted
        n_rejected += running & ~accepted
        rejected = running & ~accepted
        size = torch.where(running, verdict.proposed, size)
        previous = verdict.previous
        if not bool(accepted.any()):
            effects.rewind(mark)
            continue
        t_end = torch.where(accepted, torch.where(landing, end.t, t + h), t)
        moved = rows.spread(accepted)
        y_next = torch.where(moved, y_end, y)
        if fsal:
            slope = torch.where(moved, slopes[-1], slope)
        else:
            slope = stepper.slope(t_end, y_next)  # of the next try, and of dense output in this one
            slopes = [*slopes, slope]
        accept(accepted, t, h, y, t_end, y_next, slopes)
        t, y = t_end, y_next
        running = running & ~(accepted & landing)
        if not bool(running.any()):
            break
    stats.n_accepted, stats.n_rejected, stats.n_f_evals = n_accepted.cpu(), n_rejected.cpu(), field.n_evals
    infinite = ~torch.isfinite(rows.rows(y)).all(1)
    if bool(infinite.any()):
        fail(NonFiniteError, infinite)
    return y
