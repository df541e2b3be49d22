"""`aca` by rows with its loops compiled: the same accepted steps, states, gradients and counts as `RowSolve`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..march import Limits
from ..rows.solve import RowSolve
from ..rows.stepper import side_of
from ..rows.times import as_given
from ..steppers.base import LINEARISE
from .controller_settings import is_plain, settings_of
from .fingerprint import fingerprint
from .func_graph import NotCompilable
from .private_compiler import against_loops
from .row_chunks import RowChunk, RowTries
from .row_cotangents import OutputBars, TimeBars
from .row_loops import DONE, FAILED, FRESH, JUMPED, RowLoops, RowProgress, row_steps, stops_of_rows
from .start import JAC_GIVEN


def row_loop_solve(problem: Any) -> RowSolve | None:
    """`RowLoopSolve` of a `RowProblem`, or None, with a warning once, where its loop cannot be compiled."""
    code = problem.field.code
    if code is None:
        return None
    reason = code.compiler.against_loops or _reason_against(problem, code)
    if reason is None:
        run = RowLoopSolve(problem, code)
        try:
            run.prepare()
            return run
        except NotCompilable as failure:
            reason = code.compiler.against_loops = str(failure)
    code.compiler.warn(f"compile=True: for {code.compiler.name} rows are solved as they are ({reason})")
    return None


def _reason_against(problem: Any, code: Any) -> str | None:
    """Why the loop over tries of rows cannot be compiled, or None."""
    field, device = problem.field, problem.y0.device.type
    effects = field.side_effects
    for against, reason in (
        (field.jacobian.is_users, JAC_GIVEN),
        (LINEARISE in problem.method.abilities and not field.rows.width, "they are empty"),
        (not is_plain(problem.controller.controller), "the error norm is not the default one"),
        (effects.draws or effects.counts, "func draws random numbers, or changes a number that it keeps"),
        (code.graph.changed, "func changes tensors"),
        (bool(problem.failures), "some have failed at the start"),
    ):  # fmt: skip
        if against:
            return reason
    return against_loops(device)


class RowLoopSolve(RowSolve):
    """A row that fails is left to the rows as they are, which say what failed: they are then solved again.

    :param problem: `RowProblem` that `_reason_against` has nothing against
    :param code: `Code` of its func
    """

    def __init__(self, problem: Any, code: Any) -> None:
        super().__init__(problem)
        self.code, rows, y = code, self.stepper.rows, problem.y0.detach()
        method, layout = problem.method, code.compiler.layout
        steps = code.kept((method, "rows"), lambda: row_steps(code.graph, method, layout, rows))
        times = problem.row_times
        self.loops = RowLoops(
            code, steps, y, with_slopes=bool(times.interpolated.any()), time_grad=problem.time_grad,
            jumps=times.jumps is not None, with_starts=times.lands_inside, most=self.budget.max_states,
        )  # fmt: skip
        self._stops = stops_of_rows(times, problem.field)
        self._fingerprint: Any = None
        self._slopes_inside: list[Tensor] = []  # of steps with outputs inside, for gradients in times

    def prepare(self) -> None:
        """Generate the code of the way there.

        :raises NotCompilable: there can be none
        """
        problem, field = self.problem, self.problem.field
        if LINEARISE in problem.method.abilities:  # generated code does not check that rows are not coupled
            n_evals = field.n_evals
            with field.side_effects.replay():
                field.linearise(problem.row_times.start, problem.y0.detach(), 0).derivative()
            field.n_evals = n_evals
        self.loops.prepare_rows(self._settings, self._begin(), self._stops, self.loops.buffers())

    @property
    def _settings(self) -> Tensor:
        return settings_of(self.problem.controller.controller)

    def _begin(self) -> RowProgress:
        problem = self.problem
        parts = problem.row_times.start, problem.first_step, problem.y0.detach(), problem.slope
        # copies: a view of one number may keep strides that the loop's own tensors do not have
        t, size, y, slope = (part.clone(memory_format=torch.contiguous_format) for part in parts)
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        place = torch.zeros_like(t, dtype=torch.long)
        return RowProgress(zero, place, t, size, torch.ones_like(t), torch.full_like(t, FRESH), y, slope)

    def forward(self, *, remember: bool = True) -> Any:
        n_evals = self.problem.field.n_evals
        outputs = self._looped(remember)
        if outputs is None:
            self.problem.field.n_evals = n_evals
            super().__init__(self.problem)  # nothing is remembered
            return super().forward(remember=remember)
        return outputs

    def _looped(self, remember: bool) -> Any:
        """As `forward`; None where a row fails, an output inside a step is infinite, or a limit is reached."""
        stats: Any  # counts of rows are tensors
        problem, loops, rows, times = self.problem, self.loops, self.stepper.rows, self.problem.row_times
        now, field, limits = self._begin(), problem.field, problem.limits
        span, (b, m) = (times.end - times.start).abs(), times.outputs.shape
        ys = now.y.new_full((m, b, rows.width), math.nan)
        waiting, n_tried = times.interpolated.clone(), torch.zeros(b, dtype=torch.long, device="cpu")
        n_accepted, n_tries = torch.zeros_like(n_tried), 0
        self.solved = torch.zeros(m, b, dtype=torch.bool, device="cpu")
        ties, start = problem.ties, problem.ties.point(now.t, now.y, problem.slope, 0)
        while bool((now.standing < DONE).any()):
            most = min(loops.capacity, -(-(limits.max_evals - field.n_evals) // loops.evaluations))
            if most <= 0:
                return None
            buffers, begun = loops.buffers(), now._replace(n_tries=torch.zeros_like(now.n_tries))
            now = loops.run(begun, self._stops, span, most, self._settings, buffers)
            n = int(now.n_tries)
            field.n_evals, n_tries = field.n_evals + n * loops.evaluations, n_tries + n
            if bool((now.standing == FAILED).any()):
                return None
            tries = RowTries(buffers[0][:n], begun.place, times)
            n_tried, n_accepted = n_tried + tries.running.sum(0), n_accepted + tries.accepted.sum(0)
            self._landed(ys, tries, buffers[1], now.y)
            self._inside(ys, waiting, tries, remember, *buffers[1:])
            if remember:
                self._add(tries, buffers[1][:n])
            last = not bool((now.standing != DONE).any())
            ties.look(start, ties.point(now.t, now.y, None, 0), last=last)
            if not (last or bool((now.standing < JUMPED).any())):
                now = self._behind_jumps(now)
        if limits.max_steps < Limits.max_steps and int(n_accepted.max()) > limits.max_steps:
            return None
        if not bool(torch.isfinite(ys[times.interpolated.T]).all()):
            return None
        self.solved |= (times.interpolated & ~waiting).T
        stats = problem.stats
        stats.n_accepted, stats.n_rejected, stats.n_f_evals = n_accepted, n_tried - n_accepted, field.n_evals
        if LINEARISE in problem.method.abilities:
            stats.n_jacobians = stats.n_factorizations = n_tries
        problem.slope = None
        if remember:
            self.remember_end(now.t, now.y, ())
            self._fingerprint = fingerprint(self.code)
        return (rows.flat(ys).detach(),)  # no view, which nobody may write to

    def _behind_jumps(self, now: RowProgress) -> RowProgress:
        """What rows go on with that wait where func jumps, once no others are on their way."""
        jumped, field = now.standing == JUMPED, self.problem.field
        if LINEARISE not in self.problem.method.abilities:
            behind = field.slope(now.t, now.y, side_of(jumped, 1.0))
            now = now._replace(slope=torch.where(self.stepper.rows.spread(jumped), behind, now.slope))
        return now._replace(standing=torch.where(jumped, FRESH, now.standing))

    def _landed(self, ys: Tensor, tries: RowTries, states: Tensor, end: Tensor) -> None:
        """Fill in the outputs at the ends of tries.

        :param states: at their starts, a buffer
        :param end: the state behind the last one [size]
        """
        at, row = (tries.ends_on > 0).nonzero(as_tuple=True)
        if not len(at):
            return
        n, number, rows = len(tries.t), tries.ends_on[at, row] - 1, self.stepper.rows
        next_start = rows.rows(states[:n])[(at + 1).clamp(max=n - 1), row]
        ys[number, row] = torch.where((at + 1 == n)[:, None], rows.rows(end)[row], next_start)
        self.solved[number, row] = True

    def _add(self, tries: RowTries, states: Tensor) -> None:
        """Remember the steps among tries."""
        accepted, jumps = tries.accepted, tries.jumps
        self.packed.add(
            self.stepper.rows.rows(states)[accepted], row=accepted.nonzero()[:, 1].int(), t=tries.t[accepted],
            h=tries.h[accepted], ends_on=tries.ends_on[accepted].int(),
            **({} if jumps is None else {"before_jump": jumps[accepted]}),
        )  # fmt: skip

    def _inside(
        self, ys: Tensor, waiting: Tensor, tries: RowTries, remember: bool, states: Tensor, slopes: Any = None
    ) -> None:
        """Fill in the outputs inside the steps among tries; ``waiting`` [b, m - 1] says which are to come."""
        if slopes is None:
            return
        rows, times, n = self.stepper.rows, self.problem.row_times, len(tries.t)
        sign, wanted = times.direction, times.outputs
        try_of = torch.searchsorted((sign * tries.reached).T.contiguous(), (sign[:, None] * wanted).contiguous())
        row, number = (waiting & (try_of < n)).nonzero(as_tuple=True)
        at = tries.next_accepted(try_of[row, number], row)  # not so at the start of a row, where a try may be rejected
        row, number, at = (x[at < n] for x in (row, number, at))
        if not len(row):
            return
        size = tries.h[at, row]
        theta = torch.where(size == 0.0, 0.0, (wanted[row, number] - tries.t[at, row]) / size)
        weights = self._weights(theta, size, states.dtype)
        inside, y = rows.rows(slopes[:n])[at, :, row], rows.rows(states[:n])[at, row]
        ys[number, row] = torch.baddbmm(y[:, None], weights[:, None], inside).squeeze(1)
        waiting[row, number] = False
        if remember:
            if self.loops.time_grad:
                self._slopes_inside.append(inside)
            rank = torch.cumsum(tries.accepted.flatten(), 0) - 1
            step = self.packed.count + rank[at * rows.count + row]
            self.packed.add_outputs(row=row, number=number, step=step, theta=theta)

    def _weights(self, theta: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
        """What the slopes of a step weigh in outputs inside it: [p, slopes]."""
        return (self.problem.method.interpolant.weights(theta) * h[:, None]).to(dtype)

    def backward(self, states: dict, ys_bar: Tensor, dense_bars: Any) -> Any:
        code = self.code
        if self.packed.states.dropped:
            code.compiler.warn(_DROPPED.format(code.compiler.name))
        elif fingerprint(code) == self._fingerprint:  # else rows as they are notice what changed, and say so
            try:
                return self._looped_back(states, ys_bar)
            except NotCompilable as failure:
                code.compiler.against_loops = str(failure)
                code.compiler.warn(f"compile=True: for {code.compiler.name} rows go back as they are ({failure})")
        return super().backward(states, ys_bar, dense_bars)

    def _looped_back(self, states: dict, ys_bar: Tensor) -> Any:
        problem, loops, rows, packed = self.problem, self.loops, self.stepper.rows, self.packed
        before, totals = problem.field.n_evals, self.code.zeros()
        # an output that is not there has no cotangent, whatever a loss makes of its NaN
        bars = torch.where(self.solved[..., None], rows.rows(ys_bar), 0.0)
        y_bar, times_bar = rows.flat(torch.zeros_like(bars[0])), TimeBars(problem.row_times.given)
        stops_before, inside = packed.stops_before(), self._output_bars(bars)
        chunks = [states[i] for i in range(len(packed.states.starts))]
        at_ends = None if inside is None else inside.at_ends(loops)
        if at_ends is not None:
            has, end_bar = at_ends
            _, at = packed.from_end(0)  # the others stay at the starts of their last steps: func may be NaN at the ends
            t = torch.where(has, packed.ends, packed.steps["t"][at])
            y = torch.where(rows.spread(has), states["end"], rows.flat(packed.states.at(chunks, at)))
            bar, totals, of_ends = loops.through_slopes(t, y, end_bar, totals)
            y_bar = y_bar + bar
            if of_ends is not None:
                times_bar.add_stops(of_ends, problem.row_times.n_stops - 1)
            problem.field.n_evals += 1
        for nearest in range(0, packed.most, loops.capacity):
            n = min(loops.capacity, packed.most - nearest)
            from_end = torch.arange(nearest + n - 1, nearest - 1, -1, device="cpu")  # in the order of time
            steps = self._gathered(chunks, from_end, stops_before)
            around = () if inside is None else inside.around(from_end, loops)
            y_bar = y_bar + self._landed_bars(bars, steps.ends_on, around)
            of_outputs = [rows.flat(bars) for bars in around]
            y_bar, totals, of_steps = loops.backward(
                n, y_bar, totals, steps.times, steps.states, of_outputs, steps.windows
            )
            if of_steps is not None:
                times_bar.add_steps(of_steps[:n], steps.stops, steps.lands)
            problem.field.n_evals += n * loops.weighed
        problem.stats.n_backward_f_evals = problem.field.n_evals - before
        captured = problem.field.captured.sources
        gradients = self.code.gradients(captured, totals, loops.steps.reached)
        return y_bar, self._of_times(times_bar, bars, stops_before) if problem.time_grad else None, gradients

    def _landed_bars(self, bars: Tensor, ends_on: Tensor, around: Sequence[Tensor]) -> Any:
        """Cotangents of the states behind a chunk of steps, as the outputs say that lie at their ends. Those of the
        states between the steps are added to the first of ``around``.

        :param ends_on: [n, b]
        """
        at, row = (ends_on > 0).nonzero(as_tuple=True)
        if not len(at):
            return 0.0
        found = bars.new_zeros(len(ends_on), *bars.shape[1:])
        found[at, row] = bars[ends_on[at, row] - 1, row]
        if around:
            around[0][1 : len(found)] += found[:-1]
        return self.stepper.rows.flat(found[-1])

    def _of_times(self, found: TimeBars, bars: Tensor, stops_before: Tensor) -> Tensor:
        """Cotangents of the times, as they were given.

        :param bars: of all outputs [m - 1, b, n]
        """
        times, interpolant, outputs = self.problem.row_times, self.problem.method.interpolant, self.packed.outputs
        all_times = torch.zeros(len(times.given), len(bars) + 1, dtype=torch.float64, device="cpu")
        if outputs["row"] is not None:
            row, number, theta, step = (outputs[name] for name in ("row", "number", "theta", "step"))
            along = (torch.cat(self._slopes_inside) * bars[number, row][:, None]).sum(-1).double()
            values, rates = (
                (w.to(along) * along).sum(1) for w in (interpolant.weights(theta), interpolant.derivatives(theta))
            )
            all_times.index_put_((row, number + 1), rates, accumulate=True)
            lands = self.packed.steps["ends_on"][step] >= 0
            found.add_outputs(row, stops_before[step], lands, -rates, values - theta * rates)
        return as_given(found.gathered(all_times), self.problem.times)

    def _gathered(self, chunks: Sequence[Tensor], from_end: Tensor, stops_before: Tensor) -> RowChunk:
        """The steps with these numbers [n], counted from the end, of all rows."""
        packed, loops, row = self.packed, self.loops, torch.arange(self.stepper.rows.count, device="cpu")
        exists, at = packed.from_end(from_end[:, None])
        t, h = packed.steps["t"][at], torch.where(exists, packed.steps["h"][at], 0.0)
        ends_on, stops = torch.where(exists, packed.steps["ends_on"][at], -1).long(), stops_before[at]
        there = self._stops[row, stops]  # [n, b, 2 or 4]
        times, states = loops.buffers()[:2]
        end = torch.where(ends_on >= 0, there[..., 0], t + h)
        times[: len(at)], states[: len(at)] = torch.stack([t, h, end], 1), self._states_at(chunks, at)
        windows = None
        if loops.jumps:
            windows = times.new_empty(len(times), 2, times.shape[2])
            windows[: len(at)] = there[..., 2:].movedim(2, 1)
        return RowChunk(times, states, windows, ends_on, stops)

    def _states_at(self, chunks: Sequence[Tensor], at: Tensor) -> Tensor:
        rows = self.stepper.rows
        return rows.flat(self.packed.states.at(chunks, at.flatten()).view(len(at), rows.count, rows.width))

    def _output_bars(self, bars: Tensor) -> OutputBars | None:
        """What the outputs inside steps say; None without dense output, and without outputs at the ends of steps.

        :param bars: cotangents of all outputs [m - 1, b, n]
        """
        packed, outputs = self.packed, self.packed.outputs
        if not self.loops.with_starts:
            return None
        if outputs["row"] is None:
            none = torch.zeros(0, dtype=torch.long, device="cpu")
            return OutputBars(none, none, bars[0, :0], bars.new_zeros(0, self.loops.rows), bars[0])
        row = outputs["row"]
        from_end = packed.counts[row] - 1 - packed.number_in_row
        weights = self._weights(outputs["theta"], packed.steps["h"][outputs["step"]], bars.dtype)
        return OutputBars(from_end, row, bars[outputs["number"], row], weights, bars[0])


_DROPPED = "compile=True: for {} rows go back as they are (memory has no room for the states of all steps)"
