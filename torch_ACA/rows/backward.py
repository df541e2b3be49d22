"""The backward pass by rows: the k-th last accepted step of every row that has one, together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..evaluation import GradientSum
from ..gradients.replay import COMPARED
from ..notices import warn_caller
from .chain import RowChain
from .failures import shown_rows
from .kept import UnfitGraphsError
from .stepper import side_of, times_of_rows
from .times import as_given

if TYPE_CHECKING:
    from ..evaluation import Evaluation
    from .kept import KeptTries
    from .solve import RowSolve


class RowBackwardPass:
    """One walk back over the steps of a `RowSolve`. A row whose first step is behind it waits there with steps of size
    0, whose cotangents are zero.

    :param states: what the `release` of the run gave
    :param ys_bar: cotangents of the outputs [m - 1, size]
    :param kept: used up (None: none)
    """

    def __init__(self, run: RowSolve, states: dict[Any, Tensor], ys_bar: Tensor, kept: KeptTries | None = None) -> None:
        self.run, self.problem, self.stepper, self.packed = run, run.problem, run.stepper, run.packed
        self.rows, self.field = run.stepper.rows, run.problem.field
        self.states, self.kept = RowChain(run).backwards(states), kept
        bars = self.rows.rows(ys_bar)
        # an output that is not there has no cotangent, whatever a loss makes of its NaN
        self.bars = bars if bool(run.solved.all()) else torch.where(run.solved[..., None], bars, 0.0)  # [m - 1, b, n]
        self.gradients = GradientSum(len(self.field.captured.tensors))
        self._n_evals = self.field.n_evals
        b, m = self.problem.row_times.outputs.shape
        self.times_bar = torch.zeros(b, m + 1, dtype=torch.float64, device=ys_bar.device)
        self.compared_every = 1 if self.field.may_differ_anywhere() else -(-COMPARED // self.stepper.own)

    def walk(self) -> tuple[Tensor, Tensor | None, list[Any]]:
        """Cotangents of y0 [size], of the times (as they were given; None unless asked) and of the captured tensors.

        :raises UnfitGraphsError: kept graphs are of no use
        """
        packed, before = self.packed, self.field.n_evals
        y_bar, now = self._over_packed()
        if self.kept is not None:
            y_bar, now = self._over_kept(y_bar, now)
        self.run.replay.conclude()
        if packed.most:
            self.field.captured.check_reached(self.gradients.totals)
        if packed.some_stuck and not all(map(_is_finite, self.gradients.totals)):
            warn_caller(_SPOILED.format(shown_rows(packed.counts == 0)))
        self.problem.stats.n_backward_f_evals = self.field.n_evals - before
        return y_bar, self._times_bar(now), self.gradients.totals

    def _over_packed(self) -> tuple[Tensor, Tensor]:
        """Over the steps without kept graphs. Cotangents of the states [size] and times [b] at their starts."""
        packed, rows, stepper, time_grad = self.packed, self.rows, self.stepper, self.problem.time_grad
        last, n_steps = packed.counts - 1, packed.most
        if self.kept is not None:
            n_steps = int((packed.counts - self.kept.counts).max())
        some_stuck = packed.some_stuck
        end = next(self.states)
        y_bar, now = torch.zeros_like(end), torch.zeros_like(packed.ends)  # now: cotangents of the times reached
        end_slope, t, outputs = None, packed.ends, self._outputs_in(last)
        lands_inside = self.problem.row_times.lands_inside
        for k in range(n_steps):
            exists, at = packed.from_end(k)
            if self.kept is not None:
                exists = exists & (last - k >= self.kept.counts)
            start, h = packed.steps["t"][at], torch.where(exists, packed.steps["h"][at], 0.0)
            t, t_end = start, torch.where(exists, t, start)
            ends_on = None
            if k == 0 or lands_inside:
                ends_on = torch.where(exists, packed.steps["ends_on"][at].long(), -1)
            after_jump, before_jump = packed.jumps(last - k, at, self.problem.row_times.starts_at_jump)
            y = next(self.states)
            self.field.choice.keep(exists)
            end = torch.where(rows.spread(exists), end, y)
            y_bar = self._landed(y_bar, ends_on)
            slope_bars, end_bar, start_bar = self._inside(outputs)
            closed = torch.full_like(exists, k == 0) if before_jump is None or k == 0 else before_jump & exists
            closed = closed & packed.have(outputs) if end_bar is not None else closed
            if end_bar is not None and bool(closed.any()):
                at_end = rows.spread(closed)  # func may be NaN where a row has failed
                end_bar, side = torch.where(at_end, end_bar, 0.0), side_of(before_jump, -1.0)
                point = torch.where(closed, t_end, t), torch.where(at_end, end, y)
                evaluation = self.field.record(*point, time_grad=time_grad, side=side)
                if time_grad:
                    value = evaluation.value()
                    end_slope = value if end_slope is None else torch.where(at_end, value, end_slope)
                y_bar, now = self._through(evaluation, end_bar, y_bar, now)
            inside, outputs = outputs, self._outputs_in(last - k - 1)
            first_bar = self._inside(outputs)[1]  # the step before, in time, ends on the first slope of this one
            if first_bar is not None:
                if after_jump is not None:
                    first_bar = torch.where(rows.spread(after_jump), 0.0, first_bar)
                slope_bars[0] = first_bar if slope_bars[0] is None else slope_bars[0] + first_bar
            record, slopes, found = stepper.replay(t, h, t_end, y, after_jump=after_jump, before_jump=before_jump)
            if k % self.compared_every == 0:
                found = torch.where(rows.spread(exists), found, end)  # a row that waits may be NaN
                self.run.replay.compare_state(found, self.run.replay.sample(end), y, float(t_end[0]))
            behind = y_bar
            y_bar, t_bar, h_bar = stepper.vjp(h, record, slopes, y_bar, slope_bars, self.gradients)
            if some_stuck:
                y_bar = torch.where(rows.spread(exists), y_bar, behind)
                if time_grad:
                    t_bar, h_bar = (torch.where(exists, bar, 0.0) for bar in (t_bar, h_bar))
            if start_bar is not None:
                y_bar = y_bar + start_bar
            if time_grad:
                t_bar, h_bar = self._through_outputs(inside, h, slopes, end_slope, t_bar, h_bar)
                now = self._through_size(ends_on, now, t_bar, h_bar)
            end, end_slope = y, slopes[0] if time_grad else None
            del record, slopes, found  # before states are made again
        return y_bar, now

    def _over_kept(self, y_bar: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        """Over the tries with kept graphs, behind which are the cotangents of states [size] and times [b]; returns
        those at the start of the solve."""
        stepper: Any  # one that can keep graphs
        kept, rows, stepper, gradients = self.kept, self.rows, self.stepper, self.gradients
        captured, replayed = self.field.captured, self.field.n_evals > self._n_evals
        if replayed and captured.not_reached(gradients.totals):  # func may have changed, which graphs would hide
            raise UnfitGraphsError
        may_spoil, first_bar = kept.may_spoil, None  # of the first slopes of the steps behind
        try:
            while kept.tries:
                step = kept.tries.pop()
                y_bar, accepted = self._landed(y_bar, step.ends_on), rows.spread(step.accepted)
                outputs = torch.arange(step.outputs.start, step.outputs.stop, device=y_bar.device)
                slope_bars, end_bar, start_bar = self._inside(outputs)
                if step.jumped is not None:
                    behind, jumped = step.evaluations.pop(), rows.spread(step.jumped)
                    if first_bar is not None:
                        y_bar, now = self._through(behind, torch.where(jumped, first_bar, 0.0), y_bar, now)
                        first_bar = torch.where(jumped, 0.0, first_bar)
                if first_bar is not None:
                    here = torch.where(accepted, first_bar, 0.0)
                    end_bar = here if end_bar is None else here + end_bar
                end, slopes, end_slope = step.evaluations.pop(), None, None
                if stepper.time_grad:
                    slopes, end_slope = [step.first, *(e.value() for e in step.evaluations)], end.value()
                if end_bar is not None:
                    y_bar, now = self._through(end, end_bar, y_bar, now)
                y_bar, bar, t_bar, h_bar = stepper.vjp_behind_first(
                    step.h, [None, *step.evaluations], slopes, y_bar, slope_bars, gradients
                )
                step.evaluations = None
                first_bar = torch.where(accepted, bar, 0.0 if first_bar is None else first_bar)
                y_bar = y_bar if start_bar is None else y_bar + start_bar
                if stepper.time_grad:
                    t_bar, h_bar = self._through_outputs(outputs, step.h, slopes, end_slope, t_bar, h_bar)
                    now = self._through_size(step.ends_on, now, t_bar, h_bar)
            y_bar, now = self._through(kept.start, first_bar, y_bar, now)
        except RuntimeError as failure:  # as of a tensor that was changed in place: what it comes to is found by replay
            raise UnfitGraphsError from failure
        if may_spoil and not all(map(_is_finite, (y_bar, now, self.times_bar, *gradients.totals))):
            raise UnfitGraphsError
        return y_bar, now

    def _through(self, evaluation: Evaluation, bar: Tensor, y_bar: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        """Pull the cotangent of a slope back: to the cotangents of the state and the times that it was found at."""
        state_bar, time_bar = evaluation.vjp(bar, self.gradients)
        y_bar = y_bar if state_bar is None else y_bar + state_bar
        return y_bar, now if time_bar is None else now + times_of_rows(time_bar)

    def _outputs_in(self, number: Tensor) -> Any:
        """Places of the outputs inside steps with a number in each row [b], whose graphs were not kept."""
        if self.kept is not None:
            number = torch.where(number >= self.kept.counts, number, -1)
        return self.packed.outputs_in(number)

    def _landed(self, y_bar: Tensor, ends_on: Tensor | None) -> Tensor:
        """Cotangents of the states at the ends of steps, with those of the outputs that these are."""
        landed = () if ends_on is None else (ends_on > 0).nonzero()[:, 0]
        if not len(landed):
            return y_bar
        bars = torch.zeros_like(self.bars[0])
        bars[landed] = self.bars[ends_on[landed] - 1, landed]
        return y_bar + self.rows.flat(bars)

    def _through_size(self, ends_on: Tensor | None, now: Tensor, t_bar: Tensor, h_bar: Tensor) -> Tensor:
        """Cotangents of the times at the starts of steps. The size of one that ends on a stop is what is left to it."""
        if ends_on is None:
            return now + t_bar
        at_stop = torch.where(ends_on > 0, now + h_bar, 0.0)
        self.times_bar.scatter_add_(1, ends_on.clamp(min=0)[:, None], at_stop[:, None])
        return torch.where(ends_on >= 0, t_bar - h_bar, now + t_bar)

    def _inside(self, outputs: Any) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
        """What outputs inside steps add to the cotangents of the own slopes (list), of the slope at the end and of the
        state at the start; None for nothing."""
        own = self.stepper.own
        if not len(outputs):
            return [None] * own, None, None
        row, bars, h, theta = self._of(outputs)
        weights = self.problem.method.interpolant.traced_weights(theta)
        scaled = h.to(bars)[:, None] * bars
        made = [self._sum(row, w.to(bars)[:, None] * scaled) for w in weights] + [None] * (own - len(weights))
        return made[:own], made[own] if self.stepper.uses_end else None, self._sum(row, bars)

    def _through_outputs(
        self, outputs: Any, h: Tensor, slopes: list[Tensor], end_slope: Tensor | None, t_bar: Tensor, h_bar: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of times and sizes of steps, with what outputs inside add; those of the outputs' times as well."""
        if not len(outputs):
            return t_bar, h_bar
        row, bars, _, theta = self._of(outputs)
        slopes = [*slopes, end_slope] if self.stepper.uses_end else slopes
        along = torch.stack([(self.rows.rows(k)[row] * bars).sum(1).double() for k in slopes], 1)  # [p, slopes]
        interpolant, place = self.problem.method.interpolant, theta.cpu()
        weights, rates = (w.to(along) for w in (interpolant.weights(place), interpolant.derivatives(place)))
        along = along[:, : weights.shape[1]]
        rates, weights = (rates * along).sum(1), (weights * along).sum(1)
        self.times_bar.index_put_((row, self.packed.outputs["number"][outputs] + 1), rates, accumulate=True)
        return t_bar.index_add(0, row, -rates), h_bar.index_add(0, row, weights - theta * rates)

    def _of(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows [p], cotangents [p, n], step sizes and fractions of outputs."""
        found = {name: values[outputs] for name, values in self.packed.outputs.items()}
        row, h = found["row"], self.packed.steps["h"][found["step"]]
        return row, self.bars[found["number"], row], h, found["theta"]

    def _sum(self, row: Tensor, values: Tensor) -> Tensor:
        """Values [p, n] added up row by row: [size]."""
        zeros = values.new_zeros(self.rows.count, self.rows.width)
        return self.rows.flat(zeros.index_add_(0, row, values))

    def _times_bar(self, now: Tensor) -> Tensor | None:
        if not self.problem.time_grad:
            return None
        self.times_bar[:, 0] += now
        return as_given(self.times_bar, self.problem.times)


def _is_finite(bar: Tensor | None) -> bool:
    return bar is None or bool(torch.isfinite(bar.coalesce().values() if bar.is_sparse else bar).all())


_SPOILED = (
    "gradients of what func uses are infinite or NaN. No output was reached by {}: if func has NaN among their data, "
    "that may be why. Where it gets the rows' data through args, such rows are left out"
)
