"""The options-dict interface of the authors' README: `odesolve`, `odesolve_endtime`, `odesolve_adjoint`.

Names that collide: `odesolve_adjoint` is ACA, the checkpointed exact gradient, while torchdiffeq's `odeint_adjoint`
is the continuous adjoint that ACA improves on.
"""

import warnings

import torch
from torch.utils import _pytree as pytree

from ..api import solve, solve_endtime

_SOLVER_KEYS = ("method", "h", "rtol", "atol", "gradient", "memory", "compile")
_CONTROL_KEYS = ("safety",)
_OTHER_KEYS = ("t0", "t1", "t_eval", "neval_max", "print_neval", "dense_output", "options")
_KEYS_WITHOUT_EFFECT = ("regenerate_graph", "print_direction", "step_dif_ratio", "interpolation_method")
_BY_NAME_OF_README = {"rk4": "RK4"}  # any case means the classic method here; torchdiffeq's rk4 is the 3/8 rule


def odesolve(func, z0, options, *, return_solver=False):
    """Solve z' = func(t, z) from z0 at options["t0"].

    :param options: dict of method, h, t0, t1 (0 and 1), rtol, atol (1e-3 and 1e-6), t_eval (list of times inside
        [t0, t1], in the direction of integration), neval_max, print_neval, dense_output, safety; gradient (default
        "direct"), memory, compile, options (those of `solve`)
    :param return_solver: return the `Solver` instead of the result
    :returns: states at t_eval, one row each: [n, *shape], also for n = 1. Without t_eval the state at t1: [*shape]
    :raises ValueError: unknown keys, times outside the interval, settings that `solve` refuses
    """
    solver = Solver(func, options)
    return solver if return_solver else solver.integrate(z0)


def odesolve_endtime(func, z0, options):
    """The state at options["t1"], with the graphs of the accepted steps kept (gradient "direct"): fast."""
    return _endtime(func, z0, options, "direct")


def odesolve_adjoint(func, z0, options):
    """The state at options["t1"], by ACA (gradient "aca"): O(N_f + N_t) memory."""
    return _endtime(func, z0, options, "aca")


class Solver:
    """Solves as often as one likes with the same func and options."""

    def __init__(self, func, options):
        self.func, self.options = func, _checked(options)
        self._trajectory = None

    def integrate(self, z0, t_eval=None):
        """Solve from z0; t_eval overrides that of the options. With dense_output, remembers the trajectory."""
        options = self.options
        t0, t1 = options.get("t0", 0.0), options.get("t1", 1.0)
        t_eval = options.get("t_eval") if t_eval is None else t_eval
        dense = bool(options.get("dense_output", False))
        wanted = _times_inside(t_eval, t0, t1)
        times = [t0, *(t for t in wanted if t != t0)]
        if not wanted or (dense and times[-1] != t1):
            times.append(t1)
        if len(times) == 1:  # t_eval = [t0]
            times.append(t1)
        stacked = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in times])
        solution = solve(self.func, z0, stacked, dense=dense, **_keywords(options, "direct"))
        self._trajectory = solution.dense
        _report(solution.stats, options)
        first = 0 if wanted and wanted[0] == t0 else 1
        rows = slice(first, first + len(wanted)) if wanted else -1
        return pytree.tree_map(lambda leaf: leaf[rows], solution.ys)

    def evaluate_dense_mode(self, t_eval):
        """States of the last `integrate` at other times inside its interval: [n, *shape]; differentiable."""
        if self._trajectory is None:
            raise ValueError("nothing to evaluate: set dense_output=True in the options and call integrate first")
        return self._trajectory(torch.as_tensor(t_eval, dtype=torch.float64).reshape(-1))


def _endtime(func, z0, options, gradient):
    options = _checked(options)
    if options.get("t_eval"):
        raise ValueError("t_eval is for odesolve; the end-time modes return the state at t1")
    z1, stats = solve_endtime(
        func, z0, options.get("t0", 0.0), options.get("t1", 1.0), **_keywords(options, gradient)
    )
    _report(stats, options)
    return z1


def _checked(options):
    options = dict(options)
    known = (*_SOLVER_KEYS, *_CONTROL_KEYS, *_OTHER_KEYS, *_KEYS_WITHOUT_EFFECT)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; accepted: {', '.join(known)}")
    for name in _KEYS_WITHOUT_EFFECT:
        if options.pop(name, None) is not None:
            warnings.warn(f"option {name!r} has no effect here", stacklevel=4)
    return options


def _keywords(options, gradient):
    """Keywords of `solve`."""
    keywords = {"rtol": 1e-3, "atol": 1e-6, "gradient": gradient}
    keywords |= {name: options[name] for name in _SOLVER_KEYS if options.get(name) is not None}
    if "method" in keywords:
        keywords["method"] = _BY_NAME_OF_README.get(str(keywords["method"]).lower(), keywords["method"])
    if options.get("neval_max") is not None:
        keywords["max_evals"] = int(options["neval_max"])
    inner = dict(options.get("options") or {})
    inner |= {name: options[name] for name in _CONTROL_KEYS if options.get(name) is not None}
    return keywords | {"options": inner}


def _times_inside(t_eval, t0, t1):
    times = list(t_eval) if t_eval is not None else []
    low, high = min(float(t0), float(t1)), max(float(t0), float(t1))
    outside = [float(t) for t in times if not low <= float(t) <= high]
    if outside:
        raise ValueError(f"t_eval must lie between t0 = {float(t0):g} and t1 = {float(t1):g}, got {outside}")
    return times


def _report(stats, options):
    if options.get("print_neval"):
        print(f"Number of evaluations: {stats.n_f_evals}")
