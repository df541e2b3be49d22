"""Adaptive checkpoint adjoint: differentiable ODE solvers for PyTorch with the exact gradient of the discrete
solution.
"""

from .api import solve, solve_endtime
from .block import ODEBlock
from .errors import (
    NonFiniteError,
    SecondDerivativeError,
    SolverError,
    StepSizeUnderflowError,
    TooManyEvaluationsError,
)
from .march import Callbacks, Stats
from .settings import FIXED_STEP_METHODS, GRADIENTS, METHODS
from .solution import Solution

__all__ = [
    "Callbacks",
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
    "solve",
    "solve_endtime",
]
