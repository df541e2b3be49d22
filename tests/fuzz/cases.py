"""What a case asks of the solver, drawn from a seed."""

import dataclasses
import math
import random
from dataclasses import dataclass

from torch_ACA import methods
from torch_ACA.tableaus import TABLEAUS

from . import fields, states
from .alternating import ALTERNATING

ADAPTIVE = (*sorted({id(t): name for name, t in TABLEAUS.items() if t.adaptive}.values()), "Rodas5P")
FIXED = tuple(sorted({id(t): name for name, t in TABLEAUS.items() if not t.adaptive}.values()))
_OF_OTHERS = ("anchor", "gain", "jumping", "branch at a stop")  # terms that go with something else in the case
_LOOSEST = {1: 2e-2, 2: 1e-2, 3: 1e-3, 5: 1e-4, 8: 1e-6}  # rtol by order: a solve takes some ten steps


@dataclass(frozen=True)
class Case:
    """One program. Numbers of times count from t[0]; an entry of ``jumps`` is ("output", its number) or ("time", t)."""

    seed: int
    state: str = "vector"
    precision: str = "float64"
    other_key_order: bool = False  # func returns its dict with the keys in another order
    style: str = "module"
    terms: tuple = ("linear",)
    frozen: float = 0.0  # share of parameters that do not require grad
    y0: str = "plain"  # leaf, encoder, shared (a parameter of func), captured (func uses what the encoder made)
    times: tuple = (0.0, 1.0)
    times_from: str = "floats"  # tensor, leaf, list (of floats and leaves), parameter, shared (a parameter of func)
    times_precision: str = "float64"
    method: str = "Dopri5"
    step_size: float | None = None
    first_step: float | None = None
    rtol: float = 1e-4
    atol: float = 1e-5
    options: tuple = ()  # of the controller, and perturb, land_on_t and interp: (name, value)
    grid: tuple | None = None  # fractions of the interval between the output times that are in the grid as well
    step_t: tuple = ()
    jumps: tuple = ()
    gradient: str = "aca"
    memory: int | str | None = None
    params: str | None = None  # all, half, single: which parameters of func are named in params=
    solves: tuple = ("one", 1)  # and how many: chain (y0 is the last state before), side by side
    loss: str = "all"  # last, some (outputs), dense
    loss_uses_parameters: bool = False
    order: str = "first"  # create_graph (first derivatives, made with a graph), second
    passes: int = 1  # backward passes
    take: str = "grad"  # autograd.grad; backward: .backward()
    hooks: tuple = ()  # (leaf or prepared, which of them as a fraction, halve, clip, count or retain)

    @property
    def fixed(self):
        """Whether the step sizes do not come from an error estimate."""
        return self.step_size is not None or self.grid is not None

    @property
    def times_require_grad(self):
        return self.times_from not in ("floats", "tensor")

    @property
    def exact(self):
        """Whether the gradient is that of the accepted steps, so that plain autograd over them says what it is."""
        return self.gradient in ("aca", "direct", "mali") or (self.gradient == "naive" and self.fixed)

    def describe(self):
        """One paragraph: all that differs from the plainest case."""
        said = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" and (value != field.default or field.name in ("gradient", "method", "terms")):
                said.append(f"{field.name.replace('_', ' ')}: {_words(value)}")
        return "; ".join(said)


def _words(value):
    if isinstance(value, tuple):
        return "(" + ", ".join(_words(v) for v in value) + ")"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def draw(seed):
    """The case of a seed."""
    chance = random.Random(seed)
    case = {"seed": seed}
    case["gradient"] = chance.choices(("aca", "direct", "naive", "mali", "adjoint"), (50, 20, 10, 12, 8))[0]
    _draw_state(chance, case)
    _draw_times(chance, case)
    _draw_steps(chance, case)
    _draw_func(chance, case)
    _draw_use(chance, case)
    return Case(**case)


def _draw_state(chance, case):
    case["state"] = chance.choices(states.KINDS, [4 if kind == "vector" else 1 for kind in states.KINDS])[0]
    case["precision"] = chance.choices(("float64", "float32", "mixed"), (80, 12, 8))[0]
    if case["gradient"] == "adjoint":
        case["precision"] = "float64"  # its error can only be small beside tight tolerances
    if case["precision"] == "mixed" and case["state"] not in states.MANY_PARTS:
        case["precision"] = "float64"
    case["other_key_order"] = case["state"] == "dict" and chance.random() < 0.5


