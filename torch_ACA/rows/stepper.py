"""What steps of all rows at once have in common, each from its own time with its own size.

Every sum is made entry by entry, so that a row's bits do not depend on where in the batch it stands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..steppers.dense_output import combine

if TYPE_CHECKING:
    from ..evaluation import Evaluation, GradientSum
    from ..march import Stats
    from .field import RowField
    from .march import RowStep


class RowStepper(ABC):
    """Steps of one method; times and sizes are float64 tensors [b], states and slopes [size].

    ``own``: slopes that an accepted step pays for; ``fsal``: the last slope is the first of the next step;
    ``uses_end``: dense output takes the slope at the end of the step. A step begins with what `begin` or `follow` gave
    and `prepare` made ready, which nobody else looks into.

    ``keep_graphs``, which may be changed from try to try where it ``can_keep_graphs``: let `step` and `follow` put the
    `Evaluation`s of a try into ``evaluations`` (else None), from its second slope to the one at its end, and the one
    behind a jump there.

    :param tableau: of the method
    :param time_grad: let `vjp` return cotangents of times and sizes
    """

    hint = ""  # for a solve that takes too many steps
    own, fsal, uses_end, can_keep_graphs = 0, False, False, False
    evaluations: list[Evaluation] | None

    def __init__(self, tableau: Any, field: RowField, *, time_grad: bool = False) -> None:
        self.tableau, self.field, self.rows, self.time_grad = tableau, field, field.rows, time_grad
        self.keep_graphs, self.evaluations = False, None

    @abstractmethod
    def begin(self, t: Tensor, y: Tensor, side: Any, slope: Tensor | None = None) -> Any:
        """What a step begins with whose start is not the end of the step before.

        :param side: as for `RowField.time`
        :param slope: func there, where it is known; its effects have been had
        """

    def prepare(self, first: Any, t: Tensor, y: Tensor) -> None:  # noqa: B027 -- most methods need nothing
        """To be called before `step`, at its start."""

    @abstractmethod
    def step(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, first: Any, *, before_jump: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The state at the end and the slopes of all stages.

        :param first: what the step begins with
        :param before_jump: rows at whose ``t_end`` func jumps (None: none)
        """

    @abstractmethod
    def error(self, h: Tensor, slopes: list[Tensor]) -> Tensor:
        """Estimate of the error of a step [size]."""

    @abstractmethod
    def follow(self, first: Any, step: RowStep) -> Any:
        """What the steps behind an accepted one begin with: of the rows that were not accepted, as before.

        :param step: slopes that its dense output needs are appended
        """

    @abstractmethod
    def replay(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, *, after_jump: Tensor | None = None,
        before_jump: Tensor | None = None,
    ) -> tuple[Any, list[Tensor], Tensor]:  # fmt: skip
        """A record for `vjp`, the own slopes, and the state at the end.

        :param after_jump: rows at whose t func jumps, as ``before_jump``
        """

    @abstractmethod
    def vjp(
        self, h: Tensor, record: Any, slopes: list[Tensor], y_bar: Tensor, slope_bars: Sequence[Tensor | None],
        gradients: GradientSum,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """Discrete adjoint of a step.

        :param record: of `replay`, used up
        :param y_bar: cotangent of the state at the end [size]
        :param slope_bars: further cotangents of the own slopes, [size] each
        :param gradients: added to
        :returns: cotangents of the state at the start [size], of the time and of the size [b] (None without time_grad)
        """

    @abstractmethod
    def traced_start(self, t: Tensor, y: Tensor, side: Any) -> Any:
        """What a step begins with, as a graph of everything."""

    @abstractmethod
    def traced(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, first: Any, *, before_jump: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As `step`."""

    def slope_of(self, first: Any) -> Tensor | None:
        """func [size] where the next step begins; None where it is not known yet."""
        return first

    def report(self, stats: Stats) -> None:  # noqa: B027 -- most methods count nothing
        """Fill in what was counted here."""

    def sizes(self, h: Tensor) -> Tensor:
        """Step sizes for each entry of the state: [size]."""
        return self.rows.spread(h.to(self.field.layout.dtype))

    def inside(self, h: Tensor, y: Tensor, slopes: list[Tensor], row: Tensor, theta: Tensor) -> Tensor:
        """Dense output at fractions theta [p] of the steps of rows [p]: [p, n].

        :param slopes: as the interpolant weighs them, [size] each
        """
        weights = [w.to(y)[:, None] for w in self.tableau.interpolant.traced_weights(theta)]
        parts = [self.rows.rows(k)[row] for k in slopes]
        return self.rows.rows(y)[row] + h.to(y)[row, None] * combine(weights, parts)

    def at_stage(self, c: float, t: Tensor, h: Tensor, t_end: Tensor, before_jump: Tensor | None) -> tuple[Tensor, Any]:
        """Times [b] of a stage behind the first, and on which side of them.

        :param c: where in the step
        """
        return (t_end, side_of(before_jump, -1.0)) if c == 1.0 else (t + c * h, 0)


def side_of(jumps: Tensor | None, side: float) -> Any:
    """The side, 1.0 or -1.0, for the rows that jump (None: there are none)."""
    return 0 if jumps is None else side * jumps


def times_of_rows(bar: Tensor) -> Tensor:
    """Cotangents of times, as func has them: [b], float64."""
    return bar.reshape(-1).double()


def weighted(weights: Iterable[float], slopes: Sequence[Tensor]) -> Tensor:
    """sum of weights[j] * slopes[j], in memory of its own."""
    total = None
    for weight, slope in zip(weights, slopes):
        if weight != 0.0:
            total = slope * weight if total is None else total.add_(slope, alpha=weight)
    return torch.zeros_like(slopes[0]) if total is None else total


def moved(y: Tensor, sizes: Tensor, weights: Iterable[float], slopes: Sequence[Tensor]) -> Tensor:
    """y + sizes * (sum of weights[j] * slopes[j]): [size]."""
    return weighted(weights, slopes).mul_(sizes).add_(y)
