"""What distinguishes one explicit Runge-Kutta method from another, as plain data.

No tensors and no loops over time here: see `steppers.runge_kutta` for those and `interpolants` for dense output.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .interpolants import Polynomials
from .rows.runge_kutta import RowRungeKutta
from .steppers.base import COMPILE, JUMPS, PLAIN, REPLAY, ROWS, TRACE
from .steppers.runge_kutta import RungeKutta

if TYPE_CHECKING:
    from .vector_field import VectorField


def row(text: str) -> tuple[Fraction, ...]:
    """Fractions from a line such as ``"3/40 9/40"``."""
    return tuple(Fraction(entry) for entry in text.split())


@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit Runge-Kutta method. Two of them are equal only if they are the same object.

    ``a`` holds the strictly lower triangular rows (``a[i]`` has i entries), ``b`` the weights of the solution that is
    propagated and ``b_embedded`` those of the comparison solution (None: no error estimate, fixed steps only).
    ``interpolant`` holds the polynomial weights of the dense output, ``dense_order`` its global order.
    """

    name: str
    order: int
    c: tuple[Fraction, ...]
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    reference: str
    interpolant: Polynomials
    dense_order: int
    b_embedded: tuple[Fraction, ...] | None = None
    embedded_order: int | None = None

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def adaptive(self) -> bool:
        return self.b_embedded is not None

    @cached_property
    def floats(self) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]:
        """c, a and b as floats."""
        return tuple(map(float, self.c)), tuple(tuple(map(float, row)) for row in self.a), tuple(map(float, self.b))

    @cached_property
    def fsal(self) -> bool:
        """First same as last: the last stage is the slope at the new point, hence the next step's first stage."""
        return self.stages > 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1] and self.c[-1] == 1

    @cached_property
    def needs_end_slope(self) -> bool:
        """Whether its dense output needs the slope at the new point."""
        return self.fsal or self.interpolant.slopes > self.stages

    @cached_property
    def b_error(self) -> tuple[Fraction, ...]:
        """Weights of the error estimate: y1 - y1_embedded = h * sum(b_error[i] * k[i])."""
        return tuple(b - e for b, e in zip(self.b, self.b_embedded))  # type: ignore[arg-type]  # asked if adaptive

    @cached_property
    def error_sees_end_slope(self) -> bool:
        """Whether the error estimate is infinite or NaN where the slope at the new point is."""
        return self.adaptive and self.fsal and self.b_error[-1] != 0

    @cached_property
    def error_order(self) -> int | None:
        """Order in h of the error estimate: the step-size exponent of the controller is 1 / error_order."""
        return min(self.order, self.embedded_order) + 1 if self.adaptive else None  # type: ignore[type-var, operator]

    @cached_property
    def real_stability(self) -> float:
        """Steps of size h damp y' = -lambda y, lambda > 0, up to this h lambda (to two digits)."""
        powers, slopes = [1.0], [1.0] * self.stages  # of z in the factor of a step, and the slopes' part in each
        while any(slopes) and len(powers) <= self.stages:
            powers.append(float(sum(b * k for b, k in zip(self.b, slopes))))
            slopes = [sum(a * k for a, k in zip(row, slopes)) for row in self.a]
        x = 0.0
        while abs(sum(c * (-x - 0.01) ** i for i, c in enumerate(powers))) <= 1.0:
            x += 0.01
        return x

    @cached_property
    def abilities(self) -> frozenset[str]:
        return frozenset({REPLAY, TRACE, PLAIN, JUMPS, COMPILE}) | ({ROWS} if self.adaptive else frozenset())

    def stepper(self, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False) -> RungeKutta:
        """As `steppers.base.Method.stepper`."""
        return RungeKutta(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)

    row_steps = RowRungeKutta

    def row_stepper(self, field: Any, *, time_grad: bool = False) -> RowRungeKutta:
        """As `steppers.base.Method` says."""
        return self.row_steps(self, field, time_grad=time_grad)

    def compiled_stepper(
        self, vector_field: VectorField, *, with_slopes: bool, options: dict[str, Any], time_grad: bool = False
    ) -> RungeKutta:
        """The stepper whose steps are compiled.

        :param with_slopes: there is dense output
        :param options: of `torch.compile`, a dict; what ``vector_field.code`` generates code with
        """
        from .steppers.compiled import CompiledRungeKutta  # here, since Dynamo takes a second to import

        return CompiledRungeKutta(self, vector_field, with_slopes=with_slopes, time_grad=time_grad)
