"""Differentiable ODE solvers for PyTorch: the exact gradient of the computed solution, in little memory."""

from .api import solve, solve_endtime
from .block import ODEBlock
from .callbacks import Callbacks
from .compare import Comparison, compare_gradients
from .compat.options_dict import odesolve, odesolve_adjoint, odesolve_adjoint_sym12, odesolve_endtime
from .compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from .errors import (
    CaptureError,
    JacobianError,
    NoEventError,
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
from .interpolants import Polynomials
from .march import Stats
from .methods import FIXED_STEP_METHODS, METHODS, methods
from .record import Record
from .saved_tensors import SavedTensors
from .settings import GRADIENTS
from .solution import Solution
from .solver_options import SolverOptions
from .steppers.base import Method, Stepper, TracedStep
from .steppers.traced import TracedStepper
from .tableau import Tableau

__version__ = "0.1.0"

__all__ = [
    "Callbacks",
    "CaptureError",
    "Comparison",
    "FIXED_STEP_METHODS",
    "GRADIENTS",
    "JacobianError",
    "METHODS",
    "Method",
    "NoEventError",
    "NonFiniteError",
    "ODEBlock",
    "Polynomials",
    "Record",
    "ReplayError",
    "SavedTensors",
    "SecondDerivativeError",
    "SideOutputError",
    "Solution",
    "SolverError",
    "SolverOptions",
    "Stats",
    "Stepper",
    "StepSizeUnderflowError",
    "Tableau",
    "TooManyEvaluationsError",
    "TracedStep",
    "TracedStepper",
    "TransformError",
    "compare_gradients",
    "methods",
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
