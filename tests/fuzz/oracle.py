"""Solves again over steps that were accepted before, as plain PyTorch that autograd sees through.

Nothing of torch_ACA's solving or gradient code is used here: only the numbers in its Butcher tableaus and interpolants.
What depends on which time: the size of a step inside the interval is a constant; a step that ends on a given time (the
last one, those of land_on_t, those of a grid that holds an output time) depends on that time and on where it starts;
one that ends on another time of step_t, jump_t or the grid ends on a constant. An output inside a step is the
interpolant at its time; so is one at a jump, which stays where it is when the output time moves, unless it is the last.
"""

from dataclasses import dataclass, replace

import torch

from tests.fuzz.alternating import ALTERNATING, EXPLICIT, STIFF
from torch_ACA import methods


class StepsMissing(Exception):
    """The accepted steps do not lead through all times that they must land on."""


@dataclass
class Plan:
    """What a solve was asked for, as far as it changes the result of given steps.

    ``given``: land on these output times (all, or those of a grid); ``constants``: other times to land on; ``jumps``
    are among them. ``interp``: None for the method's own dense output.
    """

    method: str
    given: set
    constants: set
    jumps: set
    interp: str | None = None
    dense: bool = False


def solve(func, y0, times, layout, plan, steps):
    """States at the times (nested, [m, ...] each), and a function time -> state (None unless plan.dense).

    :param times: tensor [m]
    :param steps: (t, h) of every accepted step
    """
    ts = times.detach().double().tolist()
    kind = {"ALF": _Leapfrog, "Rodas5P": _Rosenbrock, ALTERNATING.name: _InTurn}.get(plan.method, _RungeKutta)
    run = kind(func, layout, plan, 1 if ts[-1] > ts[0] else -1)
    walk = _Walk(times.double(), ts, plan, steps)
    outputs, pieces = {0: layout.join(y0)}, []
    run.start(walk.steps[0], outputs[0])
    for step in walk.steps:
        piece = run.step(step)
        for i in step.outputs:
            outputs[i] = piece.at(walk.times[i])
        if step.lands_on is not None:
            outputs[step.lands_on] = piece.y1
        pieces.append(piece)
    rows = [layout.split_parts(outputs[i]) for i in range(len(ts))]
    ys = layout.assemble([torch.stack(column) for column in zip(*rows)])
    return ys, (lambda time: layout.split(_piece_at(pieces, run.sign, time).at(time))) if plan.dense else None


def _piece_at(pieces, sign, time):
    started = [piece for piece in pieces if sign * piece.step.start_value <= sign * time.item()]
    return started[-1]


@dataclass
class _Step:
    """A step from t to t_end, with what it depends on in the graph; ``outputs`` lie inside, ``lands_on`` is at its end.
    """

    t: torch.Tensor
    t_end: torch.Tensor
    h: torch.Tensor
    start_value: float
    end_value: float
    outputs: list
    lands_on: int | None


def _pinned(value, like):
    """A number that depends on what ``like`` depends on."""
    return value + (like - like.detach())


class _Walk:
    """The accepted steps as functions of the times."""

    def __init__(self, times, ts, plan, steps):
        self.times, self.steps = times, []
        sign = 1 if ts[-1] > ts[0] else -1
        inside = {s for s in plan.constants | plan.given if sign * ts[0] < sign * s < sign * ts[-1]}
        missed = inside - {t for t, _ in steps}
        if not steps or steps[0][0] != ts[0] or missed:
            raise StepsMissing(f"accepted steps start at {[t for t, _ in steps]}, times to land on: {sorted(inside)}")
        given = {t: i for i, t in enumerate(ts) if i and (t == ts[-1] or t in plan.given - plan.jumps)}
        waiting = [i for i in range(1, len(ts)) if ts[i] not in given]
        t = times[0]
        for (start, size), end in zip(steps, [*(t for t, _ in steps[1:]), ts[-1]]):
            t = _pinned(start, t)
            if end in inside and end not in given:
                t_end = torch.tensor(end, dtype=torch.float64)
                h = _pinned(size, t_end - t)
            elif end in given:
                t_end = times[given[end]]
                h = _pinned(size, t_end - t)
            else:
                h = torch.tensor(size, dtype=torch.float64)
                t_end = _pinned(end, t)
            within = [i for i in waiting if sign * ts[i] <= sign * end]
            waiting = waiting[len(within) :]
            self.steps.append(_Step(t, t_end, h, start, end, within, given.get(end)))
            t = t_end


