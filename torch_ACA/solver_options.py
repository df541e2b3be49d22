"""The keywords of a solve: names, defaults, checks of what stands alone, and documentation, in this one place.

Every function that solves takes the same ones. Where a default differs, or a keyword has no meaning, the function says
so: `takes_options(without=..., rtol=1e-2)`.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch

from .notices import shown
from .option_checks import OPTIONS, closest
from .transforms import check_exporting

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """What can be asked of a solve besides func, y0 and t; `solve` has the meaning of each."""

    method: Any = None
    """one of `torch_ACA.methods` (any case), or a `Method` such as a `Tableau`; None: ALF for gradient="mali", Dopri5
    otherwise. With gradient="adjoint" also scipy_solver (options: solver, scipy's name, default LSODA; first_step,
    min_step, max_step)"""
    rtol: Any = 1e-5
    """relative tolerance of adaptive methods: a float, or nested like y0 and broadcastable to it"""
    atol: Any = 1e-6
    """absolute tolerance, likewise"""
    h: float | None = None
    """step size (positive) of fixed-step methods; first step of adaptive ones (None: Hairer's rule)"""
    gradient: str = "aca"
    """one of `GRADIENTS`. ``aca``: the exact gradient of the computed solution; stores the accepted states and
    computes each step again in the backward pass. ``direct``: the same gradient; keeps the graphs of the accepted
    steps. ``naive``: differentiates the step-size search as well. ``adjoint``: the continuous adjoint, solved
    backwards. ``mali``: a reversible leapfrog, whose memory does not grow with the number of steps"""
    options: Mapping | None = None
    """dict of first_step (as h), step_size (fixed steps, with any method but auto), max_num_steps, min_step, max_step,
    safety, ifactor, dfactor, beta (PI controller), norm (state -> 0-d tensor), step_t (times to land on), jump_t (times
    where func jumps), land_on_t (True: land on every output time instead of interpolating), grid (fixed steps between
    these times, t[0] to t[-1]), perturb (fixed steps: evaluate func just inside each step), check_finite (fixed steps:
    False carries infinity and NaN on instead of raising), interp ("linear" or "cubic" instead of the method's own dense
    output), max_order and max_iters (Adams methods: 4 to 12; corrections of a step). Sizes are positive: t gives the
    direction"""
    max_evals: int = 500_000
    """evaluations of func after which the solve gives up"""
    dense: bool = False
    """make the solution callable at other times (``aca`` and ``direct``)"""
    on_failure: str = "raise"
    """where the solve fails: "raise" the error, or "return" a `Solution` of the part solved, with ``error`` set (with
    per_sample: of all rows, with ``row_errors`` set). An output that is infinite or NaN is a failure, but with
    ``options={"check_finite": False}``"""
    callbacks: Any = None
    """`Callbacks`"""
    adjoint: Mapping | None = None
    """for gradient="adjoint": dict of rtol, atol, method, h, options and callbacks of the backward solve (default: as
    forward); ``options={"norm": "seminorm"}`` leaves the parameters out of its error norm, a function there gets the
    tuple (a 0-d zero, leaves of the state, their cotangents, those of what func uses)"""
    record: bool = False
    """let the solution have a ``record`` of the accepted steps and the rejected tries (`Record`)"""
    params: Any = None
    """only these tensors, besides y0 and t, get gradients (None: all that func uses)"""
    memory: Any = None
    """what gradient="aca" keeps; the gradient stays the same. None: all states, and beside them the graphs of as many
    accepted steps as fit into 1 MiB, then as many as find room in 64 MiB that all solves of the process share, so that
    small problems evaluate nothing twice. "states": all states and no graph. A size such as "512MiB": states, and the
    graphs of as many accepted steps as fit beside them (faster); the size of a graph is estimated from the first
    evaluation. "unlimited": all graphs. A number: at most so many states, and the others are computed again (less
    memory, slower). With per_sample these are states of the whole batch, and a number or a size keeps no graphs"""
    compile: Any = False
    """for gradient="aca": True, the same as "loop", generates code for the whole loop over steps, func included, and
    for the loop back; "step" for a step and its VJP. The first solve with a func, method, shape and dtype then takes
    seconds to minutes; later ones are several times faster where func is small. Also a mode of `torch.compile`, such as
    "reduce-overhead" (CUDA graphs), or a dict of its options. Graphs are not kept then, whatever ``memory`` says. Where
    the loop cannot be compiled its steps are (those of Rodas5P run as they are), and a func that cannot be runs
    uncompiled, with a warning"""
    jac: Callable | None = None
    """for methods that solve with the Jacobian (Rodas5P, auto): jac(t, y) -> df/dy of func, a tensor [n, n] for a state
    of n numbers, counted as in y.reshape(-1), or [*y.shape, *y.shape]; y0 is one real tensor. Compared with func now
    and then, the first time at the first Jacobian. The gradient needs no derivative of jac: it has that of func"""
    jac_structure: str = "dense"
    """for the same methods. "rows": the first axis of every leaf of y0 is a batch of b independent systems, which func
    keeps apart: Jacobians are b blocks of m x m numbers (jac returns [b, m, m] or [b, *row, *row]). The steps are still
    those of all rows together"""
    per_sample: bool = False
    """True: the first axis of every leaf of y0 is a batch of b independent systems, each with steps of its own. func
    gets t of shape [b, 1, ..., 1], with as many axes as y (the first leaf of a nested one). Times are [m] for all rows
    or [b, m], a row each, where NaN behind a row's last time are outputs that it does not have. For gradient="aca" and
    adaptive explicit Runge-Kutta methods, or Rodas5P with a Jacobian for each row"""
    args: Any = None
    """with per_sample: tensors [b, ...] with the rows' data. func(t, y, *args), and jac(t, y, *args), are then called
    without the rows that have come to their ends, which saves time where func is dear"""

    def __post_init__(self) -> None:
        for name in ("dense", "record", "per_sample"):
            if not isinstance(getattr(self, name), bool | None):
                raise TypeError(f"{name} must be True or False, got {shown(getattr(self, name))}")

    def check(self) -> None:
        """Check all that can be checked without a func and a state.

        :raises ValueError: an option or a combination that `solve` would refuse
        :raises TypeError: an option of the wrong type
        """
        from .plan import checked  # here, since what it needs needs this module

        checked(self)


def _texts() -> dict[str, str]:
    """What stands below each option in the source of `SolverOptions`, by name; empty where there is no source."""
    try:
        body: Any = ast.parse(inspect.getsource(SolverOptions)).body[0].body  # type: ignore[attr-defined]
    except OSError:
        return {}
    pairs = [(option, text) for option, text in zip(body, body[1:]) if isinstance(option, ast.AnnAssign)]
    return {option.target.id: " ".join(text.value.value.split()) for option, text in pairs}  # type: ignore[union-attr]


_FIELDS = {option.name: option for option in fields(SolverOptions)}
TEXTS = _texts()  # of the keywords, by name


def outside_of_graphs(function: Callable, *arguments: Any, **keywords: Any) -> Any:
    """Call a function; a break in a graph that `torch.compile` makes of what is around it."""
    return torch.compiler.disable(function)(*arguments, **keywords)


outside_of_graphs._torchdynamo_disable = True  # type: ignore[attr-defined]


def takes_options(*, without: Iterable[str] = (), **defaults: Any) -> Callable[[_F], _F]:
    """Decorator of a function whose last parameter is ``**keywords``: gives it the signature, the checks of names and,
    in the place of a line ``:param keywords:``, the documentation of the keywords.

    :param without: keywords that it does not take
    :param defaults: where they differ from those of `SolverOptions`
    """

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)
        names = [name for name in _FIELDS if name not in without and name not in signature.parameters]
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, _FIELDS[name].default),
                annotation=_FIELDS[name].type,
            )
            for name in names
        ]  # fmt: skip
        accepted = frozenset(names) | {p.name for p in own}

        @functools.wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            check_exporting()
            if torch.compiler.is_dynamo_compiling():
                return outside_of_graphs(checked, *arguments, **keywords)
            if not accepted.issuperset(keywords):
                unknown = ", ".join(sorted(set(keywords) - accepted))
                where = _where_it_belongs(sorted(set(keywords) - accepted)[0], names)
                raise TypeError(
                    f"{function.__qualname__}() takes no keyword {unknown}{where}; accepted: {', '.join(names)}"
                )
            return function(*arguments, **(defaults | keywords if defaults else keywords))

        checked.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        checked.__doc__ = _documented(function.__doc__, names)
        return cast(_F, checked)

    return decorate


def _where_it_belongs(name: str, accepted: Sequence[str]) -> str:
    return f": give it as options={{{name!r}: ...}}" if name in OPTIONS else closest(name, accepted)


def _documented(text: str | None, names: Sequence[str]) -> str:
    lines = []
    for line in (text or "").split("\n"):
        if not line.strip().startswith(":param keywords:"):
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for name in names:
            lines += textwrap.wrap(
                f":param {name}: {TEXTS.get(name, '')}", 120, initial_indent=indent,
                subsequent_indent=indent + "    ", break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)
