"""Explicit Runge-Kutta steps: y1 = y + h sum_j b_j k_j, k_j = f(t + c_j h, y + h sum_{l<j} a_jl k_l).

Two kernels of the same step. The fused one works in a stage buffer [slopes, n], one matrix-vector product per stage,
and has a hand-written VJP that calls autograd once per stage on f alone. The functional one (`traced`) is out of
place and differentiable in everything; it serves the naive method, second derivatives and the tests.

The first stage of a step is the slope at its start: with FSAL tableaus the last stage of the step before, otherwise the
slope that dense output may have needed there already. The VJP counts it to the step that it starts, and takes what the
dense output of the step before contributes to its cotangent, so that f is pulled back through once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..transforms import under_transform
from .base import Carry, Stepper, Time, TracedStep, Trial
from .dense_output import combine

if TYPE_CHECKING:
    from ..evaluation import Evaluation, GradientSum
    from ..tableau import Tableau
    from ..vector_field import VectorField


class RungeKutta(Stepper):
    """The stepper of one tableau.

    :param tableau: `tableau.Tableau`
    :param vector_field: `vector_field.VectorField`
    :param keep_graphs: keep the graph of every evaluation made by `step`, for a VJP without recomputation
    :param time_grad: let `vjp` return cotangents of the time and the step size
    """

    hint = "On a stiff problem an explicit method is slow: method='Rodas5P' takes large steps there, 'auto' finds out."

    def __init__(
        self, tableau: Tableau, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False
    ) -> None:
        super().__init__(tableau, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)
        self.tableau = tableau
        layout = vector_field.layout
        s = tableau.stages
        self.own_stages = s - 1 if tableau.fsal else s  # stages that a step pays for, its first one included
        self.needs_end_slope, self.error_sees_end_slope = tableau.needs_end_slope, tableau.error_sees_end_slope
        rows = max(s, tableau.interpolant.slopes)
        self.slopes = torch.empty(rows, layout.size, dtype=layout.dtype, device=layout.device)
        self._row = self.slopes.unbind()
        self._target = [layout.target(row) for row in self._row]
        self._columns = [self.slopes[: i + 1].T for i in range(s)]
        self._weights = _weights_of(tableau, layout.dtype, layout.device)
        self._c = self._weights.c
        self._cotangents: _Cotangents | None = None
        self._last_sample: tuple[Tensor, Tensor] | None = None
        self._known_start: tuple[Tensor, Evaluation] | None = None

    def prepare(self, carry: Carry) -> None:
        """Put the slope at the start of a step into the buffer's first row; evaluates f only if it is not known yet."""
        first = self._row[0]
        if carry.slope is None:
            self._evaluate(carry, 0, side=1 if carry.after_jump else 0)
        elif carry.slope is not first:
            first.copy_(carry.slope)
            carry.slope = first

    def step(self, carry: Carry, h: float, t_end: float, *, before_jump: bool = False) -> Trial:
        t, y = carry.t, carry.y
        side = -1 if before_jump else 0
        evaluations = [carry.evaluation] if self.keep_graphs else None
        for i in range(1, self.tableau.stages):
            stage = self._stage(y, h, i)
            at_end = self._c[i] == 1.0
            evaluation = self._slope(t_end if at_end else t + self._c[i] * h, stage, i, side if at_end else 0)
            if self.keep_graphs:
                evaluations.append(evaluation)
        if self.tableau.fsal:
            end = Carry(t_end, stage, self._row[i], evaluations.pop() if self.keep_graphs else None)
        else:
            end = Carry(t_end, _stepped(y, h, self._columns[-1], self._weights.b))
        error = None
        if self.tableau.adaptive:
            error = torch.addmv(y, self._columns[-1], self._weights.b_error, alpha=h, beta=0)
        return Trial(end, error, evaluations)

    def end_slope(self, carry: Carry, *, before_jump: bool = False) -> None:
        if carry.slope is None:
            self._evaluate(carry, -1, side=-1 if before_jump else 0)

    def know_start(self, slope: Tensor, evaluation: Evaluation) -> None:
        self._known_start = slope, evaluation

    def replay(
        self, t: float, h: float, y: Tensor, t_end: float, *, after_jump: bool = False, before_jump: bool = False,
        every: int | None = 1,
    ) -> list[Evaluation]:  # fmt: skip
        """The `Evaluation`s of an accepted step's own stages."""
        evaluations, sampled = [], None
        if self._known_start is not None:
            slope, evaluation = self._known_start
            self._known_start = None
            self._row[0].copy_(slope)
            evaluations.append(evaluation)
        for i in range(len(evaluations), self.own_stages):
            stage = y if i == 0 else self._stage(y, h, i)
            at_end = self._c[i] == 1.0
            side = int(after_jump) if i == 0 else -int(before_jump and at_end)
            time = t_end if at_end else t + self._c[i] * h
            # the last row is memory that a step without dense output can do without
            whole = every == 1 or self.time_grad or i + 1 < self.own_stages
            sampled = None if whole else every
            evaluations.append(self.record(time, stage, self._target[i] if whole else None, side, sampled))
        self._last_sample = None if sampled is None else evaluations[-1].sample
        return evaluations

    def replayed_end(self, y: Tensor, h: float, every: int = 1) -> Any:
        own, b = self.own_stages, self._weights.b_own
        if every == 1:
            return _stepped(y, h, self._columns[own - 1], b)
        if self._last_sample is None:
            last, last_total = self.slopes[own - 1, ::every], self.slopes[own - 1].sum(dtype=torch.float64)
        else:
            last, last_total = self._last_sample
        entries, total = b[-1] * last, b[-1] * last_total
        if own > 1:
            others = self.slopes[: own - 1]
            entries.addmv_(others[:, ::every].T, b[:-1])
            total += b[:-1].double() @ others.sum(1, dtype=torch.float64)
        return torch.add(y[::every], entries, alpha=h), y.sum(dtype=torch.float64) + h * total

    def reload(self, evaluations: list[Evaluation]) -> None:
        for target, evaluation in zip(self._target, evaluations):
            evaluation.write(target)

    def vjp(
        self, h: float, evaluations: Any, y_bar: Tensor, slope_bars: Tensor | None, first_bar: Tensor | None,
        gradients: GradientSum,
    ) -> tuple[Tensor, Any, Any]:  # fmt: skip
        if self._cotangents is None:
            self._cotangents = _Cotangents(self, y_bar)
        bars, weights, own = self._cotangents, self._weights.pullback, self.own_stages
        if y_bar is not bars.first:
            y_bar = bars.first.copy_(y_bar)
        t_bar: Any = 0.0
        h_bar: Any = 0.0
        for j in range(own - 1, -1, -1):
            if slope_bars is not None:
                k_bar = torch.addmv(slope_bars[j], bars.columns[own - j], weights[j], alpha=h)
            elif j == own - 1:  # one pass over memory, as in `_stage`
                k_bar = y_bar * (h * self._weights.b_last)
            else:
                k_bar = torch.addmv(y_bar, bars.columns[own - j], weights[j], alpha=h, beta=0)
            if self.time_grad:
                through_h = k_bar if slope_bars is None else k_bar - slope_bars[j]
                h_bar = h_bar + (through_h @ self._row[j]) / h
            if j == 0 and first_bar is not None:
                k_bar += first_bar
            target = bars.targets[own - j] if j else None
            stage_bar, time_bar = evaluations[j].vjp(k_bar, gradients, out=target)
            evaluations[j] = None
            if stage_bar is None and j:
                target.zero_()
            if time_bar is not None:
                t_bar, h_bar = t_bar + time_bar, h_bar + self._c[j] * time_bar
        if own > 1:
            y_bar.addmv_(bars.others, bars.ones)
        return y_bar if stage_bar is None else y_bar.add_(stage_bar), t_bar, h_bar

    def traced(
        self, t: Time, h: Time, y: Tensor, t_end: Time, slope: Any = None, *, after_jump: bool = False,
        before_jump: bool = False,
    ) -> TracedStep:  # fmt: skip
        def evaluate(time: Time, stage: Tensor, at_end: bool) -> Tensor:
            return self.field.traced(time, stage, side=-int(before_jump and at_end))

        slope = self.traced_start(t, y, slope, after_jump=after_jump)
        y1, slopes = taken(self.tableau, evaluate, t, h, y, t_end, slope)
        error = h * combine(self.tableau.b_error, slopes) if self.tableau.adaptive else None
        return TracedStep(y1, slopes, error, slopes[-1] if self.tableau.fsal else None)

    def _stage(self, y: Tensor, h: float, i: int) -> Tensor:
        """The state of stage i > 0, from the slopes in the buffer."""
        if i == 1:  # one pass over memory, where addmv makes two
            return torch.add(y, self._row[0], alpha=h * self._weights.a10)
        if i == self.own_stages:  # the state at the end, with FSAL
            return _stepped(y, h, self._columns[i - 1], self._weights.a[i])
        return torch.addmv(y, self._columns[i - 1], self._weights.a[i], alpha=h)

    def _evaluate(self, carry: Carry, i: int, side: int) -> None:
        carry.evaluation = self._slope(carry.t, carry.y, i, side)
        carry.slope = self._row[i]

    def _slope(self, t: float, y: Tensor, i: int, side: int) -> Evaluation | None:
        """Evaluate f into row i of the buffer."""
        if self.keep_graphs:
            return self.record(t, y, self._target[i], side)
        self.field(t, y, self._target[i], side)
        return None


