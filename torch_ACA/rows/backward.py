"""The backward pass by rows: the k-th last accepted step of every row that has one, together."""

import torch

from ..evaluation import GradientSum
from ..gradients.replay import COMPARED


class RowBackwardPass:
    """One walk back over the steps of a `RowSolve`. A row whose first step is behind it waits there with steps of size
    0, whose cotangents are zero.

    :param run: the `RowSolve`
    :param states: what its `release` gave: states at the starts of all packed steps, and the state at the end
    :param ys_bar: cotangents of the outputs [m - 1, size]
    """

    def __init__(self, run, states, ys_bar):
        self.run, self.problem, self.stepper, self.packed = run, run.problem, run.stepper, run.packed
        self.rows, self.field = run.stepper.rows, run.problem.field
        self.starts, self.end = states["steps"], states["end"]
        self.bars = self.rows.rows(ys_bar)  # [m - 1, b, n]
        self.gradients = GradientSum(len(self.field.captured.tensors))
        b, m = self.rows.count, len(self.problem.ts)
        self.times_bar = torch.zeros(b, m, dtype=torch.float64, device=ys_bar.device) if run.problem.time_grad else None
        # another thread may have drawn from the stream in any one step
        self.compared_every = 1 if self.field.side_effects.draws else -(-COMPARED // self.stepper.own)

    def walk(self):
        """Cotangents of y0 [size], of the times (as they were given; None unless asked) and of the captured tensors."""
        packed, rows, stepper, time_grad = self.packed, self.rows, self.stepper, self.problem.time_grad
        before, last = self.field.n_evals, packed.counts - 1
        y_bar, now = rows.flat(self.bars[-1]), torch.zeros_like(self.problem.ts[0])
        end, end_slope, outputs = self.end, None, packed.outputs_in(last)
        for k in range(packed.most):
            exists, at = packed.of(last - k)
            t, h = packed.steps["t"][at], torch.where(exists, packed.steps["h"][at], 0.0)
            y = rows.flat(self.starts[at])
            slope_bars, end_bar, start_bar = self._inside(outputs)
            if k == 0 and end_bar is not None:
                evaluation = self.field.record(self.problem.ts[-1], end, time_grad=time_grad)
                end_slope = evaluation.value() if time_grad else None
                state_bar, time_bar = evaluation.vjp(end_bar, self.gradients)
                y_bar = y_bar if state_bar is None else y_bar + state_bar
                now = now if time_bar is None else now + time_bar.reshape(-1).double()
            inside, outputs = outputs, packed.outputs_in(last - k - 1)
            first_bar = self._inside(outputs)[1]  # the step before, in time, ends on the first slope of this one
            if first_bar is not None:
                slope_bars[0] = first_bar if slope_bars[0] is None else slope_bars[0] + first_bar
            evaluations, slopes, found = stepper.replay(t, h, y)
            if k % self.compared_every == 0:
                expected = torch.where(rows.spread(exists), end, y)
                self.run.replay.compare_state(found, self.run.replay.sample(expected), y, float(t[0] + h[0]))
            y_bar, t_bar, h_bar = stepper.vjp(h, evaluations, slopes, y_bar, slope_bars, self.gradients)
            if start_bar is not None:
                y_bar = y_bar + start_bar
            if time_grad:
                t_bar, h_bar = self._through_outputs(inside, h, slopes, end_slope, t_bar, h_bar)
                if k == 0:  # the size of a row's last step is what is left to its end
                    self.times_bar[:, -1] += now + h_bar
                    now = t_bar - h_bar
                else:
                    now = now + t_bar
            end, end_slope = y, slopes[0]
        self.run.replay.conclude()
        self.field.captured.check_reached(self.gradients.totals)
        self.problem.stats.n_backward_f_evals = self.field.n_evals - before
        return y_bar, self._times_bar(now), self.gradients.totals

    def _inside(self, outputs):
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

    def _through_outputs(self, outputs, h, slopes, end_slope, t_bar, h_bar):
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

    def _of(self, outputs):
        """Rows [p], cotangents [p, n], step sizes and fractions of outputs."""
        found = {name: values[outputs] for name, values in self.packed.outputs.items()}
        row, h = found["row"], self.packed.steps["h"][found["step"]]
        return row, self.bars[found["number"], row], h, found["theta"]

    def _sum(self, row, values):
        """Values [p, n] added up row by row: [size]."""
        zeros = values.new_zeros(self.rows.count, self.rows.width)
        return self.rows.flat(zeros.index_add_(0, row, values))

    def _times_bar(self, now):
        if self.times_bar is None:
            return None
        self.times_bar[:, 0] += now
        times = self.problem.times
        return (self.times_bar if times.dim() == 2 else self.times_bar.sum(0)).to(times)
