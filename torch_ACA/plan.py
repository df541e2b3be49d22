"""`Plan`: what the keywords of a solve come to, checked together, before there is a func to evaluate."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .callbacks import NO_CALLBACKS, Callbacks
from .controller import Controller
from .gradients.adjoint import AdjointSettings
from .gradients.storage import Budget
from .march import Limits
from .methods import methods
from .notices import shown
from .rows.options import check_per_sample
from .scipy_solver import Scipy
from .settings import (
    ADAMS_OPTIONS,
    SCIPY_OPTIONS,
    Settings,
    checked_callbacks,
    checked_compile,
    checked_jacobian,
    checked_max_evals,
    checked_memory,
    checked_method,
    checked_params,
    checked_settings,
    takes_fixed_steps,
    without_use,
)
from .solver_options import SolverOptions
from .state import StateLayout
from .steppers.base import COMPILE, JUMPS, LINEARISE, PLAIN

_OF_THE_TIMES = ("norm", "step_t", "jump_t", "land_on_t", "perturb", "interp")  # not for the backward solve
_NAMES = tuple(option.name for option in fields(SolverOptions))
_PLAIN = frozenset({str, int, float, bool, type(None), Budget})
_ADJOINT_SETTINGS = ("rtol", "atol", "method", "h", "options", "callbacks")


@dataclass(frozen=True)
class Plan:
    """`SolverOptions` in the solver's own terms."""

    settings: Settings
    memory: Budget
    compile_options: dict | None
    compile_loop: bool
    limits: Limits
    callbacks: Callbacks
    adjoint: AdjointSettings | None
    params: tuple | None


def checked(asked: SolverOptions, layout: StateLayout | None = None) -> Plan:
    """The plan of a solve.

    :param layout: of its state (None: not known yet, and what depends on it is not checked)
    :raises ValueError, TypeError: an option or a combination that cannot be used
    """
    values = vars(asked)
    options = asked.options
    kinds: Any
    if type(options) is dict:
        given = tuple(options.items())
        values, kinds = {**values, "options": None}, tuple((type(name), type(value)) for name, value in given)
        plain = all(name is str and value in _PLAIN for name, value in kinds)
    else:
        given, kinds, plain = None, (), True
    kinds += tuple(map(type, values.values()))
    if plain and _PLAIN.issuperset(kinds[-len(values) :]) and type(asked.rtol) is type(asked.atol) is float:
        return _known(tuple(values.values()), given, kinds, methods.version)
    return _checked(asked, layout)


@functools.lru_cache(256)  # checking takes as long as two evaluations, and most solves are asked for again and again
def _known(values: tuple[Any, ...], options: tuple[Any, ...] | None, kinds: tuple[Any, ...], version: int) -> Plan:
    """The plan of plain options, in which there is nothing of one state or caller."""
    asked = SolverOptions(**dict(zip(_NAMES, values)))
    return _checked(asked if options is None else replace(asked, options=dict(options)), None)


def _checked(asked: SolverOptions, layout: StateLayout | None) -> Plan:
    gradient = asked.gradient
    settings = checked_settings(asked.method, gradient, asked.rtol, asked.atol, asked.h, asked.options, layout)
    method, options = settings.method, settings.options
    if isinstance(method, Scipy):
        _check_for_scipy({"callbacks": asked.callbacks not in (None, NO_CALLBACKS), "record": asked.record})
    if asked.on_failure not in ("raise", "return"):
        raise ValueError(f"on_failure must be 'raise' or 'return', got {asked.on_failure!r}")
    if asked.dense and gradient not in ("aca", "direct"):
        raise ValueError(f"dense=True needs gradient='aca' or 'direct', got {gradient!r}")
    memory = checked_memory(asked.memory, gradient)
    compile_options, compile_loop = checked_compile(asked.compile, gradient)
    if compile_options is not None and COMPILE not in method.abilities:
        raise ValueError(f"compile is not available with the method {method.name}")
    if compile_options is not None and not compile_loop and LINEARISE in method.abilities:
        raise ValueError(f"compile={asked.compile!r} compiles single steps; {method.name} needs compile=True")
    if (options.get("jump_t") or options.get("perturb")) and JUMPS not in method.abilities:
        raise ValueError(f"jumps are not available with the method {method.name}")
    checked_jacobian(asked.jac, asked.jac_structure, method)
    if asked.per_sample:
        check_per_sample(asked, settings)
    elif asked.args is not None:
        raise ValueError("args are for per_sample=True: elsewhere let func close over its data")
    return Plan(
        settings,
        memory,
        compile_options,
        compile_loop,
        Limits(checked_max_evals(asked.max_evals), options.get("max_num_steps", Limits.max_steps)),
        checked_callbacks(asked.callbacks),
        _adjoint_settings(asked, options, layout),
        None if asked.params is None else checked_params(asked.params),
    )


