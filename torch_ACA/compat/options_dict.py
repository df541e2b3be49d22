"""The authors' interface, a dict of options: `odesolve` and its kin, and `odesolve_adjoint_sym12` of TorchDiffEqPack.

Names that collide: `odesolve_adjoint` is ACA, the checkpointed exact gradient, while torchdiffeq's `odeint_adjoint`
is the continuous adjoint that ACA improves on.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..api import solve, solve_endtime
from ..callbacks import Callbacks
from ..march import Stats
from ..notices import warn_caller
from ..option_checks import time_of
from ..private_torch import pytree
from ..scipy_solver import Scipy
from ..settings import checked_method, takes_fixed_steps, times_of

_SOLVER_KEYS = ("method", "h", "rtol", "atol", "gradient", "memory", "compile")
_OTHER_KEYS = (
    *("t0", "t1", "t_eval", "neval_max", "print_neval", "dense_output", "safety", "squeeze_single_time", "options"),
)
_KEYS_WITHOUT_EFFECT = (
    *("regenerate_graph", "delete_graph", "keep_small_step", "step_dif_ratio", "interpolation_method"),
    *("end_point_mode", "print_direction", "print_time", "print_message"),
)
_KNOWN_KEYS = (*_SOLVER_KEYS, *_OTHER_KEYS, *_KEYS_WITHOUT_EFFECT)
_BY_NAME_OF_README = {  # in any case. rk4 means the classic method here; torchdiffeq's is the 3/8 rule
    "rk4": {"method": "RK4"},
    "sym12async": {"method": "ALF", "gradient": "mali"},
    "fixedstep_sym12async": {"method": "ALF", "gradient": "mali"},
}


def odesolve(
    func: Callable, z0: Any = None, options: Any = None, return_solver: bool = False, *, y0: Any = None, **further: Any
) -> Any:
    """Solve z' = func(t, z) from z0 at options["t0"].

    :param z0: tensor, or a tuple, list or dict of tensors; also by the name y0
    :param options: dict of method (one of `torch_ACA.methods`, sym12async or fixedstep_sym12async), h, t0, t1 (0 and
        1), rtol, atol (1e-3 and 1e-6), t_eval (times [n], list, tensor or array, in the direction of integration, equal
        ones allowed; where they reach beyond t1, the solve goes on to them, with a warning), neval_max, print_neval,
        dense_output, safety, squeeze_single_time (True: a single time in t_eval gets no axis, which is what the
        authors' code does, while their README says otherwise); gradient (default "direct"; "mali" with the sym12
        methods), memory, compile, options (those of `solve`). Keys of the authors' code that make no difference here
        are accepted with a warning, and unknown ones, which their code passes over, left out with one
    :param return_solver: return the `Solver` instead of the result
    :param further: options by keyword
    :returns: states at t_eval, one row each: [n, *shape], also for n = 1. Without t_eval the state at t1: [*shape]
    :raises ValueError: times before t0, settings that `solve` refuses
    """
    solver = Solver(func, _merged(options, further))
    return solver if return_solver else solver.integrate(_state(z0, y0))


def odesolve_endtime(
    func: Callable, z0: Any = None, options: Any = None, return_solver: bool = False, *, y0: Any = None, **further: Any
) -> Any:
    """The state at options["t1"], with the graphs of the accepted steps kept (gradient "direct"): fast. A t_eval is
    ignored. Else as `odesolve`.
    """
    return _endtime(func, _state(z0, y0, needed=not return_solver), _merged(options, further), "direct", return_solver)


def odesolve_adjoint(
    func: Callable, z0: Any = None, options: Any = None, return_solver: bool = False, *, y0: Any = None, **further: Any
) -> Any:
    """The state at options["t1"], by ACA (gradient "aca"): O(N_f + N_t) memory. A t_eval is ignored. Else as
    `odesolve`."""
    return _endtime(func, _state(z0, y0, needed=not return_solver), _merged(options, further), "aca", return_solver)


def odesolve_adjoint_sym12(
    func: Callable, y0: Any = None, options: Any = None, *, z0: Any = None, **further: Any
) -> Any:
    """The state at options["t1"], by MALI (gradient "mali"): memory that does not grow with the steps.

    :param options: as for `odesolve`; method sym12async (the default) or, with h, fixedstep_sym12async
    """
    options = {"method": "sym12async"} | _merged(options, further)
    if "sym12async" not in str(options["method"]).lower():
        raise ValueError(f"method must be sym12async or fixedstep_sym12async, got {options['method']!r}")
    return _endtime(func, _state(y0, z0), options, "mali", False)


class Solver:
    """Solves as often as one likes with the same func and options.

    ``neval``: evaluations of func in the last solve.
    """

    def __init__(
        self, func: Callable, options: Mapping[str, Any], *, gradient: str = "direct", end_only: bool = False
    ) -> None:
        """end_only: the state at t1 alone is wanted."""
        self.func, self.options = func, _checked(options, end_only=end_only)
        self.neval = 0
        self._gradient, self._end_only = gradient, end_only
        self._trajectory: Callable | None = None

    def integrate(
        self, y0: Any, t0: Any = None, *, predefine_steps: Any = None, return_steps: bool = False, t_eval: Any = None
    ) -> Any:
        """Solve from y0. With dense_output, remembers the trajectory.

        :param t0: instead of that of the options
        :param t_eval: likewise
        :param predefine_steps: times at which the steps shall end, the last one the end of the solve
        :param return_steps: also return the times at which the steps ended, a list of floats
        """
        options, steps = self.options, _Steps()
        t0 = options.get("t0", 0.0) if t0 is None else t0
        t1 = options.get("t1", 1.0)
        keywords = _keywords(options, self._gradient)
        dense = bool(options.get("dense_output", False))
        if dense and keywords["gradient"] not in ("aca", "direct"):
            warn_caller(f"dense_output has no effect with gradient={keywords['gradient']!r}, which keeps no steps")
            dense = False
        if predefine_steps is not None:
            start, ends = _value(t0), times_of("predefine_steps", predefine_steps).tolist()
            grid = [start, *(t for t in ends if t != start)]
            t1 = grid[-1]
            keywords.pop("h", None)
            keywords["options"]["grid"] = grid
        t_eval = options.get("t_eval") if t_eval is None else t_eval
        wanted = [] if self._end_only or t_eval is None else _times_inside(t_eval, t0, t1)
        through_end = not wanted or dense or predefine_steps is not None
        times, rows = _distinct([t0, *wanted], t1, through_end)
        solution = solve(
            self.func, y0, times, dense=dense, callbacks=Callbacks(accept=steps.accept) if return_steps else None,
            **keywords,
        )  # fmt: skip
        self._trajectory, self.neval = solution.dense, solution.stats.n_f_evals
        _report(solution.stats, options)
        chosen: Any = rows[1:] if wanted else -1
        if len(wanted) == 1 and options.get("squeeze_single_time"):
            chosen = chosen[0]
        ys = pytree.tree_map(lambda leaf: leaf[chosen], solution.ys)
        return (ys, steps.ends(_value(times[-1]))) if return_steps else ys

    def evaluate_dense_mode(self, t_eval: Any) -> Any:
        """States of the last `integrate` at other times inside its interval: [n, *shape]; differentiable."""
        if self._trajectory is None:
            raise ValueError("nothing to evaluate: set dense_output=True in the options and call integrate first")
        return self._trajectory(time_of(t_eval).reshape(-1))

    def __call__(self, t: float | torch.Tensor) -> Any:
        """State of the last `integrate` at one time inside its interval: [*shape]."""
        return pytree.tree_map(lambda leaf: leaf[0], self.evaluate_dense_mode(t))


class _Steps:
    """Collects where accepted steps begin."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def accept(self, t: float, y: torch.Tensor, h: float) -> None:
        if self.starts and t == self.starts[0]:  # the solve has begun anew
            self.starts.clear()
        self.starts.append(t)

    def ends(self, t_end: float) -> list[float]:
        return [*self.starts[1:], t_end]


