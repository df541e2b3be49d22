"""`aca` with its loop compiled: the same accepted steps, states, gradients and counts as `DiscreteSolve`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..controller import all_finite
from ..errors import NonFiniteError, SolverError
from ..gradients.discrete import DiscreteSolve
from ..gradients.storage import Budget
from ..gradients.times import TimeCotangents
from ..march import Stop, check_limits, next_step
from ..problem import Problem, StartOver, explain
from ..steppers.base import LINEARISE
from .chunks import Chunk, LoopStorage
from .controller_settings import settings_of
from .fingerprint import fingerprint
from .func_graph import NotCompilable
from .loops import Bounds, Loops, Progress
from .outputs import Outputs


class LoopSolve(DiscreteSolve):
    """A `DiscreteSolve` whose steps are taken, and gone back over, by compiled loops.

    :param problem: `Problem` that `start.reason_against` has nothing against
    """

    storage: LoopStorage

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, problem.memory)
        code, self.y0 = problem.field.code, problem.y0.detach().contiguous()
        self.settings, self.span = settings_of(problem.controller), abs(problem.ts[-1] - problem.ts[0])
        self.loops = self._new_loops(
            code, code.steps(problem.method), self.y0, with_slopes=problem.interpolates,
            time_grad=problem.time_grad, jumps=problem.starts_at_jump or any(stop.jump for stop in problem.stops),
            most=self.storage.most,
        )  # fmt: skip
        self.outputs = Outputs(problem, self.loops)
        self._fingerprint: Any = None
        self._end: Any = None  # the last state

    def _new_loops(self, *arguments: Any, **keywords: Any) -> Loops:
        return Loops(*arguments, **keywords)

    def _storage(self, memory: Budget) -> LoopStorage:
        return LoopStorage(memory.max_states(self.problem.state_bytes))

    def prepare(self) -> None:
        """Generate the code to begin with.

        :raises NotCompilable: there can be none
        """
        problem, slope = self.problem, self.problem.slope
        if slope is None:
            self.loops.prepare_first(self.settings, problem.ts[0], self.y0)
        else:
            self.loops.prepare(self.settings, problem.ts[0], self.y0, slope.contiguous())

    def forward(self, *, remember: bool = True) -> Any:
        problem, loops = self.problem, self.loops
        ys, stats, func = problem.new_outputs(), problem.stats, problem.field
        y, slope = self.y0, problem.slope
        problem.slope = problem.evaluation = None
        start, jumped = problem.ts[0], problem.starts_at_jump
        t, size, previous = start, problem.first_step, 1.0
        try:
            for aim in self._aims():
                window = self._window(t, jumped, aim)
                if jumped and t != start:
                    slope = self._slope_behind(t, y)
                while t != aim.t:
                    buffers = loops.buffers()
                    begin, at_begin = (t, size, previous), (y, slope)
                    (now, y, slope), begin, at_begin = self._call(begin, at_begin, aim, window, buffers)
                    n, n_tries = int(now.n_steps), int(now.n_tries)
                    t, size, previous = now.t, now.size, now.previous
                    stats.n_accepted += n
                    stats.n_rejected += n_tries - n
                    func.n_evals += n_tries * loops.evaluations
                    if LINEARISE in problem.method.abilities:
                        stats.n_jacobians += n_tries
                        stats.n_factorizations += n_tries
                    if t != aim.t and n < loops.capacity:
                        self._fail(now, aim.t)
                    chunk = Chunk(n, buffers[0], begin, aim, self._stops(n, t == aim.t, aim), window)
                    self.outputs.fill(ys, chunk, y, *buffers[1:])
                    if remember:
                        self.storage.fill(chunk, at_begin, buffers[1])
                jumped = aim.jump
            if problem.controller.leaves_unseen(False) and not all_finite(y):
                raise NonFiniteError(t, 0.0, stats.n_accepted, func.n_evals)
        except NotCompilable as failure:
            func.code.compiler.against_loops = str(failure)
            raise StartOver from failure
        except SolverError as error:
            explain(error, self._stepper())
            raise
        finally:
            stats.n_f_evals = func.n_evals
        if remember:
            self.storage.close(y)
            self._end, self._fingerprint = y, fingerprint(problem.field.code)
        else:
            self.end_slope = slope
        return (ys,)

    def go_on(self, chunk: Chunk, end: Tensor, fingerprint: Any) -> None:
        """Take over behind a forward pass that was one call, not one of this.

        :param end: the last state
        :param fingerprint: of the code as it was
        """
        self.storage.chunks.append(chunk)
        self._end, self._fingerprint = end, fingerprint

    def _aims(self) -> Sequence[Stop]:
        """The stops that calls end at."""
        return self.problem.stops

    def _stops(self, n: int, reached: bool, aim: Stop) -> dict[int, Stop]:
        """Of a call of n steps: the stops that they end on."""
        return {n - 1: aim} if reached else {}

    def _call(self, begin: Any, at_begin: Any, aim: Stop, window: tuple[float, float], buffers: Any) -> Any:
        """Go on to a stop or until the buffers are full: what `Loops.forward` returns, and what it began with.

        :param begin: time, step size to try, error ratio to remember
        :param at_begin: the state and its slope (None: it is to be found, and the first step size with it)
        """
        problem, loops, func = self.problem, self.loops, self.problem.field
        y, slope = at_begin
        is_first = slope is None
        func.n_evals += loops.begin_evaluations * is_first
        bounds = Bounds(aim.t, self.span, *self._limits(aim, buffers), *window)
        if not is_first:
            return loops.forward(begin, bounds, self.settings, y, slope, buffers), begin, at_begin
        start, end = problem.ts[0], problem.ts[-1]
        now, y, slope, size, first = loops.begin((start, end), bounds, self.settings, self.y0, buffers)
        if now.hopeless and not now.n_tries:
            raise NonFiniteError(start, 0.0, 0, func.n_evals, what=NonFiniteError.of_first_slope)
        return (now, y, slope), (start, size, 1.0), (self.y0, first)

    def _limits(self, aim: Stop, buffers: Any) -> tuple[float, float]:
        """The most steps and the most tries of a call."""
        problem, loops = self.problem, self.loops
        tries = -(-(problem.limits.max_evals - problem.field.n_evals) // loops.evaluations)
        return min(loops.capacity, problem.limits.max_steps - problem.stats.n_accepted), tries

    def _window(self, t: float, jumped: bool, stop: Stop) -> tuple[float, float]:
        """The first and the last time that func may see between t and a stop.

        :param jumped: func jumps at t
        """
        time, direction = self.problem.field.time, self.problem.field.direction
        begin = time(t, 1).item() if jumped else -direction * math.inf
        end = time(stop.t, -1).item() if stop.jump else direction * math.inf
        return min(begin, end), max(begin, end)

    def _slope_behind(self, t: float, y: Tensor) -> Tensor:
        """The slope at a time where func jumps, behind the jump."""
        slope = torch.empty_like(y)
        self.problem.field(t, y, slope, side=1)
        return slope

    def _refilled(self, chunk: Chunk, begin: tuple[Tensor, Tensor]) -> Any:
        """The states of the steps of a chunk, bit for bit, and what the next one begins with."""
        problem, loops, buffers = self.problem, self.loops, self._buffers(chunk)
        bounds = Bounds(chunk.aim.t, self.span, chunk.n, math.inf, *chunk.window)
        now, y, slope = loops.forward(chunk.begin, bounds, self.settings, *begin, buffers)
        problem.field.n_evals += int(now.n_tries) * loops.evaluations
        if chunk.ends_on_jump:
            with problem.backward_pass():
                slope = self._slope_behind(now.t, y)
        return buffers[1], (y, slope)

    def _buffers(self, chunk: Chunk) -> tuple[Tensor, ...]:
        """To take the steps of a chunk again."""
        return self.loops.buffers()

    def _fail(self, now: Progress, stop: Any) -> None:
        """Raise what `march` raises where it gives up.

        :param now: `loops.Progress`
        """
        problem, h = self.problem, next_step(now.t, stop, now.size)[1]
        stats, n_evals = problem.stats, problem.field.n_evals
        rejected, finite = bool(now.rejected), bool(now.finite)
        if not now.hopeless:
            check_limits(now.t, h, self.span, n_evals, stats, problem.limits, rejected=rejected, finite=finite)
        raise NonFiniteError(now.t, h, stats.n_accepted, n_evals)

    def backward(self, states: dict, ys_bar: Tensor, dense_bars: Any) -> Any:
        code = self.problem.field.code
        if fingerprint(code) == self._fingerprint:
            try:
                return self._looped_back(states, ys_bar)
            except NotCompilable as failure:
                code.compiler.against_loops = str(failure)
                code.compiler.warn_of_steps(failure)
        self._unroll()  # to replay steps one by one: where func is not what it was, that is noticed and said
        return super().backward(self.storage.unrolled(states), ys_bar, dense_bars)

    def _looped_back(self, states: dict, ys_bar: Tensor) -> Any:
        problem, loops, code = self.problem, self.loops, self.problem.field.code
        func, before = problem.field, problem.field.n_evals
        times = TimeCotangents(len(problem.ts)) if problem.time_grad else None
        y_bar, totals = None, code.zeros()
        inside, end = self.outputs.cotangents(ys_bar, self.storage.chunks), states["end"]
        for k, chunk, starts in self.storage.chunks_backwards(states, self._refilled):
            of_steps, end_bar = inside[k]
            if chunk.stop is not None and chunk.stop.index is not None:
                here = ys_bar[chunk.stop.index - 1]
                y_bar = here.clone(memory_format=torch.contiguous_format) if y_bar is None else y_bar + here
            if end_bar is not None:
                bar, totals, t_bar = loops.through_slope(chunk.stop.t, end, end_bar, totals, chunk.window)
                y_bar = y_bar + bar
                func.n_evals += 1
                if times is not None:
                    times.now += t_bar
            y_bar, totals, times_bar = loops.backward(
                chunk.n, y_bar, totals, chunk.times, starts, of_steps, chunk.window
            )
            end = starts[0]
            func.n_evals += chunk.n * loops.own
            if times is not None:
                self.outputs.through_times(chunk, times_bar[: chunk.n], ys_bar, times)
        problem.stats.n_backward_f_evals = func.n_evals - before
        times_bar = None if times is None else times.finished().to(problem.times)
        return y_bar, times_bar, code.gradients(func.captured.sources, totals, loops.steps.reached)

    def traced(self, y0: Tensor, times: Tensor) -> Any:
        self._unroll()
        return super().traced(y0, times)

    def _unroll(self) -> None:
        problem, self.end_sample = self.problem, self.replay.sample(self._end)
        self.storage.unroll(problem.method, problem.y0.dtype, starts_at_jump=problem.starts_at_jump)
