"""Adaptive checkpoint adjoint: differentiable ODE solvers for PyTorch with the exact gradient of the discrete
solution.
"""

from .api import solve, solve_endtime
from .block import ODEBlock
from .compare import Comparison, compare_gradients
from .compat.options_dict import odesolve, odesolve_adjoint, odesolve_endtime
from .compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from .errors import (
    NonFiniteError,
    SecondDerivativeError,
    SolverError,
    StepSizeUnderflowError,
    TooManyEvaluationsError,
)
from .events import solve_event
from .march import Callbacks, Stats
from .settings import FIXED_STEP_METHODS, GRADIENTS, METHODS
from .solution import Solution

__all__ = [
    "Callbacks",
    "Comparison",
    "FIXED_STEP_METHODS",
    "GRADIENTS",
    "METHODS",
    "NonFiniteError",
    "ODEBlock",
    "SecondDerivativeError",
    "Solution",
    "SolverError",
    "Stats",
    "StepSizeUnderflowError",
    "TooManyEvaluationsError",
    "compare_gradients",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "odesolve",
    "odesolve_adjoint",
    "odesolve_endtime",
    "solve",
    "solve_endtime",
    "solve_event",
]
