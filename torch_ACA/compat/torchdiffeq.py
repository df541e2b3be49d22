"""torchdiffeq's interface: swap the import and the rest of a program stays as it is.

``odeint`` differentiates by ACA here, and by any other gradient method on request; ``odeint_adjoint`` is the continuous
adjoint, as there. Differences: dense output of the method's own order instead of ``interp="linear"`` for fixed steps
(give ``interp`` to have theirs); ``safety`` is 0.85 unless given; solver failures raise `SolverError` instead of
AssertionError.
"""

import math
import warnings

import torch

from ..api import solve
from ..events import solve_event
from ..march import Callbacks
from ..settings import FIXED_STEP_METHODS
from ..state import StateLayout
from .scipy_solver import odeint_scipy

METHODS = (
    *("euler", "midpoint", "heun2", "heun3", "rk4"),
    *("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "dopri8"),
)
_MISSING = (
    *("explicit_adams", "implicit_adams", "fixed_adams", "implicit_euler", "implicit_midpoint", "trapezoid"),
    *("radauIIA3", "gl4", "radauIIA5", "gl6", "sdirk2", "trbdf2"),
)
_CALLBACKS = {"step": "callback_step", "accept": "callback_accept_step", "reject": "callback_reject_step"}
_OPTIONS_WITHOUT_EFFECT = ("dtype",)  # time is kept in float64 here


def odeint(
    func, y0, t, *, rtol=1e-7, atol=1e-9, method=None, options=None, event_fn=None, gradient="aca", **keywords
):
    """Solve dy/dt = func(t, y) from y(t[0]) = y0 and return y at all of t.

    :param func: func(t, y), t a 0-d tensor, y like y0. Its ``callback_step``, ``callback_accept_step`` and
        ``callback_reject_step``, if it has them, are called with (t, y, dt); with ``_adjoint`` behind their names, in
        the backward solve of the adjoint
    :param y0: tensor of any shape, or a tuple, list or dict of tensors
    :param t: times [m], strictly increasing or decreasing
    :param rtol, atol: tolerances of the adaptive methods
    :param method: a name of torchdiffeq (default dopri5; ``rk4`` is its 3/8 rule), one of `torch_ACA.METHODS`, or
        scipy_solver (not differentiable)
    :param options: of torchdiffeq: first_step, step_size, grid_constructor, min_step, max_step, max_num_steps, step_t,
        jump_t, norm, safety, ifactor, dfactor, perturb, interp; and those of `torch_ACA.solve`
    :param event_fn: stop where event_fn(t, y) crosses zero; of t[1:] only the direction counts then
    :param gradient: one of `torch_ACA.GRADIENTS`
    :param keywords: further ones of `torch_ACA.solve`
    :returns: [m, *shape] (nested like y0); with event_fn, the event time and [2, *shape]
    :raises ValueError: a method or option that is not available
    :raises SolverError: the solve failed
    """
    if method == "scipy_solver":
        return odeint_scipy(func, y0, t, rtol=rtol, atol=atol, options=options)
    method = _checked_method(method, gradient)
    options = _translated(func, y0, t, options, method, event_fn)
    keywords = {"rtol": rtol, "atol": atol, "method": method, "options": options, "gradient": gradient} | keywords
    keywords.setdefault("callbacks", _callbacks(func, y0))
    if event_fn is not None:
        reverse = len(t) > 1 and bool(t[1] < t[0])
        event_t, ys = solve_event(func, y0, t[0], event_fn, reverse_time=reverse, **keywords)
        return event_t.to(t.dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else event_t, ys
    return solve(func, y0, t, **keywords).ys


def odeint_adjoint(
    func,
    y0,
    t,
    *,
    rtol=1e-7,
    atol=1e-9,
    method=None,
    options=None,
    event_fn=None,
    adjoint_rtol=None,
    adjoint_atol=None,
    adjoint_method=None,
    adjoint_options=None,
    adjoint_params=None,
):
    """`odeint` differentiated by the continuous adjoint (not ACA: that is `odeint` here, and `odesolve_adjoint`).

    :param adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the backward solve; default: as forward
    :param adjoint_params: only these tensors get gradients besides y0 and t; default: all that func uses
    """
    chosen = {
        "rtol": adjoint_rtol,
        "atol": adjoint_atol,
        "method": None if adjoint_method is None else _checked_method(adjoint_method, "adjoint"),
        "options": adjoint_options,
        "callbacks": _callbacks(func, y0, "_adjoint"),
    }
    return odeint(
        func,
        y0,
        t,
        rtol=rtol,
        atol=atol,
        method=method,
        options=options,
        event_fn=event_fn,
        gradient="adjoint",
        adjoint={name: value for name, value in chosen.items() if value is not None},
        params=adjoint_params,
    )


def odeint_event(func, y0, t0, *, event_fn, reverse_time=False, odeint_interface=odeint, **keywords):
    """Solve from t0 until event_fn(t, y) crosses zero.

    :param odeint_interface: `odeint` or `odeint_adjoint`
    :param t0: 0-d tensor, or a number; the event time is of its type (of a number: float64)
    :returns: event time (0-d) and [2, *shape]: y0 and the state at the event; differentiable
    """
    known = isinstance(t0, torch.Tensor) and t0.is_floating_point()
    t0 = t0.reshape(()) if known else torch.as_tensor(t0, dtype=torch.float64).reshape(())
    beyond = t0.new_tensor(-math.inf if reverse_time else math.inf)  # only the direction counts
    t = torch.stack([t0, torch.nextafter(t0.detach(), beyond)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **keywords)


def odeint_dense(func, y0, t0, t1, *, rtol=1e-7, atol=1e-9, method=None, options=None, gradient="aca"):
    """Solve from t0 to t1 and return a function of time, differentiable: t (0-d or [k]) -> state(s)."""
    method = _checked_method(method, gradient)
    times = torch.stack([torch.as_tensor(t0, dtype=torch.float64), torch.as_tensor(t1, dtype=torch.float64)])
    options = _translated(func, y0, times, options, method, None)
    return solve(
        func, y0, times, rtol=rtol, atol=atol, method=method, options=options, gradient=gradient, dense=True
    ).dense


def _checked_method(method, gradient):
    if method in _MISSING:
        raise ValueError(f"method {method!r} is not available here; available: {', '.join(METHODS)}, scipy_solver")
    if method is None:
        return "ALF" if gradient == "mali" else "dopri5"
    return method


def _translated(func, y0, t, options, method, event_fn):
    """torchdiffeq's options in the terms of `solve`."""
    options = dict(options or {})
    for name in _OPTIONS_WITHOUT_EFFECT:
        if name in options:
            warnings.warn(f"option {name!r} has no effect: time is kept in float64", stacklevel=3)
            del options[name]
    constructor = options.pop("grid_constructor", None)
    if constructor is not None:
        if "step_size" in options:
            raise ValueError("step_size and grid_constructor are mutually exclusive")
        options["grid"] = constructor(func, y0, t)
    elif method in FIXED_STEP_METHODS and not {"step_size", "first_step", "grid"} & set(options):
        if event_fn is not None:
            raise ValueError(f"events with {method!r} need options={{'step_size': ...}}")
        options["grid"] = t.detach() if isinstance(t, torch.Tensor) else t
    return options


def _callbacks(func, y0, suffix=""):
    """The callbacks that torchdiffeq looks for on func, with tensors for the time and the step (None: no callbacks)."""
    found = {name: getattr(func, theirs + suffix, None) for name, theirs in _CALLBACKS.items()}
    if not any(found.values()):
        return None
    layout = StateLayout(y0)

    def adapted(callback):
        return lambda t, y, h: callback(torch.tensor(t), layout.unflatten(y), torch.tensor(h))

    return Callbacks(**{name: adapted(callback) for name, callback in found.items() if callback is not None})
