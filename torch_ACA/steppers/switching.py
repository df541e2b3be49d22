"""Steps of an explicit method until stiffness shows, of a method for stiff problems while it lasts.

Stiffness shows where an explicit method's steps are as long as stability allows, h |lambda| at the border of its
interval. Its last two stages, both at the end of the step, tell |lambda| for nothing (Hairer and Wanner, Solving ODEs
II, IV.2, eq. 2.6):

    |lambda| ~ ||k_s - k_{s-1}|| / ||Y_s - Y_{s-1}||,    Y_s - Y_{s-1} = h sum_j (a_sj - a_{s-1,j}) k_j.

The stiff method damps what the quotient would see, but it has the Jacobian: the smaller of two norms of it bounds all
of its eigenvalues. Which method takes a step depends on accepted steps alone; a gradient method is told of each step
who took it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import Carry, Method, Stepper, Time, TracedStep, Trial

if TYPE_CHECKING:
    from ..evaluation import Evaluation, GradientSum
    from ..march import Stats
    from ..switching import SwitchingMethod
    from ..vector_field import VectorField

BORDER = 0.9  # of the interval of stability: stiffness shows in steps beyond
INSIDE = 0.5  # and is over in steps within
SHOWS, IS_OVER, FORGOTTEN = 10, 5, 6  # after so many steps; and after so many others in a row the count starts again


class Switching(Stepper):
    """The stepper of a `switching.SwitchingMethod`; its members are the steppers of the two methods.

    ``slopes`` are those of both, the stiff method's first: zero where they are of the member that did not take the
    step, so that one interpolant serves both.
    """

    def __init__(
        self, method: SwitchingMethod, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False
    ) -> None:
        self.members: dict[Any, Any] = {
            one: one.stepper(vector_field, keep_graphs=keep_graphs, time_grad=time_grad)
            for one in (method.explicit, method.stiff)
        }
        self.explicit, self.stiff = self.members.values()
        self._now, self._turned = self.explicit, False
        super().__init__(method, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)
        self.own_stages = max(member.own_stages for member in self.members.values())
        self._none = [torch.zeros_like(member.slopes) for member in (self.stiff, self.explicit)]
        self._between = self._none[1].new_tensor(method.between_last_stages)
        self._for = self._against = self.n_stiff = 0
        self._taken: Any = None  # the step last tried: its size, and its slopes or by the stiff method its derivative

    @property
    def current(self) -> Method:
        return self._now.method

    def turn_to(self, method: Method) -> None:
        if method is not self._now.method:
            self._now, self._turned = self.members[method], True

    @property
    def keep_graphs(self) -> bool:
        return self.stiff.keep_graphs

    @keep_graphs.setter
    def keep_graphs(self, keep: bool) -> None:
        self.stiff.keep_graphs = self.explicit.keep_graphs = keep

    @property
    def needs_end_slope(self) -> bool:  # type: ignore[override]
        return self._now.needs_end_slope

    @property
    def error_sees_end_slope(self) -> bool:  # type: ignore[override]
        return self._now.error_sees_end_slope

    @property
    def slopes(self) -> Tensor:  # type: ignore[override]
        stiff, explicit = self._none
        return torch.cat([self.stiff.slopes, explicit] if self._now is self.stiff else [stiff, self.explicit.slopes])

    @property
    def start_slope(self) -> Tensor:
        return self._now.start_slope

    @property
    def hint(self) -> str:  # type: ignore[override]
        return self.stiff.hint

    def report(self, stats: Stats) -> None:
        self.stiff.report(stats)
        stats.n_stiff_steps = self.n_stiff

    def accepted(self) -> None:
        is_stiff = self._now is self.stiff
        self.n_stiff += is_stiff
        reach = self._reach(*self._taken) / self.method.explicit.real_stability
        if (reach < INSIDE) if is_stiff else (reach > BORDER):
            self._for, self._against = self._for + 1, 0
        else:
            self._against += 1
            if self._against == (1 if is_stiff else FORGOTTEN):
                self._for = self._against = 0
        if self._for == (IS_OVER if is_stiff else SHOWS):
            self._for = self._against = 0
            self.turn_to(self.method.explicit if is_stiff else self.method.stiff)

    def _reach(self, h: Time, found: Any) -> float:
        """h |lambda| of a step of size h, by its slopes or its derivative; 0 where they say nothing."""
        if self._now is self.stiff:
            return abs(float(torch.as_tensor(h, device="cpu").detach())) * found.bound()
        slopes = torch.stack(found).detach() if isinstance(found, list) else found
        slopes = slopes[: len(self._between)]
        of_f, of_y = (float(torch.linalg.vector_norm(x)) for x in (slopes[-1] - slopes[-2], self._between @ slopes))
        return of_f / of_y if of_y > 0.0 else 0.0

    def prepare(self, carry: Carry) -> None:
        if self._turned:  # the graph behind the slope is of no use to the other method
            carry.evaluation, self._turned = None, False
        self._now.prepare(carry)

    def step(self, carry: Carry, h: float, t_end: float, *, before_jump: bool = False) -> Trial:
        self._taken = h, carry.evaluation.derivative if self._now is self.stiff else self.explicit.slopes
        return self._now.step(carry, h, t_end, before_jump=before_jump)

    def end_slope(self, carry: Carry, *, before_jump: bool = False) -> None:
        self._now.end_slope(carry, before_jump=before_jump)

    def put_end_slope(self, slope: Tensor) -> None:
        self._now.put_end_slope(slope)

    def know_start(self, slope: Tensor, evaluation: Evaluation) -> None:
        self._now.know_start(slope, evaluation)

    def start_back(self) -> None:
        for member in self.members.values():
            member.start_back()

    def replay(self, t: float, h: float, y: Tensor, t_end: float, **keywords: Any) -> Any:
        return self._now.replay(t, h, y, t_end, **keywords)

    def reload(self, record: Any) -> None:
        self._now.reload(record)

    def replayed_end(self, y: Tensor, h: float, every: int = 1) -> Any:
        return self._now.replayed_end(y, h, every)

    def vjp(
        self, h: float, record: Any, y_bar: Tensor, slope_bars: Tensor | None, first_bar: Tensor | None,
        gradients: GradientSum,
    ) -> tuple[Tensor, Any, Any]:  # fmt: skip
        if slope_bars is not None:
            own = self.method.stiff.interpolant.slopes
            slope_bars = slope_bars[:own] if self._now is self.stiff else slope_bars[own:]
        return self._now.vjp(h, record, y_bar, slope_bars, first_bar, gradients)

    def traced_start(self, t: Time, y: Tensor, slope: Any = None, *, after_jump: bool = False) -> Any:
        return self._now.traced_start(t, y, slope, after_jump=after_jump)

    def traced(
        self, t: Time, h: Time, y: Tensor, t_end: Time, slope: Any = None, *, after_jump: bool = False,
        before_jump: bool = False,
    ) -> TracedStep:  # fmt: skip
        stiff = self._now is self.stiff
        if isinstance(slope, torch.Tensor) == stiff:  # from a step of the other method
            slope = None
        if slope is None:
            slope = self.traced_start(t, y, after_jump=after_jump)
        made = self._now.traced(t, h, y, t_end, slope, before_jump=before_jump)
        self._taken = h, slope[1] if stiff else made.slopes
        none = [torch.zeros_like(y)] * len(self._none[stiff])
        return made._replace(slopes=[*made.slopes, *none] if stiff else [*none, *made.slopes])