def _draw_times(chance, case):
    count = chance.choice((2, 2, 2, 3, 4, 6))
    span = chance.uniform(0.4, 1.6)
    start = chance.choice((0.0, 0.0, chance.uniform(-2, 2)))
    inner = sorted(chance.uniform(0.05, 0.95) for _ in range(count - 2))
    sign = chance.choice((1, 1, 1, -1))
    case["times"] = tuple(start + sign * span * fraction for fraction in (0.0, *inner, 1.0))
    kinds = ("floats", "tensor", "leaf", "list", "parameter", "shared")
    case["times_from"] = chance.choices(kinds, (25, 35, 20, 4, 8, 8))[0]
    if case["times_from"] in ("tensor", "leaf") and chance.random() < 0.1:
        case["times_precision"] = "float32"


def _draw_steps(chance, case):
    times, gradient = case["times"], case["gradient"]
    options = {}
    moving = case["times_from"] not in ("floats", "tensor")
    step_size = abs(times[-1] - times[0]) / chance.uniform(1.5, 6)
    if gradient == "mali":
        case["method"] = "ALF"
        if chance.random() < 0.5:
            case["step_size"] = step_size
    elif gradient == "adjoint":
        # so tight that the error of the backward solve stays below the tolerance of the comparison
        case |= {"method": chance.choice(("dopri5", "dopri8", "tsit5")), "rtol": 1e-9, "atol": 1e-10}
    elif chance.random() < 0.4:
        case["method"] = chance.choice((*FIXED, *ADAPTIVE))
        case["step_size"] = step_size
        if chance.random() < 0.12:
            del case["step_size"]
            case["grid"] = tuple(sorted(chance.uniform(0.1, 0.9) for _ in range(chance.randrange(4))))
        elif chance.random() < 0.1 and not moving:
            options["perturb"] = True
    else:
        case["method"] = chance.choice((*ADAPTIVE, ALTERNATING.name))
    if gradient != "adjoint" and not ("step_size" in case or "grid" in case):
        _draw_control(chance, case, options)
    if gradient not in ("mali", "adjoint") and chance.random() < 0.15 and case["method"] in TABLEAUS:
        options["interp"] = chance.choice(("linear", "cubic"))
    if chance.random() < 0.2:
        options["land_on_t"] = True
    case["step_t"] = ()
    if "grid" not in case and chance.random() < 0.12:
        case["step_t"] = tuple(_inside(chance, times) for _ in range(chance.choice((1, 2))))
    if gradient != "mali" and "perturb" not in options and "grid" not in case and chance.random() < 0.2:
        case["jumps"] = _draw_jumps(chance, times)
    case["options"] = tuple(options.items())


def _draw_control(chance, case, options):
    order = methods[case["method"]].order if case["gradient"] != "mali" else 2
    span = abs(case["times"][-1] - case["times"][0])
    case["rtol"] = _LOOSEST[order] * 10 ** chance.uniform(-1, 0)
    case["atol"] = case["rtol"] / 10
    if case["precision"] == "float32":
        case |= {"rtol": max(case["rtol"], 1e-4), "atol": max(case["atol"], 1e-5)}
    if chance.random() < 0.2:
        options["beta"] = chance.choice((0.02, 0.04))
    if chance.random() < 0.15:
        options["max_step"] = span / chance.uniform(2, 6)
    if chance.random() < 0.1:
        options["min_step"] = min(span / chance.randint(4, 12), options.get("max_step", span))
        case |= {"rtol": case["rtol"] / 100, "atol": case["atol"] / 100}  # so that it comes into play
    if chance.random() < 0.2:
        case["first_step"] = span / chance.uniform(3, 10)


def _draw_jumps(chance, times):
    jumps = [("time", _inside(chance, times)) for _ in range(chance.choice((0, 1, 1, 2)))]
    if not jumps or chance.random() < 0.25:
        jumps.append(("output", chance.randrange(len(times))))
    return tuple(jumps)


def _inside(chance, times):
    return times[0] + chance.uniform(0.03, 0.97) * (times[-1] - times[0])


