"""Explicit Runge-Kutta steps: y1 = y + h sum_j b_j k_j, k_j = f(t + c_j h, y + h sum_{l<j} a_jl k_l).

Two kernels of the same step. The fused one works in a stage buffer [slopes, n], one matrix-vector product per stage,
and has a hand-written VJP that calls autograd once per stage on f alone. The functional one (`traced`) is out of
place and differentiable in everything; it serves the naive method, second derivatives and the tests.

The first stage of a step is the slope at its start: with FSAL tableaus the last stage of the step before, otherwise the
slope that dense output may have needed there already. The VJP counts it to the step that it starts, and takes what the
dense output of the step before contributes to its cotangent, so that f is pulled back through once.
"""

import weakref
from dataclasses import dataclass

import torch

from ..transforms import under_transform
from .base import Carry, Stepper, Trial


class RungeKutta(Stepper):
    """The stepper of one tableau.

    :param tableau: `tableaus.Tableau`
    :param vector_field: `vector_field.VectorField`
    :param keep_graphs: keep the graph of every evaluation made by `step`, for a VJP without recomputation
    :param time_grad: let `vjp` return cotangents of the time and the step size
    """

    hint = "On a stiff problem an explicit method is slow: method='Rodas5P' takes large steps there."

    def __init__(self, tableau, vector_field, *, keep_graphs=False, time_grad=False):
        super().__init__(vector_field)
        self.tableau, self.keep_graphs, self.time_grad = tableau, keep_graphs, time_grad
        layout = vector_field.layout
        s = tableau.stages
        self.own_stages = s - 1 if tableau.fsal else s  # stages that a step pays for, its first one included
        self.needs_end_slope = tableau.fsal or tableau.interpolant.slopes > s
        rows = max(s, tableau.interpolant.slopes)
        self.slopes = torch.empty(rows, layout.size, dtype=layout.dtype, device=layout.device)
        self._row = self.slopes.unbind()
        self._target = [layout.target(row) for row in self._row]
        self._columns = [self.slopes[: i + 1].T for i in range(s)]
        self._weights = _weights_of(tableau, layout.dtype, layout.device)
        self._c = self._weights.c
        self._cotangents = self._last_sample = None

    @staticmethod
    def graph_bytes(tableau, field):
        """What the graphs of a step take."""
        return tableau.stages * field.evaluation_bytes

    def start(self, t, y, slope=None, evaluation=None, *, after_jump=False):
        """Carry at the start of a solve; slope and evaluation: f there, if known already; after_jump: f jumps there."""
        return Carry(t, y, slope, evaluation, after_jump)

    def refresh(self, carry):
        """Forget the slope: f jumps here."""
        carry.slope = carry.evaluation = None
        carry.after_jump = True

    def prepare(self, carry):
        """Put the slope at the start of a step into the buffer's first row; evaluates f only if it is not known yet."""
        first = self._row[0]
        if carry.slope is None:
            self._evaluate(carry, 0, side=1 if carry.after_jump else 0)
        elif carry.slope is not first:
            first.copy_(carry.slope)
            carry.slope = first

    def step(self, carry, h, t_end, *, before_jump=False):
        """Try a step of size h from a prepared carry to t_end (which is t + h but for rounding); before_jump: f jumps
        there, so that it is taken just before.
        """
        t, y = carry.t, carry.y
        side = -1 if before_jump else 0
        evaluations = [carry.evaluation] if self.keep_graphs else None
        for i in range(1, self.tableau.stages):
            stage = self._stage(y, h, i)
            at_end = self._c[i] == 1.0
            evaluation = self._slope(t_end if at_end else t + self._c[i] * h, stage, i, side if at_end else 0)
            if self.keep_graphs:
                evaluations.append(evaluation)
        if self.tableau.fsal:
            end = Carry(t_end, stage, self._row[i], evaluations.pop() if self.keep_graphs else None)
        else:
            end = Carry(t_end, torch.addmv(y, self._columns[-1], self._weights.b, alpha=h))
        error = None
        if self.tableau.adaptive:
            error = torch.addmv(y, self._columns[-1], self._weights.b_error, alpha=h, beta=0)
        return Trial(end, error, evaluations)

    def end_slope(self, carry, *, before_jump=False):
        """Make sure that the slope at the end of the step just taken is in the buffer, for dense output."""
        if carry.slope is None:
            self._evaluate(carry, -1, side=-1 if before_jump else 0)

    def interpolation_weights(self, theta):
        """What `interpolate` weighs the slopes with: [m, slopes].

        :param theta: fractions of the step [m], float64
        """
        return self._like(self.tableau.interpolant.weights(theta))

    def interpolate(self, y, h, weights):
        """Dense output inside the step whose slopes are in the buffer, with `interpolation_weights`.

        :param y: state at the start of the step [n]
        :returns: states [m, n]
        """
        return torch.addmm(y.expand(len(weights), -1), weights, self.slopes[: weights.shape[1]], alpha=h)

    def interpolate_vjp(self, h, weights, cotangents):
        """Pull cotangents [m, n] of `interpolate` back: those of the state at the start [n] and of the slopes
        [slopes, n].
        """
        return cotangents.sum(0), torch.mm(weights.T, cotangents).mul_(h)

    def interpolate_time_vjp(self, theta, cotangents):
        """Pull cotangents [m, n] of `interpolate` back to its times [m] and, at fixed slopes, to the step size; the
        slopes are in the buffer.
        """
        interpolant = self.tableau.interpolant
        weights, derivatives = (
            (self._like(w) @ self.slopes[: interpolant.slopes] * cotangents).sum(-1).double().cpu()
            for w in (interpolant.weights(theta), interpolant.derivatives(theta))
        )
        return derivatives, float((weights - derivatives * theta).sum())

    def replay(self, t, h, y, t_end, *, after_jump=False, before_jump=False, every=1):
        """Evaluate an accepted step's own stages again, each with a graph; bit for bit the same stages.

        :param every: what `replayed_end` will be asked for: every so-manieth entry (None: nothing)
        """
        evaluations = []
        for i in range(self.own_stages):
            stage = y if i == 0 else self._stage(y, h, i)
            at_end = self._c[i] == 1.0
            side = int(after_jump) if i == 0 else -int(before_jump and at_end)
            time = t_end if at_end else t + self._c[i] * h
            # the last row is memory that a step without dense output can do without
            whole = every == 1 or self.time_grad or i + 1 < self.own_stages
            sampled = None if whole else every
            evaluations.append(self.record(time, stage, self._target[i] if whole else None, side, sampled))
        self._last_sample = None if sampled is None else evaluations[-1].sample
        return evaluations

    def replayed_end(self, y, h, every=1):
        """The state at the end of a replayed step from y [n]; or every so-manieth entry, and the sum of all (float64).
        """
        own, b = self.own_stages, self._weights.b_own
        if every == 1:
            return torch.addmv(y, self._columns[own - 1], b, alpha=h)
        if self._last_sample is None:
            last, last_total = self.slopes[own - 1, ::every], self.slopes[own - 1].sum(dtype=torch.float64)
        else:
            last, last_total = self._last_sample
        entries, total = y[::every] + h * b[-1] * last, y.sum(dtype=torch.float64) + h * b[-1] * last_total
        if own > 1:
            others = self.slopes[: own - 1]
            entries.addmv_(others[:, ::every].T, b[:-1], alpha=h)
            total += h * (b[:-1].double() @ others.sum(1, dtype=torch.float64))
        return entries, total

    def record(self, t, y, out=None, side=0, every=None):
        """One evaluation of f with its graph; every: as for `VectorField.record`."""
        return self.field.record(t, y, out, time_grad=self.time_grad, side=side, every=every)

    def reload(self, evaluations):
        """Put the values of kept evaluations back into the buffer."""
        for target, evaluation in zip(self._target, evaluations):
            evaluation.write(target)

    def vjp(self, h, evaluations, y_bar, slope_bars, first_bar, gradients):
        """Discrete adjoint of a step.

        :param evaluations: of its own stages; they are used up
        :param y_bar: cotangent of the state at its end [n]
        :param slope_bars: cotangents of its slopes from its dense output [slopes, n], or None
        :param first_bar: a further cotangent of its first stage [n], from the dense output of the step before, or None
        :param gradients: `vector_field.GradientSum`
        :returns: cotangent of the state at its start [n], good until the next call; of its start time and of its size
            (0-d, zero unless time_grad)
        """
        if self._cotangents is None:
            self._cotangents = _Cotangents(self, y_bar)
        bars, weights, own = self._cotangents, self._weights.pullback, self.own_stages
        if y_bar is not bars.first:
            y_bar = bars.first.copy_(y_bar)
        t_bar = h_bar = 0.0
        for j in range(own - 1, -1, -1):
            if slope_bars is not None:
                k_bar = torch.addmv(slope_bars[j], bars.columns[own - j], weights[j], alpha=h)
            elif j == own - 1:  # one pass over memory, as in `_stage`
                k_bar = y_bar * (h * self._weights.b_last)
            else:
                k_bar = torch.addmv(y_bar, bars.columns[own - j], weights[j], alpha=h, beta=0)
            if self.time_grad:
                through_h = k_bar if slope_bars is None else k_bar - slope_bars[j]
                h_bar = h_bar + (through_h @ self._row[j]) / h
            if j == 0 and first_bar is not None:
                k_bar += first_bar
            target = bars.targets[own - j] if j else None
            stage_bar, time_bar = evaluations[j].vjp(k_bar, gradients, out=target)
            evaluations[j] = None
            if stage_bar is None and j:
                target.zero_()
            if time_bar is not None:
                t_bar, h_bar = t_bar + time_bar, h_bar + self._c[j] * time_bar
        if own > 1:
            y_bar.addmv_(bars.others, bars.ones)
        return y_bar if stage_bar is None else y_bar.add_(stage_bar), t_bar, h_bar

    def traced_start(self, t, y, slope=None, *, after_jump=False):
        """What `traced` takes as the slope at the start of a step, known already or not."""
        return self.field.traced(t, y, side=int(after_jump)) if slope is None else slope

    def traced(self, t, h, y, t_end, slope=None, *, after_jump=False, before_jump=False):
        """The step out of place, differentiable in t, h, t_end (0-d tensors or floats), y and all that f depends on.

        :returns: y1 [n], its slopes (list of [n]), the error estimate [n] or None
        """
        slopes = [self.traced_start(t, y, slope, after_jump=after_jump)]
        for i in range(1, self.tableau.stages):
            stage = y + h * combine(self.tableau.a[i], slopes)
            at_end = self._c[i] == 1.0
            time = t_end if at_end else t + self._c[i] * h
            slopes.append(self.field.traced(time, stage, side=-int(before_jump and at_end)))
        y1 = stage if self.tableau.fsal else y + h * combine(self.tableau.b, slopes)
        error = h * combine(self.tableau.b_error, slopes) if self.tableau.adaptive else None
        return y1, slopes, error

    def traced_interpolate(self, t, h, y, slopes, time):
        """Dense output of a `traced` step at one time (0-d tensor), differentiable: [n]."""
        return y + h * combine(self.tableau.interpolant.traced_weights((time - t) / h), slopes)

    def _stage(self, y, h, i):
        """The state of stage i > 0, from the slopes in the buffer."""
        if i == 1:  # one pass over memory, where addmv makes two
            return torch.add(y, self._row[0], alpha=h * self._weights.a10)
        return torch.addmv(y, self._columns[i - 1], self._weights.a[i], alpha=h)

    def _evaluate(self, carry, i, side):
        carry.evaluation = self._slope(carry.t, carry.y, i, side)
        carry.slope = self._row[i]

    def _slope(self, t, y, i, side):
        """Evaluate f into row i of the buffer."""
        if self.keep_graphs:
            return self.record(t, y, self._target[i], side)
        return self.field(t, y, self._target[i], side)

    def _like(self, values):
        return torch.as_tensor(values, dtype=self.slopes.dtype).to(self.slopes.device)


