"""torchdiffeq's interface: swap the import and the rest of a program stays as it is.

``odeint`` differentiates by ACA here, and by any other gradient method on request; ``odeint_adjoint`` is the continuous
adjoint, as there. Differences: dense output of the method's own order instead of ``interp="linear"`` for fixed steps
(give ``interp`` to have theirs); ``safety`` is 0.85 unless given; solver failures raise `SolverError`, which is an
AssertionError too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..api import solve
from ..callbacks import Callbacks
from ..events import solve_event
from ..notices import shown, warn_caller
from ..option_checks import time_of
from ..private_torch import pytree
from ..scipy_solver import Scipy
from ..settings import ADAMS_OPTIONS, OPTIONS, SCIPY_OPTIONS, checked_gradient, checked_method, times_of
from ..side_effects import modules_of
from ..solver_options import takes_options
from ..state import StateLayout
from ..steppers.adams import ADAMS

METHODS = (
    *("euler", "midpoint", "heun2", "heun3", "rk4"),
    *("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "dopri8"),
    *ADAMS,
)
INSTEAD = dict.fromkeys(
    (
        *("implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "gl4", "radauIIA5", "gl6", "sdirk2"),
        "trbdf2",
    ),
    "Rodas5P (adaptive, for stiff problems), or scipy_solver with options={'solver': 'Radau'}",
)
SOLVERS = dict.fromkeys((*METHODS, Scipy.name))  # torchdiffeq has classes there; programs ask for the names
_CALLBACKS = {"step": "callback_step", "accept": "callback_accept_step", "reject": "callback_reject_step"}
_OF_ADAPTIVE_STEPS = {
    *("first_step", "min_step", "max_step", "max_num_steps", "safety", "ifactor", "dfactor", "beta"),
}


@takes_options(without=("dense", "on_failure", "record"))
def odeint(
    func: Callable, y0: Any, t: Any, *, rtol: Any = 1e-7, atol: Any = 1e-9, method: Any = None,
    options: Mapping[str, Any] | None = None, event_fn: Callable | None = None, gradient: str = "aca", **keywords: Any,
) -> Any:  # fmt: skip
    """Solve dy/dt = func(t, y) from y(t[0]) = y0 and return y at all of t.

    :param func: func(t, y), t a 0-d tensor, y like y0. Its ``callback_step``, ``callback_accept_step`` and
        ``callback_reject_step``, if it has them, are called with (t, y, dt), t and dt in float64; with ``_adjoint``
        behind their names, in the backward solve of the adjoint. Fixed steps call the first alone, scipy none
    :param y0: tensor of any shape, or a tuple, list or dict of tensors
    :param t: times [m], strictly increasing or decreasing; also one alone
    :param rtol: relative tolerance of the adaptive methods
    :param atol: absolute tolerance
    :param method: a name of torchdiffeq (default dopri5; ``rk4`` is its 3/8 rule), one of `torch_ACA.methods`, or
        scipy_solver (its result is detached, unless gradient="adjoint")
    :param options: of torchdiffeq: first_step, step_size, grid_constructor, min_step, max_step, max_num_steps, step_t,
        jump_t, norm, safety, ifactor, dfactor, perturb, interp, max_order, max_iters, solver; and those of
        `torch_ACA.solve`. As there, one that the method has no use for (step_size with an adaptive one) or that nobody
        knows is left out with a warning
    :param event_fn: stop where event_fn(t, y) crosses zero; of t[1:] only the direction counts then
    :param gradient: one of `torch_ACA.GRADIENTS`
    :param keywords: options as in `SolverOptions`
    :returns: [m, *shape] (nested like y0); with event_fn, the event time and [2, *shape]
    :raises ValueError: a method or value that is not available
    :raises SolverError: the solve failed. Infinite and NaN states of fixed steps are returned instead
    """
    method, kind = _checked_method(method, gradient)
    t = times_of("t", t)
    options = _translated(func, y0, t, options, method, kind, event_fn)
    keywords = {"rtol": rtol, "atol": atol, "method": method, "gradient": gradient} | keywords
    return _odeint(func, y0, t, event_fn, kind, options, keywords)


def _odeint(
    func: Callable, y0: Any, t: torch.Tensor, event_fn: Callable | None, kind: str, options: dict[str, Any],
    keywords: dict[str, Any],
) -> Any:  # fmt: skip
    """`odeint`, with options and keywords in the terms of `solve`."""
    keywords = {"options": options, "callbacks": _callbacks(func, y0, keywords["method"], kind)} | keywords
    if event_fn is not None and kind == "scipy":
        raise ValueError(f"{Scipy.name} finds no events; available with event_fn: {', '.join(METHODS)}")
    if event_fn is not None:
        if t.dim() != 1 or not len(t):
            raise ValueError(f"t must be 1-D with at least one time, got shape {tuple(t.shape)}")
        reverse = len(t) > 1 and bool(t[1] < t[0])
        event_t, ys = solve_event(func, y0, t[0], event_fn, reverse_time=reverse, **keywords)
        event_t = event_t.to(pytree.tree_leaves(ys)[0].device)  # torchdiffeq has all times there
        return event_t.to(t.dtype) if t.is_floating_point() else event_t, ys
    if t.shape == (1,):
        return pytree.tree_map(lambda leaf: leaf[None], y0)
    if kind == "scipy" and keywords["gradient"] != "adjoint":
        return _detached(func, y0, t, keywords | {"gradient": "adjoint"})
    return solve(func, y0, t, **keywords).ys


def odeint_adjoint(
    func: Callable, y0: Any, t: Any, *, rtol: Any = 1e-7, atol: Any = 1e-9, method: Any = None,
    options: Mapping[str, Any] | None = None, event_fn: Callable | None = None, adjoint_rtol: Any = None,
    adjoint_atol: Any = None, adjoint_method: Any = None, adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Any = None,
) -> Any:  # fmt: skip
    """`odeint` differentiated by the continuous adjoint (not ACA: that is `odeint` here, and `odesolve_adjoint`).

    :param adjoint_rtol: of the backward solve, as are the next three. Default: as forward
    :param adjoint_atol: default: as forward
    :param adjoint_method: default: as forward
    :param adjoint_options: default: those of the forward solve that the method uses, without the norm. ``"norm"`` in
        it: "seminorm", or a function of a tuple: a 0-d zero (the part of the time), the leaves of y, their cotangents,
        and the cotangents of the parameters
    :param adjoint_params: only these tensors get gradients besides y0 and t; default: all that func uses
    """
    method, kind = _checked_method(method, "adjoint")
    backward_method, backward_kind = _checked_method(adjoint_method or method, "adjoint")
    t = times_of("t", t)
    if adjoint_options is None:  # with what there is a use for: nobody asked for the rest
        unused = {"norm", *_unused(options, backward_method, backward_kind)}
        adjoint_options = {name: value for name, value in (options or {}).items() if name not in unused}
    options = _translated(func, y0, t, options, method, kind, event_fn)
    adjoint = {
        "rtol": adjoint_rtol,
        "atol": adjoint_atol,
        "method": backward_method,
        "options": _translated(func, y0, t, adjoint_options, backward_method, backward_kind, backward=True),
        "callbacks": _callbacks(func, y0, backward_method, backward_kind, "_adjoint"),
    }
    keywords = {
        "rtol": rtol,
        "atol": atol,
        "method": method,
        "gradient": "adjoint",
        "adjoint": {name: value for name, value in adjoint.items() if value is not None},
        "params": adjoint_params,
    }
    return _odeint(func, y0, t, event_fn, kind, options, keywords)


def odeint_event(
    func: Callable, y0: Any, t0: float | torch.Tensor, *, event_fn: Callable, reverse_time: bool = False,
    odeint_interface: Callable = odeint, **keywords: Any,
) -> tuple[torch.Tensor, Any]:  # fmt: skip
    """Solve from t0 until event_fn(t, y) crosses zero.

    :param odeint_interface: `odeint` or `odeint_adjoint`
    :param t0: 0-d tensor, or a number; the event time is of its type (of a number: float64), on the device of y0
    :returns: event time (0-d) and [2, *shape]: y0 and the state at the event; differentiable
    """
    t0 = t0 if isinstance(t0, torch.Tensor) and t0.is_floating_point() else time_of(t0)
    t0 = t0.reshape(())
    beyond = t0.new_tensor(-math.inf if reverse_time else math.inf)  # only the direction counts
    t = torch.stack([t0, torch.nextafter(t0.detach(), beyond)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **keywords)


def odeint_dense(
    func: Callable, y0: Any, t0: float | torch.Tensor, t1: float | torch.Tensor, *, rtol: Any = 1e-7, atol: Any = 1e-9,
    method: Any = None, options: Mapping[str, Any] | None = None, gradient: str = "aca",
) -> Any:  # fmt: skip
    """Solve from t0 to t1 and return a function of time, differentiable: t (0-d or [k]) -> state(s)."""
    method, kind = _checked_method(method, gradient)
    times = times_of("t", (t0, t1))
    options = _translated(func, y0, times, options, method, kind)
    return solve(
        func, y0, times, rtol=rtol, atol=atol, method=method, options=options, gradient=gradient, dense=True
    ).dense


def _checked_method(method: Any, gradient: str) -> tuple[Any, str]:
    """The method's name, and what kind it is: "adaptive", "fixed" or "scipy"."""
    checked_gradient(gradient)
    if method in INSTEAD:
        raise ValueError(
            f"method {method!r} is not available here; use {INSTEAD[method]}. Of torchdiffeq's there are: "
            f"{', '.join(METHODS)}, {Scipy.name}"
        )
    if method == Scipy.name:
        return method, "scipy"
    if method is None:
        method = "ALF" if gradient == "mali" else "dopri5"
    return method, "adaptive" if checked_method(method, gradient).adaptive else "fixed"