def _endtime(func: Callable, z0: Any, options: Mapping[str, Any], gradient: str, return_solver: bool) -> Any:
    if return_solver:
        return Solver(func, options, gradient=gradient, end_only=True)
    options = _checked(options, end_only=True)
    z1, stats = solve_endtime(func, z0, options.get("t0", 0.0), options.get("t1", 1.0), **_keywords(options, gradient))
    _report(stats, options)
    return z1


def _state(z0: Any, y0: Any, needed: bool = True) -> Any:
    """The initial state, by either of its names."""
    if needed and (z0 is None) == (y0 is None):
        raise TypeError("give the initial state once, as the second argument or by one of the names z0 and y0")
    return y0 if z0 is None else z0


def _merged(options: Any, further: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict, got {options!r}")
    if unknown := sorted(further.keys() - set(_KNOWN_KEYS)):
        raise TypeError(f"unknown keyword {', '.join(unknown)}; accepted: {', '.join(_KNOWN_KEYS)}")
    return {**options, **further}


def _checked(options: Mapping[str, Any], *, end_only: bool = False) -> dict[str, Any]:
    options = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(str(name) for name in options.keys() - set(_KNOWN_KEYS))
    if unknown:  # of which the authors' packages say nothing
        warn_caller(f"unknown option {', '.join(unknown)} is left out; accepted: {', '.join(_KNOWN_KEYS)}")
        options = {name: value for name, value in options.items() if name in _KNOWN_KEYS}
    if str(options.get("method")).lower() == "ode23s":
        raise ValueError(f"method {options['method']!r} is not available here; use Rodas5P, for stiff problems as well")
    without_effect = (*_KEYS_WITHOUT_EFFECT, "t_eval") if end_only else _KEYS_WITHOUT_EFFECT
    for name in without_effect:
        if options.pop(name, None) is not None:
            warn_caller(f"option {name!r} has no effect here")
    return options


def _keywords(options: Mapping[str, Any], gradient: str) -> dict[str, Any]:
    """Keywords of `solve`."""
    keywords: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-6, "gradient": gradient}
    keywords |= {name: options[name] for name in _SOLVER_KEYS if name in options}
    name = str(options.get("method")).lower()
    keywords |= _BY_NAME_OF_README.get(name, {})
    if options.get("neval_max") is not None:
        keywords["max_evals"] = options["neval_max"]
    inner = dict(options.get("options") or {})
    if name == "fixedstep_sym12async":
        if "h" not in keywords:
            raise ValueError("fixedstep_sym12async takes fixed steps: give the step size h")
        inner["step_size"] = keywords.pop("h")
    if options.get("safety") is not None:
        method = checked_method(keywords.get("method"), keywords["gradient"])
        if method is Scipy or takes_fixed_steps(method, inner):
            warn_caller(f"safety has no effect with the steps of {method.name}")
        else:
            inner["safety"] = options["safety"]
    return keywords | {"options": inner}


