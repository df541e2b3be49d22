"""An explicit Runge-Kutta step of all rows at once, and its VJP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..steppers.runge_kutta import RungeKutta
from .stepper import RowStepper, moved, side_of, times_of_rows, weighted

if TYPE_CHECKING:
    from ..evaluation import Evaluation, GradientSum
    from ..tableau import Tableau
    from .field import RowField
    from .march import RowStep


class RowRungeKutta(RowStepper):
    """Steps of one `Tableau`. A step begins with the slope at its start and records the `Evaluation`s of its stages."""

    hint = RungeKutta.hint
    can_keep_graphs = True

    def __init__(self, tableau: Tableau, field: RowField, *, time_grad: bool = False) -> None:
        super().__init__(tableau, field, time_grad=time_grad)
        self.fsal = tableau.fsal
        self.own = tableau.stages - 1 if tableau.fsal else tableau.stages
        self.uses_end = tableau.interpolant.slopes > self.own
        self._c, self._a, self._b = tableau.floats
        self._b_error = tuple(map(float, tableau.b_error))

    def begin(self, t: Tensor, y: Tensor, side: Any, slope: Tensor | None = None) -> Tensor:
        return self.field.slope(t, y, side) if slope is None else slope

    def step(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, first: Tensor, *, before_jump: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        self.evaluations = [] if self.keep_graphs else None
        return self._step(t, h, t_end, y, first, self._slope, before_jump)

    def error(self, h: Tensor, slopes: list[Tensor]) -> Tensor:
        return weighted(self._b_error, slopes).mul_(self.sizes(h))

    def follow(self, first: Tensor, step: RowStep) -> Tensor:
        if not self.fsal:  # of the next try, and of dense output in this one
            step.slopes.append(self._slope(step.t_end, step.y_end, side_of(step.before_jump, -1.0)))
        first = torch.where(step.moved, step.slopes[-1], first)
        if step.jumped is None:
            return first
        behind = self._slope(step.t_end, step.y_end, side_of(step.jumped, 1.0))
        return torch.where(self.rows.spread(step.jumped), behind, first)

    def replay(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, *, after_jump: Tensor | None = None,
        before_jump: Tensor | None = None,
    ) -> tuple[list[Evaluation], list[Tensor], Tensor]:  # fmt: skip
        evaluations, slopes, sizes = [], [], self.sizes(h)
        for i in range(self.own):
            stage = moved(y, sizes, self._a[i], slopes) if i else y
            slopes.append(torch.empty_like(y))
            time, side = self.at_stage(self._c[i], t, h, t_end, before_jump) if i else (t, side_of(after_jump, 1.0))
            evaluations.append(self.field.record(time, stage, slopes[-1], time_grad=self.time_grad, side=side))
        return evaluations, slopes, moved(y, sizes, self._b[: self.own], slopes)

    def vjp(
        self, h: Tensor, record: list[Evaluation | None], slopes: list[Tensor], y_bar: Tensor,
        slope_bars: Sequence[Tensor | None], gradients: GradientSum,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        y_bar, k_bar, t_bar, h_bar = self.vjp_behind_first(h, record, slopes, y_bar, slope_bars, gradients)
        state_bar, time_bar = record[0].vjp(k_bar, gradients)
        record[0] = None
        y_bar = y_bar if state_bar is None else y_bar.add_(state_bar)
        return y_bar, t_bar if not self.time_grad or time_bar is None else t_bar + times_of_rows(time_bar), h_bar

    def vjp_behind_first(
        self, h: Tensor, record: list[Evaluation | None], slopes: list[Tensor] | None, y_bar: Tensor,
        slope_bars: Sequence[Tensor | None], gradients: GradientSum,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """As `vjp`, but for the evaluation of the first slope, which the record need not have.

        :returns: cotangents of the state at the start, of the first slope [size], of the time and of the size
        """
        sizes, stage_bars = self.sizes(h), {}
        t_bar = h_bar = torch.zeros_like(h) if self.time_grad else None
        for j in range(self.own - 1, -1, -1):
            later = sorted(stage_bars)
            k_bar = weighted([self._b[j], *(self._a[m][j] for m in later)], [y_bar, *map(stage_bars.get, later)])
            if self.time_grad:
                h_bar = h_bar + self.rows.dot(k_bar, slopes[j])
            k_bar.mul_(sizes)
            if slope_bars[j] is not None:
                k_bar.add_(slope_bars[j])
            if j == 0:
                break
            state_bar, time_bar = record[j].vjp(k_bar, gradients)  # may share memory with k_bar
            record[j] = None
            stage_bars[j] = torch.zeros_like(y_bar) if state_bar is None else state_bar
            if self.time_grad and time_bar is not None:
                time_bar = times_of_rows(time_bar)
                t_bar, h_bar = t_bar + time_bar, h_bar + self._c[j] * time_bar
        y_bar = y_bar.clone() if not stage_bars else y_bar + stage_bars.pop(self.own - 1)
        for bar in stage_bars.values():
            y_bar.add_(bar)
        return y_bar, k_bar, t_bar, h_bar

    def traced_start(self, t: Tensor, y: Tensor, side: Any) -> Tensor:
        return self.field.traced(t, y, side=side)

    def traced(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, first: Tensor, *, before_jump: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        return self._step(t, h, t_end, y, first, self.traced_start, before_jump)

    def _slope(self, t: Tensor, y: Tensor, side: Any) -> Tensor:
        """func [size], with its graph kept where that is wanted."""
        if self.evaluations is None:
            return self.field.slope(t, y, side)
        slope = torch.empty_like(y)
        self.evaluations.append(self.field.record(t, y, slope, time_grad=self.time_grad, side=side))
        return slope

    def _step(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, first: Tensor,
        evaluate: Callable[[Tensor, Tensor, Any], Tensor], before_jump: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """As `step`.

        :param evaluate: evaluate(t, y, side) -> slope
        """
        sizes, slopes = self.sizes(h), [first]
        for i in range(1, self.tableau.stages):
            stage = moved(y, sizes, self._a[i], slopes)
            time, side = self.at_stage(self._c[i], t, h, t_end, before_jump)
            slopes.append(evaluate(time, stage, side))
        return stage if self.fsal else moved(y, sizes, self._b, slopes), slopes
