"""Batches of independent problems, a row each, that are hard in different measure or have times of their own."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.problems import TIGHT, Perceptron, Problem, flat
from torch_ACA import methods, solve_endtime


@dataclass(frozen=True)
class RowProblem(Problem):
    """As `Problem`; ``times`` are [b, m], a row for each of y0. Behind each interval the state may jump, where
    ``func`` has an ``update(y, number)``; the outputs are the states behind the jumps."""

    def through(self, end, y0):
        """Outputs behind times[:, 0], [m - 1, *shape of y0].

        :param end: end(y, t0 [b], t1 [b]) -> states at t1
        """
        update = getattr(self.func, "update", None)
        y, ys, times = y0, [], self.times.to(y0.device)
        for number, (t0, t1) in enumerate(zip(times.T[:-1], times.T[1:])):
            y = end(y, t0, t1)
            y = y if update is None else update(y, number)
            ys.append(y)
        return torch.stack(ys)

    def accepted_evaluations(self):
        """Evaluations that the accepted steps of the row with most of them need, added up over the intervals."""
        method, counts = methods[self.method], []

        def end(y, t0, t1):
            y, stats = solve_endtime(self.func, y, t0, t1, per_sample=True, **self.solver)
            counts.append(int(stats.n_accepted.max()))
            return y

        with torch.no_grad():
            self.through(end, self.y0)
        return sum(counts) * (method.stages - method.fsal) + len(counts)

    def reference_solution(self):
        double = copy.deepcopy(self)
        double.func.double()
        y0 = double.y0.detach().double().requires_grad_()
        ys = double.through(lambda y, t0, t1: joint_end(double.func, y, t0, t1, **self.reference), y0)
        gradients = torch.autograd.grad(self.loss(ys), [y0, *double.func.parameters()])
        return flat([ys]), flat(gradients)


def joint_end(func, y, t0, t1, **keywords):
    """States at t1 [b] by one solve with the same steps for all rows, in a time that runs from 0 to 1 in each."""
    start, span = (x.to(y)[:, None] for x in (t0, t1 - t0))
    return solve_endtime(lambda s, y: span * func(start + s * span, y), y, 0.0, 1.0, **keywords)[0]


class LotkaVolterra(nn.Module):
    """Predators and prey, y [b, 2], in worlds that run at different speeds, from ``slowest`` to ``fastest``."""

    def __init__(self, count, slowest=0.1, fastest=10.0):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64))
        speeds = torch.logspace(torch.tensor(slowest).log10(), torch.tensor(fastest).log10(), count)
        self.register_buffer("of_rows", speeds.double()[:, None])

    def forward(self, t, y):
        prey, predators = y[:, :1], y[:, 1:]
        a, b, c, d = self.rates
        return self.of_rows * torch.cat([prey * (a - b * predators), predators * (d * prey - c)], 1)


class StiffOscillators(nn.Module):
    """Van der Pol's equation, y [b, 2], with a stiffness for each row over two decades, and a common damping."""

    def __init__(self, count):
        super().__init__()
        self.damping = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("of_rows", torch.logspace(-1, 1, count, dtype=torch.float64)[:, None])

    def forward(self, t, y):
        x, v = y[:, :1], y[:, 1:]
        return torch.cat([v, self.of_rows * (self.damping - x * x) * v - x], 1)


class RecurrentODE(nn.Module):
    """A neural ODE between observations and a gated recurrent unit at each of them; y [b, width]."""

    def __init__(self, count, n_observations, width=32, observed=8):
        super().__init__()
        self.field, self.cell = Perceptron(width, 2 * width), nn.GRUCell(observed, width)
        self.register_buffer("observations", torch.randn(n_observations, count, observed))

    def forward(self, t, y):
        return self.field(t, y)

    def update(self, y, number):
        return self.cell(self.observations[number], y)


def lotka_volterra(count, horizon):
    y0 = 0.5 + torch.rand(count, 2, dtype=torch.float64)
    return _problem(f"Lotka-Volterra, {count} rows, Dopri5 1e-6", LotkaVolterra(count), y0, horizon, 1e-6)


def perceptron(count):
    y0 = torch.randn(count, 64) * torch.logspace(-1, 0.5, count)[:, None]
    return _problem(f"MLP, {count} rows, Dopri5 1e-5", Perceptron(), y0, 4.0, 1e-5)


def stiff(count, horizon):
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64) + 0.1 * torch.randn(count, 2, dtype=torch.float64)
    return _problem(f"Stiffness 0.1 to 10, {count} rows, Dopri5 1e-6", StiffOscillators(count), y0, horizon, 1e-6)


def recurrent(count, n_observations):
    """Intervals between observations from a hundredth to one, other ones in each row."""
    gaps = 10 ** (-2 * torch.rand(count, n_observations, dtype=torch.float64))
    times = torch.cat([torch.zeros(count, 1, dtype=torch.float64), gaps.cumsum(1)], 1)
    title = f"ODE-RNN, {count} rows, {n_observations} observations at times of their own, Dopri5 1e-5"
    return _problem(title, RecurrentODE(count, n_observations), torch.randn(count, 32), times, 1e-5)


def _problem(title, func, y0, times, tolerance):
    if isinstance(times, float):
        times = torch.tensor([0.0, times], dtype=torch.float64).expand(len(y0), 2)
    return RowProblem(title, func, y0, times, "Dopri5", tolerance, tolerance, reference=TIGHT)


PROBLEMS = {
    "rows_lotka_volterra": lambda quick: lotka_volterra(16 if quick else 64, 1.0 if quick else 10.0),
    "rows_lotka_volterra_256": lambda quick: lotka_volterra(32 if quick else 256, 1.0 if quick else 10.0),
    "rows_mlp": lambda quick: perceptron(32 if quick else 256),
    "rows_stiff": lambda quick: stiff(16 if quick else 256, 2.0 if quick else 20.0),
    "rows_recurrent": lambda quick: recurrent(8 if quick else 64, 3 if quick else 10),
}
