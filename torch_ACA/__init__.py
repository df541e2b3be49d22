"""Adaptive checkpoint adjoint: differentiable ODE solvers for PyTorch with the exact gradient of the discrete solution."""

from .api import FIXED_STEP_METHODS, GRADIENTS, METHODS, solve
from .block import ODEBlock
from .errors import NonFiniteError, SolverError, StepSizeUnderflowError, TooManyEvaluationsError
from .march import Stats
from .solution import Solution

__all__ = [
    "FIXED_STEP_METHODS",
    "GRADIENTS",
    "METHODS",
    "NonFiniteError",
    "ODEBlock",
    "Solution",
    "SolverError",
    "Stats",
    "StepSizeUnderflowError",
    "TooManyEvaluationsError",
    "solve",
]
