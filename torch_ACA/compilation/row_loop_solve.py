"""`aca` by rows with its loops compiled: the same accepted steps, states, gradients and counts as `RowSolve`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..march import Limits
from ..rows.solve import RowSolve
from ..rows.times import as_given
from ..steppers.base import LINEARISE
from . import choice
from .code import fingerprint
from .func_graph import NotCompilable
from .private_compiler import against_loops
from .row_cotangents import InsideBars, TimeBars
from .row_loops import ACCEPTED, DONE, FAILED, FRESH, LANDED, RowLoops, RowProgress, row_steps


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
    field, times, device = problem.field, problem.row_times, problem.y0.device.type
    effects = field.side_effects
    for against, reason in (
        (field.jacobian.is_users, "jac was given"),
        (LINEARISE in problem.method.abilities and not field.rows.width, "they are empty"),
        (not choice.is_plain(problem.controller.controller), "the error norm is not the default one"),
        (times.lands_inside, "they land on times inside"),
        (times.jumps is not None, "func jumps"),
        (effects.draws or effects.counts, "func draws random numbers, or changes a number that it keeps"),
        (code.graph.changed, "func changes tensors"),
        (problem.memory.states < math.inf or 0 < problem.memory.n_bytes < math.inf, "memory is limited"),
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
        with_slopes = bool(problem.row_times.interpolated.any())
        self.loops = RowLoops(code, steps, y, with_slopes=with_slopes, time_grad=problem.time_grad)
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
        self.loops.prepare_rows(self._settings, self._begin(), self.loops.buffers())

    @property
    def _settings(self) -> Tensor:
        return choice.settings_of(self.problem.controller.controller)

    def _begin(self) -> RowProgress:
        problem = self.problem
        parts = problem.row_times.start, problem.first_step, problem.y0.detach(), problem.slope
        # copies: a view of one number may keep strides that the loop's own tensors do not have
        t, size, y, slope = (part.clone(memory_format=torch.contiguous_format) for part in parts)
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        return RowProgress(zero, t, size, torch.ones_like(t), torch.full_like(t, FRESH), y, slope)

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
        problem, loops, rows, times = self.problem, self.loops, self.stepper.rows, self.problem.row_times
        now, field, limits = self._begin(), problem.field, problem.limits
        stop, span = times.end.contiguous(), (times.end - times.start).abs()
        b, m = times.outputs.shape
        ys = now.y.new_full((m, b, rows.width), math.nan)
        waiting, n_tried = times.interpolated.clone(), torch.zeros(b, dtype=torch.long, device="cpu")
        n_accepted, n_tries, n_runs = torch.zeros_like(n_tried), 0, 0
        ties, start = problem.ties, problem.ties.point(now.t, now.y, problem.slope, 0)
        while bool((now.standing < DONE).any()):
            most = min(loops.capacity, -(-(limits.max_evals - field.n_evals) // loops.evaluations))
            if most <= 0:
                return None
            buffers, begun = loops.buffers(), now._replace(n_tries=torch.zeros_like(now.n_tries))
            now = loops.run(begun, stop, span, most, self._settings, buffers)
            n = int(now.n_tries)
            field.n_evals, n_tries = field.n_evals + n * loops.evaluations, n_tries + n
            outcome = buffers[0][:n, 2]
            accepted = outcome >= ACCEPTED
            done = torch.cat([begun.standing[None] == DONE, outcome == LANDED]).cummax(0)[0]
            running = ~done[:-1]
            n_tried, n_accepted = n_tried + running.sum(0), n_accepted + accepted.sum(0)
            if bool((now.standing == FAILED).any()):
                return None
            self._inside(ys, waiting, n, accepted, remember, *buffers)
            if remember:
                self._add(accepted, buffers[0][:n], buffers[1][:n])
            n_runs, last = n_runs + 1, not bool((now.standing < DONE).any())
            if last or ties.due(n_runs):
                ties.look(start, ties.point(now.t, now.y, None, 0), last=last)
        if limits.max_steps < Limits.max_steps and int(n_accepted.max()) > limits.max_steps:
            return None
        if not bool(torch.isfinite(ys[times.interpolated.T]).all()):
            return None
        given, row = times.given[:, 0], torch.arange(b, device="cpu")
        there = given > 0
        ys[given[there] - 1, row[there]] = rows.rows(now.y)[there]
        self.solved = (times.interpolated & ~waiting).T.clone()
        self.solved[given[there] - 1, row[there]] = True
        stats = problem.stats
        stats.n_accepted, stats.n_rejected, stats.n_f_evals = n_accepted, n_tried - n_accepted, field.n_evals
        if LINEARISE in problem.method.abilities:
            stats.n_jacobians = stats.n_factorizations = n_tries
        problem.slope = None
        if remember:
            self.remember_end(now.t, now.y, ())
            self._fingerprint = fingerprint(self.code)
        return (rows.flat(ys),)

    def _add(self, accepted: Tensor, times: Tensor, states: Tensor) -> None:
        """Remember the steps among tries [n, b]."""
        t, h, outcome = times.unbind(1)
        row = accepted.nonzero()[:, 1]
        stop = torch.where(outcome[accepted] == LANDED, self.problem.row_times.given[row, 0], -1)
        y = self.stepper.rows.rows(states)[accepted]
        self.packed.add(y, row=row.int(), t=t[accepted], h=h[accepted], ends_on=stop.int())

    def _inside(
        self, ys: Tensor, waiting: Tensor, n: int, accepted: Tensor, remember: bool, times: Tensor, states: Tensor,
        slopes: Any = None,
    ) -> None:  # fmt: skip
        """Fill in the outputs inside the steps among n tries; ``waiting`` [b, m - 1] says which are to come."""
        if slopes is None:
            return
        rows, wanted = self.stepper.rows, self.problem.row_times.outputs
        t, h, outcome = times[:n].unbind(1)
        sign = self.problem.row_times.direction
        reached = torch.where(accepted, t + h, t)
        reached = torch.where(outcome == LANDED, self.problem.row_times.end, reached)
        try_of = torch.searchsorted((sign * reached).T.contiguous(), (sign[:, None] * wanted).contiguous())
        row, number = (waiting & (try_of < n)).nonzero(as_tuple=True)
        if not len(row):
            return
        at = try_of[row, number]
        size = h[at, row]
        theta = torch.where(size == 0.0, 0.0, (wanted[row, number] - t[at, row]) / size)
        weights = self._weights(theta, size, states.dtype)
        inside, y = rows.rows(slopes[:n])[at, :, row], rows.rows(states[:n])[at, row]
        ys[number, row] = torch.baddbmm(y[:, None], weights[:, None], inside).squeeze(1)
        waiting[row, number] = False
        if remember:
            if self.loops.time_grad:
                self._slopes_inside.append(inside)
            rank = torch.cumsum(accepted.flatten(), 0) - 1
            step = self.packed.count + rank[at * rows.count + row]
            self.packed.add_outputs(row=row, number=number, step=step, theta=theta)

    def _weights(self, theta: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
        """What the slopes of a step weigh in outputs inside it: [p, slopes]."""
        return (self.problem.method.interpolant.weights(theta) * h[:, None]).to(dtype)

    def backward(self, states: dict, ys_bar: Tensor, dense_bars: Any) -> Any:
        code = self.code
        if fingerprint(code) == self._fingerprint:  # else rows as they are notice what changed, and say so
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
        given = problem.row_times.given[:, 0]
        row = (given > 0).nonzero()[:, 0]
        y_bar = rows.flat(torch.zeros_like(bars[0]).index_put((row,), bars[given[row] - 1, row]))
        inside, times_bar = self._inside_bars(bars), TimeBars(len(given))
        chunks = [states[i] for i in range(len(packed.states.starts))]
        at_ends = None if inside is None else inside.at_ends(loops)
        if at_ends is not None:
            has, end_bar = at_ends
            _, at = packed.from_end(0)  # the others stay at the starts of their last steps: func may be NaN at the ends
            t = torch.where(has, packed.ends, packed.steps["t"][at])
            y = torch.where(rows.spread(has), states["end"], rows.flat(packed.states.at(chunks, at)))
            bar, totals, of_end = loops.through_slopes(t, y, end_bar, totals)
            y_bar = y_bar + bar
            if of_end is not None:
                times_bar.of_end += of_end
            problem.field.n_evals += 1
        for nearest in range(0, packed.most, loops.capacity):
            n = min(loops.capacity, packed.most - nearest)
            from_end = torch.arange(nearest + n - 1, nearest - 1, -1, device="cpu")  # in the order of time
            buffers = self._gathered(chunks, from_end)
            around = () if inside is None else inside.around(from_end, loops)
            y_bar, totals, of_steps = loops.backward(n, y_bar, totals, *buffers, around)
            if of_steps is not None:
                times_bar.add_steps(of_steps[:n], ends_rows=nearest == 0)
            problem.field.n_evals += n * loops.own
        problem.stats.n_backward_f_evals = problem.field.n_evals - before
        captured = problem.field.captured.sources
        gradients = self.code.gradients(captured, totals, loops.steps.reached)
        return y_bar, self._of_times(times_bar, bars) if problem.time_grad else None, gradients

    def _of_times(self, found: TimeBars, bars: Tensor) -> Tensor:
        """Cotangents of the times, as they were given.

        :param bars: of all outputs [m - 1, b, n]
        """
        times, interpolant, outputs = self.problem.row_times, self.problem.method.interpolant, self.packed.outputs
        all_times = torch.zeros(len(times.given), len(bars) + 1, dtype=torch.float64, device="cpu")
        if outputs["row"] is not None:
            row, number, theta = (outputs[name] for name in ("row", "number", "theta"))
            along = (torch.cat(self._slopes_inside) * bars[number, row][:, None]).sum(-1).double()
            values, rates = (
                (w.to(along) * along).sum(1) for w in (interpolant.weights(theta), interpolant.derivatives(theta))
            )
            all_times.index_put_((row, number + 1), rates, accumulate=True)
            in_last = self.packed.number_in_row == self.packed.counts[row] - 1
            found.add_outputs(row, in_last, -rates, values - theta * rates)
        return as_given(found.gathered(all_times, times.given[:, :1]), self.problem.times)

    def _gathered(self, chunks: Sequence[Tensor], from_end: Tensor) -> tuple[Tensor, Tensor]:
        """Buffers of times and states of the steps with these numbers [n], counted from the end, of all rows. A row
        without such a step waits at the start of its first one, with a step of size 0."""
        packed = self.packed
        exists, at = packed.from_end(from_end[:, None])
        t, h = packed.steps["t"][at], torch.where(exists, packed.steps["h"][at], 0.0)
        end = torch.where(exists & (from_end[:, None] == 0), packed.ends, t + h)
        times, states = self.loops.buffers()[:2]
        times[: len(at)], states[: len(at)] = torch.stack([t, h, end], 1), self._states_at(chunks, at)
        return times, states

    def _states_at(self, chunks: Sequence[Tensor], at: Tensor) -> Tensor:
        rows = self.stepper.rows
        return rows.flat(self.packed.states.at(chunks, at.flatten()).view(len(at), rows.count, rows.width))

    def _inside_bars(self, bars: Tensor) -> InsideBars | None:
        """What the outputs inside steps say; None without dense output.

        :param bars: cotangents of all outputs [m - 1, b, n]
        """
        if not self.loops.with_slopes:
            return None
        packed, outputs = self.packed, self.packed.outputs
        if outputs["row"] is None:
            none = torch.zeros(0, dtype=torch.long, device="cpu")
            return InsideBars(none, none, bars[0, :0], bars.new_zeros(0, self.loops.rows), bars[0])
        row = outputs["row"]
        from_end = packed.counts[row] - 1 - packed.number_in_row
        weights = self._weights(outputs["theta"], packed.steps["h"][outputs["step"]], bars.dtype)
        return InsideBars(from_end, row, bars[outputs["number"], row], weights, bars[0])
