"""Import path of the authors' scripts: solvers by the name of their method."""

from collections.abc import Callable
from typing import Any

from ..compat.options_dict import Solver

__all__ = ["RK12", "RK23", "RK45", "Dopri5"]


def RK12(func: Callable, t0: float = 0.0, t1: float = 1.0, h: float | None = None, **options: Any) -> Solver:
    """`Solver` of Heun-Euler; options as for `odesolve`."""
    return _solver("RK12", func, t0, t1, h, options)


def RK23(func: Callable, t0: float = 0.0, t1: float = 1.0, h: float | None = None, **options: Any) -> Solver:
    """`Solver` of Bogacki-Shampine; options as for `odesolve`."""
    return _solver("RK23", func, t0, t1, h, options)


def RK45(func: Callable, t0: float = 0.0, t1: float = 1.0, h: float | None = None, **options: Any) -> Solver:
    """`Solver` of Dormand-Prince; options as for `odesolve`."""
    return _solver("RK45", func, t0, t1, h, options)


def Dopri5(func: Callable, t0: float = 0.0, t1: float = 1.0, h: float | None = None, **options: Any) -> Solver:
    """`Solver` of Dormand-Prince; options as for `odesolve`."""
    return _solver("Dopri5", func, t0, t1, h, options)


def _solver(method: str, func: Callable, t0: float, t1: float, h: float | None, options: dict[str, Any]) -> Solver:
    return Solver(func, {"method": method, "t0": t0, "t1": t1, "h": h} | options)
