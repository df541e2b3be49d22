"""``gradient="aca"`` by rows: what is remembered of the forward pass, and the accepted steps as a graph.

Of rejected tries nothing is kept, and of accepted ones one state for each row that moved, packed: sum_r N_r states of n
numbers. The k-th last steps of all rows that have one are walked back together (`backward`): evaluations and VJPs of
func in the backward pass are stages * max_r N_r.
"""

from dataclasses import dataclass, field

import torch

from ..gradients.discrete import integrate
from ..gradients.replay import Replay
from .backward import RowBackwardPass
from .march import march_rows
from .stepper import RowStepper


def aca_of_rows(problem):
    """As `gradients.discrete.aca`, for a problem of `problem_of_rows`."""
    return integrate(problem, RowSolve(problem))


@dataclass
class PackedSteps:
    """The accepted steps of all rows, in the order of their tries, and the outputs inside them: lists of pieces during
    the forward pass, tensors after `pack`. A step has its row, time and size; an output its row, number, the number of
    its step and the fraction of the step at which it lies."""

    steps: dict = field(default_factory=lambda: {"row": [], "t": [], "h": [], "y": []})
    outputs: dict = field(default_factory=lambda: {"row": [], "number": [], "step": [], "theta": []})
    count: int = 0

    def add(self, row, t, h, y):
        """Steps of rows [c]."""
        for pieces, value in zip(self.steps.values(), (row, t, h, y)):
            pieces.append(value)
        self.count += len(row)

    def add_outputs(self, *values):
        for pieces, value in zip(self.outputs.values(), values):
            pieces.append(value)

    def pack(self, count):
        """Let go of the pieces; returns the states [sum_r N_r, n].

        :param count: of rows
        """
        self.steps = {name: torch.cat(pieces) for name, pieces in self.steps.items()}
        self.outputs = {name: torch.cat(pieces) if pieces else None for name, pieces in self.outputs.items()}
        row = self.steps["row"]
        self.counts = torch.bincount(row, minlength=count)
        self.by_row = torch.argsort(row, stable=True)
        self.first = torch.cumsum(self.counts, 0) - self.counts
        self.most = int(self.counts.max())
        if self.outputs["row"] is not None:
            rank = torch.empty_like(self.by_row)
            rank[self.by_row] = torch.arange(len(row), device=row.device)
            step = self.outputs["step"]
            self.number_in_row = rank[step] - self.first[row[step]]
        return self.steps.pop("y")

    def of(self, number):
        """Of the steps with a number in each row [b]: which there are, and where they are packed. A row without one is
        given its first step, which is a place where func can be evaluated."""
        exists = (number >= 0) & (number < self.counts)
        return exists, self.by_row[self.first + torch.where(exists, number, 0)]

    def outputs_in(self, number):
        """Places among the outputs of those in the steps with a number in each row [b]."""
        if self.outputs["row"] is None:
            return ()
        return (self.number_in_row == number[self.outputs["row"]]).nonzero()[:, 0]


class RowSolve:
    """One solve by rows with all that its backward pass needs, but for the tensors that autograd looks after."""

    def __init__(self, problem):
        self.problem, self.storage, self.packed = problem, self, PackedSteps()
        self.stepper = RowStepper(problem.method, problem.field, time_grad=problem.time_grad)
        field = problem.field
        self.replay = Replay(field.layout, field.autocast and field.autocast.keywords["dtype"])
        self._states = None

    def forward(self, *, remember=True):
        """March; returns the outputs ([m - 1, size],).

        :param remember: keep what the backward pass needs
        """
        problem, stepper, packed = self.problem, self.stepper, self.packed
        rows, ts = stepper.rows, problem.ts
        times = torch.stack(ts, 1)[:, 1:]  # the start is no output
        sign = torch.sign(ts[-1] - ts[0])[:, None]
        y0 = problem.y0.detach()
        ys = y0.new_empty(times.shape[1], rows.count, rows.width)
        slope, problem.slope, problem.evaluation = problem.slope, None, None

        def accept(accepted, t, h, y, t_end, y_end, slopes):
            before, row = packed.count, accepted.nonzero()[:, 0]
            if remember:
                packed.add(row, t[row], h[row], rows.rows(y)[row])
            if times.shape[1] == 1:
                return
            within = (sign * times > sign * t[:, None]) & (sign * times <= sign * t_end[:, None]) & accepted[:, None]
            within[:, -1] = False  # the end is landed on
            at, number = within.nonzero(as_tuple=True)
            if len(at):
                theta = (times[at, number] - t[at]) / h[at]
                ys[number, at] = stepper.inside(h, y, slopes, at, theta)
                if remember:
                    packed.add_outputs(at, number, before + (torch.cumsum(accepted, 0) - 1)[at], theta)

        end = march_rows(
            stepper, problem.controller, ts, y0, slope, first_step=problem.first_step, limits=problem.limits,
            stats=problem.stats, accept=accept,
        )  # fmt: skip
        ys[-1] = rows.rows(end)
        if remember:
            self._states = {"steps": packed.pack(rows.count), "end": end}
        return (rows.flat(ys),)

    def release(self):
        """The tensors that autograd is to look after, by name; they are forgotten here."""
        states, self._states = self._states, None
        return states

    def backward(self, states, ys_bar, dense_bars):
        """Cotangents of y0, of the times and of the captured tensors."""
        with self.problem.backward_pass():
            return RowBackwardPass(self, states, ys_bar).walk()

    def traced(self, y0, times):
        """What `forward` returned, again on the accepted steps, as a graph of everything."""
        problem, stepper, packed = self.problem, self.stepper, self.packed
        rows, evaluate = stepper.rows, stepper.field.traced
        columns = times.double().to(y0.device).expand(rows.count, -1).unbind(1)
        ys = [[None] * rows.count for _ in columns[1:]]
        t, y, slope = columns[0], y0, None
        last = packed.counts - 1
        for i in range(packed.most):
            number = torch.full_like(last, i)
            exists, at = packed.of(number)
            h = torch.where(exists, packed.steps["h"][at], 0.0)
            h = torch.where(exists & (last == i), columns[-1] - t, h)
            slope = evaluate(t, y) if slope is None else slope
            y_end, slopes = stepper.step(t, h, y, slope, evaluate)
            t_end = t + h
            slope = slopes[-1] if stepper.tableau.fsal else None
            inside = packed.outputs_in(number)
            if len(inside) and slope is None:
                slope = evaluate(t_end, y_end)
                slopes.append(slope)
            for p in inside.tolist() if len(inside) else ():
                r, o = int(packed.outputs["row"][p]), int(packed.outputs["number"][p])
                theta = (columns[o + 1][r] - t[r]) / h[r]
                weights = problem.method.interpolant.traced_weights(theta)
                change = sum(w * rows.rows(k)[r] for w, k in zip(weights, slopes))
                ys[o][r] = rows.rows(y)[r] + h[r] * change
            t, y = t_end, y_end
        ys[-1] = list(rows.rows(y))
        return (rows.flat(torch.stack([torch.stack(row) for row in ys]).to(y0.dtype)),)