def _unused(options: Mapping[str, Any] | None, method: Any, kind: str) -> list[str]:
    """Names of options that are unknown, or of no use to a method."""
    if not options:
        return []
    known = {
        "adaptive": {*OPTIONS} - {"step_size", "perturb", "check_finite"},
        "fixed": {*OPTIONS, "grid_constructor"} - _OF_ADAPTIVE_STEPS,
        "scipy": {*SCIPY_OPTIONS},
    }
    useful = (known[kind] | {"norm"}) - ({*ADAMS_OPTIONS} if method not in ADAMS else set())
    if method in ADAMS and not ADAMS[method].implicit:
        useful.discard("max_iters")
    return [name for name in options if name not in useful]


def _translated(
    func: Callable, y0: Any, t: torch.Tensor, options: Mapping[str, Any] | None, method: Any, kind: str,
    event_fn: Callable | None = None, *, backward: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """torchdiffeq's options in the terms of `solve`; those of no use are left out, with a warning.

    :param backward: they are those of a backward solve, which goes from every time to the one before
    """
    options, t = _used(options, method, kind), t.detach()
    if kind != "fixed":
        return options
    options["check_finite"] = event_fn is not None
    constructor = options.pop("grid_constructor", None)
    if constructor is not None:
        if "step_size" in options:
            raise ValueError("step_size and grid_constructor are mutually exclusive")
        ways = [t[[k, k - 1]] for k in range(len(t) - 1, 0, -1)] if backward else [t]
        first, *others = (times_of("the grid", constructor(func, y0, way)) for way in ways)
        options["grid"] = torch.cat([first, *(grid[1:] for grid in others)])
    elif not {"step_size", "grid"} & set(options):
        if event_fn is not None:
            raise ValueError(f"events with {method!r} need options={{'step_size': ...}}")
        options |= {"step_size": math.inf} if backward else {"step_size": math.inf, "land_on_t": True}
    return options


def _used(options: Mapping[str, Any] | None, method: Any, kind: str) -> dict[str, Any]:
    """The options that were given (None: not given) and have a use; a warning names the others."""
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options must be a dict, got {shown(options)}")
    options = {name: value for name, value in (options or {}).items() if value is not None}
    unused = _unused(options, method, kind)
    warned = [str(name) for name in unused if (name, options[name]) != ("dtype", torch.float64)]
    if warned:
        warn_caller(f"options that have no effect with method {method!r}: {', '.join(warned)}")
    if kind != "adaptive":
        unused.append("norm")
    return {name: value for name, value in options.items() if name not in unused}


def _callbacks(func: Callable, y0: Any, method: Any, kind: str, suffix: str = "") -> Callbacks | None:
    """The callbacks that torchdiffeq looks for on func, with tensors for the time and the step (None: no callbacks)."""
    found: dict[str, Any] = {name: getattr(func, theirs + suffix, None) for name, theirs in _CALLBACKS.items()}
    called = {"adaptive": ("step", "accept", "reject"), "fixed": ("step",), "scipy": ()}[kind]
    never = [_CALLBACKS[name] + suffix for name, callback in found.items() if callback and name not in called]
    if never:
        warn_caller(f"method {method!r} never calls {', '.join(never)}")
    if not any(found[name] for name in called):
        return None
    layout = StateLayout(y0)

    def adapted(callback: Callable) -> Callable:
        return lambda t, y, h: callback(time(t), layout.unflatten(y), time(abs(h)))  # there it has no sign

    def time(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=layout.device)

    return Callbacks(**{name: adapted(found[name]) for name in called if found[name]})


def _detached(func: Callable, y0: Any, t: torch.Tensor, keywords: dict[str, Any]) -> Any:
    """Solve by scipy without a graph, and say so where there would be one."""
    inputs = [*pytree.tree_leaves(y0), t, *(p for module in modules_of(func) for p in module.parameters())]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        warn_caller("scipy_solver in odeint gives no gradient: its result is detached. odeint_adjoint gives one")
    with torch.no_grad():
        return solve(func, y0, t, **keywords).ys


def find_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The tensors of a module that odeint_adjoint of torchdiffeq differentiates in: a list."""
    return list(module.parameters())
