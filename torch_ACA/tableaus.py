"""Butcher tableaus as plain data: what distinguishes one explicit Runge-Kutta method from another.

Coefficients are exact fractions; methods published as decimals (Tsit5, dopri8) are given to the digits published.
No tensors and no loops over time here: see `steppers.runge_kutta` for those and `interpolants` for dense output.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from .interpolants import Polynomials, cubic_hermite, linear_between, quadratic, quartic_through_midpoint
from .steppers.base import COMPILE, JUMPS, PLAIN, REPLAY, TRACE
from .steppers.runge_kutta import RungeKutta


def row(text):
    """Fractions from a line such as ``"3/40 9/40"``."""
    return tuple(Fraction(entry) for entry in text.split())


def _expanded(factor, lowest, *factors):
    """Coefficients of theta, ..., theta^4 in theta * factor * lowest(theta) * factors(theta), each given lowest power
    first.
    """
    product = [Fraction(factor) * c for c in row(lowest)]
    for polynomial in factors:
        following = [Fraction(0)] * (len(product) + len(polynomial) - 1)
        for i, p in enumerate(product):
            for j, q in enumerate(polynomial):
                following[i + j] += p * Fraction(q)
        product = following
    return tuple(product)


@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit Runge-Kutta method. Two of them are equal only if they are the same object.

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

    @cached_property
    def fsal(self):
        """First same as last: the last stage is the slope at the new point, hence the next step's first stage."""
        return self.stages > 1 and self.b[-1] == 0 and self.a[-1] == self.b[:-1] and self.c[-1] == 1

    @cached_property
    def b_error(self):
        """Weights of the error estimate: y1 - y1_embedded = h * sum(b_error[i] * k[i])."""
        return tuple(b - e for b, e in zip(self.b, self.b_embedded))

    @cached_property
    def error_order(self):
        """Order in h of the error estimate: the step-size exponent of the controller is 1 / error_order."""
        return min(self.order, self.embedded_order) + 1 if self.adaptive else None

    @property
    def abilities(self):
        return frozenset({REPLAY, TRACE, PLAIN, JUMPS, COMPILE})

    def stepper(self, vector_field, *, keep_graphs=False, time_grad=False):
        """As `steppers.base.Method.stepper`."""
        return RungeKutta(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)

    def compiled_stepper(self, vector_field, *, with_slopes, options, time_grad=False):
        """The stepper whose steps are compiled.

        :param with_slopes: there is dense output
        :param options: of `torch.compile`, a dict
        """
        from .steppers.compiled import CompiledRungeKutta  # here, since Dynamo takes a second to import

        return CompiledRungeKutta(self, vector_field, with_slopes=with_slopes, options=options, time_grad=time_grad)


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

_TSIT5_B = row(
    "0.09646076681806522951816731316512876333711995238157997181903319145764851595234062815396 1/100 "
    "0.4798896504144995747752495322905965199130404621990332488332634944254542060153074523509 "
    "1.379008574103741893192274821856872770756462643091360525934940067397245698027561293331 "
    "-3.290069515436080679901047585711363850115683290894936158531296799594813811049925401677 "
    "2.324710524099773982415355918398765796109060233222962411944060046314465391054716027841 0"
)
_TSIT5_ERROR = row(
    "-0.001780011052225771443378550607539534775944678804333659557637450799792588061629796 "
    "-0.0008164344596567469032236360633546862401862537590159047610940604670770447527463931 "
    "0.007880878010261996010314727672526304238628733777103128603258129604952959142646516 "
    "-0.144711007173262907537165147972635116720922712343167677619513964233896760819649515 "
    "0.5823571654525552250199376106520421794260781239567387797673045438803694038950012 "
    "-0.4580821059291869466616365188325542974428047279788398179474684434732070620889539 1/66"
)