class _Field:
    """func on the real vector."""

    def __init__(self, func, layout, plan, sign):
        self._func, self.layout, self.plan, self.sign = func, layout, plan, sign
        self._random = torch.get_rng_state()

    def slope(self, t, x, side=0):
        """func at a time, or one representable number before (-1) or behind (1) it."""
        t = t.to(self.layout.dtype)
        if side:
            beside = torch.nextafter(t.detach(), torch.full_like(t, side * self.sign * float("inf")))
            t = _pinned(beside, t)
        torch.set_rng_state(self._random)  # one dropout mask per solve
        return self.layout.join(self._func(t, self.layout.split(x)))


class _RungeKutta(_Field):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        tableau = methods[self.plan.method]
        self.a = [[float(w) for w in row] for row in tableau.a]
        self.b, self.c = [float(w) for w in tableau.b], [float(w) for w in tableau.c]
        self.ends_on_slope = tableau.stages > 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0 and self.c[-1] == 1
        rows = tableau.interpolant.rows
        self.polynomials = [[float(w) for w in row] for row in rows]
        self.uses_end_slope = {None: len(rows) > tableau.stages, "linear": False, "cubic": True}[self.plan.interp]

    def start(self, step, y0):
        self.y, self.k1 = y0, None
        self.behind_jump = step.start_value in self.plan.jumps

    def step(self, step):
        before = -1 if step.end_value in self.plan.jumps else 0
        if self.k1 is None:
            self.k1 = self.slope(step.t, self.y, 1 if self.behind_jump else 0)
        slopes = [self.k1]
        for c, weights in list(zip(self.c, self.a))[1:]:
            stage = self.y + step.h.to(self.y.dtype) * _sum(weights, slopes)
            at_end = c == 1.0
            time = step.t_end if at_end else step.t + c * step.h
            slopes.append(self.slope(time, stage, before if at_end else 0))
        y1 = self.y + step.h.to(self.y.dtype) * _sum(self.b, slopes)
        piece = _Piece(self, step, self.y, y1, slopes, before)
        if not self.ends_on_slope and self.uses_end_slope and (step.outputs or self.plan.dense):
            piece.end_slope()
        self.behind_jump = before != 0
        self.y, self.k1 = y1, None if self.behind_jump else piece.known_end_slope
        return piece


def _sum(weights, vectors):
    return sum(w * vector for w, vector in zip(weights, vectors) if not isinstance(w, float) or w != 0.0)


class _Piece:
    """The dense output of one Runge-Kutta step."""

    def __init__(self, run, step, y, y1, slopes, before):
        self._run, self.step, self._y, self.y1, self._slopes, self._before = run, step, y, y1, slopes, before
        self.known_end_slope = slopes[-1] if run.ends_on_slope else None

    def end_slope(self):
        if self.known_end_slope is None:
            self.known_end_slope = self._run.slope(self.step.t_end, self.y1, self._before)
        return self.known_end_slope

    def at(self, time):
        theta = ((time - self.step.t) / self.step.h).to(self._y.dtype)
        h = self.step.h.to(self._y.dtype)
        if self._run.plan.interp == "linear":
            return self._y + theta * (self.y1 - self._y)
        if self._run.plan.interp == "cubic":
            return hermite(theta, h, self._y, self.y1, self._slopes[0], self.end_slope())
        slopes = self._slopes
        if len(self._run.polynomials) > len(slopes):
            slopes = [*slopes, self.end_slope()]
        weights = [sum(w * theta ** (p + 1) for p, w in enumerate(row)) for row in self._run.polynomials]
        return self._y + h * _sum(weights, slopes)


