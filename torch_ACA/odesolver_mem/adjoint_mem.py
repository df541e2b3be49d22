"""Import path of the authors' scripts: in torch_ACA it holds `odesolve_adjoint`, in TorchDiffEqPack the other."""

from ..compat.options_dict import odesolve_adjoint, odesolve_adjoint_sym12

__all__ = ["odesolve_adjoint", "odesolve_adjoint_sym12"]
