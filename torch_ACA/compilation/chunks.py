"""Accepted steps as compiled loops leave them: in buffers, by the call that filled these."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..gradients.discrete import AcceptedStep
from ..gradients.storage import STATES_ONLY, Storage
from ..march import Stop


@dataclass(slots=True)
class Chunk:
    """The steps of one call: how many, their times [capacity, 3], the stop that they end on (None: the buffers were
    full), the first and the last time that func saw. Of the outputs inside of them [m]: their indices, the steps that
    they lie in, where there, what slopes are weighed with [m, 1, rows] and, for time gradients, these [m, rows, n]."""

    n: int
    times: torch.Tensor
    stop: Stop | None
    window: tuple[float, float]
    outputs: list = field(default_factory=list)
    places: list = field(default_factory=list)
    theta: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    slopes: torch.Tensor | None = None

    @property
    def reaches_into_last_step(self) -> bool:
        return bool(self.places) and self.places[-1] == self.n - 1

    @property
    def ends_on_jump(self) -> bool:
        return self.stop is not None and self.stop.jump

    @property
    def output_rows(self) -> Any:
        return slice(self.outputs[0] - 1, self.outputs[-1])


class LoopStorage(Storage):
    """Steps and states as they stand in the buffers: ``chunks``, and the state behind the last."""

    def __init__(self) -> None:
        super().__init__(STATES_ONLY, 0, math.inf)
        self.chunks: list[Chunk] = []
        self._buffers: list[Tensor] = []
        self._end: Tensor | None = None

    def fill(self, chunk: Chunk, states: Tensor) -> None:
        self.chunks.append(chunk)
        self._buffers.append(states)

    def close(self, state: Tensor) -> None:
        self._end = state

    def release(self) -> dict:
        states: dict[Any, Tensor] = {**dict(enumerate(self._buffers)), "end": self._end}
        self._buffers = self._end = None
        return states

    def unroll(self, tableau: Any, dtype: torch.dtype, *, starts_at_jump: bool) -> None:
        """Make ``steps``, which the tableau took, what a `Storage` has there."""
        if self.steps:
            return
        after_jump = starts_at_jump
        for chunk in self.chunks:
            steps = [
                AcceptedStep(t, h, end, None, False, False, tableau, tableau.needs_end_slope)
                for t, h, end in chunk.times[: chunk.n].tolist()
            ]
            steps[0].after_jump, steps[-1].before_jump = after_jump, chunk.ends_on_jump
            steps[-1].stop, after_jump = chunk.stop, chunk.ends_on_jump
            for output, place in zip(chunk.outputs, chunk.places):
                steps[place].outputs.append(output)
            for step in steps:
                if step.outputs:
                    first = step.outputs[0] - chunk.outputs[0]
                    step.theta = chunk.theta[first : first + len(step.outputs)]
                    step.weights = tableau.interpolant.weights(step.theta).to(dtype)
            self.steps += steps

    def unrolled(self, states: dict) -> dict:
        """What `release` returned, as a `Storage` returns it."""
        rows = [row for k, chunk in enumerate(self.chunks) for row in states[k][: chunk.n].unbind()]
        return dict(enumerate([*rows, states["end"]]))
