"""Checks what a caller asks of the solver and turns it into the solver's own terms, before anything is evaluated."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .controller import Controller, FixedSteps
from .gradients.storage import Budget
from .interpolants import cubic_hermite, linear_between
from .steppers.alf import AsynchronousLeapfrog
from .tableaus import TABLEAUS

GRADIENTS = ("aca", "direct", "naive", "adjoint", "mali")
METHODS = (*TABLEAUS, AsynchronousLeapfrog.name)
FIXED_STEP_METHODS = tuple(name for name, tableau in TABLEAUS.items() if not tableau.adaptive)

_METHODS = {name.lower(): tableau for name, tableau in TABLEAUS.items()} | TABLEAUS | {"alf": AsynchronousLeapfrog}
_CONTROLLER_OPTIONS = ("safety", "ifactor", "dfactor", "beta", "min_step", "max_step", "norm")
OPTIONS = (
    *_CONTROLLER_OPTIONS,
    *("first_step", "step_size", "grid", "max_num_steps", "step_t", "jump_t", "land_on_t", "perturb", "interp"),
)


@dataclass(frozen=True)
class Settings:
    """A method and how its steps are chosen. ``method`` is a `Tableau` or `AsynchronousLeapfrog`; ``first_step`` None
    means that Hairer's rule chooses; ``options`` are the checked ones."""

    method: Any
    controller: Controller | FixedSteps
    first_step: float | None
    options: dict


def checked_settings(method, gradient, rtol, atol, h, options, layout=None):
    """`Settings` of a solve.

    :param layout: `StateLayout`, for tolerances and norms that are given per part of the state
    :raises ValueError: a name, number or combination that cannot be used
    """
    checked_gradient(gradient)
    method = checked_method(method, gradient)
    options = checked_options(options)
    if "interp" in options:
        method = _with_interpolant(method, options["interp"])
    fixed, size = _step_size(h, options, method)
    if options.get("perturb") and not fixed:
        raise ValueError("perturb is for fixed steps; name the jumps of func in jump_t instead")
    _check_tolerances(rtol, atol)
    if fixed:
        return Settings(method, FixedSteps(size), size, options)
    keywords = {name: options[name] for name in _CONTROLLER_OPTIONS if name in options}
    if "norm" in keywords and layout is not None:
        keywords["norm"] = lambda flat, norm=options["norm"]: norm(layout.unflatten(flat))
    controller = Controller(
        _tolerance("rtol", rtol, layout), _tolerance("atol", atol, layout), method.error_order, **keywords
    )
    return Settings(method, controller, size, options)


def checked_gradient(gradient):
    if gradient not in GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}; accepted: {', '.join(GRADIENTS)}")
    return gradient


def checked_memory(memory, gradient):
    """The `Budget` of what the backward pass may keep."""
    if memory is not None and gradient != "aca":
        raise ValueError(f"memory needs gradient='aca', got {gradient!r}")
    return Budget.of(memory)


def checked_params(params):
    """The tensors that alone are to get gradients, as a tuple; one tensor counts as a sequence of one."""
    params = (params,) if isinstance(params, torch.Tensor) else tuple(params)
    for tensor in params:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"params must hold tensors, got {type(tensor).__name__}")
    return params


def checked_compile(compile, gradient):
    """Options of `torch.compile` for the steps; None if they are not to be compiled."""
    if compile is False:
        return None
    if gradient != "aca":
        raise ValueError(f"compile={compile!r} needs gradient='aca', got {gradient!r}")
    if compile is True:
        return {}
    from torch import _inductor  # here, since it takes a while to import

    if isinstance(compile, str):
        modes = _inductor.list_mode_options()
        if compile in modes:
            return modes[compile]
        raise ValueError(f"unknown compile mode {compile!r}; accepted: {', '.join(modes)}")
    if not isinstance(compile, dict):
        raise ValueError(f"compile must be True, False, a mode of torch.compile or a dict of options, got {compile!r}")
    unknown = sorted(str(name) for name in set(compile) - set(_inductor.list_options()))
    if unknown:
        raise ValueError(f"unknown compile option {', '.join(unknown)}; torch._inductor.list_options() has all")
    return dict(compile)