def _times_inside(t_eval: Any, t0: float | torch.Tensor, t1: float | torch.Tensor) -> list[torch.Tensor]:
    """Times as a list of 0-d tensors, none of them before t0."""
    times = list(times_of("t_eval", t_eval).reshape(-1).unbind())
    t0, t1 = _value(t0), _value(t1)
    sign = math.copysign(1.0, t1 - t0)
    values = [_value(t) for t in times]
    before = [t for t in values if sign * t < sign * t0]
    if before:
        raise ValueError(f"t_eval must not lie before t0 = {t0:g}, got {before[0]:g} on the way to t1 = {t1:g}")
    beyond = [t for t in values if sign * t > sign * t1]
    if beyond:
        warn_caller(f"t_eval reaches to {beyond[-1]:g}, beyond t1 = {t1:g}: solved on to it")
    return times


def _distinct(times: list[Any], t1: Any, through_end: bool) -> tuple[torch.Tensor, list[int]]:
    """Times [m] without repetitions of the one before, on to t1 if through_end or if there would be only one; and the
    row of each time that was given."""
    entries: list[Any] = []
    rows: list[int] = []
    for t in times:
        if not entries or _value(t) != _value(entries[-1]):
            entries.append(t)
        rows.append(len(entries) - 1)
    start, last = _value(entries[0]), _value(entries[-1])
    if len(entries) == 1 or (through_end and abs(_value(t1) - start) > abs(last - start)):
        entries.append(t1)
    return times_of("t", entries), rows


def _value(t: float | torch.Tensor) -> float:
    return t.detach().item() if isinstance(t, torch.Tensor) else float(t)


def _report(stats: Stats, options: Mapping[str, Any]) -> None:
    if options.get("print_neval"):
        print(f"Number of evaluations: {stats.n_f_evals}")
