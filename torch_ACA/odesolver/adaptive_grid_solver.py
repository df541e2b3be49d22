"""Import path of the authors' scripts: solvers by the name of their method."""

from ..compat.options_dict import Solver

__all__ = ["RK12", "RK23", "RK45", "Dopri5"]


def RK12(func, t0=0.0, t1=1.0, h=None, **options):
    """`Solver` of Heun-Euler; options as for `odesolve`."""
    return _solver("RK12", func, t0, t1, h, options)


def RK23(func, t0=0.0, t1=1.0, h=None, **options):
    """`Solver` of Bogacki-Shampine; options as for `odesolve`."""
    return _solver("RK23", func, t0, t1, h, options)


def RK45(func, t0=0.0, t1=1.0, h=None, **options):
    """`Solver` of Dormand-Prince; options as for `odesolve`."""
    return _solver("RK45", func, t0, t1, h, options)


def Dopri5(func, t0=0.0, t1=1.0, h=None, **options):
    """`Solver` of Dormand-Prince; options as for `odesolve`."""
    return _solver("Dopri5", func, t0, t1, h, options)


def _solver(method, func, t0, t1, h, options):
    return Solver(func, {"method": method, "t0": t0, "t1": t1, "h": h} | options)
