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


def _equal(one: Any, other: Any) -> bool:
    """Whether two coefficients are the same, to the digits that published ones have."""
    return abs(float(one) - float(other)) < 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class Tableau:
    """An explicit Runge-Kutta method. Two of them are equal only if they are the same object.

    ``a`` holds the strictly lower triangular rows (``a[i]`` has i entries), ``b`` the weights of the solution that is
    propagated, of ``order``, and ``b_embedded`` those of the comparison solution, of ``embedded_order`` (None: no error
    estimate, fixed steps only). ``interpolant`` holds the polynomial weights of the dense output, ``dense_order`` its
    global order. ``reference`` is the source in words.

    :raises ValueError: parts that do not fit together, as after a slip in typing them
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

    def __repr__(self) -> str:
        return f"<Tableau {self.name}>"

    def __post_init__(self) -> None:
        n, embedded = len(self.b), self.b_embedded
        for holds, what in (
            (n > 0 and len(self.c) == n == len(self.a), f"c and a need an entry for each of the {n} weights b"),
            (all(len(row) == i for i, row in enumerate(self.a)), "row i of a needs i entries"),
            (all(_equal(sum(row), c) for row, c in zip(self.a, self.c)), "row i of a must add up to c[i]"),
            (_equal(sum(self.b), 1), "b must add up to 1"),
            (embedded is None or len(embedded) == n, f"b_embedded needs {n} weights, as b"),
            (embedded is None or _equal(sum(embedded), 1), "b_embedded must add up to 1"),
            (embedded is None or self.embedded_order is not None, "b_embedded needs its embedded_order"),
            (isinstance(self.interpolant, Polynomials), "interpolant must be torch_ACA.Polynomials"),
        ):
            if not holds:
                raise ValueError(f"tableau {self.name}: {what}")
        ends = [sum(map(Fraction, weights)) for weights in self.interpolant.rows]
        if len(ends) not in (n, n + 1) or not all(map(_equal, ends, (*self.b, 0))):
            raise ValueError(f"tableau {self.name}: the weights of interpolant must be those of b at the end of a step")

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