def _check_for_scipy(given: Mapping[str, bool]) -> None:
    for name, was_given in given.items():
        if was_given:
            raise ValueError(f"{name}: for steps of torch_ACA's own, and scipy_solver takes scipy's")


def _adjoint_settings(
    asked: SolverOptions, options: dict[str, Any], layout: StateLayout | None
) -> AdjointSettings | None:
    """`AdjointSettings`, or None; options: the checked ones of the forward solve."""
    adjoint, gradient, method = asked.adjoint, asked.gradient, asked.method
    if not isinstance(adjoint, Mapping | None):
        raise TypeError(f"adjoint must be a dict, got {shown(adjoint)}")
    if gradient != "adjoint":
        if adjoint:
            raise ValueError(f"settings of the adjoint were given, but gradient is {gradient!r}")
        return None
    unknown = sorted(set(adjoint or {}) - set(_ADJOINT_SETTINGS))
    if unknown:
        accepted = ", ".join(_ADJOINT_SETTINGS)
        raise ValueError(f"unknown setting of the adjoint {', '.join(unknown)}; accepted: {accepted}")
    chosen: dict[str, Any] = {"options": None}
    chosen |= {name: getattr(asked, name) for name in ("method", "rtol", "atol", "h")}
    chosen |= adjoint or {}
    callbacks = checked_callbacks(chosen.get("callbacks")).guarded(gradients=False)
    if chosen["options"] is None:
        own = {name: value for name, value in options.items() if name not in _OF_THE_TIMES}
        if Scipy.name in (method, chosen["method"]) and method != chosen["method"]:  # what both sides know
            own = {name: options[name] for name in SCIPY_OPTIONS[1:] if name in options}
        elif method != chosen["method"]:
            fixed = takes_fixed_steps(checked_method(chosen["method"], gradient), own)
            idle = {*ADAMS_OPTIONS, *without_use(own, fixed)}
            own = {name: value for name, value in own.items() if name not in idle}
        chosen["options"] = own
    if not isinstance(chosen["options"], Mapping):
        raise TypeError(f"options of the adjoint must be a dict, got {shown(chosen['options'])}")
    options = dict(chosen["options"])
    norm = options.pop("norm", None)
    if norm not in (None, "seminorm") and not callable(norm):
        raise ValueError(f"the norm of the adjoint must be 'seminorm', a function or left out, got {shown(norm)}")
    settings = checked_settings(
        chosen["method"], gradient, chosen["rtol"], chosen["atol"], chosen["h"], options, layout
    )
    if norm is not None and not isinstance(settings.controller, Controller):
        raise ValueError(f"the norm of the adjoint is for adaptive steps, and {settings.method.name} takes others here")
    if isinstance(settings.method, Scipy):
        _check_for_scipy({"callbacks of the adjoint": callbacks != NO_CALLBACKS})
    elif PLAIN not in settings.method.abilities:
        unable = f"method {settings.method.name} cannot solve backwards"
        raise ValueError(f"{unable}: give adjoint={{'method': 'Dopri5'}}, or another")
    grid = tuple(settings.options.get("grid", ()))
    return AdjointSettings(settings.method, settings.controller, settings.first_step, norm, grid, callbacks)
