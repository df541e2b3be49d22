"""Import path of the authors' README: the end-time modes."""

from ..compat.options_dict import odesolve_adjoint, odesolve_adjoint_sym12, odesolve_endtime

__all__ = ["odesolve_adjoint", "odesolve_adjoint_sym12", "odesolve_endtime"]