TSITOURAS_5 = Tableau(
    name="tsit5",
    order=5,
    c=row(
        "0 161/1000 327/1000 9/10 "
        "0.9800255409045096857298102862870245954942137979563024768854764293221195950761 1 1"
    ),
    a=(
        row(""),
        row("161/1000"),
        row(
            "-0.008480655492356988544426874250230774675121177393430391537369234245294192976164141156943 "
            "0.3354806554923569885444268742502307746751211773934303915373692342452941929761641411569"
        ),
        row(
            "2.897153057105493432130432594192938764924887287701866490314866693455023795137503079289 "
            "-6.359448489975074843148159912383825625952700647415626703305928850207288721235210244366 "
            "4.362295432869581411017727318190886861027813359713760212991062156752264926097707165077"
        ),
        row(
            "5.325864828439256604428877920840511317836476253097040101202360397727981648835607691791 "
            "-11.74888356406282787774717033978577296188744178259862899288666928009020615663593781589 "
            "7.495539342889836208304604784564358155658679161518186721010132816213648793440552049753 "
            "-0.09249506636175524925650207933207191611349983406029535244034750452930469056411389539635"
        ),
        row(
            "5.861455442946420028659251486982647890394337666164814434818157239052507339770711679748 "
            "-12.92096931784710929170611868178335939541780751955743459166312250439928519268343184452 "
            "8.159367898576158643180400794539253485181918321135053305748355423955009222648673734986 "
            "-0.07158497328140099722453054252582973869127213147363544882721139659546372402303777878835 "
            "-0.02826905039406838290900305721271224146717633626879770007617876201276764571291579142206"
        ),
        _TSIT5_B[:-1],
    ),
    b=_TSIT5_B,
    b_embedded=tuple(b - e for b, e in zip(_TSIT5_B, _TSIT5_ERROR)),
    embedded_order=4,
    reference="Tsitouras, Comput. Math. Appl. 62, 2011",
    interpolant=Polynomials(
        (
            _expanded(
                "-1.0530884977290216",
                "1",
                ("-1.329989018975412", "1"),
                ("0.7139816917074209", "-1.4364028541716351", "1"),
            ),
            _expanded("0.1017", "0 1", ("1.2949852507374631", "-2.1966568338249754", "1")),
            _expanded("2.490627285651252793", "0 1", ("1.57803468208092486", "-2.38535645472061657", "1")),
            _expanded("-16.54810288924490272", "0 1", ("-1.21712927295533244", "1"), ("-0.61620406037800089", "1")),
            _expanded("47.37952196281928122", "0 1", ("-1.203071208372362603", "1"), ("-0.658047292653547382", "1")),
            _expanded("-34.87065786149660974", "0 1", ("-1.2", "1"), ("-2/3", "1")),
            _expanded("2.5", "0 1", ("-1", "1"), ("-0.6", "1")),
        )
    ),
    dense_order=4,
)

_DOPRI8_B = row(
    "14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732 -1041891430/1371343529 "
    "760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4 0"
)

DORMAND_PRINCE_8 = Tableau(
    name="dopri8",
    order=8,
    c=row("0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1 1"),
    a=(
        row(""),
        row("1/18"),
        row("1/48 1/16"),
        row("1/32 0 3/32"),
        row("5/16 0 -75/64 75/64"),
        row("3/80 0 0 3/16 3/20"),
        row("29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000"),
        row("16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229 -180193667/1043307555"),
        row(
            "39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059 790204164/839813087 "
            "800635310/3783071287"
        ),
        row(
            "246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935 "
            "6005943493/2108947869 393006217/1396673457 123872331/1001029789"
        ),
        row(
            "-1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382 "
            "-48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653"
        ),
        row(
            "185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211 "
            "5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 65686358/487910083"
        ),
        row(
            "403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604 "
            "11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525 "
            "248638103/1413531060 0"
        ),
        _DOPRI8_B[:-1],
    ),
    b=_DOPRI8_B,
    b_embedded=row(
        "13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186 "
        "-3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0 0"
    ),
    embedded_order=7,
    reference="Prince and Dormand, J. Comput. Appl. Math. 7, 1981; dense output as in torchdiffeq",
    interpolant=Polynomials(
        (
            row(
                "1.0 -6.6910181737837595697 19.9990069333683970610 -30.0610568289666450593 22.1396504998094068976 "
                "-6.3448349392860401388"
            ),
            row("0 0 0 0 0 0"),
            row("0 0 0 0 0 0"),
            row("0 0 0 0 0 0"),
            row("0 0 0 0 0 0"),
            row(
                "0 -7.6142658045872677172 52.2273532792945524050 -121.4999627731334642623 116.4422149550342161651 "
                "-39.6107919852202505218"
            ),
            row(
                "0 10.7281392630428866124 -46.8919164181093621583 83.1721004639847717481 -67.1451318825957197185 "
                "20.3761213808791436958"
            ),
            row(
                "0 0.5526637063753648783 -0.1890893225010595467 9.5724507555993664382 -16.5672243527496524646 "
                "7.3347098826795362023"
            ),
            row(
                "0 4.2186562625665153803 -35.7075975946222072821 87.8406057677205645007 -89.9916014847245016028 "
                "32.8801774352459155182"
            ),
            row(
                "0 -0.6627209125361597559 6.2736448083240352160 -17.4152107770762969005 22.6237489648532849093 "
                "-10.1588990526426760954"
            ),
            row(
                "0 -1.2636789001135462218 10.3160881272450748458 -28.5903289514790976966 32.2362340167355370113 "
                "-12.5401268098782561200"
            ),
            row(
                "0 5.4106037898590422230 -34.7650769866611817349 81.6630950584341412934 -82.1020315488359848644 "
                "29.5553001484516038033"
            ),
            row(
                "0 -7.0321379067945741781 47.7457971078225540396 -114.9375291377009418170 116.2662185791119533462 "
                "-41.7923486424390588923"
            ),
            row(
                "0 2.3537586759714983486 -19.0082099341608028453 50.2558364226176017553 -53.9020777466385396792 "
                "20.3006925822100825485"
            ),
        )
    ),
    dense_order=5,
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
