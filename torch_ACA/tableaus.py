"""Butcher tableaus as plain data: what distinguishes one explicit Runge-Kutta method from another.

Coefficients are exact fractions; methods published as decimals (Tsit5, dopri8) are given to the digits published.
No tensors and no loops over time here: see `steppers.runge_kutta` for those and `interpolants` for dense output.
"""

from dataclasses import dataclass
from fractions import Fraction

from .interpolants import Polynomials, cubic_hermite, linear, quadratic, quartic_through_midpoint


def row(text):
    """Fractions from a line such as ``"3/40 9/40"``."""
    return tuple(Fraction(entry) for entry in text.split())


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    ``a`` holds the strictly lower triangular rows (``a[i]`` has i entries), ``b`` the weights of the solution that is
    propagated and ``b_embedded`` those of the comparison solution (None: no error estimate, fixed steps only).
    ``interpolant`` holds the polynomial weights of the dense output, ``dense_order`` its global order.
    """

    name: str
    order: int
    c: tuple
    a: tuple
    b: tuple
    reference: str
    interpolant: Polynomials
    dense_order: int
    b_embedded: tuple | None = None
    embedded_order: int | None = None

    @property
    def stages(self):
        return len(self.b)

    @property
    def adaptive(self):
        return self.b_embedded is not None

    @property
    def fsal(self):
        """First same as last: the last stage is the slope at the new point, hence the next step's first stage."""
        return self.stages > 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1] and self.c[-1] == 1

    @property
    def b_error(self):
        """Weights of the error estimate: y1 - y1_embedded = h * sum(b_error[i] * k[i])."""
        return tuple(b - e for b, e in zip(self.b, self.b_embedded))

    @property
    def error_order(self):
        """Order in h of the error estimate: the step-size exponent of the controller is 1 / error_order."""
        return min(self.order, self.embedded_order) + 1


EULER = Tableau(
    name="Euler",
    order=1,
    c=row("0"),
    a=(row(""),),
    b=row("1"),
    reference="Euler, Institutiones calculi integralis, 1768",
    interpolant=linear(),
    dense_order=1,
)

MIDPOINT = Tableau(
    name="midpoint",
    order=2,
    c=row("0 1/2"),
    a=(row(""), row("1/2")),
    b=row("0 1"),
    reference="Runge, Math. Ann. 46, 1895",
    interpolant=quadratic(row("0 1")),
    dense_order=2,
)

RK4 = Tableau(
    name="RK4",
    order=4,
    c=row("0 1/2 1/2 1"),
    a=(row(""), row("1/2"), row("0 1/2"), row("0 0 1")),
    b=row("1/6 1/3 1/3 1/6"),
    reference="Kutta, Z. Math. Phys. 46, 1901: the classic method",
    interpolant=Polynomials((row("1 -3/2 2/3"), row("0 1 -2/3"), row("0 1 -2/3"), row("0 -1/2 2/3"))),
    dense_order=3,
)

HEUN_EULER = Tableau(
    name="HeunEuler",
    order=2,
    c=row("0 1"),
    a=(row(""), row("1")),
    b=row("1/2 1/2"),
    b_embedded=row("1 0"),
    embedded_order=1,
    reference="Heun, Z. Math. Phys. 45, 1900, with Euler's method embedded",
    interpolant=quadratic(row("1/2 1/2")),
    dense_order=2,
)

BOGACKI_SHAMPINE = Tableau(
    name="RK23",
    order=3,
    c=row("0 1/2 3/4 1"),
    a=(row(""), row("1/2"), row("0 3/4"), row("2/9 1/3 4/9")),
    b=row("2/9 1/3 4/9 0"),
    b_embedded=row("7/24 1/4 1/3 1/8"),
    embedded_order=2,
    reference="Bogacki and Shampine, Appl. Math. Lett. 2, 1989",
    interpolant=cubic_hermite(row("2/9 1/3 4/9 0"), end_slope_is_last_stage=True),
    dense_order=3,
)

_DOPRI5_B = row("35/384 0 500/1113 125/192 -2187/6784 11/84 0")

DORMAND_PRINCE_5 = Tableau(
    name="Dopri5",
    order=5,
    c=row("0 1/5 3/10 4/5 8/9 1 1"),
    a=(
        row(""),
        row("1/5"),
        row("3/40 9/40"),
        row("44/45 -56/15 32/9"),
        row("19372/6561 -25360/2187 64448/6561 -212/729"),
        row("9017/3168 -355/33 46732/5247 49/176 -5103/18656"),
        _DOPRI5_B[:-1],
    ),
    b=_DOPRI5_B,
    b_embedded=row("5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40"),
    embedded_order=4,
    reference="Dormand and Prince, J. Comput. Appl. Math. 6, 1980; midpoint weights of Shampine, Math. Comp. 46, 1986",
    interpolant=quartic_through_midpoint(
        _DOPRI5_B,
        midpoint=tuple(
            weight / 2
            for weight in row(
                "6025192743/30085553152 0 51252292925/65400821598 -2691868925/45128329728 "
                "187940372067/1594534317056 -1776094331/19743644256 11237099/235043384"
            )
        ),
    ),
    dense_order=4,
)

# Names of the authors' README. RK45 and Dopri5 are one method: the quartics of scipy (RK45) and torchdiffeq (dopri5)
# agree.
TABLEAUS = {
    "Euler": EULER,
    "RK2": MIDPOINT,
    "RK4": RK4,
    "RK12": HEUN_EULER,
    "HeunEuler": HEUN_EULER,
    "RK23": BOGACKI_SHAMPINE,
    "RK45": DORMAND_PRINCE_5,
    "Dopri5": DORMAND_PRINCE_5,
}
