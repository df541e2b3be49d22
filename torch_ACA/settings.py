"""Checks of what keywords ask for: method, gradient, tolerances, memory, times and more, in the solver's own terms."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .callbacks import NO_CALLBACKS, Callbacks
from .controller import Controller, FixedSteps
from .gradients.storage import STATES_ONLY, Budget
from .interpolants import cubic_hermite, linear_between
from .methods import methods
from .notices import shown, warn_caller
from .option_checks import (
    ADAMS_OPTIONS,
    OPTIONS,
    SCIPY_OPTIONS,
    SCIPY_SOLVERS,
    check_callable,
    closest,
    is_monotone,
    norm_of,
    positive_size,
    times_of,
    whole_number,
)
from .scipy_solver import Scipy, solve_ivp_of_scipy
from .state import StateLayout
from .steppers.adams import Adams
from .steppers.alf import ALF
from .steppers.base import INVERT, LINEARISE, REPLAY, SWITCH, TRACE, Method, no_method
from .tableau import Tableau
from .tolerances import tolerances

GRADIENTS = ("aca", "direct", "naive", "adjoint", "mali")
_NEEDED = {"aca": REPLAY, "direct": REPLAY, "naive": TRACE, "mali": INVERT}
_CONTROLLER_OPTIONS = ("safety", "ifactor", "dfactor", "beta", "min_step", "max_step", "norm")
_SIZES = ("h", "first_step", "step_size", "grid")  # each says how long steps are: one of them at most
_RESOLVED = 100  # an interval of fewer different times, as func sees them, is a staircase


@dataclass(frozen=True)
class Settings:
    """A method and how its steps are chosen. ``method`` is a `Method`, or a `Scipy`, which has no ``controller``;
    ``first_step`` None means that Hairer's rule chooses; ``options`` are the checked ones."""

    method: Any
    controller: Controller | FixedSteps | None
    first_step: float | None
    options: dict


def checked_settings(
    method: Any, gradient: str, rtol: Any, atol: Any, h: Any, options: Any, layout: StateLayout | None = None
) -> Settings:
    """`Settings` of a solve.

    :param layout: `StateLayout`, for tolerances and norms that are given per part of the state
    :raises ValueError, TypeError: a name, value or combination that cannot be used
    """
    checked_gradient(gradient)
    method = checked_method(method, gradient)
    if method is Scipy:
        return _scipy_settings(rtol, atol, h, options, layout)
    options = checked_options(options)
    if "interp" in options:
        if not isinstance(method, Tableau | Adams):
            raise ValueError(
                f"interp is for explicit Runge-Kutta and Adams methods; {method.name} has its own dense output"
            )
        method = _with_interpolant(method, options["interp"])
    fixed, size = _step_size(h, options, method)
    _check_use(options, method, fixed)
    rtol, atol = tolerances(rtol, atol, layout)
    method = _as_adams(method, rtol, atol, options)
    if fixed:
        return Settings(method, FixedSteps(size, options.get("check_finite", True)), size, options)
    keywords = {name: options[name] for name in _CONTROLLER_OPTIONS if name in options}
    if "norm" in keywords and layout is not None:
        keywords["norm"] = _of_flat_states(options["norm"], layout)
    controller = Controller(rtol, atol, method.error_order, **keywords)
    if controller.min_step > controller.max_step:
        raise ValueError(f"min_step must not exceed max_step, got {controller.min_step:g} > {controller.max_step:g}")
    return Settings(method, controller, None if size is None else controller.limit(size), options)


def _of_flat_states(norm: Callable, layout: StateLayout) -> Callable[[Tensor], Any]:
    """The user's norm, of a flat state."""

    def of_flat(flat: Tensor) -> Any:
        return norm_of(norm, layout.unflatten(flat), "the state, or errors of it, nested like y0")

    return of_flat


def without_use(options: Mapping[str, Any], fixed: bool) -> list[str]:
    """Names of the options that say nothing of fixed steps, or of adaptive ones."""
    if fixed:
        return [name for name in _CONTROLLER_OPTIONS if name in options]
    said = {"perturb": options.get("perturb", False), "check_finite": not options.get("check_finite", True)}
    return [name for name, unlike_default in said.items() if unlike_default]


def _check_use(options: Mapping[str, Any], method: Method, fixed: bool) -> None:
    """Refuse options that `without_use` finds.

    :raises ValueError: there are some
    """
    idle = without_use(options, fixed)
    if idle and fixed:
        raise ValueError(f"{' and '.join(idle)}: for adaptive steps, and those of {method.name} are fixed here")
    if "check_finite" in idle:
        raise ValueError("check_finite=False is for fixed steps; adaptive ones are rejected where they are not finite")
    if idle:
        raise ValueError("perturb is for fixed steps; name the jumps of func in jump_t instead")


def checked_gradient(gradient: str) -> str:
    if gradient not in GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}; accepted: {', '.join(GRADIENTS)}")
    return gradient


