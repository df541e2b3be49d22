"""The loop over tries, in which every row stands at its own time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import NonFiniteError, StepSizeUnderflowError, TooManyEvaluationsError
from ..march import Limits, lands
from ..tensor_controller import is_stuck
from .stepper import side_of

if TYPE_CHECKING:
    from ..errors import SolverError
    from .problem import RowProblem
    from .stepper import RowStepper


@dataclass(slots=True)
class RowStep:
    """A try in which rows were ``accepted``; the others stay where they are. States, slopes and ``moved``, what of the
    state is theirs, are [size], the others [b]. ``ends_on``: the number of the time given on which a step ends, 0 for
    another stop, -1 for none (None: no step ends on any); ``before_jump``: func jumps at its end (None: nowhere), and
    ``jumped``: and the step was accepted (None: none). ``finished`` may be set to rows that are to go no farther,
    ``infinite`` to those that fail because their dense output is infinite or NaN.
    """

    accepted: torch.Tensor
    moved: torch.Tensor
    t: torch.Tensor
    h: torch.Tensor
    t_end: torch.Tensor
    y: torch.Tensor
    y_end: torch.Tensor
    slopes: list
    ends_on: torch.Tensor | None
    before_jump: torch.Tensor | None
    jumped: torch.Tensor | None
    finished: torch.Tensor | None = None
    infinite: torch.Tensor | None = None


def march_rows(problem: RowProblem, stepper: RowStepper) -> Iterator[RowStep]:
    """As `_march_rows`; behind it, func is called with all rows again."""
    with problem.field.choice.all_behind():
        yield from _march_rows(problem, stepper)


def _march_rows(problem: RowProblem, stepper: RowStepper) -> Iterator[RowStep]:
    """Yield a `RowStep` for each try in which rows were accepted, from the first time of every row to its last. Rows
    that fail stop where they are, and are noted in the problem's ``failures``.

    :param problem: in its ``stats``, ``n_accepted`` and ``n_rejected`` become [b]
    """
    t: Any  # [b], as is the stop: `lands` is annotated for floats
    stop: Any
    stats: Any  # counts of rows are tensors
    field, rows, controller, times = problem.field, stepper.rows, problem.controller, problem.row_times
    failures, limits, effects = problem.failures, problem.limits, field.side_effects
    t, y, size, ties = times.start, problem.y0.detach(), problem.first_step, problem.ties
    side, n_tries = side_of(times.starts_at_jump, 1.0), 0
    start, first = ties.point(t, y, problem.slope, side), stepper.begin(t, y, side, problem.slope)
    span = (times.end - t).abs()
    counts_steps = limits.max_steps < Limits.max_steps
    running, rejected, finite = ~failures.failed, torch.zeros_like(failures.failed), ~failures.failed
    previous, place = torch.ones_like(t), torch.zeros_like(t, dtype=torch.long)
    n_accepted, n_rejected, h = torch.zeros_like(place), torch.zeros_like(place), size

    def fail(kind: type[SolverError], failed: Tensor, what: str | None = None) -> Tensor:
        failures.add(kind, failed, t, h, n_accepted, field.n_evals, what=what)
        return running & ~failed

    some_run, some_rejected = bool(running.any()), False
    field.choice.keep(running)
    while some_run:
        stop, given, jump = times.stop(place)
        landing = running & lands(t, stop, size)
        h = torch.where(landing, stop - t, times.direction * size)
        h = torch.where(running, h, 0.0)
        if field.n_evals >= limits.max_evals:
            fail(TooManyEvaluationsError, running, f"max_evals = {limits.max_evals} was reached")
            break
        if counts_steps or some_rejected:
            exhausted = running & (n_accepted >= limits.max_steps)
            stuck = is_stuck(t, h, span, rejected & ~exhausted)
            if any(_any(exhausted, stuck)):
                running = fail(TooManyEvaluationsError, exhausted, f"max_num_steps = {limits.max_steps} was reached")
                running = fail(StepSizeUnderflowError, stuck & finite)
                running = fail(NonFiniteError, stuck & ~finite)
                some_run, rejected = bool(running.any()), rejected & running
                field.choice.keep(running)
                continue
        effects.check_stream()
        stepper.prepare(first, t, y)
        if n_tries and ties.due(n_tries):
            ties.look(start, ties.point(t, y, stepper.slope_of(first), side), running)
        n_tries += 1
        mark = effects.mark()
        t_end = torch.where(landing, stop, t + h)
        before = None if jump is None else landing & jump
        y_end, slopes = stepper.step(t, h, t_end, y, first, before_jump=before)
        ratio = controller.error_ratio(stepper.error(h, slopes), y, y_end)
        verdict = controller.judge(ratio, previous, size, h, landing=landing, rejected=rejected)
        finite, size, previous = verdict.finite, verdict.proposed, verdict.previous
        accepted = verdict.accepted & running
        hopeless = running & verdict.at_minimum & ~accepted
        some_hopeless, some_landed = _any(hopeless, accepted & landing)
        if some_landed:
            last = accepted & landing & (place + 1 == times.n_stops)
            infinite = last & ~torch.isfinite(rows.rows(y_end)).all(1)
            hopeless, accepted = hopeless | infinite, accepted & ~infinite
        if some_hopeless or some_landed:
            running = fail(NonFiniteError, hopeless)
        rejected = running & ~accepted
        some_accepted, some_rejected = _any(accepted, rejected)
        n_accepted = n_accepted + accepted
        n_rejected = n_rejected + rejected if some_rejected else n_rejected
        if not some_accepted:
            effects.rewind(mark)
            some_run = some_rejected
            continue
        moved = rows.spread(accepted)
        t_end, y_end = torch.where(accepted, t_end, t), torch.where(moved, y_end, y)
        jumped = None if before is None or not some_landed else accepted & before
        if jumped is not None and not bool(jumped.any()):
            jumped = None
        ends_on = torch.where(landing, given, -1) if some_landed else None
        step = RowStep(accepted, moved, t, h, t_end, y, y_end, slopes, ends_on, before, jumped)
        first = stepper.follow(first, step)
        side = side if before is None else torch.where(accepted, before.double(), side)
        yield step
        t, y = t_end, y_end
        if some_landed:
            place = place + (accepted & landing)
            running = running & (place < times.n_stops)
        if step.finished is not None:
            running = running & ~step.finished
        if step.infinite is not None:
            running = fail(NonFiniteError, step.infinite, NonFiniteError.of_dense_output)
        if some_landed or step.finished is not None or step.infinite is not None:
            some_run = bool(running.any())
            field.choice.keep(running)
    field.choice.keep_all()
    ties.look(start, ties.point(t, y, stepper.slope_of(first), side), ~failures.failed, last=True)
    stats = problem.stats
    stats.n_accepted, stats.n_rejected, stats.n_f_evals = n_accepted.cpu(), n_rejected.cpu(), field.n_evals
    stepper.report(stats)


def _any(*flags: Tensor) -> list[bool]:
    """Whether any row has each of the flags: Python's own, for one wait for the device."""
    return torch.stack(flags).any(1).tolist()
