"""Accepted steps as compiled loops leave them: in buffers, by the call that filled these."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..gradients.discrete import AcceptedStep
from ..gradients.storage import STATES_ONLY, Budget, Storage
from ..march import Stop


@dataclass(slots=True)
class Chunk:
    """The steps of one call: how many, their times [capacity, 3], what the call began with (time, step size to try,
    error ratio to remember), the stop that it was to reach, those that steps end on, by step, the first and the last
    time that func saw. Of the outputs inside of them [m]: their indices, the steps that they lie in,
    where there, what slopes are weighed with [m, rows] and, for time gradients, these [m, rows, n]."""

    n: int
    times: torch.Tensor
    begin: tuple[float, float, float]
    aim: Stop
    stops: dict[int, Stop]
    window: tuple[float, float]
    outputs: list = field(default_factory=list)
    places: torch.Tensor | None = None
    theta: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    slopes: torch.Tensor | None = None

    def check_ends(self, slopes: Tensor, places: Tensor, n_before: int, n_f_evals: int) -> None:
        """As `Problem.check_end_slope`, of the slopes [m, n] at the ends of the steps at places [m].

        :param n_before: steps before the chunk
        """
        bad = ~torch.isfinite(slopes).all(1)
        if bool(bad.any()):
            place = int(places[bad][0])
            _, h, t_end = self.times[place].tolist()
            n_steps, what = n_before + place + 1, NonFiniteError.of_dense_output
            raise NonFiniteError(t_end, h, n_steps, n_f_evals, what=what)

    @property
    def reaches_into_last_step(self) -> bool:
        return self.places is not None and int(self.places[-1]) == self.n - 1

    @property
    def stop(self) -> Stop | None:
        """The one that the last step ends on (None: the buffers were full)."""
        return self.stops.get(self.n - 1)

    @property
    def ends_on_jump(self) -> bool:
        return self.stop is not None and self.stop.jump

    def landed(self) -> tuple[list[int], list[int]]:
        """The steps before the last that end on outputs, and the indices of these."""
        pairs = [(i, s.index) for i, s in self.stops.items() if i < self.n - 1 and s.index is not None]
        return [i for i, _ in pairs], [index for _, index in pairs]

    @property
    def output_rows(self) -> slice:
        return slice(self.outputs[0] - 1, self.outputs[-1]) if self.outputs else slice(0)


class LoopStorage(Storage):
    """Steps and states as they stand in the buffers: ``chunks``, and the state behind the last.

    :param max_states: that may be kept. Where they are too few for all chunks, half of them are for one buffer at a
        time; of a chunk stays what it began with, state and slope, where `Storage` puts it
    """

    LEAST = 8  # states to be limited to

    def __init__(self, max_states: float = math.inf) -> None:
        super().__init__(STATES_ONLY, 0, math.inf)
        self.chunks: list[Chunk] = []
        half, quarter = (max_states if max_states == math.inf else max_states // part for part in (2, 4))
        self.max_states, self.most = max_states, half  # steps in a buffer
        self._buffers: list[Tensor] = []
        self._begins = Storage(Budget(states=quarter), 0, math.inf)
        self._end: Tensor | None = None
        self.dropped = False  # whether there are no buffers any more

    def fill(self, chunk: Chunk, begin: tuple[Tensor, Tensor], states: Tensor) -> None:
        """Take a chunk, the state and slope that it began with, and the states of its steps."""
        self.chunks.append(chunk)
        self._buffers.append(states)
        self._begins.add(chunk, begin, None)
        if len(self.chunks) * len(states) > max(self.most, len(states)):
            self._buffers, self.dropped = [], True

    def close(self, state: Tensor) -> None:
        self._end = state

    def release(self) -> dict:
        begins: dict = self._begins.release()
        states: dict[Any, Tensor] = {**dict(enumerate(self._buffers)), "end": self._end}
        if self.dropped:
            states |= {(k, i): part for k, begin in begins.items() for i, part in enumerate(begin)}
        self._buffers, self._end = [], None
        return states

    def chunks_backwards(self, states: dict, refill: Callable) -> Iterator[tuple[int, Chunk, Tensor]]:
        """Yield the chunks from the last to the first, with their numbers and the states of their steps.

        :param states: what `release` returned
        :param refill: refill(chunk, (state, slope)) -> the states of its steps, and what the next chunk begins with
        """
        if not self.dropped:
            for k in range(len(self.chunks) - 1, -1, -1):
                yield k, self.chunks[k], states[k]
            return

        def advance(begin: Any, first: int, last: int) -> Any:
            for chunk in self.chunks[first:last]:
                begin = refill(chunk, begin)[1]
            return begin

        kept: dict = {k: (states[k, 0], states[k, 1]) for k in self._kept(states)}
        begins = self._begins.backwards(kept | {len(self.chunks): None}, advance)
        next(begins)  # nothing begins behind the last
        for k, begin in zip(range(len(self.chunks) - 1, -1, -1), begins):
            yield k, self.chunks[k], refill(self.chunks[k], begin)[0]

    @staticmethod
    def _kept(states: dict) -> list[int]:
        """The chunks of which it is known what they began with."""
        return [key[0] for key in states if isinstance(key, tuple) and key[1] == 0]

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
            for i, stop in chunk.stops.items():
                steps[i].stop = stop
            after_jump = chunk.ends_on_jump
            for output, place in zip(chunk.outputs, [] if chunk.places is None else chunk.places.tolist()):
                steps[place].outputs.append(output)
            for step in steps:
                if step.outputs:
                    first = step.outputs[0] - chunk.outputs[0]
                    step.theta = chunk.theta[first : first + len(step.outputs)]
                    step.weights = tableau.interpolant.weights(step.theta).to(dtype)
            self.steps += steps

    def unrolled(self, states: dict) -> dict:
        """What `release` returned, as a `Storage` returns it."""
        if self.dropped:
            before = [0, *itertools.accumulate(chunk.n for chunk in self.chunks)]
            return {before[k]: states[k, 0] for k in self._kept(states)} | {before[-1]: states["end"]}
        rows = [row for k, chunk in enumerate(self.chunks) for row in states[k][: chunk.n].unbind()]
        return dict(enumerate([*rows, states["end"]]))
