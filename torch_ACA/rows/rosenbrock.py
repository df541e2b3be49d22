"""A Rosenbrock step of all rows at once, and its VJP.

The formulas are those of `steppers.rosenbrock`, with a matrix W of its own for each row. The matrices are factorised
together, and a row's Jacobian is found once for all tries of its step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..jacobian import Derivative
from ..linearisation import traced_linearisation
from ..steppers.rosenbrock import Rosenbrock, Start
from .jacobian import block_dot, block_times
from .stepper import RowStepper, moved, side_of, weighted

if TYPE_CHECKING:
    from ..evaluation import GradientSum
    from ..march import Stats
    from ..rosenbrock_tableaus import RosenbrockTableau
    from .field import RowField
    from .march import RowStep


@dataclass(slots=True, eq=False)
class _Start(Start):
    """As `Start`; slope and derivative are None where not found yet. For the rows that have ``moved`` (None: no more)
    they are still to be found, on that ``side`` of their times."""

    moved: torch.Tensor | None = None
    side: Any = 0


@dataclass(slots=True, eq=False)
class _Record:
    """What the VJP of a step needs: its start, the evaluations of the stages after the first, and the factors of W."""

    start: Start
    evaluations: list
    factors: tuple


class RowRosenbrock(RowStepper):
    """Steps of one `RosenbrockTableau`. Takes memory for b blocks of n x n numbers, for b rows of n."""

    hint = Rosenbrock.hint

    def __init__(self, tableau: RosenbrockTableau, field: RowField, *, time_grad: bool = False) -> None:
        super().__init__(tableau, field, time_grad=time_grad)
        self.own, self.jacobian = tableau.stages, field.jacobian
        self.n_jacobians = self.n_factorizations = 0
        layout = field.layout
        self._eye = torch.eye(self.rows.width, dtype=layout.dtype, device=layout.device) / tableau.gamma
        self._d = torch.tensor(tableau.d, dtype=layout.dtype, device=layout.device)

    def slope_of(self, first: _Start) -> Tensor | None:
        return first.slope if first.moved is None else None

    def report(self, stats: Stats) -> None:
        stats.n_jacobians, stats.n_factorizations = self.n_jacobians, self.n_factorizations

    def begin(self, t: Tensor, y: Tensor, side: Any, slope: Tensor | None = None) -> _Start:
        # the slope alone is of no use, for the derivative is needed too
        return _Start(None, None, moved=torch.ones(self.rows.count, dtype=torch.bool, device=y.device), side=side)

    def prepare(self, first: _Start, t: Tensor, y: Tensor) -> None:
        if first.moved is None:
            return
        # where steps begin anew, func was evaluated before and has had its effects
        known = self.field.side_effects.replay() if first.slope is None else contextlib.nullcontext()
        with known:
            found = self._linearised(t, y, first.side, with_graphs=False)
        if first.slope is not None:
            entries = self.rows.spread(first.moved)
            (J, f_t), (J_before, f_t_before) = found.derivative, first.derivative
            found.slope = torch.where(entries, found.slope, first.slope)
            J, f_t = torch.where(first.moved[:, None, None], J, J_before), torch.where(entries, f_t, f_t_before)
            found.derivative = Derivative(J, f_t)
        first.slope, first.derivative, first.moved = found.slope, found.derivative, None

    def step(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, first: _Start, *, before_jump: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        slopes, _ = self._stages(t, h, t_end, y, first, self.field.slope, before_jump)
        return moved(y, self.sizes(h), self.tableau.b, slopes), slopes

    def error(self, h: Tensor, slopes: list[Tensor]) -> Tensor:
        return slopes[-1] * self.sizes(h)

    def follow(self, first: _Start, step: RowStep) -> _Start:
        return replace(first, moved=step.accepted, side=side_of(step.jumped, 1.0))

    def replay(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, *, after_jump: Tensor | None = None,
        before_jump: Tensor | None = None,
    ) -> tuple[_Record, list[Tensor], Tensor]:  # fmt: skip
        start, evaluations = self._linearised(t, y, side_of(after_jump, 1.0), with_graphs=True), []

        def evaluate(time: Tensor, stage: Tensor, side: Any) -> Tensor:
            slope = torch.empty_like(stage)
            evaluations.append(self.field.record(time, stage, slope, time_grad=self.time_grad, side=side))
            return slope

        slopes, factors = self._stages(t, h, t_end, y, start, evaluate, before_jump)
        end = moved(y, self.sizes(h), self.tableau.b, slopes)
        return _Record(start, evaluations, factors), slopes, end

    def vjp(
        self, h: Tensor, record: _Record, slopes: list[Tensor], y_bar: Tensor, slope_bars: Sequence[Tensor | None],
        gradients: GradientSum,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        lambdas: list[Any]  # None before it is found
        stage_bars: list[Any]
        tableau, sizes, stages = self.tableau, self.sizes(h), range(self.own)
        lambdas, stage_bars = [None] * self.own, [None] * self.own
        start_bar = y_bar.clone()
        t_bar = h_bar = torch.zeros_like(h) if self.time_grad else None
        for j in reversed(stages):
            later = stages[j + 1 :]
            weights = [tableau.b[j], *(tableau.a[m][j] for m in later)]
            k_bar = weighted(weights, [y_bar, *stage_bars[j + 1 :]]).mul_(sizes)
            if later:
                k_bar += weighted([tableau.C[m][j] for m in later], lambdas[j + 1 :])
            if slope_bars[j] is not None:
                k_bar += slope_bars[j]
            lambdas[j] = self._solve(record.factors, k_bar, adjoint=True)
            if j == 0:
                break
            state_bar, time_bar = record.evaluations[j - 1].vjp(lambdas[j], gradients)
            record.evaluations[j - 1] = None
            stage_bars[j] = torch.zeros_like(y_bar) if state_bar is None else state_bar
            start_bar += stage_bars[j]
            if self.time_grad:
                h_bar = h_bar + self.rows.dot(stage_bars[j], weighted(tableau.a[j], slopes))
                if time_bar is not None:
                    time_bar = time_bar.reshape(-1).double()
                    t_bar, h_bar = t_bar + time_bar, h_bar + tableau.c[j] * time_bar
        outputs, bars, of_size = self._at_start(record.start, h, sizes, lambdas, slopes)
        state_bar, time_bar = record.start.at.vjp(lambdas[0], outputs, bars, gradients)
        if state_bar is not None:
            start_bar += state_bar
        if self.time_grad:
            h_bar = h_bar + self.rows.dot(y_bar, weighted(tableau.b, slopes)) + of_size
            t_bar = t_bar if time_bar is None else t_bar + time_bar.reshape(-1).double()
        return start_bar, t_bar, h_bar

    def traced_start(self, t: Tensor, y: Tensor, side: Any) -> _Start:
        self.n_jacobians += 1
        return _Start(*traced_linearisation(self.field, t, y, side=side))

    def traced(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, first: _Start, *, before_jump: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        def evaluate(time: Tensor, stage: Tensor, side: Any) -> Tensor:
            return self.field.traced(time, stage, side=side)

        slopes, _ = self._stages(t, h, t_end, y, first, evaluate, before_jump)
        return moved(y, self.sizes(h), self.tableau.b, slopes), slopes

    def _linearised(self, t: Tensor, y: Tensor, side: Any, *, with_graphs: bool) -> Start:
        self.n_jacobians += 1
        small = self.rows.width <= self.own and not self.jacobian.is_users
        return _Start.of(self.field.linearise(t, y, side), with_graphs=with_graphs, small=small)

    def _stages(
        self, t: Tensor, h: Tensor, t_end: Tensor, y: Tensor, start: Start,
        evaluate: Callable[[Tensor, Tensor, Any], Tensor], before_jump: Tensor | None,
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:  # fmt: skip
        """The slopes of a step, and the factors of W.

        :param evaluate: evaluate(t, y, side) -> func
        """
        tableau, sizes, slopes = self.tableau, self.sizes(h), []
        J, f_t = start.derivative if torch.is_grad_enabled() else (part.detach() for part in start.derivative)
        self.n_factorizations += 1
        # a singular W gives an infinite error estimate: a rejected try
        factors = torch.linalg.lu_factor_ex(self._eye - block_times(h, J))[:2]
        for i in range(tableau.stages):
            if i == 0:
                value = start.slope
            else:
                time, side = self.at_stage(tableau.c[i], t, h, t_end, before_jump)
                value = evaluate(time, moved(y, sizes, tableau.a[i], slopes), side) + weighted(tableau.C[i], slopes)
            if tableau.d[i]:
                value = value + tableau.d[i] * sizes * f_t
            slopes.append(self._solve(factors, value))
        return slopes, factors

    def _at_start(
        self, start: Start, h: Tensor, sizes: Tensor, lambdas: Any, slopes: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None]:
        """What has a graph of the derivative at the start, its cotangents, and that of the sizes [b] (None without
        time_grad)."""
        lambdas, slopes = torch.stack(lambdas), torch.stack(slopes)
        outputs, of_size = start.derivative, None
        if any(output.requires_grad for output in outputs):
            of_state, of_time = self.jacobian.cotangents(lambdas, slopes, self._d)
            if self.time_grad:
                J, f_t = (output.detach() for output in outputs)
                of_size = block_dot(J, of_state) + self.rows.dot(f_t, of_time)
            return outputs, (block_times(h, of_state), sizes * of_time), of_size
        with torch.enable_grad():  # the product of both, which has a graph
            products = start.at.products(lambdas, create_graph=True)
        if self.time_grad:
            of_state, of_time = products.detach().split([len(sizes), len(h)], 1)
            of_size = self.rows.dot(of_state, slopes).sum(0) + (of_time * self._d[:, None]).sum(0, dtype=torch.float64)
        return (products,), (torch.cat([sizes * slopes, self._d[:, None] * h.to(sizes)], 1),), of_size

    def _solve(self, factors: tuple[Tensor, ...], vector: Tensor, adjoint: bool = False) -> Tensor:
        rows = self.rows
        return rows.flat(torch.linalg.lu_solve(*factors, rows.rows(vector)[..., None], adjoint=adjoint)[..., 0])
