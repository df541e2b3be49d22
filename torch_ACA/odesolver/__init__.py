"""Import path of the authors' README: the many-output mode."""

from ..compat.options_dict import Solver, odesolve

__all__ = ["Solver", "odesolve"]