class _Rosenbrock(_Field):
    """(I / gamma - h J) k_i = f(t + c_i h, y + h sum a_ij k_j) + sum C_ij k_j + h d_i f_t, y' = y + h sum b_j k_j."""

    ends_on_slope = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.tableau = methods[self.plan.method]
        self.polynomials = self.tableau.interpolant.rows

    def start(self, step, y0):
        self.y, self.behind_jump = y0, step.start_value in self.plan.jumps

    def step(self, step):
        tableau, y, h, slopes = self.tableau, self.y, step.h.to(self.y.dtype), []
        before = -1 if step.end_value in self.plan.jumps else 0
        slope, J, f_t = self._linearised(step.t, y, 1 if self.behind_jump else 0)
        W = torch.eye(len(y), dtype=y.dtype) / tableau.gamma - h * J
        for i, (c, d) in enumerate(zip(tableau.c, tableau.d)):
            if i:
                time = step.t_end if c == 1.0 else step.t + c * step.h
                slope = self.slope(time, y + h * _sum(tableau.a[i], slopes), before if c == 1.0 else 0)
                slope = slope + _sum(tableau.C[i], slopes)
            slopes.append(torch.linalg.solve(W, slope + h * d * f_t))
        y1 = y + h * _sum(tableau.b, slopes)
        piece = _Piece(self, step, y, y1, slopes, before)
        self.y, self.behind_jump = y1, before != 0
        return piece

    def _linearised(self, t, y, side):
        """func with its derivatives by the state and the time; as far as func itself depends on them."""
        with torch.enable_grad():
            y, t = (x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (y, t))
            slope = self.slope(t, y, side)
            rows, rates = [torch.zeros_like(y)] * len(y), [y.new_zeros(())] * len(y)
            for i, entry in enumerate(slope.unbind() if slope.requires_grad else ()):
                row, rate = torch.autograd.grad(entry, (y, t), create_graph=True, allow_unused=True)
                rows[i] = rows[i] if row is None else row
                rates[i] = rates[i] if rate is None else rate.to(y.dtype)
        return slope, torch.stack(rows), torch.stack(rates)


class _InTurn:
    """Steps of Dopri5 and Rodas5P in turn, each of which evaluates its first slope itself."""

    def __init__(self, func, layout, plan, sign):
        self.sign = sign
        self.explicit, self.stiff = (
            kind(func, layout, replace(plan, method=method), sign)
            for kind, method in ((_RungeKutta, EXPLICIT), (_Rosenbrock, STIFF))
        )

    def start(self, step, y0):
        self.now, self.following = self.explicit, self.stiff
        self.now.start(step, y0)

    def step(self, step):
        piece = self.now.step(step)
        self.now, self.following = self.following, self.now
        self.now.start(step, piece.y1)
        self.now.behind_jump = self.following.behind_jump
        return piece


class _Leapfrog(_Field):
    """The asynchronous leapfrog: m = y + h/2 v, u = f(t + h/2, m), v' = 2 u - v, y' = m + h/2 v'."""

    def start(self, step, y0):
        self.y, self.v = y0, self.slope(step.t, y0)

    def step(self, step):
        y, v, h = self.y, self.v, step.h.to(self.y.dtype)
        middle = y + h / 2 * v
        self.v = 2 * self.slope(step.t + step.h / 2, middle) - v
        self.y = middle + h / 2 * self.v
        return _LeapfrogPiece(step, y, self.y, v, self.v)


@dataclass
class _LeapfrogPiece:
    step: _Step
    y: torch.Tensor
    y1: torch.Tensor
    v: torch.Tensor
    v1: torch.Tensor

    def at(self, time):
        theta = ((time - self.step.t) / self.step.h).to(self.y.dtype)
        return hermite(theta, self.step.h.to(self.y.dtype), self.y, self.y1, self.v, self.v1)


def hermite(theta, h, y, y1, slope, slope1):
    """The cubic through both ends and their slopes."""
    return (
        (1 + 2 * theta) * (1 - theta) ** 2 * y
        + theta**2 * (3 - 2 * theta) * y1
        + h * theta * (1 - theta) ** 2 * slope
        + h * theta**2 * (theta - 1) * slope1
    )
