"""The loop over accepted steps, in either direction of time.

It lands exactly on every stop (the end time last) and controls the error of the step before a stop like any other. It
knows steppers and controllers only by what they can do: no autograd and no tableaus here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .callbacks import NO_CALLBACKS, Callbacks
from .controller import FixedSteps
from .errors import NonFiniteError, StepSizeUnderflowError, TooManyEvaluationsError

EPS = 2.0**-52
_NEARLY = 1 + 1e-9  # a step that would end this close to a stop goes there: no sliver is left by rounding


@dataclass
class Stats:
    """Counts of one solve. ``n_backward_f_evals`` is filled by the backward pass; ``n_jacobians`` and
    ``n_factorizations`` (of matrices) are those of Rosenbrock methods; ``n_stiff_steps`` are the accepted steps that
    method="auto" left to its stiff method. With per_sample=True ``n_accepted`` and
    ``n_rejected`` are tensors [b], int64, on the CPU."""

    n_f_evals: int = 0
    n_accepted: int = 0
    n_rejected: int = 0
    n_backward_f_evals: int = 0
    n_jacobians: int = 0
    n_factorizations: int = 0
    n_stiff_steps: int = 0


@dataclass(frozen=True)
class Stop:
    """A time to land on. ``index``: its place among the times given to the solve (None: not one of them);
    ``jump``: func jumps here, so the slope is evaluated afresh behind it."""

    t: float
    index: int | None = None
    jump: bool = False


@dataclass(frozen=True)
class Limits:
    """When to give up."""

    max_evals: float = 500_000
    max_steps: float = 2**31 - 1


@dataclass(slots=True)
class Step:
    """An accepted step. ``stop``: the step size was chosen to end there; ``jump``: func jumps at its end; ``proposed``:
    the size to try next; ``method``: the `Method` that took it."""

    t: float
    h: float
    t_end: float
    start: Any
    trial: Any
    stop: Stop | None
    jump: bool
    proposed: float
    method: Any


def lands(t: float, stop: float, size: float) -> bool:
    """Whether a step of this size from t goes to a stop, the time to land on."""
    return abs(stop - t) <= size * _NEARLY


def next_step(
    t: float, stop: float, size: float, origin: float | None = None, n_fixed: int = 0
) -> tuple[bool, float, float]:
    """Whether the step of this size from t lands on the stop; its h, and its end.

    :param stop: time to land on
    :param origin: fixed steps are counted from here (n_fixed before this one): adding up their sizes would add up
        rounding. None: steps are not fixed
    """
    if lands(t, stop, size):
        return True, stop - t, stop
    h = math.copysign(size, stop - t)
    return False, h, t + h if origin is None else origin + (n_fixed + 1) * h


def check_limits(
    t: float, h: float, span: float, n_f_evals: int, stats: Stats, limits: Limits, *, rejected: bool = False,
    finite: bool = True,
) -> None:  # fmt: skip
    """Raise the `SolverError` that forbids another try of size h from t; rejected, finite: how the last one went."""
    failure = (t, h, stats.n_accepted, n_f_evals)
    if n_f_evals >= limits.max_evals:
        raise TooManyEvaluationsError(*failure, what=f"max_evals = {limits.max_evals} was reached")
    if stats.n_accepted >= limits.max_steps:
        raise TooManyEvaluationsError(*failure, what=f"max_num_steps = {limits.max_steps} was reached")
    if rejected and (abs(h) <= 10 * EPS * max(abs(t), min(span, 1.0)) or t + h == t):
        raise (StepSizeUnderflowError if finite else NonFiniteError)(*failure)


def march(
    stepper: Any, controller: Any, carry: Any, t0: float, stops: Sequence[Stop], *, first_step: float,
    perturb: bool = False, limits: Limits = Limits(), stats: Stats | None = None, callbacks: Callbacks = NO_CALLBACKS,
) -> Iterator[Step]:  # fmt: skip
    """Yield the accepted `Step`s from t0 through every stop in turn.

    :param stepper: `prepare`, `step`, `accepted`, `current`, `mark`, `rewind`, `refresh`, `n_f_evals` (see
        `steppers.base`)
    :param carry: the stepper's state at t0
    :param stops: non-empty sequence of `Stop`, monotone away from t0
    :param first_step: size (positive) to try first
    :param perturb: func may jump at the end of every step
    :raises SolverError: non-finite values, step-size underflow, too many evaluations
    """
    stats = Stats() if stats is None else stats
    fixed = isinstance(controller, FixedSteps)
    error_ratio = None if fixed else controller.error_ratios()
    span = abs(stops[-1].t - t0)
    t, size, previous = t0, first_step, 1.0
    origin, n_fixed = t0 if fixed else None, 0
    for stop in stops:
        while t != stop.t:
            prepared, rejected, finite = False, False, True
            while True:
                landing, h, t_end = next_step(t, stop.t, size, origin, n_fixed)
                jump = perturb or (landing and stop.jump)
                callbacks.step(t, carry.y, h)
                if not prepared:  # behind the callback, which may change func
                    stepper.prepare(carry)
                    prepared, mark = True, stepper.mark()
                check_limits(t, h, span, stepper.n_f_evals, stats, limits, rejected=rejected, finite=finite)
                trial = stepper.step(carry, h, t_end, before_jump=jump)
                if fixed:
                    if controller.check_finite and not stepper.is_finite(trial):
                        raise NonFiniteError(t, h, stats.n_accepted, stepper.n_f_evals)
                    break
                ratio = trial.ratio
                if ratio is None:
                    ratio = error_ratio(trial.error, carry.y, trial.end.y)
                verdict = controller.judge(ratio, previous, size, h, landing=landing, rejected=rejected)
                if verdict.accepted:
                    size, previous = verdict.proposed, verdict.previous
                    break
                if verdict.at_minimum:
                    raise NonFiniteError(t, h, stats.n_accepted, stepper.n_f_evals)
                callbacks.reject(t, carry.y, h)
                stats.n_rejected += 1
                rejected, finite, size = True, verdict.finite, verdict.proposed
                stepper.rewind(mark)
            if landing and stop is stops[-1] and not fixed and not stepper.is_finite(trial):
                raise NonFiniteError(t, h, stats.n_accepted, stepper.n_f_evals)
            stats.n_accepted += 1
            callbacks.accept(t, carry.y, h)
            n_fixed += 1
            if landing and fixed:
                origin, n_fixed = stop.t, 0
            yield Step(t, h, t_end, carry, trial, stop if landing else None, jump, size, stepper.current)
            stepper.accepted()
            t, carry = t_end, trial.end
            if jump:
                stepper.refresh(carry)
