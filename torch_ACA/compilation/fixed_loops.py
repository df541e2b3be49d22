"""Steps of given sizes as one compiled call.

Their times are known before it, and a call goes on through stops at which func does not jump.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..march import Stop, check_limits, next_step
from ..problem import Problem
from .chunks import Chunk
from .loop_solve import LoopSolve
from .loops import Loops, Progress, packed


class FixedLoops(Loops):
    """`Loops` that take the times of steps from their buffer.

    :param check_finite: an infinite or NaN state ends the loop
    """

    begin_evaluations = 1
    first_written = 3

    def __init__(self, *arguments: Any, check_finite: bool, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._check_finite = check_finite
        self.key = (*self.key, "fixed", check_finite)

    def _started(self, times: Tensor, settings: Tensor, y: Tensor, others: Sequence[Tensor]) -> Any:
        return self.steps.graph(times[0], y, others).clone(), torch.zeros_like(times[0])

    def _is_bad(self, values: Tensor) -> Tensor:
        bad = super()._is_bad(values)
        return bad if self._check_finite else torch.zeros_like(bad)

    def _goes_on(self, numbers: Tensor, y: Tensor, slope: Tensor, bounds: Tensor, *rest: Any) -> Any:
        now = Progress(*numbers.unbind())
        return (now.n_steps < bounds[2]) & (now.hopeless == 0)

    def _try(
        self, numbers: Tensor, y: Tensor, slope: Tensor, bounds: Tensor, settings: Tensor, times: Tensor,
        states: Tensor, *rest: Any,
    ) -> Any:  # fmt: skip
        now, others = Progress(*numbers.unbind()), rest[self.with_slopes :]
        place = now.n_steps.long().reshape(1)
        step = times.index_select(0, place).squeeze(0).unbind()
        steps = self.steps.within(bounds[-2:]) if self.jumps else self.steps
        y1, slopes, _, next_slope = steps.trial(step, y, slope, others)
        states.index_copy_(0, place, y[None])
        self._keep(rest[: self.with_slopes], place, slopes)
        bad = self._is_bad(y1)
        t = torch.where(bad, step[0], step[2])
        progress = now._replace(n_steps=now.n_steps + ~bad, n_tries=now.n_tries + 1, finite=~bad, hopeless=bad, t=t)
        return packed(progress), y1.clone(), next_slope.clone()


class FixedLoopSolve(LoopSolve):
    """A `LoopSolve` in steps of given sizes."""

    loops: FixedLoops

    def __init__(self, problem: Problem) -> None:
        self._ahead, self._planned = _steps_ahead(problem), []
        super().__init__(problem)

    def _new_loops(self, *arguments: Any, **keywords: Any) -> FixedLoops:
        problem = self.problem
        lands = any(stop.index is not None for stop in problem.stops[:-1])
        finite = problem.controller.leaves_unseen(False)
        return FixedLoops(*arguments, **keywords, check_finite=finite, with_starts=lands)

    def _aims(self) -> Sequence[Stop]:
        stops = self.problem.stops
        return [stop for stop in stops if stop.jump or stop is stops[-1]]

    def _limits(self, aim: Stop, buffers: Any) -> tuple[float, float]:
        """As many steps as are planned; their times go into the buffer."""
        most = max(0, int(min(super()._limits(aim, buffers))))
        self._planned = []
        while len(self._planned) < most and not (self._planned and self._planned[-1].stop is aim):
            self._planned.append(next(self._ahead))
        times = [step[:3] for step in self._planned]
        if times:
            buffers[0][: len(times)] = torch.tensor(times, dtype=torch.float64, device="cpu")
        return len(times), math.inf

    def _stops(self, n: int, reached: bool, aim: Stop) -> dict[int, Stop]:
        return {i: step.stop for i, step in enumerate(self._planned[:n]) if step.stop is not None}

    def _buffers(self, chunk: Chunk) -> tuple[Tensor, ...]:
        return chunk.times, *self.loops.kept_buffers()

    def _fail(self, now: Progress, stop: float) -> None:
        """As of `LoopSolve`; at a limit when no other step may be planned."""
        problem, n_evals = self.problem, self.problem.field.n_evals
        if now.hopeless:
            step = self._planned[int(now.n_steps)]
            raise NonFiniteError(step.t, step.h, problem.stats.n_accepted, n_evals)
        if not self._planned:
            step = next(self._ahead)
            check_limits(step.t, step.h, self.span, n_evals, problem.stats, problem.limits)


class _Planned(NamedTuple):
    """A step of a given size; ``stop``: the one that it ends on, or None."""

    t: float
    h: float
    t_end: float
    stop: Stop | None


def _steps_ahead(problem: Problem) -> Iterator[_Planned]:
    """All steps of a solve."""
    t, size = problem.ts[0], problem.controller.size  # type: ignore[union-attr]
    for stop in problem.stops:
        origin = t
        for n in itertools.count():
            landing, h, t_end = next_step(t, stop.t, size, origin, n)
            yield _Planned(t, h, t_end, stop if landing else None)
            t = t_end
            if landing:
                break