def checked_method(method, gradient):
    """The tableau or ALF behind a name; None: what suits the gradient method."""
    if method is None:
        method = AsynchronousLeapfrog.name if gradient == "mali" else "Dopri5"
    found = _METHODS.get(method, _METHODS.get(method.lower())) if isinstance(method, str) else None
    if found is None:
        raise ValueError(f"unknown method {method!r}; accepted: {', '.join(METHODS)}")
    if (gradient == "mali") != (found is AsynchronousLeapfrog):
        raise ValueError(f"gradient='mali' and method='ALF' go together, got gradient={gradient!r}, method={method!r}")
    return found


def _with_interpolant(method, name):
    """The tableau with the interpolant that torchdiffeq calls linear or cubic."""
    b = method.b
    if name == "linear":
        return replace(method, interpolant=linear_between(b), dense_order=1)
    if name == "cubic":
        return replace(method, interpolant=cubic_hermite(b, end_slope_is_last_stage=method.fsal), dense_order=3)
    raise ValueError(f"interp must be 'linear' or 'cubic' (default: the method's own), got {name!r}")


def checked_options(options):
    options = dict(options or {})
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; accepted: {', '.join(OPTIONS)}")
    return options


def checked_times(t, layout):
    """Output times as the caller's tensor and as floats."""
    times = t if isinstance(t, torch.Tensor) else torch.tensor([float(value) for value in t], dtype=torch.float64)
    if times.dim() != 1 or len(times) < 2:
        raise ValueError(f"t must be 1-D with at least two times, got shape {tuple(times.shape)}")
    if not times.is_floating_point():
        times = times.to(layout.dtype)
    ts = times.detach().double().tolist()
    if not all(math.isfinite(value) for value in ts):
        raise ValueError(f"t must be finite, got {ts}")
    steps = [b - a for a, b in zip(ts, ts[1:])]
    if not (all(s > 0 for s in steps) or all(s < 0 for s in steps)):
        raise ValueError("t must be strictly increasing or strictly decreasing")
    return times, ts


def floats(times):
    """A list of floats from a tensor or sequence of times."""
    return torch.as_tensor(times, dtype=torch.float64).reshape(-1).tolist()


def _step_size(h, options, method):
    """Whether steps are fixed, and the size given (None: none)."""
    given = {name: value for name, value in (("h", h), *options.items()) if value is not None}
    given = {name: given[name] for name in ("h", "first_step", "step_size", "grid") if name in given}
    if len(given) > 1:
        raise ValueError(f"give one of h, first_step, step_size and grid, got {' and '.join(given)}")
    if "grid" in given:
        return True, math.inf
    fixed = not method.adaptive or "step_size" in given
    if not given:
        if fixed:
            raise ValueError(f"{method.name} takes fixed steps: give the step size h")
        return False, None
    ((name, value),) = given.items()
    size = abs(float(value))
    if math.isnan(size) or size == 0:
        raise ValueError(f"{name} must be a number other than 0, got {value}")
    return fixed, size


def _tolerance(name, value, layout):
    """A float, or a flat vector from what is nested like the state."""
    if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.dim() == 0):
        return float(value)
    if layout is None:
        return value
    parts = pytree.tree_leaves(value)
    if len(parts) not in (1, len(layout.leaves)):
        raise ValueError(f"{name} must be a number or nested like y0, got {len(parts)} parts for {len(layout.leaves)}")
    parts = parts * (len(layout.leaves) // len(parts))
    return torch.cat([leaf.spread(part, layout) for leaf, part in zip(layout.leaves, parts)])


def _check_tolerances(rtol, atol):
    _check_tolerance("rtol", rtol)
    _check_tolerance("atol", atol)
    if isinstance(rtol, (int, float)) and isinstance(atol, (int, float)) and rtol == atol == 0:
        raise ValueError("rtol and atol must not both be 0: no step would be accepted")


def _check_tolerance(name, value):
    for part in pytree.tree_leaves(value):
        if isinstance(part, torch.Tensor) and part.requires_grad:
            raise ValueError(f"{name} must not require grad")
        if isinstance(part, torch.Tensor):
            good = bool((torch.isfinite(part) & (part >= 0)).all())
        else:
            good = math.isfinite(part) and part >= 0
        if not good:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
