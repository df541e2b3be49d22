"""Import path of the authors' scripts."""

from ..compat.options_dict import odesolve_endtime

__all__ = ["odesolve_endtime"]
