"""Adams methods in fixed steps: the integral of the polynomial through the slopes of the last steps moves the state.

Explicit (Adams-Bashforth): y1 = y + h sum_j w_j f_j over the last k slopes, one evaluation a step. Implicit
(Adams-Moulton): f(t1, y1) is one of the slopes; functional iteration solves for y1, from the explicit step on. (Hairer,
Norsett, Wanner, Solving Ordinary Differential Equations I, section III.1.) Names, options and start are torchdiffeq's:
the first two steps are of the 3/8 rule, then k grows with the steps there are. A jump of f starts it all again. The
weights belong to the times there are, equally spaced or not.

A step is a function of the state and of the slopes before it. The backward pass hands both cotangents from step to
step: it is the exact derivative of the steps, with as many corrections as the forward pass made.
"""

import contextlib
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from ..adams_weights import HERMITE, LINEAR, MAX_ORDER, MIN_ORDER, weighed, weights_of
from ..interpolants import Polynomials
from ..notices import warn_caller
from ..tableaus import RK4_THREE_EIGHTHS as STARTER
from .base import JUMPS, PLAIN, REPLAY, TRACE, Carry, TracedStep, Trial
from .dense_output import combine
from .traced import TracedStepper


@dataclass(frozen=True, eq=False)
class Adams:
    """The methods, as `base.Method`.

    ``max_order``: of the corrector, and one more than that of the predictor; ``max_iters``: corrections a step at most;
    ``rtol``, ``atol``: they end when the increment of the state changes by less, floats or vectors [n]. The global
    order is limited by the first steps, which are of a lower one.
    """

    name: str
    implicit: bool
    max_order: int = MAX_ORDER
    max_iters: int = 4
    rtol: Any = 1e-5
    atol: Any = 1e-6
    interpolant: Polynomials = HERMITE
    dense_order: int = 3
    adaptive: bool = field(default=False, init=False)
    error_order: None = field(default=None, init=False)
    abilities: frozenset = field(default=frozenset({REPLAY, TRACE, PLAIN, JUMPS}), init=False)

    @property
    def order(self):
        return min(self.max_order, 5) if self.implicit else min(self.max_order - 1, 4)

    @property
    def stages(self):
        return max(STARTER.stages, 1 + self.max_iters if self.implicit else 1)

    @property
    def kept_rows(self):
        """Vectors [n] that are kept of a step: the state and the slopes before it."""
        return self.max_order - 1

    def with_interpolant(self, name):
        """The same with dense output that is "linear" or "cubic"."""
        return self if name == "cubic" else replace(self, interpolant=LINEAR, dense_order=1)

    def stepper(self, vector_field, *, keep_graphs=False, time_grad=False):
        """As `base.Method.stepper`."""
        return AdamsStepper(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)


_IMPLICIT = Adams("implicit_adams", True)
ADAMS = {"explicit_adams": Adams("explicit_adams", False), _IMPLICIT.name: _IMPLICIT, "fixed_adams": _IMPLICIT}


class Past(NamedTuple):
    """The slopes [n] of the steps before and their times, the latest first; ``slope``: that here, where it is known
    (of `AdamsStepper.traced`; None: not known)."""

    slopes: tuple = ()
    times: tuple = ()
    slope: torch.Tensor | None = None


class Decided(NamedTuple):
    """What is constant in the gradient of a step: the times of the slopes before it, how many corrections it made
    (None: of the starter, or explicit), and how many slopes the next step gets."""

    times: tuple
    corrections: int | None
    passed_on: int


class _Recorded(NamedTuple):
    """A step with its graph: what it starts from, its times (start, size, end, then those of the slopes before), and
    what it made."""

    y: torch.Tensor
    slopes: tuple
    times: torch.Tensor | None
    made: TracedStep
    decided: Decided