class _Cotangents:
    """Buffer of `RungeKutta.vjp`: the first row belongs to y1, row r to the state of stage own_stages - r, but for the
    first stage. ``columns[r]`` are the first r rows, as a matrix [n, r]; ``others`` all but the first.
    """

    def __init__(self, stepper, like):
        own = stepper.own_stages
        buffer = like.new_empty(own, len(like))
        self.first, self.others = buffer[0], buffer[1:].T
        self.targets = [stepper.field.layout.target(row) for row in buffer]
        self.columns = [buffer[:r].T for r in range(own + 1)]
        self.ones = like.new_ones(own - 1)


@dataclass(frozen=True)
class _Weights:
    """Coefficients: vectors, and floats where they are used one by one. ``b_last`` belongs to the last stage that a
    step pays for, ``b_own`` to all of them; ``pullback[j]`` combines the rows of `_Cotangents` that the slope of stage
    j is in."""

    c: list
    a: list
    a10: float | None
    b: torch.Tensor
    b_own: torch.Tensor
    b_last: float
    b_error: torch.Tensor | None
    pullback: list


_WEIGHTS = weakref.WeakKeyDictionary()  # by tableau, then by type and device: made once


def _weights_of(tableau, dtype, device):
    if under_transform():  # these tensors belong to the transform
        return _made_weights(tableau, dtype, device)
    known = _WEIGHTS.setdefault(tableau, {})
    if (dtype, device) not in known:
        known[dtype, device] = _made_weights(tableau, dtype, device)
    return known[dtype, device]


def _made_weights(tableau, dtype, device):
    def vector(weights):
        return torch.tensor([float(w) for w in weights], dtype=dtype, device=device)

    a, b = tableau.a, tableau.b
    last = tableau.stages - (2 if tableau.fsal else 1)  # of the stages that a step pays for
    return _Weights(
        [float(c) for c in tableau.c],
        [vector(row) for row in a],
        float(a[1][0]) if tableau.stages > 1 else None,
        vector(b),
        vector(b[: last + 1]),
        float(b[last]),
        vector(tableau.b_error) if tableau.adaptive else None,
        [vector([b[j], *(a[m][j] for m in range(last, j, -1))]) for j in range(last + 1)],
    )


def combine(weights, slopes):
    """sum of weights[j] * slopes[j] over the weights (fractions or 0-d tensors) that are not zero."""
    numbers = [w if isinstance(w, torch.Tensor) else float(w) for w in weights]
    return sum(w * k for w, k in zip(numbers, slopes) if isinstance(w, torch.Tensor) or w != 0.0)
