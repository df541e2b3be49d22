"""Butcher tableaus of the explicit Runge-Kutta methods, in exact fractions, and the names of all of them."""

from dataclasses import replace

from .decimal_tableaus import DORMAND_PRINCE_8, TSITOURAS_5
from .interpolants import Polynomials, cubic_hermite, linear_between, quadratic, quartic_through_midpoint
from .tableau import Tableau, row

EULER = Tableau(
    name="Euler",
    order=1,
    c=row("0"),
    a=(row(""),),
    b=row("1"),
    reference="Euler, Institutiones calculi integralis, 1768",
    interpolant=linear_between(row("1")),
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

HEUN_2 = replace(HEUN_EULER, name="heun2", b_embedded=None, embedded_order=None)

HEUN_3 = Tableau(
    name="heun3",
    order=3,
    c=row("0 1/3 2/3"),
    a=(row(""), row("1/3"), row("0 2/3")),
    b=row("1/4 0 3/4"),
    reference="Heun, Z. Math. Phys. 45, 1900",
    interpolant=cubic_hermite(row("1/4 0 3/4"), end_slope_is_last_stage=False),
    dense_order=3,
)

RK4_THREE_EIGHTHS = Tableau(
    name="rk4",
    order=4,
    c=row("0 1/3 2/3 1"),
    a=(row(""), row("1/3"), row("-1/3 1"), row("1 -1 1")),
    b=row("1/8 3/8 3/8 1/8"),
    reference="Kutta, Z. Math. Phys. 46, 1901: the 3/8 rule",
    interpolant=cubic_hermite(row("1/8 3/8 3/8 1/8"), end_slope_is_last_stage=False),
    dense_order=3,
)

FEHLBERG_2 = Tableau(
    name="fehlberg2",
    order=2,
    c=row("0 1/2 1"),
    a=(row(""), row("1/2"), row("1/256 255/256")),
    b=row("1/512 255/256 1/512"),
    b_embedded=row("1/256 255/256 0"),
    embedded_order=1,
    reference="Fehlberg, NASA TR R-315, 1969",
    interpolant=quadratic(row("1/512 255/256 1/512")),
    dense_order=2,
)

# Names of the authors' README, then of torchdiffeq. RK45 and Dopri5 are one method: the quartics that scipy (RK45) and
# torchdiffeq (dopri5) interpolate with agree. RK4 is the classic method and rk4 the 3/8 rule, as in those two places.
TABLEAUS = {
    "Euler": EULER,
    "RK2": MIDPOINT,
    "RK4": RK4,
    "RK12": HEUN_EULER,
    "HeunEuler": HEUN_EULER,
    "RK23": BOGACKI_SHAMPINE,
    "RK45": DORMAND_PRINCE_5,
    "Dopri5": DORMAND_PRINCE_5,
    "euler": EULER,
    "midpoint": MIDPOINT,
    "heun2": HEUN_2,
    "heun3": HEUN_3,
    "rk4": RK4_THREE_EIGHTHS,
    "adaptive_heun": HEUN_EULER,
    "fehlberg2": FEHLBERG_2,
    "bosh3": BOGACKI_SHAMPINE,
    "dopri5": DORMAND_PRINCE_5,
    "tsit5": TSITOURAS_5,
    "dopri8": DORMAND_PRINCE_8,
}
