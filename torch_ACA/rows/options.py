"""What ``per_sample=True`` goes together with, and errors for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..callbacks import Callbacks
from ..steppers.base import ROWS, SWITCH

if TYPE_CHECKING:
    from ..settings import Settings
    from ..solver_options import SolverOptions

_TAKEN = frozenset({
    "safety", "ifactor", "dfactor", "beta", "min_step", "max_step", "first_step", "max_num_steps", "interp", "step_t",
    "jump_t", "land_on_t",
})  # fmt: skip
_OF_THE_WHOLE = {"norm": "it measures the whole state, and each row has an error of its own"}


def check_per_sample(asked: SolverOptions, settings: Settings) -> None:
    """Refuse what rows with steps of their own do not have.

    :param settings: the checked ones of its method
    :raises ValueError: an option or a combination that cannot be used
    """
    method = settings.method
    if asked.gradient != "aca":
        raise ValueError(f"per_sample needs gradient='aca', got {asked.gradient!r}")
    if ROWS not in method.abilities or settings.controller.error_order is None:
        hint = ": take its stiff one, Rodas5P" if SWITCH in method.abilities else ""
        raise ValueError(
            "per_sample needs an explicit Runge-Kutta or a Rosenbrock method with adaptive steps, got "
            f"{method.name}{hint}"
        )
    given = {
        f"compile={asked.compile!r}": (
            isinstance(asked.compile, str) and asked.compile != "loop", "the loop over tries is compiled as a whole",
        ),
        "dense": (asked.dense, "give the times that are wanted, [b, m] for each row its own"),
        "record": (asked.record, "a record is of joint steps"),
        "callbacks": (asked.callbacks not in (None, Callbacks()), "they are called with one time for all"),
    } | {
        f"options={{{name!r}: ...}}": (name not in _TAKEN, _OF_THE_WHOLE.get(name, "it is of fixed steps"))
        for name in settings.options
    }  # fmt: skip
    for name, (refused, reason) in given.items():
        if refused:
            raise ValueError(f"per_sample cannot be combined with {name}: {reason}")
