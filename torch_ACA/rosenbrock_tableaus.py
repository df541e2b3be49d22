"""Tableaus of Rosenbrock methods as plain data; see `steppers.rosenbrock` for the steps.

A step from (t, y), with J = df/dy and f_t = df/dt there:

    (I / gamma - h J) k_i = f(t + c_i h, y + h sum_j a_ij k_j) + sum_j C_ij k_j + h d_i f_t,    j < i
    y1 = y + h sum_j b_j k_j

(Hairer and Wanner, Solving ODEs II, IV.7, eq. 7.25, with u_i = h k_i). The slopes k_i are not values of f, but dense
output is a weighted sum of them as it is in Runge-Kutta methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .interpolants import Polynomials
from .rows.rosenbrock import RowRosenbrock
from .steppers.base import COMPILE, JUMPS, LINEARISE, REPLAY, ROWS, TRACE
from .steppers.rosenbrock import Rosenbrock

if TYPE_CHECKING:
    from .vector_field import VectorField


@dataclass(frozen=True, eq=False)
class RosenbrockTableau:
    """A stiffly accurate Rosenbrock method with an embedded one: the last stage is evaluated at the comparison
    solution, y1 is h k_s away from it, and h k_s is the error estimate.

    ``a`` and ``C`` hold strictly lower triangular rows, ``c`` and ``d`` one number per stage. ``interpolant`` holds
    the weights of the dense output, ``dense_order`` its global order.
    """

    name: str
    order: int
    embedded_order: int
    gamma: float
    a: tuple[tuple[float, ...], ...]
    C: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    d: tuple[float, ...]
    reference: str
    interpolant: Polynomials
    dense_order: int

    adaptive = True
    abilities = frozenset({REPLAY, TRACE, JUMPS, LINEARISE, COMPILE, ROWS})
    needs_end_slope = False
    row_steps = RowRosenbrock

    @property
    def stages(self) -> int:
        return len(self.c)

    @property
    def b(self) -> tuple[float, ...]:
        """Weights of y1."""
        return (*self.a[-1], 1.0)

    @property
    def error_order(self) -> int:
        """Order in h of the error estimate."""
        return min(self.order, self.embedded_order) + 1

    def stepper(self, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False) -> Rosenbrock:
        """As `steppers.base.Method.stepper`."""
        return Rosenbrock(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)

    def compiled_stepper(
        self, vector_field: VectorField, *, with_slopes: bool, options: dict[str, Any], time_grad: bool = False
    ) -> Rosenbrock:
        """What takes single steps where the loop over them is compiled: they are not."""
        return self.stepper(vector_field, time_grad=time_grad)

    def row_stepper(self, field: Any, *, time_grad: bool = False) -> RowRosenbrock:
        """As `steppers.base.Method` says."""
        return self.row_steps(self, field, time_grad=time_grad)


def _dense_output(b: Sequence[float], H: Sequence[Sequence[float]]) -> Polynomials:
    """theta b_j + theta (1 - theta) (H_1j + theta (H_2j + theta (...))), as powers of theta."""
    rows = []
    for weight, *corrections in zip(b, *H):
        row = [weight, *(0.0 for _ in H), 0.0]
        for power, correction in enumerate(corrections):
            row[power] += correction
            row[power + 1] -= correction
        rows.append(tuple(row[: len(H) + 1]))
    return Polynomials(tuple(rows))


_A6 = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)

RODAS5P = RosenbrockTableau(
    name="Rodas5P",
    order=5,
    embedded_order=4,
    reference="Steinebach, BIT Numerical Mathematics 63, 27, 2023",
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _A6,
        (*_A6, 1.0),
        (*_A6, 1.0, 1.0),
    ),
    C=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (
            *(30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783, -19.097331116725623),
            -28.087943162872662,
        ),
        (
            *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047, -40.06618937091002),
            *(-54.66780262877968, -9.48861652309627),
        ),
    ),
    c=(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    d=(
        *(0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069),
        *(0.0, 0.0, 0.0),
    ),
    interpolant=_dense_output(
        (*_A6, 1.0, 1.0, 1.0),
        (
            (
                *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
                *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
            ),
            (
                *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
                *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
            ),
            (
                *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
                *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
            ),
        ),
    ),
    dense_order=4,
)