def _draw_func(chance, case):
    case["style"] = chance.choice(fields.STYLES)
    case["y0"] = chance.choices(("plain", "leaf", "encoder", "shared", "captured"), (25, 35, 15, 15, 10))[0]
    pool = [kind for kind in fields.TERMS if kind not in (*_OF_OTHERS, "batch norm", "dropout")]
    if case["gradient"] == "adjoint":  # a break makes its tight steps many
        pool = [kind for kind in pool if kind not in (*fields.BREAKS_WITH_TIME, "branch on state")]
    terms = chance.sample(pool, chance.choice((1, 1, 2, 3)))
    if case["y0"] in ("shared", "captured"):
        terms.append("anchor")
    if case["times_from"] == "shared":
        terms.append("gain")
    if case.get("jumps"):
        terms.append("jumping")
    lands_inside = case["step_t"] or ("land_on_t", True) in case["options"] and len(case["times"]) > 2
    exact_times = case["gradient"] != "adjoint" and ("perturb", True) not in case["options"]
    if lands_inside and exact_times and chance.random() < 0.4:
        terms.append("branch at a stop")
    if case["gradient"] != "adjoint" and case["precision"] == "float64":
        if case["state"] == "batch" and _keeps_slopes(case) and chance.random() < 0.3:
            terms.append("batch norm")
        elif chance.random() < 0.04:
            terms.append("dropout")
    chance.shuffle(terms)
    case["terms"] = tuple(terms)
    if chance.random() < 0.08:
        case["frozen"] = 0.4


def _keeps_slopes(case):
    """Whether the slope at the end of a step is the next one's first, so that evaluations can be counted."""
    return not case.get("jumps") and "perturb" not in dict(case["options"])


def _draw_use(chance, case):
    gradient = case["gradient"]
    if gradient == "aca" and chance.random() < 0.4:
        case["memory"] = chance.choice((2, 3, 5, "unlimited", "1kB", "3kB", "20kB"))
    if gradient in ("aca", "direct") and chance.random() < 0.15:
        case["loss"] = "dense"
    else:
        case["loss"] = chance.choice(("all", "last", "some"))
    case["loss_uses_parameters"] = chance.random() < 0.2
    if chance.random() < 0.25:
        case["solves"] = (chance.choice(("chain", "side by side")), chance.choice((2, 2, 3)))
    refuses_second = gradient in ("adjoint", "mali")
    case["order"] = chance.choices(("first", "create_graph", "second"), (60, 15, 0 if refuses_second else 25))[0]
    if any(kind == "output" for kind, _ in case.get("jumps", ())) and case["order"] == "second":
        case["order"] = "create_graph"  # the slope before the jump stands for the derivative with respect to that time
    if case["method"] == ALTERNATING.name and "batch norm" in case["terms"]:
        case["method"] = "Rodas5P"  # the oracle evaluates the slope between two methods twice, which counts there
    if case["method"] == "Rodas5P" and "batch norm" in case["terms"] and case["order"] == "second":
        case["order"] = "create_graph"  # the step has one derivative in it, and PyTorch has no third one of batch_norm
    if case["order"] == "first":
        case["passes"] = chance.choice((1, 1, 1, 2))
        case["take"] = chance.choice(("grad", "backward"))
    if chance.random() < 0.2:
        actions = ("halve", "clip", "count", "retain")
        case["hooks"] = tuple(
            (chance.choice(("leaf", "prepared")), round(chance.random(), 3), chance.choice(actions))
            for _ in range(chance.choice((1, 2)))
        )
    _draw_params(chance, case)


def _draw_params(chance, case):
    alone = case["y0"] in ("plain", "leaf") and case["times_from"] in ("floats", "tensor", "leaf")
    plain = case["order"] == "first" and not case["loss_uses_parameters"] and "frozen" not in case
    if alone and plain and not case.get("hooks") and chance.random() < 0.15:
        direct = all(kind in fields.USES_LEAVES_DIRECTLY for kind in case["terms"])
        case["params"] = chance.choice(("all", "half", "single")) if direct else "all"


def fraction_of(sequence, fraction):
    """The entry that a fraction from 0 to 1 points to."""
    return sequence[min(math.floor(fraction * len(sequence)), len(sequence) - 1)]
