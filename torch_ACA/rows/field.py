"""func as the solver sees it, where every row of the state has a time of its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..autocast import coarsest_rounding
from ..evaluation import GradientSum
from ..notices import add_note
from ..private_torch import pytree
from ..side_effects import modules_of
from ..vector_field import VectorField
from .active import Choice
from .ties import RowTies

if TYPE_CHECKING:
    from ..evaluation import Evaluation
    from ..state import StateLayout
    from .layout import RowLayout

_SHOWN = "per_sample needs a func whose rows do not depend on each other, but {}. "
_HINT = "BatchNorm in training, attention over the batch and means over it tie rows together: solve them jointly"
_NORMS = "func holds {}, which takes its statistics over the batch: call eval(), take GroupNorm, or solve them jointly"
_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)


class RowField(VectorField):
    """A `VectorField` whose times are float64 tensors [b]; func gets them as [b, 1, ..., 1].

    :param choice: of rows (None: always all)
    :param settings: as of `VectorField`, but for the direction, a tensor [b]
    """

    _silent: Tensor | None

    def __init__(
        self, func: Any, layout: StateLayout, rows: RowLayout, choice: Choice | None = None, **settings: Any
    ) -> None:
        super().__init__(func, layout, **settings)
        self.rows, self.choice, self._silent = rows, choice or Choice(), None

    def time(self, t: Tensor, side: Any = 0) -> Tensor:
        """Times as func gets them.

        :param side: 0, or a tensor [b]: 1 or -1 for a row at whose time func jumps (the next time in or against the
            direction of integration), 0 for the others
        """
        return self.rows.time(self.beside(t, side) if isinstance(side, torch.Tensor) else t.to(self.layout.dtype))

    def traced(self, t: Tensor, y: Tensor, *, side: Any = 0) -> Tensor:
        t = t.to(self.layout.dtype)
        if isinstance(side, torch.Tensor):
            t = t + (self.beside(t.detach(), side) - t.detach())
        return super().traced(self.rows.time(t), y)

    def slope(self, t: Tensor, y: Tensor, side: Any = 0) -> Tensor:
        """f(t, y) [size]; no graph."""
        k = torch.empty_like(y)
        self(t, y, k, side)
        return k

    def call(self, t: Tensor, state: Any) -> Any:
        value = super().call(t, state)
        if self._silent is None:
            return value
        return pytree.tree_map(lambda x: torch.where(self._silent.view(-1, *[1] * (x.dim() - 1)), 0.0, x), value)

    def _add_note(self, failure: Exception, t: Tensor, state: Any) -> None:
        add_note(failure, f"With per_sample=True func gets the times of all rows: t of shape {list(t.shape)}.")

    @contextlib.contextmanager
    def without(self, failed: Tensor) -> Iterator[None]:
        """Context in which func is 0, and has no derivative, for rows that have failed [b]: it may be NaN for them,
        wherever it is evaluated. If their data are args, it is called without them."""
        with self.choice.all_behind():
            if bool(failed.any()):
                self._silent = failed
                self.choice.keep(~failed, exactly=True)
            try:
                yield
            finally:
                self._silent = None

    @contextlib.contextmanager
    def no_trace(self) -> Iterator[None]:
        """Context after which evaluations of func were not: they do not count, and change nothing."""
        n_evals = self.n_evals
        try:
            with torch.no_grad(), self.side_effects.no_trace():
                yield
        finally:
            self.n_evals = n_evals

    def finish(self) -> None:
        super().finish()
        self.choice.let_go(self.captured.has_left_out)

    def beside(self, time: Tensor, side: Tensor) -> Tensor:
        """Times [..., b], or where the side is not 0 the next ones in the direction of integration or against it."""
        time = time.to(self.layout.dtype)
        far = torch.copysign(torch.full_like(time, math.inf), (side * self.direction).to(time))
        return torch.nextafter(time, torch.where(side == 0, time, far))

    def _shown(self, t: Tensor) -> float:
        return float(t[0]) if len(t) else math.nan

    def check_rows(self, evaluation: Evaluation) -> None:
        """Refuse a func that mixes rows, as far as its graph shows it: the slopes of one half of the rows must not
        depend on states or times of the other half. The graph stays.

        :param evaluation: with a time
        :raises ValueError: func mixes rows
        """
        rows = self.rows
        if rows.count == 1 or not rows.width:
            return
        cotangent = torch.zeros(rows.count, rows.width, dtype=self.layout.dtype, device=self.layout.device)
        inside = rows.half(0)
        # BatchNorm has no gradient of a plain sum
        cotangent[inside] = torch.cos(torch.arange(1, rows.width + 1, device=cotangent.device)).to(cotangent)
        state_bar, time_bar = evaluation.vjp(
            rows.flat(cotangent), GradientSum(len(self.captured.leaves)), keep_graph=True
        )
        for bar, what in ((state_bar, "the state of"), (time_bar, "the time of")):
            if bar is None:
                continue
            bar = (rows.rows(bar) if what.endswith("state of") else bar.view(rows.count, 1)).abs().amax(1)
            others = ((bar > 0.0) & ~inside).nonzero()  # NaN is 0 times infinity, and says nothing
            if len(others):
                shown = f"the slopes of others depend on {what} row {int(others[0])}"
                raise ValueError(_SHOWN.format(shown) + self._reason())

    def ties(self, apart: bool = False) -> RowTies:
        """`RowTies` of func, whose evaluations do not count.

        :param apart: it is known that there are none
        """

        def evaluate(t: Tensor, y: Tensor, side: Any) -> Tensor:
            return self.rows.rows(self.slope(t, y, side))

        def refuse(row: int, what: str, t: float) -> None:
            shown = f"at t = {t:.6g} row {row} of its slope depends on the {what} of others"
            raise ValueError(_SHOWN.format(shown) + self._reason())

        return RowTies(evaluate, self.rows, coarsest_rounding(self), refuse, self.no_trace, apart=apart)

    def _reason(self) -> str:
        """Why rows may depend on each other: the BatchNorms in training that func holds, or what else ties rows."""
        norms = [module for module in modules_of(self.func) if isinstance(module, _BATCH_NORMS)]
        kinds = {type(norm).__name__ for norm in norms if norm.training or norm.running_mean is None}
        return _NORMS.format(" and ".join(sorted(kinds))) if kinds else _HINT
