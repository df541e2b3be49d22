"""Import path of the authors' scripts."""

from ..compat.options_dict import odesolve

__all__ = ["odesolve"]