def taken(
    tableau: Tableau, evaluate: Callable[[Time, Tensor, bool], Tensor], t: Time, h: Time, y: Tensor, t_end: Time,
    slope: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """A step of size h from y at t to t_end, out of place: the state at its end, and its slopes.

    :param evaluate: evaluate(t, y, at_end) -> slope; at_end: t is the end of the step
    :param h: float, or 0-d tensor that the result depends on
    :param slope: the one at the start, if it is known
    """
    c, a, b = tableau.floats
    slopes = [evaluate(t, y, False) if slope is None else slope]
    for i in range(1, tableau.stages):
        stage = _moved(y, h, a[i], slopes)
        at_end = c[i] == 1.0
        slopes.append(evaluate(t_end if at_end else t + c[i] * h, stage, at_end))
    return stage if tableau.fsal else _moved(y, h, b, slopes), slopes


def _moved(y: Tensor, h: Time, weights: Sequence[float], slopes: list[Tensor]) -> Tensor:
    increment = combine(weights, slopes)
    return torch.add(y, increment, alpha=h) if isinstance(h, float) else y + h * increment


def _stepped(y: Tensor, h: float, columns: Tensor, weights: Tensor) -> Tensor:
    """The state at the end of a step: its increment is summed first and then added, so that the states of many steps
    gather one rounding a step."""
    return torch.add(y, torch.mv(columns, weights), alpha=h)


class _Cotangents:
    """Buffer of `RungeKutta.vjp`: the first row belongs to y1, row r to the state of stage own_stages - r, but for the
    first stage. ``columns[r]`` are the first r rows, as a matrix [n, r]; ``others`` all but the first.
    """

    def __init__(self, stepper: RungeKutta, like: Tensor) -> None:
        own = stepper.own_stages
        buffer = like.new_empty(own, len(like))
        self.first, self.others = buffer[0], buffer[1:].T
        self.targets = [stepper.field.layout.target(row) for row in buffer]
        self.columns = [buffer[:r].T for r in range(own + 1)]
        self.ones = like.new_ones(own - 1)


@dataclass(frozen=True)
class _Weights:
    """Coefficients: vectors, and floats where they are used one by one. ``b_last`` belongs to the last stage that a
    step pays for, ``b_own`` to all of them; ``pullback[j]`` combines the rows of `_Cotangents` that the slope of stage
    j is in."""

    c: list
    a: list
    a10: float | None
    b: torch.Tensor
    b_own: torch.Tensor
    b_last: float
    b_error: torch.Tensor | None
    pullback: list


_WEIGHTS: weakref.WeakKeyDictionary[Tableau, dict] = (
    weakref.WeakKeyDictionary()
)  # by tableau, then by type and device: made once


def _weights_of(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> _Weights:
    if under_transform():  # these tensors belong to the transform
        return _made_weights(tableau, dtype, device)
    known = _WEIGHTS.setdefault(tableau, {})
    if (dtype, device) not in known:
        known[dtype, device] = _made_weights(tableau, dtype, device)
    return known[dtype, device]


def _made_weights(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> _Weights:
    def vector(weights: Iterable[Any]) -> Tensor:
        return torch.tensor([float(w) for w in weights], dtype=dtype, device=device)

    a, b = tableau.a, tableau.b
    last = tableau.stages - (2 if tableau.fsal else 1)  # of the stages that a step pays for
    return _Weights(
        [float(c) for c in tableau.c],
        [vector(row) for row in a],
        float(a[1][0]) if tableau.stages > 1 else None,
        vector(b),
        vector(b[: last + 1]),
        float(b[last]),
        vector(tableau.b_error) if tableau.adaptive else None,
        [vector([b[j], *(a[m][j] for m in range(last, j, -1))]) for j in range(last + 1)],
    )
