"""The outputs of a solve by compiled loops, and what they say to its steps on the way back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..gradients.times import TimeCotangents
from ..problem import Problem
from .chunks import Chunk
from .inside import Inside
from .loops import Loops


class Outputs:
    """
    :param problem: `Problem`
    :param loops: `Loops`
    """

    def __init__(self, problem: Problem, loops: Loops) -> None:
        self._problem, self._loops = problem, loops
        self._inside = Inside(loops, problem.n_inside, problem.field.direction)

    def fill(self, ys: Tensor, chunk: Chunk, end: Tensor, states: Tensor, slopes: Tensor | None = None) -> None:
        """Fill in the outputs inside the steps of a chunk and at their ends.

        :param end: the state behind the last step
        :param states, slopes: buffers
        """
        if slopes is not None:
            self._fill_inside(ys, chunk, states, slopes)
        steps, outputs = chunk.landed()
        if steps:
            ys[_places(outputs) - 1] = states[_places(steps) + 1]
        if chunk.stop is not None and chunk.stop.index is not None:
            ys[chunk.stop.index - 1] = end

    def _fill_inside(self, ys: Tensor, chunk: Chunk, states: Tensor, slopes: Tensor) -> None:
        problem, n = self._problem, chunk.n
        chunk.outputs = problem.outputs_within(chunk.times[n - 1, 2].item())
        if not chunk.outputs:
            return
        wanted = torch.tensor([problem.ts[i] for i in chunk.outputs], dtype=torch.float64, device="cpu")
        found, places, *rest = self._inside.outputs(wanted, chunk.times, n, states, slopes)
        chunk.places, (chunk.theta, chunk.weights) = places, rest
        method: Any = problem.method
        if method.needs_end_slope and problem.controller.leaves_unseen(method.error_sees_end_slope):
            chunk.check_ends(slopes[places, -1], places, problem.stats.n_accepted - n, problem.field.n_evals)
        ys[chunk.output_rows] = found
        if problem.time_grad:
            chunk.slopes = slopes[places]

    def cotangents(self, ys_bar: Tensor, chunks: Sequence[Chunk]) -> Any:
        """By chunk: cotangents of the states at the starts of steps [capacity, n] and of the slopes that these pay for
        [capacity, own, n], as far as the loops ask for them; and of the slope behind the last step, where no other
        begins with it (None: nothing)."""
        loops, found, nothing = self._loops, [], ys_bar.new_zeros(ys_bar.shape[1])
        if not loops.with_starts:
            return [((), None)] * len(chunks)
        pending = nothing
        for chunk in chunks:
            if loops.with_slopes:
                given = chunk.places, chunk.weights
                if chunk.places is None:
                    given = _places([]), ys_bar.new_empty(0, loops.rows)
                bars = ys_bar[chunk.output_rows]
                *of_steps, pending = self._inside.cotangents(bars, *given, chunk.n, pending)
            else:
                of_steps = [ys_bar.new_zeros(loops.capacity, ys_bar.shape[1])]
            steps, outputs = chunk.landed()
            if steps:
                of_steps[0].index_add_(0, _places(steps) + 1, ys_bar[_places(outputs) - 1])
            alone = None
            if chunk is chunks[-1] or chunk.ends_on_jump:
                if loops.rows > loops.own and chunk.reaches_into_last_step:
                    alone = pending
                pending = nothing
            found.append((of_steps, alone))
        return found

    def through_times(self, chunk: Chunk, times_bar: Tensor, ys_bar: Tensor, times: TimeCotangents) -> None:
        """Walk back over the steps of a chunk.

        :param times_bar: cotangents of (t, h, end) of its steps [n steps, 3]
        """
        of_start, of_size = times_bar[:, 0] + times_bar[:, 2], times_bar[:, 1] + times_bar[:, 2]
        if chunk.outputs:
            interpolant, theta = self._problem.method.interpolant, chunk.theta
            places, bars = chunk.places, ys_bar[chunk.output_rows]
            values, rates = (
                (torch.bmm(w.to(bars.dtype)[:, None], chunk.slopes).squeeze(1) * bars).sum(1).double()
                for w in (interpolant.weights(theta), interpolant.derivatives(theta))
            )
            times.given[chunk.outputs] += rates
            of_start = of_start.index_add(0, places, -rates)
            of_size = of_size.index_add(0, places, values - rates * theta)
        for i, t_bar, h_bar in zip(range(chunk.n - 1, -1, -1), of_start.flip(0).tolist(), of_size.flip(0).tolist()):
            times.through(chunk.stops.get(i), t_bar, h_bar)


def _places(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")
