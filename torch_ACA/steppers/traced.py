"""A stepper out of one formula: whoever writes a step as ordinary operations on tensors gets everything else.

Slower and hungrier than a stepper with a VJP of its own, `runge_kutta` for one: the graph of a whole step is recorded,
and autograd pulls back through it. The gradient is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import JUMPS, REPLAY, TRACE, Carry, Method, Stepper, TracedStep, Trial

if TYPE_CHECKING:
    from ..evaluation import GradientSum
    from ..vector_field import VectorField


@dataclass(slots=True, eq=False)
class _Recorded:
    """A step with its graph: what it starts from, what it made, and its times [3] (start, size, end)."""

    y: torch.Tensor
    times: torch.Tensor
    made: TracedStep


class TracedStepper(Stepper):
    """Subclasses write `traced`; they evaluate func by ``self.field.traced(t, y)``.

    The slopes that it returns are those that the method's interpolant weighs; their number is the same in every step.
    ``abilities``: what the method of such a stepper can do.
    """

    abilities = frozenset({REPLAY, TRACE, JUMPS})

    def __init__(
        self, method: Method, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False
    ) -> None:
        super().__init__(method, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)
        layout = vector_field.layout
        self.own_stages = method.stages
        rows = method.interpolant.slopes if method.interpolant is not None else 0
        self.slopes = torch.empty(rows, layout.size, dtype=layout.dtype, device=layout.device)

    def step(self, carry: Carry, h: float, t_end: float, *, before_jump: bool = False) -> Trial:
        made = self._record(carry.t, h, carry.y, t_end, carry.after_jump, before_jump)
        error = None if made.made.error is None else made.made.error.detach()
        return Trial(Carry(t_end, made.made.y.detach()), error, made if self.keep_graphs else None)

    def replay(
        self, t: float, h: float, y: Tensor, t_end: float, *, after_jump: bool = False, before_jump: bool = False,
        every: int | None = 1,
    ) -> Any:  # fmt: skip
        return self._record(t, h, y, t_end, after_jump, before_jump)

    def reload(self, evaluations: Any) -> None:
        self._keep_slopes(evaluations.made.slopes)

    def replayed_end(self, y: Tensor, h: float, every: int = 1) -> Any:
        end = self._last_end
        return end if every == 1 else (end[::every], end.sum(dtype=torch.float64))

    def vjp(
        self, h: float, evaluations: Any, y_bar: Tensor, slope_bars: Tensor | None, first_bar: Tensor | None,
        gradients: GradientSum,
    ) -> tuple[Tensor, Any, Any]:  # fmt: skip
        outputs: Any = [evaluations.made.y]
        bars: Any = [y_bar]
        if slope_bars is not None:
            outputs += evaluations.made.slopes[: len(slope_bars)]
            bars += slope_bars.unbind()
        pairs = [(output, bar) for output, bar in zip(outputs, bars) if output.requires_grad]
        captured = self.field.captured.leaves
        wanted = (evaluations.y, *captured, *((evaluations.times,) if self.time_grad else ()))
        if not pairs:
            return torch.zeros_like(y_bar), 0.0, 0.0
        outputs, bars = zip(*pairs)
        found = torch.autograd.grad(
            outputs, wanted, bars, allow_unused=True, retain_graph=self.field.captured.keep_graph
        )
        gradients.add(found[1 : 1 + len(captured)])
        t_bar, h_bar, end_bar = (0.0,) * 3 if not self.time_grad or found[-1] is None else found[-1].tolist()
        return torch.zeros_like(y_bar) if found[0] is None else found[0], t_bar + end_bar, h_bar + end_bar

    def _record(self, t: float, h: float, y: Tensor, t_end: float, after_jump: bool, before_jump: bool) -> _Recorded:
        times = torch.tensor([t, h, t_end], dtype=torch.float64, device=y.device, requires_grad=self.time_grad)
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            made = self.traced(times[0], times[1], y, times[2], after_jump=after_jump, before_jump=before_jump)
        self._last_end = made.y.detach()
        self._keep_slopes(made.slopes)
        return _Recorded(y, times, made)

    def _keep_slopes(self, slopes: Sequence[Tensor]) -> None:
        for row, slope in zip(self.slopes, slopes):
            row.copy_(slope.detach())
