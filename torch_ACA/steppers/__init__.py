"""One step of a method: its value, its VJP, its dense output."""

from ..rosenbrock_tableaus import RosenbrockTableau
from .rosenbrock import Rosenbrock
from .runge_kutta import RungeKutta


def stepper_kind(tableau):
    """The class of steppers that takes a tableau."""
    return Rosenbrock if isinstance(tableau, RosenbrockTableau) else RungeKutta
