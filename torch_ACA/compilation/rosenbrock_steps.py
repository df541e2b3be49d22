"""Functions of tensors around the graph of func, for one Rosenbrock method."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..jacobian import Jacobian
from ..linearisation import Linearisation
from ..state import StateLayout
from ..steppers.rosenbrock import taken
from .steps import Steps

INVERTED = 8  # numbers of a system whose matrix is inverted: by then a call of LAPACK costs more than its products


class RosenbrockSteps(Steps):
    """It is the field of `Linearisation`, too.

    :param tableau: `RosenbrockTableau`
    :param layout: of the state
    :param by_rows: func acts row by row
    """

    evaluation_bytes = math.inf  # not known

    def __init__(self, graph: Any, tableau: Any, layout: StateLayout, *, by_rows: bool) -> None:
        super().__init__(graph, tableau)
        self.key = (tableau, by_rows)
        self.jacobian, self.vectorises = Jacobian(layout, by_rows=by_rows), True

    def counts(self) -> tuple[int, int]:
        return self.tableau.stages, self.tableau.stages

    def step(self, times: Sequence[Tensor], y: Tensor, slope: Any, others: Sequence[Tensor]) -> Any:
        t, h, end = times
        start = self._linearised(t, y, others)
        return taken(self.tableau, lambda t, x, at_end: self.graph(t, x, others), start, self._solves, t, h, y, end)

    def trial(self, times: Sequence[Tensor], y: Tensor, slope: Tensor, others: Sequence[Tensor]) -> Any:
        return *self.step(times, y, None, others), slope.clone()  # the derivative is needed too, not f alone

    def _linearised(self, t: Tensor, y: Tensor, others: Sequence[Tensor]) -> Any:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            t, y = (x if x.requires_grad else x.detach().requires_grad_() for x in (t, y))
            at = Linearisation(self, self.graph(t, y, others), y, t)
        derivative = self.jacobian.from_func(at, create_graph=create_graph)
        return (at.value, derivative) if create_graph else (at.value.detach(), derivative)

    def _solves(self, h: Tensor, J: Tensor) -> Callable:
        blocks = self.jacobian.blocks
        matrix = torch.eye(blocks.width, dtype=J.dtype, device=J.device) / self.tableau.gamma - h * J
        solver = _Inverted if blocks.width <= INVERTED else _Factored
        kept = solver.kept(matrix.detach())
        return lambda vector: blocks.flat(_Solve.apply(solver, matrix, *kept, blocks.rows(vector)[..., None])[..., 0])


class _Factored:
    """Solves with LU factors, a call of LAPACK each."""

    @staticmethod
    def kept(matrix: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.lu_factor_ex(matrix)[:2]

    @staticmethod
    def solve(lu: Tensor, pivots: Tensor, vector: Tensor, *, adjoint: bool) -> Tensor:
        return torch.linalg.lu_solve(lu, pivots, vector, adjoint=adjoint)


class _Inverted:
    """Solves with the inverse, in generated code, and once more with the residual, which rounding leaves."""

    @staticmethod
    def kept(matrix: Tensor) -> tuple[Tensor, Tensor]:
        inverse, failed = torch.linalg.inv_ex(matrix)
        return matrix, torch.where((failed == 0)[..., None, None], inverse, math.inf)

    @staticmethod
    def solve(matrix: Tensor, inverse: Tensor, vector: Tensor, *, adjoint: bool) -> Tensor:
        if adjoint:
            matrix, inverse = matrix.mT, inverse.mT
        found = _product(inverse, vector)
        return found + _product(inverse, vector - _product(matrix, found))


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """As ``@``, but in generated code it needs no call."""
    return (matrix * vector.mT).sum(-1, keepdim=True)


class _Solve(torch.autograd.Function):
    """A solve, and its VJP by what was kept for it."""

    @staticmethod
    def forward(ctx: Any, solver: Any, matrix: Tensor, *given: Tensor) -> Tensor:
        *kept, vector = given
        found = solver.solve(*kept, vector, adjoint=False)
        ctx.solver = solver
        ctx.save_for_backward(*kept, found)
        return found

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:
        *kept, found = ctx.saved_tensors
        bar = ctx.solver.solve(*kept, bar, adjoint=True)
        return None, -bar * found.mT, *(None for _ in kept), bar
