"""`aca` with its loops compiled: the same accepted steps, states, gradients and counts as `DiscreteSolve`."""

import math
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
from . import choice
from .chunks import Chunk, LoopStorage
from .code import fingerprint
from .func_graph import NotCompilable
from .inside import Inside
from .loops import Loops, Progress


def loop_solve(problem: Problem) -> Any:
    """`LoopSolve` of a problem, or None, with a warning once, where its loop cannot be compiled."""
    compiler, reason = problem.field.code.compiler, problem.field.code.against_loop
    if reason is None:
        run = LoopSolve(problem)
        try:
            if problem.field.jacobian.is_given:  # generated code does not check what was said of it
                problem.field.linearise(problem.ts[0], run.y0, 0).derivative()
            run.prepare()
            return run
        except NotCompilable as failure:
            reason = compiler.against_loops = str(failure)
            if problem.slope is None:
                raise StartOver from failure
    if LINEARISE not in problem.method.abilities:
        compiler.warn_of_steps(reason)
    else:
        compiler.warn(f"compile=True: for {compiler.name} {problem.method.name} runs as it is ({reason})")
        problem.compile_options = problem.field.code = None
    return None


class LoopSolve(DiscreteSolve):
    """
    :param problem: `Problem` that `start.reason_against` has nothing against
    """

    storage: LoopStorage

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, problem.memory)
        code, self.y0 = problem.field.code, problem.y0.detach().contiguous()
        self.settings, self.span = choice.settings_of(problem.controller), abs(problem.ts[-1] - problem.ts[0])
        self.loops = Loops(
            code, code.steps(problem.method), self.y0, with_slopes=problem.interpolates,
            time_grad=problem.time_grad, jumps=problem.starts_at_jump or any(stop.jump for stop in problem.stops),
            most=self.storage.most,
        )  # fmt: skip
        self._inside = Inside(self.loops, problem.n_inside, problem.field.direction)
        self._fingerprint: Any = None
        self._end: Any = None  # the last state

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
            for stop in problem.stops:
                window = self._window(t, jumped, stop)
                if jumped and t != start:
                    slope = self._slope_behind(t, y)
                while t != stop.t:
                    buffers = loops.buffers()
                    begin, at_begin = (t, size, previous), (y, slope)
                    (now, y, slope), begin, at_begin = self._call(begin, at_begin, stop, window, buffers)
                    n, n_tries = int(now.n_steps), int(now.n_tries)
                    t, size, previous = now.t, now.size, now.previous
                    stats.n_accepted += n
                    stats.n_rejected += n_tries - n
                    func.n_evals += n_tries * loops.evaluations
                    if LINEARISE in problem.method.abilities:
                        stats.n_jacobians += n_tries
                        stats.n_factorizations += n_tries
                    if t != stop.t and n < loops.capacity:
                        self._fail(now, stop.t)
                    chunk = Chunk(n, buffers[0], begin, stop, stop if t == stop.t else None, window)
                    self._interpolate(ys, t, chunk, *buffers[1:])
                    if remember:
                        self.storage.fill(chunk, at_begin, buffers[1])
                jumped = stop.jump
                if stop.index is not None:
                    ys[stop.index - 1] = y
            if not all_finite(y):
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

    def _call(self, begin: Any, at_begin: Any, stop: Stop, window: tuple[float, float], buffers: Any) -> Any:
        """Go on to a stop or until the buffers are full: what `Loops.forward` returns, and what it began with.

        :param begin: time, step size to try, error ratio to remember
        :param at_begin: the state and its slope (None: it is to be found, and the first step size with it)
        """
        problem, loops, func = self.problem, self.loops, self.problem.field
        is_first = at_begin[1] is None
        func.n_evals += 2 * is_first
        tries = -(-(problem.limits.max_evals - func.n_evals) // loops.evaluations)
        limits = min(loops.capacity, problem.limits.max_steps - problem.stats.n_accepted), tries
        if not is_first:
            given = stop.t, self.span, limits, window, self.settings, *at_begin, buffers
            return loops.forward(*begin, *given), begin, at_begin
        start, end = problem.ts[0], problem.ts[-1]
        now, y, slope, size, first = loops.begin(start, end, stop.t, limits, window, self.settings, self.y0, buffers)
        if now.hopeless and not now.n_tries:
            raise NonFiniteError(start, 0.0, 0, func.n_evals, what=NonFiniteError.of_first_slope)
        return (now, y, slope), (start, size, 1.0), (self.y0, first)

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
        problem, loops, buffers = self.problem, self.loops, self.loops.buffers()
        now, y, slope = loops.forward(
            *chunk.begin, chunk.aim.t, self.span, (chunk.n, math.inf), chunk.window, self.settings, *begin, buffers
        )
        problem.field.n_evals += int(now.n_tries) * loops.evaluations
        if chunk.ends_on_jump:
            with problem.backward_pass():
                slope = self._slope_behind(now.t, y)
        return buffers[1], (y, slope)

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

    def _interpolate(self, ys: Tensor, t: Any, chunk: Chunk, states: Tensor, slopes: Any = None) -> None:
        """Fill in the outputs inside the steps of a chunk, which end at t."""
        problem = self.problem
        outputs = problem.outputs_within(t) if slopes is not None else []
        if not outputs:
            return
        chunk.outputs, n = outputs, chunk.n
        wanted = torch.tensor([problem.ts[i] for i in outputs], dtype=torch.float64, device="cpu")
        found, places, *rest = self._inside.outputs(wanted, chunk.times, n, states, slopes)
        chunk.places, (chunk.theta, chunk.weights) = places, rest
        method: Any = problem.method
        if method.needs_end_slope and not method.error_sees_end_slope:
            chunk.check_ends(slopes[places, -1], places, problem.stats.n_accepted - n, problem.field.n_evals)
        ys[chunk.output_rows] = found
        if problem.time_grad:
            chunk.slopes = slopes[places]

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
        inside, end = self._cotangents_inside(ys_bar), states["end"]
        for k, chunk, starts in self.storage.chunks_backwards(states, self._refilled):
            start_and_slopes, end_bar = inside[k]
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
                chunk.n, y_bar, totals, chunk.times, starts, start_and_slopes, chunk.window
            )
            end = starts[0]
            func.n_evals += chunk.n * loops.own
            if times is not None:
                self._through_times(chunk, times_bar[: chunk.n], ys_bar, times)
        problem.stats.n_backward_f_evals = func.n_evals - before
        times_bar = None if times is None else times.finished().to(problem.times)
        return y_bar, times_bar, code.gradients(func.captured.sources, totals, loops.steps.reached)

    def _cotangents_inside(self, ys_bar: Tensor) -> Any:
        """What outputs inside steps say, by chunk: cotangents of the states at the starts of steps [capacity, n] and of
        the slopes that these pay for [capacity, own, n], () for nothing; and of the slope behind the last step, where
        no other begins with it (None: nothing)."""
        loops, chunks = self.loops, self.storage.chunks
        if not loops.with_slopes:
            return [((), None)] * len(chunks)
        found, nothing = [], ys_bar.new_zeros(ys_bar.shape[1])
        pending = nothing
        for chunk in chunks:
            outputs = chunk.places, chunk.weights
            if chunk.places is None:
                outputs = torch.empty(0, dtype=torch.int64), ys_bar.new_empty(0, loops.rows)
            bars = ys_bar[chunk.output_rows]
            starts, slopes, pending = self._inside.cotangents(bars, *outputs, chunk.n, pending)
            alone = None
            if chunk is chunks[-1] or chunk.ends_on_jump:
                if loops.rows > loops.own and chunk.reaches_into_last_step:
                    alone = pending
                pending = nothing
            found.append(((starts, slopes), alone))
        return found

    def _through_times(self, chunk: Chunk, times_bar: Tensor, ys_bar: Tensor, times: TimeCotangents) -> None:
        """Walk back over the steps of a chunk.

        :param times_bar: cotangents of (t, h, end) of its steps [n steps, 3]
        :param times: `TimeCotangents`
        """
        of_start, of_size = times_bar[:, 0] + times_bar[:, 2], times_bar[:, 1] + times_bar[:, 2]
        if chunk.outputs:
            interpolant, theta = self.problem.method.interpolant, chunk.theta
            places, bars = chunk.places, ys_bar[chunk.output_rows]
            values, rates = (
                (torch.bmm(w.to(bars.dtype)[:, None], chunk.slopes).squeeze(1) * bars).sum(1).double()
                for w in (interpolant.weights(theta), interpolant.derivatives(theta))
            )
            times.given[chunk.outputs] += rates
            of_start = of_start.index_add(0, places, -rates)
            of_size = of_size.index_add(0, places, values - rates * theta)
        stop = chunk.stop
        for t_bar, h_bar in zip(reversed(of_start.tolist()), reversed(of_size.tolist())):
            times.through(stop, t_bar, h_bar)
            stop = None

    def traced(self, y0: Tensor, times: Tensor) -> Any:
        self._unroll()
        return super().traced(y0, times)

    def _unroll(self) -> None:
        problem, self.end_sample = self.problem, self.replay.sample(self._end)
        self.storage.unroll(problem.method, problem.y0.dtype, starts_at_jump=problem.starts_at_jump)
