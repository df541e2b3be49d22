"""``gradient="aca"`` by rows: what is remembered of the forward pass, and the accepted steps as a graph.

Of rejected tries nothing is kept, and of accepted ones one state for each row that moved, packed: sum_r N_r states of n
numbers; where a budget has no room for them, some are made again (`chain`). With room to spare the graphs of the first
tries are kept as well (`kept`). Of the other steps, the k-th last steps of all rows that have
one are walked back together (`backward`): without kept graphs, evaluations and VJPs of func in the backward pass are
stages * max_r N_r.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..autocast import dtype_of
from ..errors import SecondDerivativeError
from ..gradients.discrete import integrate
from ..gradients.replay import Replay
from ..gradients.storage import Storage
from ..private_torch import within_checkpoint
from .backward import RowBackwardPass
from .kept import KeptTries, KeptTry, UnfitGraphsError
from .march import march_rows
from .packed import PackedSteps
from .stepper import side_of

if TYPE_CHECKING:
    from ..solution import Trajectory
    from .march import RowStep
    from .problem import RowProblem
    from .stepper import RowStepper


def aca_of_rows(problem: RowProblem) -> tuple[Tensor, Trajectory | None]:
    """As `gradients.discrete.aca`, for a problem of `problem_of_rows`. Outputs that a row does not have, or not for
    its failure, are NaN.

    :raises SolverError: rows have failed, and failures are not to be returned
    """
    if not problem.field.rows.count:
        return _of_no_rows(problem), None
    return integrate(problem, problem.compiled_run() or RowSolve(problem))


def _of_no_rows(problem: RowProblem) -> Tensor:
    """The outputs [m - 1, 0], with a graph that leads to all that func uses, as of other rows."""
    stats: Any  # counts of rows are tensors
    field, times, y = problem.field, problem.times, problem.y0
    stats, none = problem.stats, torch.zeros(0, dtype=torch.int64, device="cpu")
    stats.n_accepted, stats.n_rejected, stats.n_f_evals = none, none, field.n_evals
    problem.finish()
    with field.again(), field.without_cut(), field.side_effects.replay():
        y = y + field.traced(times[..., 0].expand(0), y)
    return y.expand(times.shape[-1] - 1, 0)


class RowSolve:
    """One solve by rows with all that its backward pass needs, but for the tensors that autograd looks after."""

    _states: dict[Any, Tensor] | None

    def __init__(self, problem: RowProblem) -> None:
        self.problem, y0 = problem, problem.y0
        self.stepper: RowStepper = problem.method.row_stepper(problem.field, time_grad=problem.time_grad)
        field = problem.field
        self.budget = Storage(problem.memory, y0.numel() * y0.element_size(), self._graph_bytes)
        self.kept = KeptTries([], None)
        self.packed = PackedSteps(self.budget.max_states * self.stepper.rows.count)
        self.replay = Replay(field.layout, dtype_of(field.autocast))
        self.solved: Tensor | None = None  # [m - 1, b]: which outputs there are
        self._states, self._infinite_at_start = None, problem.failures.failed
        self._end = None  # a sample of the states at the ends of the last steps

    def forward(self, *, remember: bool = True) -> tuple[Tensor, ...]:
        """March; returns the outputs ([m - 1, size],).

        :param remember: keep what the backward pass needs
        """
        problem, stepper, rows, times = self.problem, self.stepper, self.stepper.rows, self.problem.row_times
        evaluation, problem.evaluation = problem.evaluation, None
        stepper.keep_graphs = remember and self.budget.wants_graph and not within_checkpoint()
        if stepper.keep_graphs:
            self.kept.start = evaluation
        del evaluation
        b, m = times.outputs.shape
        y, t = problem.y0.detach(), times.start
        ys = y.new_full((m, b, rows.width), math.nan)
        self.solved = torch.zeros(m, b, dtype=torch.bool, device=y.device)
        waiting = times.interpolated.clone()
        for step in march_rows(problem, stepper):
            n_outputs = self.packed.n_outputs
            self._take(step, ys, waiting, remember)
            if stepper.keep_graphs:
                self._keep(step, range(n_outputs, self.packed.n_outputs))
            t, y = step.t_end, step.y_end
        stepper.keep_graphs, stepper.evaluations = False, None
        if self.kept.tries and self.budget.leave_one_to_replay():
            self.kept.drop_last()
        problem.slope = None
        failures = problem.failures
        if failures:  # where func may be NaN, and steps are forgotten
            self.kept = KeptTries([], None)
            self.budget.drop_graphs()
            if not problem.return_on_failure:
                raise failures.error()
        if remember:
            self.remember_end(t, y, failures.failed.nonzero()[:, 0].tolist() if failures else ())
        return (rows.flat(ys).detach(),)  # no view, which nobody may write to

    def remember_end(self, t: Tensor, y: Tensor, failed: Sequence[int]) -> None:
        """To be called when all steps were taken.

        :param t, y: times [b] and states [size] that the rows have reached
        :param failed: rows that have failed
        """
        rows, made = self.stepper.rows, self.packed.steps["row"]
        if failed and made:
            none = torch.ones_like(self._infinite_at_start).index_fill(0, torch.cat(made).long(), False)
            row = (none & ~self._infinite_at_start).nonzero()[:, 0]
            self.packed.wait_at(row, t[row], rows.rows(y)[row])
        end = self.packed.pack(t, rows.rows(y), failed)
        self._states = dict(enumerate(self.packed.states.release())) | {"end": rows.flat(end)}
        if self.packed.states.dropped:
            self._states["start"] = self.problem.y0.detach()
        self._end = self.replay.sample(torch.where(self._ends_known, rows.flat(end), 0.0))

    @property
    def _ends_known(self) -> Tensor:
        """Which entries of the state [size] are those of rows whose last states are known."""
        known = self.packed.counts > 0
        return self.stepper.rows.spread(known & ~self.packed.cut if self.packed.states.dropped else known)

    @property
    def storage(self) -> RowSolve:
        return self

    def release(self) -> dict[Any, Tensor]:
        """The tensors that autograd is to look after, by name; they are forgotten here."""
        states, self._states = self._states, None
        return states

    def backward(
        self, states: dict[Any, Tensor], ys_bar: Tensor, dense_bars: Any
    ) -> tuple[Tensor, Tensor | None, list[Any]]:
        """Cotangents of y0, of the times and of the captured tensors."""
        kept, self.kept = self.kept, KeptTries([], None)
        try:
            with self.problem.backward_pass(), self.problem.field.without(self.packed.counts == 0):
                if kept.tries:
                    with contextlib.suppress(UnfitGraphsError):
                        return RowBackwardPass(self, dict(states), ys_bar, kept).walk()
                    self.budget.drop_graphs()
                return RowBackwardPass(self, states, ys_bar).walk()
        finally:
            self.budget.drop_graphs()

    def traced(self, y0: Tensor, times: Tensor) -> tuple[Tensor, ...]:
        """What `forward` returned, again on the accepted steps, as a graph of everything."""
        with self.problem.field.without(self.packed.counts == 0):
            return (self._traced(y0, times),)

    def _traced(self, y0: Tensor, times: Tensor) -> Tensor:
        at: Any  # places of steps, or a point
        problem, stepper, packed, rows = self.problem, self.stepper, self.packed, self.stepper.rows
        columns = times.double().to(y0.device).expand(rows.count, -1)
        ys = [[y0.new_full((rows.width,), math.nan)] * rows.count for _ in range(columns.shape[1] - 1)]
        t, y, first = columns[:, 0], y0, None
        if packed.some_stuck:
            there = rows.rows(y0.detach())[packed.elsewhere].expand(rows.count, -1)
            t = torch.where(packed.displaced, t[packed.elsewhere].detach(), t)
            y = torch.where(rows.spread(packed.displaced), rows.flat(there), y0)
        waiting, end = (t.detach(), y.detach()), y.detach()
        for i in range(packed.most):
            number = torch.full_like(packed.counts, i)
            exists, at = packed.of(number)
            if not bool(exists.all()):  # at their ends, func may be infinite
                t, y = torch.where(exists, t, waiting[0]), torch.where(rows.spread(exists), y, waiting[1])
            after, before = packed.jumps(number, at, problem.row_times.starts_at_jump)
            ends_on = torch.where(exists, packed.steps["ends_on"][at].long(), -1)
            given = columns.gather(1, ends_on.clamp(min=0)[:, None])[:, 0]
            stop = torch.where(ends_on > 0, given, packed.end_of(number))
            h = torch.where(ends_on < 0, torch.where(exists, packed.steps["h"][at], 0.0), stop - t)
            t_end = torch.where(ends_on < 0, t + h, stop)
            if first is None or after is not None:
                fresh = stepper.traced_start(t, y, side_of(after, 1.0))
                first = fresh if first is None else torch.where(rows.spread(after), fresh, first)
            y_end, slopes = stepper.traced(t, h, t_end, y, first, before_jump=before)
            first = slopes[-1] if stepper.fsal else None
            inside = packed.outputs_in(number)
            if len(inside) and stepper.uses_end and not stepper.fsal:
                closed = packed.have(inside)
                at = torch.where(closed, t_end, t), torch.where(rows.spread(closed), y_end, y)
                slopes.append(stepper.field.traced(*at, side=side_of(before, -1.0)))
            for p in inside.tolist() if len(inside) else ():
                r, o = int(packed.outputs["row"][p]), int(packed.outputs["number"][p])
                ys[o][r] = self._traced_output(r, columns[r, o + 1], t, h, y, slopes)
            t, y = t_end, y_end
            end = torch.where(rows.spread(number == packed.counts - 1), y.detach(), end)
            for r in (ends_on > 0).nonzero()[:, 0].tolist():
                ys[int(ends_on[r]) - 1][r] = rows.rows(y)[r]
        found, start = (torch.where(self._ends_known, x, 0.0) for x in (end, y0.detach()))
        self.replay.compare_state(found, self._end, start, float(packed.ends[0]))
        self.replay.conclude()
        return rows.flat(torch.stack([torch.stack(row) for row in ys]).to(y0.dtype))

    def _traced_output(self, row: int, time: Tensor, t: Tensor, h: Tensor, y: Tensor, slopes: list[Tensor]) -> Tensor:
        """State [n] of one row inside its step, at a time (0-d)."""
        rows = self.stepper.rows
        size = float(h[row].detach())
        if size == 0.0 and time.requires_grad:
            raise SecondDerivativeError("per_sample has no second derivatives in times of a row that are all the same")
        theta = (time - t[row]) / h[row] if size else torch.zeros_like(time)
        weights = self.problem.method.interpolant.traced_weights(theta)
        change = sum(w * rows.rows(k)[row] for w, k in zip(weights, slopes))
        return rows.rows(y)[row] + h[row] * change

    def tell_compile_time(self) -> None:
        self.problem.tell_compile_time()

    def not_within_itself(self) -> AbstractContextManager:
        return self.problem.not_within_itself()

    @property
    def _graph_bytes(self) -> float:
        """What the graphs of a try take; infinite where they are not kept."""
        problem = self.problem
        kept = self.stepper.can_keep_graphs and problem.compile_options is None
        # a number of bytes is for states alone
        return problem.graph_bytes if kept and not problem.memory.bounds_bytes else math.inf

    def _keep(self, step: RowStep, outputs: range) -> None:
        """Keep the graphs of a try, and find out whether there is room for another.

        :param outputs: places of those inside its steps
        """
        stepper, h = self.stepper, torch.where(step.accepted, step.h, 0.0)
        ends_on = None if step.ends_on is None else torch.where(step.accepted, step.ends_on, -1)
        first = step.slopes[0] if stepper.time_grad else None
        kept = KeptTry(step.accepted, h, ends_on, step.jumped, outputs, None, first)
        if self.budget.add(kept, None, stepper.evaluations):
            self.kept.add(kept)
        stepper.keep_graphs = self.budget.wants_graph

    def _take(self, step: RowStep, ys: Tensor, waiting: Tensor, remember: bool) -> None:
        """The outputs of a try, and what is to be remembered of it.

        :param ys: outputs [m - 1, b, n], written to
        :param waiting: which outputs [b, m - 1] dense output has still to give, likewise
        """
        rows, packed, ends_on = self.stepper.rows, self.packed, step.ends_on
        inside = self._outputs_inside(step, waiting)
        if step.infinite is not None and ends_on is not None:  # what follows an output that is not there
            ends_on = torch.where(step.infinite, -1, ends_on)
        before, row = packed.count, step.accepted.nonzero()[:, 0]
        if remember:
            packed.add(
                rows.rows(step.y)[row], row=row.int(), t=step.t[row], h=step.h[row],
                ends_on=None if ends_on is None else ends_on[row].int(),
                **({} if step.before_jump is None else {"before_jump": step.before_jump[row]}),
            )  # fmt: skip
        if ends_on is not None:
            landed = (step.accepted & (ends_on > 0)).nonzero()[:, 0]
            number = ends_on[landed] - 1
            ys[number, landed] = rows.rows(step.y_end)[landed]
            self.solved[number, landed] = True
        if inside is not None:
            at, number, theta, found = inside
            ys[number, at], waiting[at, number], self.solved[number, at] = found, False, True
            if remember:
                place = before + (torch.cumsum(step.accepted, 0) - 1)[at]
                packed.add_outputs(row=at, number=number, step=place, theta=theta)

    def _outputs_inside(self, step: RowStep, waiting: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The outputs that dense output gives inside a try: their rows, numbers and fractions [p], and the states there
        [p, n]; None for none. Rows of which one is infinite or NaN, as func may be at the ends of their steps, have
        none, and are noted in the step."""
        times = self.problem.row_times
        if times.outputs.shape[1] == 1:
            return None
        sign = times.direction[:, None]
        reached = sign * times.outputs <= sign * step.t_end[:, None]
        at, number = (waiting & reached & step.accepted[:, None]).nonzero(as_tuple=True)
        if not len(at):
            return None
        h = step.h[at]
        theta = torch.where(h == 0.0, 0.0, (times.outputs[at, number] - step.t[at]) / h)
        found = self.stepper.inside(step.h, step.y, step.slopes, at, theta)
        finite = torch.isfinite(found).all(1)
        if bool(finite.all()):
            return at, number, theta, found
        step.infinite = torch.zeros_like(step.accepted).index_fill(0, at[~finite], True)
        good = ~step.infinite[at]
        return at[good], number[good], theta[good], found[good]