class AdamsStepper(TracedStepper):
    """`traced` takes and returns a `Past` where other steppers have the slope at the start and at the end."""

    def __init__(self, method, vector_field, *, keep_graphs=False, time_grad=False):
        super().__init__(method, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)
        self.needs_end_slope = method.interpolant is HERMITE
        self._warned = False
        self.start_back()

    # Forward

    def start(self, t, y, slope=None, evaluation=None, *, after_jump=False):
        # with slope, f was evaluated here before; its graph is of no use, for the whole step has one
        return Carry(t, y, slope, after_jump=after_jump, past=Past())

    def step(self, carry, h, t_end, *, before_jump=False):
        recorded = None
        if self.keep_graphs:
            recorded = self._record(carry, h, t_end, before_jump)
            made, decided = recorded.made, recorded.decided
        else:
            slope = carry.slope
            if slope is None:
                slope = self._evaluated(carry.t, carry.y, int(carry.after_jump))
            past = carry.past._replace(slope=slope)
            made, decided = self._made(self._evaluated, carry.t, h, carry.y, t_end, past, before_jump)
        return Trial(Carry(t_end, made.y.detach(), past=_detached(made.end_slope)), None, recorded, decided)

    def refresh(self, carry):
        super().refresh(carry)
        carry.past = Past()

    def end_slope(self, carry, *, before_jump=False):
        if carry.slope is None:
            carry.slope = self._evaluated(carry.t, carry.y, -int(before_jump))
        self.slopes[-1].copy_(carry.slope)

    def kept(self, carry):
        return torch.cat([carry.y, *carry.past.slopes]) if carry.past.slopes else carry.y

    def state_of(self, kept):
        return None if kept is None else kept[: self.field.layout.size]

    def resumed(self, step, kept):
        y, *slopes = kept.split(self.field.layout.size)
        self._warned = True  # when the step was taken
        return Carry(step.t, y, after_jump=step.after_jump, past=Past(tuple(slopes), step.decided.times))

    # Backward

    def replay(self, t, h, y, t_end, *, after_jump=False, before_jump=False, every=1, decided=None):
        y, *slopes = y.split(self.field.layout.size)
        carry = Carry(t, y, after_jump=after_jump, past=Past(tuple(slopes), decided.times))
        recorded = self._record(carry, h, t_end, before_jump, decided)
        self._passed_on = _detached(recorded.made.end_slope).slopes
        return recorded

    def kept_behind(self, y):
        return torch.cat([y, *self._passed_on])

    def start_back(self):
        self._slope_bars, self._time_bars = [], []

    def vjp(self, h, recorded, y_bar, slope_bars, first_bar, gradients):
        made, n_slopes = recorded.made, len(recorded.slopes)
        # cotangents of the slopes that the next step was given and of their times: own first, then those before
        first, *passed = self._slope_bars + [None] * (1 + n_slopes - len(self._slope_bars))
        start_bar, *passed_times = self._time_bars + [0.0] * (1 + n_slopes - len(self._time_bars))
        bars = [y_bar, _sum(first, first_bar)]
        if slope_bars is not None:
            bars[1:] = _sum(bars[1], slope_bars[0]), slope_bars[1]
        pairs = [(x, bar) for x, bar in zip((made.y, *made.slopes), bars) if bar is not None and x.requires_grad]
        outputs, bars = zip(*pairs)  # one at least: the state at the end contains that at the start
        captured = self.field.captured.leaves
        wanted = (recorded.y, *recorded.slopes, *captured, *((recorded.times,) if self.time_grad else ()))
        found = torch.autograd.grad(
            outputs, wanted, bars, allow_unused=True, retain_graph=self.field.captured.keep_graph
        )
        gradients.add(found[1 + n_slopes : 1 + n_slopes + len(captured)])
        t_bar = h_bar = end_bar = 0.0
        times_bar = [0.0] * n_slopes
        if self.time_grad and found[-1] is not None:
            t_bar, h_bar, end_bar, *times_bar = found[-1].tolist()
        self._slope_bars = [_sum(a, b) for a, b in zip(found[1 : 1 + n_slopes], passed)]
        self._time_bars = [a + b for a, b in zip(times_bar, passed_times)]
        return found[0], start_bar + t_bar + end_bar, h_bar + end_bar

    # As ordinary operations

    def traced_start(self, t, y, slope=None, *, after_jump=False):
        past = slope if isinstance(slope, Past) else Past(slope=slope)
        if past.slope is not None:
            return past
        return past._replace(slope=super().traced_start(t, y, after_jump=after_jump))

    def traced(self, t, h, y, t_end, slope=None, *, after_jump=False, before_jump=False, decided=None):
        past = self.traced_start(t, y, slope, after_jump=after_jump)
        return self._made(self._traced, t, h, y, t_end, past, before_jump, decided)[0]

    def with_end_slope(self, step, t_end, *, before_jump=False):
        if not self.needs_end_slope or step.end_slope.slope is not None:
            return step
        slope = self._traced(t_end, step.y, -int(before_jump))
        return step._replace(slopes=[*step.slopes, slope], end_slope=step.end_slope._replace(slope=slope))

    # The step, once for all

    def _made(self, evaluate, t, h, y, t_end, past, before_jump, decided=None):
        """The step as a `TracedStep`, with a `Past` for the next one, and what it `Decided` (given: is to decide).

        :param evaluate: evaluate(t, y, side) -> slope [n]
        :param t, h, t_end: floats or 0-d float64 tensors, as are the times in the past
        """
        slopes, side, corrections, goes_on = [past.slope, *past.slopes], -int(before_jump), None, True
        if len(slopes) < MIN_ORDER - 1:
            change = self._start_up(evaluate, t, h, y, t_end, slopes[0], side)
        else:
            change = weighed(weights_of(t, h, past.times), slopes)
            if self.method.implicit:
                change, corrections, goes_on = self._corrected(
                    evaluate, change, t, h, y, t_end, past.times, slopes, side, decided and decided.corrections
                )
        if decided is None:
            # torchdiffeq's rule: where the corrections do not settle, the order does not grow
            passed_on = min(len(slopes), self.method.max_order - 2) if goes_on else len(slopes) - 1
            decided = Decided(past.times, corrections, passed_on)
        self._keep_slopes([slopes[0], change / h])
        behind = Past(tuple(slopes[: decided.passed_on]), (t, *past.times)[: decided.passed_on])
        return TracedStep(y + change, [slopes[0], change / h], None, behind), decided

    def _start_up(self, evaluate, t, h, y, t_end, slope, side):
        """What a Runge-Kutta step adds to y."""
        slopes = [slope]
        for a, c in zip(STARTER.a[1:], STARTER.c[1:]):
            time, at = (t_end, side) if c == 1 else (t + float(c) * h, 0)
            slopes.append(evaluate(time, y + h * combine(a, slopes), at))
        return h * combine(STARTER.b, slopes)

    def _corrected(self, evaluate, change, t, h, y, t_end, times, slopes, side, corrections):
        """What is added to y in the end, how often it was corrected, and whether the last correction was small.

        :param corrections: how many to make (None: until one is small)
        """
        of_end, *weights = weights_of(t, h, times, with_end=True)
        known, most = weighed(weights, slopes), self.method.max_iters if corrections is None else corrections
        for i in range(most):
            before, change = change, of_end * evaluate(t_end, y + change, side) + known
            if corrections is None and self._agree(before.detach(), change.detach()):
                return change, i + 1, True
        if corrections is None and not self._warned:
            self._warned = True
            warn_caller(
                f"{self.method.name}: {most} corrections did not settle in the step from t = {float(t):.6g}: take "
                "smaller steps, or set the option max_iters"
            )
        return change, most, False

    def _agree(self, one, other):
        size = torch.maximum(one.abs(), other.abs())
        return bool(((one - other).abs() <= self.method.atol + self.method.rtol * size).all())

    def _evaluated(self, t, y, side):
        out = torch.empty_like(y)
        self.field(t, y, out, side)
        return out

    def _traced(self, t, y, side):
        time = t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64, device=y.device)
        return self.field.traced(time, y, side=side)

    def _record(self, carry, h, t_end, before_jump, decided=None):
        y, *slopes = (x.detach().requires_grad_() for x in (carry.y, *carry.past.slopes))
        times, t, past_times = None, carry.t, carry.past.times
        if self.time_grad:
            numbers = [t, h, t_end, *past_times]
            times = torch.tensor(numbers, dtype=torch.float64, device=y.device, requires_grad=True)
        with torch.enable_grad():
            if self.time_grad:
                t, h, t_end, *past_times = times.unbind()
            # where f was evaluated here before, it has had its side effects
            seen = contextlib.nullcontext() if carry.slope is None else self.field.side_effects.replay()
            with seen:
                slope = self._traced(t, y, int(carry.after_jump))
            past = Past(tuple(slopes), tuple(past_times), slope)
            made, own = self._made(self._traced, t, h, y, t_end, past, before_jump, decided)
        self._last_end = made.y.detach()
        decided = decided or own._replace(times=carry.past.times)
        behind = made.end_slope._replace(times=(carry.t, *carry.past.times)[: decided.passed_on])
        return _Recorded(y, tuple(slopes), times, made._replace(end_slope=behind), decided)

def _detached(past):
    return past._replace(slopes=tuple(slope.detach() for slope in past.slopes), slope=None)


def _sum(one, other):
    """Of cotangents, None for zero."""
    return other if one is None else one if other is None else one + other