def checked_memory(memory: Any, gradient: str) -> Budget:
    """The `Budget` of what the backward pass may keep."""
    if memory is not None and gradient != "aca":
        raise ValueError(f"memory needs gradient='aca', got {gradient!r}")
    return Budget.of(memory) if gradient == "aca" else STATES_ONLY


def checked_params(params: Any) -> tuple[Tensor, ...]:
    """The tensors that alone are to get gradients, as a tuple; one tensor counts as a sequence of one."""
    if not isinstance(params, Iterable):
        raise TypeError(f"params must be a sequence of tensors, such as net.parameters(), got {type(params).__name__}")
    params = (params,) if isinstance(params, torch.Tensor) else tuple(params)
    for tensor in params:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"params must hold tensors, as net.parameters() does, got {type(tensor).__name__}")
    return params


def checked_jacobian(jac: Any, structure: Any, method: Any) -> None:
    """Refuse what `Jacobian` does not take, and a method that has no use for it."""
    if jac is not None:
        check_callable(jac, "jac(t, y)")
    if structure not in ("dense", "rows"):
        raise ValueError(f"jac_structure must be 'dense' or 'rows', got {shown(structure)}")
    if (jac is not None or structure != "dense") and LINEARISE not in method.abilities:
        raise ValueError(f"jac and jac_structure are for methods that solve with the Jacobian, got {method.name}")


def checked_compile(compile: Any, gradient: str) -> tuple[dict[str, Any] | None, bool]:
    """Options of `torch.compile` for the steps (None if they are not to be compiled), and whether the loop over them is
    to be compiled as well."""
    if compile is False:
        return None, False
    if gradient != "aca":
        raise ValueError(f"compile={compile!r} needs gradient='aca', got {gradient!r}")
    if compile is True or compile in ("loop", "step"):
        return {}, compile != "step"
    from torch import _inductor  # here, since it takes a while to import

    if isinstance(compile, str):
        modes = _inductor.list_mode_options()
        if compile not in modes:
            raise ValueError(f"unknown compile mode {compile!r}; accepted: loop, step, {', '.join(modes)}")
        compile = modes[compile]
    if not isinstance(compile, dict):
        raise ValueError(
            "compile must be True, False, 'loop', 'step', a mode of torch.compile or a dict of options, got "
            f"{shown(compile)}"
        )
    unknown = sorted(str(name) for name in set(compile) - set(_inductor.list_options()))
    if unknown:
        raise ValueError(f"unknown compile option {', '.join(unknown)}; torch._inductor.list_options() has all")
    return dict(compile), not compile.get("triton.cudagraphs")  # a CUDA graph holds no loop


def checked_method(method: Any, gradient: str) -> Any:
    """The `Method` behind a name, or `Scipy`; None: what suits the gradient method.

    :raises ValueError: an unknown name, or a method that cannot do what the gradient method needs
    """
    if method is None:
        method = ALF.name if gradient == "mali" else "Dopri5"
    if isinstance(method, str) and method.lower() == Scipy.name:
        if gradient != "adjoint":
            raise ValueError(f"method 'scipy_solver' needs gradient='adjoint', got {gradient!r}")
        return Scipy
    found = methods.get(method) if isinstance(method, str) else method
    # those that have a name are known to be methods: to find out takes as long as an evaluation
    if found is None or not (isinstance(method, str) or isinstance(found, Method)):
        if isinstance(method, str):
            if method.lower() in map(str.lower, SCIPY_SOLVERS):
                raise ValueError(
                    f"method {method} is scipy's: give method='scipy_solver' with options={{'solver': {method!r}}} and "
                    "gradient='adjoint', or, for a stiff problem, method='Rodas5P'"
                )
            hint = closest(method, methods)
            raise ValueError(
                f"unknown method {shown(method)}{hint}; accepted: {', '.join(methods)}, or a torch_ACA.Method"
            )
        raise ValueError(f"method {no_method(method)}; accepted by name: {', '.join(methods)}")
    if (gradient == "mali") != (INVERT in found.abilities) and (gradient == "mali" or found is ALF):
        got = f"gradient={gradient!r}, method={found.name!r}"
        raise ValueError(f"gradient='mali' and method='ALF' go together, got {got}")
    needed = _NEEDED.get(gradient)
    if needed is not None and needed not in found.abilities:
        raise ValueError(f"method {found.name} is not able to {needed}, which gradient={gradient!r} needs")
    return found


def _as_adams(method: Any, rtol: Any, atol: Any, options: Mapping[str, Any]) -> Any:
    """An Adams method with its options, and tolerances for its corrections; any other one as it is, without them."""
    own = {name: options[name] for name in ADAMS_OPTIONS if name in options}
    if isinstance(method, Adams):
        if "max_iters" in own and not method.implicit:
            raise ValueError(f"max_iters is for corrections, and {method.name} makes none")
        return replace(method, rtol=rtol, atol=atol, **own)
    if own:
        raise ValueError(f"{' and '.join(own)}: for Adams methods, not for {method.name}")
    return method


