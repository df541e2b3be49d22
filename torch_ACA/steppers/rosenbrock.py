"""Rosenbrock steps: implicit enough for stiff problems, by linear solves alone (formula in `rosenbrock_tableaus`).

Per step one Jacobian and one LU factorisation, per stage one evaluation of f and one triangular solve: no Newton
iteration, whose tolerance the gradient would inherit. The VJP is the derivative of what was computed. A stage solves
W k = r with W = I / gamma - h J, so that with the cotangent k_bar

    W^T lambda = k_bar,    r_bar = lambda,    J_bar = h sum_i lambda_i k_i^T,    f_t_bar = h sum_i d_i lambda_i:

solves with the same factors, one VJP of f per stage, and the derivative of <J_bar, J> + <f_t_bar, f_t> by a second
backward pass through the evaluation that J was taken from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..jacobian import Derivative
from ..linearisation import Linearisation, traced_linearisation
from ..transforms import under_transform
from .base import Carry, Stepper, Time, TracedStep, Trial
from .dense_output import combine

if TYPE_CHECKING:
    from ..evaluation import GradientSum
    from ..march import Stats
    from ..rosenbrock_tableaus import RosenbrockTableau
    from ..vector_field import VectorField


@dataclass(slots=True, eq=False)
class Start:
    """f [n] and its `Derivative` where a step begins; ``at``: with their graph (None: not kept)."""

    slope: torch.Tensor
    derivative: Derivative
    at: Linearisation | None = None

    @classmethod
    def of(cls, at: Linearisation, *, with_graphs: bool, small: bool) -> Start:
        """What a `Linearisation` gives.

        :param small: so is the system: its derivative keeps a graph, so that no product with it need be recorded later
        """
        with torch.set_grad_enabled(with_graphs and small):
            derivative = at.derivative(create_graph=with_graphs and small)
        return cls(at.value.detach(), derivative, at if with_graphs else None)


@dataclass(slots=True, eq=False)
class _Record:
    """What the VJP of a step needs: its start, the evaluations of the stages after the first, with their graphs, the
    slopes [stages, n] and the factors of W."""

    start: Start
    evaluations: list
    slopes: torch.Tensor
    factors: tuple


class Rosenbrock(Stepper):
    """The stepper of one tableau. Takes memory for matrices of n x n numbers, for states of n numbers.

    :param tableau: `rosenbrock_tableaus.RosenbrockTableau`
    :param vector_field, keep_graphs, time_grad: as for `base.Method.stepper`
    """

    hint = "Where components differ in size, as concentrations do, give atol per component."

    def __init__(
        self, tableau: RosenbrockTableau, vector_field: VectorField, *, keep_graphs: bool = False,
        time_grad: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(tableau, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)
        self.tableau = tableau
        self.own_stages = s = tableau.stages
        self.n_jacobians = self.n_factorizations = 0
        self._start_slope: Tensor | None = None
        layout, self.jacobian = vector_field.layout, vector_field.jacobian
        like = {"dtype": layout.dtype, "device": layout.device}
        self.slopes = torch.empty(s, layout.size, **like)
        self._row = self.slopes.unbind()
        self._target = [layout.target(row) for row in self._row]
        self._columns = [self.slopes[:i].T for i in range(s)]
        self._eye = torch.eye(self.jacobian.blocks.width, **like) / tableau.gamma
        self._a, self._C = ([torch.tensor(row, **like) for row in rows] for rows in (tableau.a, tableau.C))
        self._b, self._d = (torch.tensor(row, **like) for row in (tableau.b, tableau.d))
        # the later stages that a slope is in, with what weight
        self._a_after, self._C_after = (
            [torch.tensor([rows[i][j] for i in range(j + 1, s)], **like) for j in range(s)]
            for rows in (tableau.a, tableau.C)
        )

    def report(self, stats: Stats) -> None:
        super().report(stats)
        stats.n_jacobians, stats.n_factorizations = self.n_jacobians, self.n_factorizations

    def start(
        self, t: float, y: Tensor, slope: Tensor | None = None, evaluation: Any = None, *, after_jump: bool = False
    ) -> Carry:
        # with slope, f was evaluated here before; its graph is of no use, for the derivative is needed too
        return Carry(t, y, slope, after_jump=after_jump)

    def prepare(self, carry: Carry) -> None:
        """Evaluate f and its derivative at the start of a step, once for all tries."""
        if carry.evaluation is None:
            with self._counting_once(carry.slope):
                carry.evaluation = self._linearised(carry.t, carry.y, carry.after_jump, with_graphs=self.keep_graphs)

    def step(self, carry: Carry, h: float, t_end: float, *, before_jump: bool = False) -> Trial:
        # a singular W gives an infinite error estimate: a rejected try
        start = carry.evaluation
        factors, evaluations = self._stages(carry.t, h, carry.y, t_end, start, before_jump, self.keep_graphs)
        record = _Record(start, evaluations, self.slopes.clone(), factors) if self.keep_graphs else None
        return Trial(Carry(t_end, self.replayed_end(carry.y, h)), self._row[-1] * h, record)

    def replay(
        self, t: float, h: float, y: Tensor, t_end: float, *, after_jump: bool = False, before_jump: bool = False,
        every: int | None = 1,
    ) -> _Record:  # fmt: skip
        start = self._linearised(t, y, after_jump, with_graphs=True)
        self._start_slope = start.slope
        factors, evaluations = self._stages(t, h, y, t_end, start, before_jump, True)
        return _Record(start, evaluations, self.slopes, factors)

    def replayed_end(self, y: Tensor, h: float, every: int = 1) -> Any:
        end = torch.add(y, torch.mv(self.slopes.T, self._b), alpha=h)  # rounded once
        return end if every == 1 else (end[::every], end.sum(dtype=torch.float64))

    def reload(self, record: _Record) -> None:
        self.slopes.copy_(record.slopes)
        self._start_slope = record.start.slope

    @property
    def start_slope(self) -> Tensor:
        return self._start_slope

    def vjp(
        self, h: float, record: _Record, y_bar: Tensor, slope_bars: Tensor | None, first_bar: Tensor | None,
        gradients: GradientSum,
    ) -> tuple[Tensor, Any, Any]:  # fmt: skip
        tableau, slopes = self.tableau, record.slopes
        lambdas, stage_bars = torch.empty_like(slopes), torch.empty_like(slopes)
        targets = [self.field.layout.target(row) for row in stage_bars]
        start_bar = y_bar.clone()
        t_bar: Any = 0.0
        h_bar: Any = 0.0
        for j in range(self.own_stages - 1, -1, -1):
            k_bar = torch.addmv(y_bar * (h * tableau.b[j]), stage_bars[j + 1 :].T, self._a_after[j], alpha=h)
            k_bar.addmv_(lambdas[j + 1 :].T, self._C_after[j])
            if slope_bars is not None:
                k_bar += slope_bars[j]
            lambdas[j] = self._solve(record.factors, k_bar, adjoint=True)
            if j == 0:
                break
            stage_bar, time_bar = record.evaluations[j - 1].vjp(lambdas[j], gradients, out=targets[j])
            record.evaluations[j - 1] = None
            if stage_bar is None:
                stage_bars[j] = 0.0
            start_bar += stage_bars[j]
            if self.time_grad:
                h_bar = h_bar + stage_bars[j] @ (slopes[:j].T @ self._a[j])
            if time_bar is not None:
                t_bar, h_bar = t_bar + time_bar, h_bar + tableau.c[j] * time_bar

        # value and derivative of f at the start: cotangents lambda_0 and h sum_i lambda_i (k_i, d_i)^T
        at = record.start.at
        outputs: tuple[Tensor, ...] = record.start.derivative
        bars: tuple[Tensor, ...]
        if any(output.requires_grad for output in outputs):
            bars = self.jacobian.cotangents(lambdas, slopes, self._d)
        else:  # their product, which has a graph
            with torch.enable_grad():
                outputs = (at.products(lambdas, create_graph=True),)
            bars = (torch.cat([slopes, self._d[:, None]], 1),)
        if self.time_grad:
            h_bar = h_bar + y_bar @ (slopes.T @ self._b)
            h_bar = h_bar + sum((output.detach() * bar).sum() for output, bar in zip(outputs, bars))
        value_bar = lambdas[0] if first_bar is None else lambdas[0] + first_bar
        state_bar, time_bar = at.vjp(value_bar, outputs, [h * bar for bar in bars], gradients)
        if state_bar is not None:
            start_bar += state_bar
        return start_bar, t_bar if time_bar is None or not self.time_grad else t_bar + time_bar, h_bar

    def traced_start(self, t: Any, y: Tensor, slope: Any = None, *, after_jump: bool = False) -> Any:
        """f and its derivative; f alone would not do."""
        self.n_jacobians += 1
        with self._counting_once(slope):
            return traced_linearisation(self.field, t, y, side=int(after_jump))

    def traced(
        self, t: Time, h: Time, y: Tensor, t_end: Time, slope: Any = None, *, after_jump: bool = False,
        before_jump: bool = False,
    ) -> TracedStep:  # fmt: skip
        start = self.traced_start(t, y, after_jump=after_jump) if slope is None else slope
        self.n_factorizations += 1

        def evaluate(time: Time, stage: Tensor, at_end: bool) -> Tensor:
            return self.field.traced(time, stage, side=-int(before_jump and at_end))

        return TracedStep(*taken(self.tableau, evaluate, start, self._matrix_solve, t, h, y, t_end))

    def _matrix_solve(self, h: Time, J: Tensor) -> Callable:
        # PyTorch's solve in one call has wrong reverse derivatives of its forward derivative
        factors, blocks = torch.linalg.lu_factor_ex(self._eye - h * J)[:2], self.jacobian.blocks

        def solve(vector: Tensor) -> Tensor:
            return blocks.flat(torch.linalg.lu_solve(*factors, blocks.rows(vector)[..., None])[..., 0])

        return solve

    def _counting_once(self, slope: Any) -> AbstractContextManager:
        """Context of an evaluation where f may have been evaluated before, and has had its side effects."""
        return contextlib.nullcontext() if slope is None else self.field.side_effects.replay()

    def _linearised(self, t: float, y: Tensor, after_jump: bool, *, with_graphs: bool) -> Start:
        self.n_jacobians += 1
        if under_transform():
            return Start(*traced_linearisation(self.field, self.field.time(t), y, side=int(after_jump)))
        small = self.jacobian.blocks.width <= self.tableau.stages and not self.jacobian.is_users
        return Start.of(self.field.linearise(t, y, int(after_jump)), with_graphs=with_graphs, small=small)

    def _stages(
        self, t: float, h: float, y: Tensor, t_end: float, start: Start, before_jump: bool, with_graphs: bool
    ) -> tuple[Any, list]:
        """Put the slopes of a step into the buffer; returns the factors of W and, with_graphs, the evaluations of the
        stages after the first.
        """
        tableau, evaluations = self.tableau, []
        J, f_t = (part.detach() for part in start.derivative)
        self.n_factorizations += 1
        factors = torch.linalg.lu_factor_ex(torch.sub(self._eye, J, alpha=h))[:2]
        for i, row in enumerate(self._row):
            if i == 0:
                row.copy_(start.slope)
            else:
                stage = torch.addmv(y, self._columns[i], self._a[i], alpha=h)
                at_end = tableau.c[i] == 1.0
                time, side = t_end if at_end else t + tableau.c[i] * h, -int(before_jump and at_end)
                if with_graphs:
                    evaluations.append(self.record(time, stage, self._target[i], side))
                else:
                    self.field(time, stage, self._target[i], side)
                row.addmv_(self._columns[i], self._C[i])
            if tableau.d[i]:
                row.add_(f_t, alpha=h * tableau.d[i])
            row.copy_(self._solve(factors, row))
        return factors, evaluations

    def _solve(self, factors: Any, vector: Tensor, adjoint: bool = False) -> Tensor:
        blocks = self.jacobian.blocks
        return blocks.flat(torch.linalg.lu_solve(*factors, blocks.rows(vector)[..., None], adjoint=adjoint)[..., 0])


def taken(
    tableau: RosenbrockTableau, evaluate: Callable, start: Any, solves: Callable, t: Any, h: Any, y: Tensor, t_end: Any
) -> tuple[Tensor, list[Tensor], Tensor]:
    """A step as differentiable operations: its end, slopes and error estimate.

    :param evaluate: (time, state, whether this is the end of the step) -> f
    :param start: f [n] and its `Derivative` at t, y
    :param solves: (h, df/dy) -> function that solves with W
    """
    value, (J, f_t) = start
    solve, slopes = solves(h, J), []  # type: Callable, list[Tensor]
    for i in range(tableau.stages):
        if i > 0:
            at_end = tableau.c[i] == 1.0
            value = evaluate(t_end if at_end else t + tableau.c[i] * h, y + h * combine(tableau.a[i], slopes), at_end)
            value = value + combine(tableau.C[i], slopes)
        if tableau.d[i]:
            value = value + h * tableau.d[i] * f_t
        slopes.append(solve(value))
    return y + h * combine(tableau.b, slopes), slopes, h * slopes[-1]
