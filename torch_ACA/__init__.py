"""Differentiable ODE solvers for PyTorch: the exact gradient of the computed solution, in little memory."""

from .api import solve, solve_endtime
from .block import ODEBlock
from .compare import Comparison, compare_gradients
from .compat.options_dict import odesolve, odesolve_adjoint, odesolve_adjoint_sym12, odesolve_endtime
from .compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from .errors import (
    CaptureError,
    NonFiniteError,
    ReplayError,
    SecondDerivativeError,
    SideOutputError,
    SolverError,
    StepSizeUnderflowError,
    TooManyEvaluationsError,
    TransformError,
)
from .events import solve_event
from .march import Callbacks, Stats
from .settings import FIXED_STEP_METHODS, GRADIENTS, METHODS
from .solution import Solution

__version__ = "0.1.0"

__all__ = [
    "Callbacks",
    "CaptureError",
    "Comparison",
    "FIXED_STEP_METHODS",
    "GRADIENTS",
    "METHODS",
    "NonFiniteError",
    "ODEBlock",
    "ReplayError",
    "SecondDerivativeError",
    "SideOutputError",
    "Solution",
    "SolverError",
    "Stats",
    "StepSizeUnderflowError",
    "TooManyEvaluationsError",
    "TransformError",
    "compare_gradients",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "odesolve",
    "odesolve_adjoint",
    "odesolve_adjoint_sym12",
    "odesolve_endtime",
    "solve",
    "solve_endtime",
    "solve_event",
]
