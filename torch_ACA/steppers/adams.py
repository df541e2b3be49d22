"""Adams methods in fixed steps: the integral of the polynomial through the slopes of the last steps moves the state.

Explicit (Adams-Bashforth): y1 = y + h sum_j w_j f_j over the last k slopes, one evaluation a step. Implicit
(Adams-Moulton): f(t1, y1) is one of the slopes; functional iteration solves for y1, from the explicit step on. (Hairer,
Norsett, Wanner, Solving Ordinary Differential Equations I, section III.1.) Names, options and start are torchdiffeq's:
the first two steps are of the 3/8 rule, then k grows with the steps there are. A jump of f starts it all again. The
weights belong to the times there are, equally spaced or not.

A step is a function of the state and of the slopes before it. The backward pass hands both cotangents from step to
step: it is the exact derivative of the steps, with as many corrections as the forward pass made.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..adams_weights import HERMITE, LINEAR, MAX_ORDER
from ..interpolants import Polynomials
from ..notices import warn_caller
from ..tableaus import RK4_THREE_EIGHTHS as STARTER
from .adams_step import Decided, Evaluate, Past, taken
from .base import JUMPS, PLAIN, REPLAY, TRACE, Carry, Time, TracedStep, Trial
from .traced import TracedStepper

if TYPE_CHECKING:
    from ..evaluation import GradientSum
    from ..vector_field import VectorField


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
    def order(self) -> int:
        return min(self.max_order, 5) if self.implicit else min(self.max_order - 1, 4)

    @property
    def stages(self) -> int:
        return max(STARTER.stages, 1 + self.max_iters if self.implicit else 1)

    @property
    def kept_rows(self) -> int:
        """Vectors [n] that are kept of a step: the state and the slopes before it."""
        return self.max_order - 1

    def with_interpolant(self, name: str) -> Adams:
        """The same with dense output that is "linear" or "cubic"."""
        return self if name == "cubic" else replace(self, interpolant=LINEAR, dense_order=1)

    def stepper(self, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False) -> AdamsStepper:
        """As `base.Method.stepper`."""
        return AdamsStepper(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)


_IMPLICIT = Adams("implicit_adams", True)
ADAMS = {"explicit_adams": Adams("explicit_adams", False), _IMPLICIT.name: _IMPLICIT, "fixed_adams": _IMPLICIT}


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

    def __init__(
        self, method: Any, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False
    ) -> None:
        super().__init__(method, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)
        self.needs_end_slope = method.interpolant is HERMITE
        self._warned = False
        self.start_back()

    # Forward

    def start(
        self, t: float, y: Tensor, slope: Tensor | None = None, evaluation: Any = None, *, after_jump: bool = False
    ) -> Carry:
        # with slope, f was evaluated here before; its graph is of no use, for the whole step has one
        return Carry(t, y, slope, after_jump=after_jump, past=Past())

    def step(self, carry: Carry, h: float, t_end: float, *, before_jump: bool = False) -> Trial:
        recorded = None
        if self.keep_graphs:
            recorded = self._with_graph(carry, h, t_end, before_jump)
            made, decided = recorded.made, recorded.decided
        else:
            slope = carry.slope
            if slope is None:
                slope = self._evaluated(carry.t, carry.y, int(carry.after_jump))
            past = carry.past._replace(slope=slope)
            made, decided = self._made(self._evaluated, carry.t, h, carry.y, t_end, past, before_jump)
        return Trial(Carry(t_end, made.y.detach(), past=made.end_slope.detached()), None, recorded, decided)

    def refresh(self, carry: Carry) -> None:
        super().refresh(carry)
        carry.past = Past()

    def end_slope(self, carry: Carry, *, before_jump: bool = False) -> None:
        if carry.slope is None:
            carry.slope = self._evaluated(carry.t, carry.y, -int(before_jump))
        self.slopes[-1].copy_(carry.slope)

    def kept(self, carry: Carry) -> Tensor:
        return torch.cat([carry.y, *carry.past.slopes]) if carry.past.slopes else carry.y

    def state_of(self, kept: Any) -> Any:
        return None if kept is None else kept[: self.field.layout.size]

    def resumed(self, step: Any, kept: Tensor) -> Carry:
        y, *slopes = kept.split(self.field.layout.size)
        self._warned = True  # when the step was taken
        return Carry(step.t, y, after_jump=step.after_jump, past=Past(tuple(slopes), step.decided.times))

    # Backward

    def replay(
        self, t: float, h: float, y: Tensor, t_end: float, *, after_jump: bool = False, before_jump: bool = False,
        every: int | None = 1, decided: Decided | None = None,
    ) -> Any:  # fmt: skip
        y, *slopes = y.split(self.field.layout.size)
        carry = Carry(t, y, after_jump=after_jump, past=Past(tuple(slopes), decided.times))
        recorded = self._with_graph(carry, h, t_end, before_jump, decided)
        self._passed_on = recorded.made.end_slope.detached().slopes
        return recorded

    def kept_behind(self, y: Tensor) -> Tensor:
        return torch.cat([y, *self._passed_on])

    def start_back(self) -> None:
        self._slope_bars, self._time_bars = [], []

    def vjp(
        self, h: float, evaluations: Any, y_bar: Tensor, slope_bars: Tensor | None, first_bar: Tensor | None,
        gradients: GradientSum,
    ) -> tuple[Tensor, Any, Any]:  # fmt: skip
        recorded, made, n_slopes = evaluations, evaluations.made, len(evaluations.slopes)
        # cotangents of the slopes that the next step was given and of their times: own first, then those before
        first, *passed = self._slope_bars + [None] * (1 + n_slopes - len(self._slope_bars))
        start_bar, *passed_times = self._time_bars + [0.0] * (1 + n_slopes - len(self._time_bars))
        bars = [y_bar, _sum(first, first_bar)]
        if slope_bars is not None:
            bars[1:] = _sum(bars[1], slope_bars[0]), slope_bars[1]
        pairs = [(x, bar) for x, bar in zip((made.y, *made.slopes), bars) if bar is not None and x.requires_grad]
        outputs, cotangents = zip(*pairs)  # one at least: the state at the end contains that at the start
        captured = self.field.captured.leaves
        wanted = (recorded.y, *recorded.slopes, *captured, *((recorded.times,) if self.time_grad else ()))
        found = torch.autograd.grad(
            outputs, wanted, cotangents, allow_unused=True, retain_graph=self.field.captured.keep_graph
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

    def traced_start(self, t: Time, y: Tensor, slope: Any = None, *, after_jump: bool = False) -> Past:
        past = slope if isinstance(slope, Past) else Past(slope=slope)
        if past.slope is not None:
            return past
        return past._replace(slope=super().traced_start(t, y, after_jump=after_jump))

    def traced(
        self, t: Time, h: Time, y: Tensor, t_end: Time, slope: Any = None, *, after_jump: bool = False,
        before_jump: bool = False, decided: Decided | None = None,
    ) -> TracedStep:  # fmt: skip
        past = self.traced_start(t, y, slope, after_jump=after_jump)
        return self._made(self._traced, t, h, y, t_end, past, before_jump, decided)[0]

    def with_end_slope(self, step: TracedStep, t_end: Time, *, before_jump: bool = False) -> TracedStep:
        if not self.needs_end_slope or step.end_slope.slope is not None:
            return step
        slope = self._traced(t_end, step.y, -int(before_jump))
        return step._replace(slopes=[*step.slopes, slope], end_slope=step.end_slope._replace(slope=slope))

    def _made(
        self, evaluate: Evaluate, t: Time, h: Time, y: Tensor, t_end: Time, past: Past, before_jump: bool,
        decided: Decided | None = None,
    ) -> tuple[TracedStep, Decided]:  # fmt: skip
        """The step, and what it decided (given: is to decide)."""
        change, decided = taken(
            self.method, evaluate, t, h, y, t_end, past, -int(before_jump), decided, self._warn_once
        )
        slopes = [past.slope, change / h]
        self._keep_slopes(slopes)
        n = decided.passed_on
        return TracedStep(y + change, slopes, None, Past((past.slope, *past.slopes)[:n], (t, *past.times)[:n])), decided

    def _warn_once(self, corrections: int, t: Time) -> None:
        if self._warned:
            return
        self._warned = True
        warn_caller(
            f"{self.method.name}: {corrections} corrections did not settle in the step from t = {float(t):.6g}: take "
            "smaller steps, or set the option max_iters"
        )

    def _evaluated(self, t: float, y: Tensor, side: int) -> Tensor:
        out = torch.empty_like(y)
        self.field(t, y, out, side)
        return out

    def _traced(self, t: Time, y: Tensor, side: int) -> Tensor:
        time = t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64, device=y.device)
        return self.field.traced(time, y, side=side)

    def _with_graph(
        self, carry: Carry, h: Time, t_end: Time, before_jump: bool, decided: Decided | None = None
    ) -> _Recorded:
        y, *slopes = (x.detach().requires_grad_() for x in (carry.y, *carry.past.slopes))
        t: Time = carry.t
        times, past_times = None, carry.past.times
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


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Of cotangents, None for zero."""
    return other if one is None else one if other is None else one + other
