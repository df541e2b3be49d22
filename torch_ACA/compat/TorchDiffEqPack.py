"""For programs written for TorchDiffEqPack: ``from torch_ACA.compat import TorchDiffEqPack``, or from it the functions.

As `options_dict`, but that a single time in t_eval gets no axis, as in that package.
"""

from collections.abc import Callable
from typing import Any

from .options_dict import _merged, odesolve_adjoint, odesolve_adjoint_sym12, odesolve_endtime
from .options_dict import odesolve as _odesolve

__all__ = ["odesolve", "odesolve_adjoint", "odesolve_adjoint_sym12", "odesolve_endtime"]


def odesolve(
    func: Callable, y0: Any = None, options: Any = None, return_solver: bool = False, *, z0: Any = None, **further: Any
) -> Any:
    """As `torch_ACA.odesolve`; states at t_eval [n, *shape], and [*shape] for a single time."""
    options = {"squeeze_single_time": True} | _merged(options, further)
    return _odesolve(func, y0, options, return_solver, y0=z0)
