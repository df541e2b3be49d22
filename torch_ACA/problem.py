"""What a gradient method is given: one solve, checked and in the solver's own terms."""

from dataclasses import dataclass, field

import torch

from .controller import Controller, FixedSteps
from .march import Callbacks, Limits, Stats, Stop
from .tableaus import Tableau
from .vector_field import Evaluation, VectorField


@dataclass
class Problem:
    """Integrate ``field`` from ``y0`` at the first of ``times`` through the others.

    ``times`` is the tensor [m] of the caller (it may require grad), ``ts`` the same as floats. ``stops`` are the times
    to land on, the last of ``ts`` among them; the other outputs come from the interpolant. ``slope`` is f at the start,
    ``evaluation`` the same with its graph, if gradients may be wanted.
    """

    field: VectorField
    y0: torch.Tensor
    times: torch.Tensor
    ts: list
    tableau: Tableau
    controller: Controller | FixedSteps
    first_step: float
    stops: list
    slope: torch.Tensor
    evaluation: Evaluation | None = None
    limits: Limits = Limits()
    callbacks: Callbacks = Callbacks()
    stats: Stats = field(default_factory=Stats)

    @property
    def time_grad(self):
        return self.times.requires_grad

    @property
    def tensors(self):
        """What the result is differentiable in."""
        return (self.y0, self.times, *self.field.captured)

    def outputs_by_interpolation(self):
        """Indices of the output times that no stop lands on, in order."""
        landed = {stop.index for stop in self.stops}
        return [i for i in range(1, len(self.ts)) if i not in landed]


def stops_of(ts, *, land_on_outputs=False, step_t=(), jump_t=()):
    """`Stop`s of a solve through ts: its end, the extra times inside the interval and, if wanted, every output."""
    sign = 1 if ts[-1] >= ts[0] else -1
    jumps = set(jump_t)
    wanted = {t for t in (*step_t, *jumps) if sign * ts[0] < sign * t < sign * ts[-1]}
    wanted.update(ts[1:] if land_on_outputs else ts[-1:])
    index = {t: i for i, t in enumerate(ts)}
    return [Stop(t, index.get(t), jump=t in jumps) for t in sorted(wanted, key=lambda t: sign * t)]
