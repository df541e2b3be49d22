"""An explicit Runge-Kutta step of all rows at once, each from its own time with its own size, and its VJP.

Every sum is made entry by entry, so that a row's bits do not depend on where in the batch it stands.
"""

import torch

from ..steppers.dense_output import combine


class RowStepper:
    """Steps of one tableau; times and sizes are float64 tensors [b], states [size].

    ``own``: stages that an accepted step pays for; ``uses_end``: dense output takes the slope at the end of the step.

    :param tableau: `Tableau`
    :param field: `RowField`
    :param time_grad: let `vjp` return cotangents of times and sizes
    """

    def __init__(self, tableau, field, *, time_grad=False):
        self.tableau, self.field, self.rows, self.time_grad = tableau, field, field.rows, time_grad
        self.own = tableau.stages - 1 if tableau.fsal else tableau.stages
        self.uses_end = tableau.interpolant.slopes > self.own
        self._c, self._a, self._b = tableau.floats
        self._b_error = tuple(map(float, tableau.b_error))

    def sizes(self, h):
        """Step sizes for each entry of the state: [size]."""
        return self.rows.spread(h.to(self.field.layout.dtype))

    def step(self, t, h, t_end, y, first, evaluate=None, *, before_jump=None):
        """The state at the end and the slopes of all stages.

        :param first: slope at the start
        :param evaluate: evaluate(t, y, side) -> slope (None: `RowField.slope`)
        :param before_jump: rows at whose ``t_end`` func jumps (None: none)
        """
        sizes, slopes = self.sizes(h), [first]
        evaluate = evaluate or self.field.slope
        for i in range(1, self.tableau.stages):
            stage = _moved(y, sizes, self._a[i], slopes)
            time, side = self._at(i, t, h, t_end, None, before_jump)
            slopes.append(evaluate(time, stage, side))
        return stage if self.tableau.fsal else _moved(y, sizes, self._b, slopes), slopes

    def error(self, h, slopes):
        return _sum(self._b_error, slopes).mul_(self.sizes(h))

    def inside(self, h, y, slopes, row, theta):
        """Dense output at fractions theta [p] of the steps of rows [p]: [p, n].

        :param slopes: as the interpolant weighs them, list of [size]
        """
        weights = [w.to(y)[:, None] for w in self.tableau.interpolant.traced_weights(theta)]
        parts = [self.rows.rows(k)[row] for k in slopes]
        return self.rows.rows(y)[row] + h.to(y)[row, None] * combine(weights, parts)

    def replay(self, t, h, t_end, y, *, after_jump=None, before_jump=None):
        """The `Evaluation`s and slopes of a step's own stages, and the state at its end.

        :param after_jump: rows at whose t func jumps, likewise
        """
        evaluations, slopes, sizes = [], [], self.sizes(h)
        for i in range(self.own):
            stage = _moved(y, sizes, self._a[i], slopes) if i else y
            slopes.append(torch.empty_like(y))
            time, side = self._at(i, t, h, t_end, after_jump, before_jump)
            evaluations.append(self.field.record(time, stage, slopes[-1], time_grad=self.time_grad, side=side))
        return evaluations, slopes, _moved(y, sizes, self._b[: self.own], slopes)

    def _at(self, i, t, h, t_end, after_jump, before_jump):
        """Times [b] of stage i, and on which side of them."""
        at_end = self._c[i] == 1.0
        time = t_end if at_end else t + self._c[i] * h
        if i == 0:
            return t, side_of(after_jump, 1.0)
        return time, side_of(before_jump, -1.0) if at_end else 0

    def vjp(self, h, evaluations, slopes, y_bar, slope_bars, gradients):
        """Discrete adjoint of a step.

        :param evaluations: used up
        :param y_bar: cotangent of the state at the end [size]
        :param slope_bars: further cotangents of the own slopes, list of [size] or None
        :param gradients: `GradientSum`, added to
        :returns: cotangents of the state at the start [size], of the time and of the size [b] (None without time_grad)
        """
        sizes, stage_bars = self.sizes(h), {}
        t_bar = h_bar = torch.zeros_like(h) if self.time_grad else None
        for j in range(self.own - 1, -1, -1):
            later = sorted(stage_bars)
            k_bar = _sum([self._b[j], *(self._a[m][j] for m in later)], [y_bar, *map(stage_bars.get, later)])
            if self.time_grad:
                h_bar = h_bar + self.rows.dot(k_bar, slopes[j])
            k_bar.mul_(sizes)
            if slope_bars[j] is not None:
                k_bar.add_(slope_bars[j])
            state_bar, time_bar = evaluations[j].vjp(k_bar, gradients)  # may share memory with k_bar
            evaluations[j] = None
            stage_bars[j] = torch.zeros_like(y_bar) if state_bar is None else state_bar
            if self.time_grad and time_bar is not None:
                time_bar = time_bar.reshape(-1).double()
                t_bar, h_bar = t_bar + time_bar, h_bar + self._c[j] * time_bar
        first, *others = stage_bars.values()
        y_bar = y_bar + first
        for bar in others:
            y_bar.add_(bar)
        return y_bar, t_bar, h_bar


def side_of(jumps, side):
    """The side, 1.0 or -1.0, for the rows that jump (None: there are none)."""
    return 0 if jumps is None else side * jumps


def _sum(weights, slopes):
    """sum of weights[j] * slopes[j], in memory of its own."""
    total = None
    for weight, slope in zip(weights, slopes):
        if weight != 0.0:
            total = slope * weight if total is None else total.add_(slope, alpha=weight)
    return torch.zeros_like(slopes[0]) if total is None else total


def _moved(y, sizes, weights, slopes):
    """y + sizes * (sum of weights[j] * slopes[j]): [size]."""
    return _sum(weights, slopes).mul_(sizes).add_(y)
