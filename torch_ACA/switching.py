"""Methods made of two: explicit where that does, implicit where the problem is stiff; see `steppers.switching`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .interpolants import Polynomials
from .rosenbrock_tableaus import RODAS5P, RosenbrockTableau
from .steppers.base import JUMPS, LINEARISE, REPLAY, SWITCH, TRACE
from .steppers.switching import Switching
from .tableau import Tableau
from .tableaus import TABLEAUS

if TYPE_CHECKING:
    from .vector_field import VectorField


@dataclass(frozen=True, eq=False)
class SwitchingMethod:
    """An explicit method whose last two stages lie at the end of the step, and a method for stiff problems with an
    error estimate of the same order: one controller serves both."""

    name: str
    explicit: Tableau
    stiff: RosenbrockTableau

    adaptive = True
    abilities = frozenset({REPLAY, TRACE, JUMPS, LINEARISE, SWITCH})

    def __post_init__(self) -> None:
        if self.explicit.error_order != self.stiff.error_order or not self.explicit.c[-2] == self.explicit.c[-1] == 1:
            raise ValueError(f"{self.explicit.name} and {self.stiff.name} cannot take turns")

    @property
    def order(self) -> int:
        return min(self.explicit.order, self.stiff.order)

    @property
    def error_order(self) -> int:
        return self.explicit.error_order

    @property
    def stages(self) -> int:
        return max(self.explicit.stages, self.stiff.stages)

    @property
    def dense_order(self) -> int:
        return min(self.explicit.dense_order, self.stiff.dense_order)

    @cached_property
    def interpolant(self) -> Polynomials:
        """That of both, for slopes of both: those of the stiff method first."""
        rows = (*self.stiff.interpolant.rows, *self.explicit.interpolant.rows)
        degree = max(map(len, rows))
        return Polynomials(tuple((*row, *[0] * (degree - len(row))) for row in rows))

    @cached_property
    def between_last_stages(self) -> tuple:
        """Weights of the explicit method's slopes in the difference of its last two stages."""
        before, last = self.explicit.a[-2:]
        return tuple(float(b) - float(a) for b, a in zip((*last, 0), (*before, 0, 0)))

    def stepper(
        self, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False
    ) -> Switching:
        """As `steppers.base.Method.stepper`."""
        return Switching(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)


AUTO = SwitchingMethod("auto", TABLEAUS["Dopri5"], RODAS5P)