@functools.cache  # the same tableau every time: what is made for it, compiled steps above all, is made once
def _with_interpolant(method: Any, name: str) -> Any:
    """The method with the interpolant that torchdiffeq calls linear or cubic."""
    if isinstance(method, Adams):
        return method.with_interpolant(name)
    if name == "linear":
        return replace(method, interpolant=linear_between(method.b), dense_order=1)
    return replace(method, interpolant=cubic_hermite(method.b, end_slope_is_last_stage=method.fsal), dense_order=3)


def checked_options(options: Any) -> dict[str, Any]:
    """The options that were given (None: not given), numbers as floats and times as lists of floats.

    :raises ValueError, TypeError: unknown names, values that cannot be used
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options must be a dict, got {shown(options)}")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    unknown = sorted(str(name) for name in set(given) - set(OPTIONS))
    if unknown:
        hint = closest(unknown[0], OPTIONS)
        raise ValueError(f"unknown option {', '.join(unknown)}{hint}; accepted: {', '.join(OPTIONS)}")
    return {name: OPTIONS[name](name, value) for name, value in given.items()}


def _scipy_settings(rtol: Any, atol: Any, h: Any, options: Any, layout: StateLayout | None) -> Settings:
    solve_ivp_of_scipy()  # refused before any work starts
    options = dict(options or {})
    solver = options.pop("solver", Scipy.solver)
    if solver not in SCIPY_SOLVERS:
        raise ValueError(f"solver must be one of scipy's {', '.join(SCIPY_SOLVERS)}, got {shown(solver)}")
    options = checked_options(options)
    unknown = sorted(set(options) - set(SCIPY_OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)} of scipy_solver; accepted: {', '.join(SCIPY_OPTIONS)}")
    if h is not None:
        options["first_step"] = positive_size("h", h)
    method = Scipy(*tolerances(rtol, atol, layout), solver, options)
    return Settings(method, None, 0.0, {"solver": solver} | options)


def checked_max_evals(max_evals: Any) -> int | float:
    return whole_number("max_evals", max_evals)


def checked_callbacks(callbacks: Any) -> Callbacks:
    """`Callbacks`; None: none."""
    if not isinstance(callbacks, Callbacks | None):
        raise TypeError(f"callbacks must be Callbacks(step=..., accept=..., reject=...), got {shown(callbacks)}")
    return callbacks or NO_CALLBACKS


def checked_times(t: Any, layout: StateLayout) -> tuple[Tensor, list[float]]:
    """Output times as a tensor [m], and as floats. Constant ones are a copy: the caller may go on with them in place.

    :raises ValueError, TypeError: not at least two finite times in strict order
    """
    times = times_of("t", t)
    if times.dim() != 1 or len(times) < 2:
        raise ValueError(f"t must be 1-D with at least two times, got shape {tuple(times.shape)}")
    if times.is_complex():
        raise TypeError(f"t must be real, got {times.dtype}")
    if not times.is_floating_point():
        times = times.to(layout.dtype)
    elif not times.requires_grad:
        times = times.clone()
    ts = times.tolist()
    if not all(math.isfinite(value) for value in ts):
        raise ValueError(f"t must be finite, got {shown(sorted(ts, key=math.isfinite))}")
    if not is_monotone(ts):
        i = next(i for i in range(1, len(ts)) if (ts[i] - ts[i - 1]) * (ts[1] - ts[0]) <= 0)
        beyond = f"t[{i}] = {ts[i]:g} does not lie beyond t[{i - 1}] = {ts[i - 1]:g}"
        raise ValueError(f"t must be strictly increasing or strictly decreasing, but {beyond}")
    warn_of_coarse_times(ts[0], ts[-1], layout.dtype)
    return times, ts


def warn_of_coarse_times(t0: float, t1: float, dtype: torch.dtype) -> None:
    """Say so where the state's precision does not tell the times between t0 and t1 apart."""
    spacing = torch.finfo(dtype).eps * max(abs(t0), abs(t1))
    if abs(t1 - t0) < _RESOLVED * spacing:
        warn_caller(
            f"func gets the time in the state's precision, {dtype}, which knows times near {t0:g} to within "
            f"{spacing:.2g}: too coarse for an interval of {abs(t1 - t0):.2g}. Let time start near 0 and add "
            "the rest inside func, or make the state float64"
        )


def takes_fixed_steps(method: Method, options: Mapping[str, Any]) -> bool:
    return not method.adaptive or "step_size" in options or "grid" in options


def _step_size(h: Any, options: Mapping[str, Any], method: Method) -> tuple[bool, float | None]:
    """Whether steps are fixed, and the size given (None: none)."""
    given = {} if h is None else {"h": positive_size("h", h)}
    given |= {name: options[name] for name in _SIZES if name in options}
    if len(given) > 1:
        raise ValueError(f"give one of h, first_step, step_size and grid, got {' and '.join(given)}")
    fixed = takes_fixed_steps(method, options)
    if fixed and SWITCH in method.abilities:
        raise ValueError(f"{method.name} chooses the method by how steps go, and takes none of a given size")
    if "grid" in given:
        return True, math.inf
    if fixed and not given:
        raise ValueError(f"{method.name} takes fixed steps: give the step size h")
    return fixed, next(iter(given.values()), None)
