"""scipy's solvers in place of a march, forwards and in the backward pass of the continuous adjoint.

scipy chooses its steps itself, implicit ones among them (LSODA, BDF, Radau), so there is no record of steps that could
be evaluated again: of the gradient methods only the continuous adjoint goes with it. It runs on the processor in
float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from .errors import NonFiniteError, SolverError, TooManyEvaluationsError

if TYPE_CHECKING:
    from .march import Limits
    from .problem import Problem
    from .vector_field import VectorField


def solve_ivp_of_scipy() -> Callable:
    """`scipy.integrate.solve_ivp`, imported when it is wanted, which is seldom.

    :raises ImportError: scipy is not installed
    """
    try:
        from scipy.integrate import solve_ivp
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "scipy":  # of scipy's own
            raise
        raise ImportError("method 'scipy_solver' needs scipy, which is not installed: pip install scipy") from None
    return solve_ivp


@dataclass(frozen=True)
class Scipy:
    """`scipy.integrate.solve_ivp` with its settings.

    :param rtol, atol: floats, or vectors [n]
    :param solver: scipy's name of the method
    :param options: further keywords of solve_ivp
    """

    name = "scipy_solver"
    abilities: ClassVar[frozenset[str]] = frozenset()

    rtol: float | torch.Tensor
    atol: float | torch.Tensor
    solver: str = "LSODA"
    options: dict = field(default_factory=dict)

    def states(
        self, vector_field: VectorField, y0: torch.Tensor, ts: list[float], limits: Limits
    ) -> tuple[torch.Tensor, SolverError | None]:
        """Solve from y0 [n] at ts[0]. To be called with gradients off.

        :param vector_field: called as vector_field(t, y, out); counts its calls in ``n_evals``
        :param limits: `march.Limits`; that on evaluations holds
        :returns: the states at ts[1:], as many as were reached, [k, n], and the `SolverError` that ended the solve
            early (None: it did not)
        """
        out = torch.empty_like(y0)

        def slope(t: float, y: np.ndarray) -> np.ndarray:
            if vector_field.n_evals >= limits.max_evals:
                what = f"max_evals = {limits.max_evals} was reached"
                raise TooManyEvaluationsError(t, 0.0, 0, vector_field.n_evals, what=what)
            vector_field(float(t), torch.tensor(y, dtype=y0.dtype, device=y0.device), out)
            return out.double().cpu().numpy().copy()

        result = solve_ivp_of_scipy()(
            slope, (ts[0], ts[-1]), _array(y0), self.solver, ts[1:], rtol=_array(self.rtol), atol=_array(self.atol),
            **self.options,
        )  # fmt: skip
        found = np.ascontiguousarray(np.asarray(result.y).reshape(len(y0), -1).T)
        good = int(np.isfinite(found).all(1).cumprod().sum())
        reached, failure = ts[good], None
        if good < len(ts) - 1:
            kind = SolverError if good == len(found) else NonFiniteError
            what = f"scipy gave up ({result.message})" if kind is SolverError else None
            failure = kind(reached, 0.0, good, vector_field.n_evals, what=what)
        return torch.as_tensor(found[:good], dtype=y0.dtype, device=y0.device), failure


class ScipySolve:
    """The forward pass of a `Problem` whose method is `Scipy`; stands for `gradients.discrete.DiscreteSolve`."""

    end_slope = None

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def forward(self, *, remember: bool = False) -> tuple[torch.Tensor]:
        """The outputs [m - 1, n], as a tuple of one."""
        problem = self.problem
        problem.slope = problem.evaluation = None
        method: Any = problem.method  # a `Scipy`
        ys, failure = method.states(problem.field, problem.y0.detach(), problem.ts, problem.limits)
        problem.stats.n_f_evals = problem.field.n_evals
        if failure is not None and not problem.return_on_failure:
            raise failure
        problem.failure, problem.n_solved = failure, len(ys)
        return (ys,)


def _array(value: Any) -> Any:
    """A number as it is, a tensor as an array in float64."""
    return value.detach().double().cpu().numpy() if isinstance(value, torch.Tensor) else value
