"""Programs in the style of torchdiffeq's clients, run with its import and with ours: the same values and gradients.

Each program takes the library and returns its loss and the tensors whose gradients count. Both libraries solve to
tolerances of 1e-9, so that values and gradients, sums of some hundred terms near 1, agree to 1e-6.
"""

import math

import pytest
import torch
from torch import nn

import torch_ACA

torchdiffeq = pytest.importorskip("torchdiffeq")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def net(*sizes):
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class Conditional(nn.Module):
    """A field that reads what an encoder made of the input, before every solve."""

    def __init__(self):
        super().__init__()
        self.encoder, self.field, self.context = net(4, 8, 3), net(5, 16, 2), None

    def forward(self, t, y):
        return self.field(torch.cat([y, self.context.expand(len(y), 3)], 1))


def conditional(odeint):
    model, x, y0 = Conditional(), torch.randn(1, 4), torch.randn(6, 2, requires_grad=True)
    model.context = model.encoder(x)
    ys = odeint(model, y0, torch.linspace(0, 1, 4), **TIGHT)
    return (ys**2).mean(), [y0, *model.parameters()]


class ControlledField(nn.Module):
    """A controlled differential equation: z' = F(z) X'(t), X a cubic spline through the data."""

    def __init__(self, times, values):
        super().__init__()
        self.field, self.times = net(3, 16, 6), times
        width = (times[1:] - times[:-1])[:, None]
        slopes = torch.cat([(values[1:2] - values[:1]) / width[:1], (values[1:] - values[:-1]) / width])
        rise = (values[1:] - values[:-1]) / width
        self.a, self.b = slopes[:-1], (3 * rise - 2 * slopes[:-1] - slopes[1:]) / width
        self.c = (slopes[:-1] + slopes[1:] - 2 * rise) / width**2

    def derivative(self, t):
        i = int(((t > self.times).sum() - 1).clamp(0, len(self.times) - 2))
        s = t - self.times[i]
        return self.a[i] + 2 * self.b[i] * s + 3 * self.c[i] * s**2

    def forward(self, t, z):
        return (torch.tanh(self.field(z)).view(-1, 3, 2) @ self.derivative(t)).view(-1, 3)


def controlled(odeint):
    times = torch.linspace(0, 1, 6)
    values = torch.randn(6, 2, requires_grad=True)
    model = ControlledField(times, values)
    z0 = torch.randn(5, 3, requires_grad=True)
    zs = odeint(model, z0, times[[0, -1]], method="dopri5", options={"jump_t": times[1:-1]}, **TIGHT)
    return zs[-1].square().sum(), [z0, values, *model.parameters()]


class Flow(nn.Module):
    """A continuous normalising flow whose trace is estimated with one noise per solve."""

    def __init__(self):
        super().__init__()
        self.field, self.noise = net(3, 16, 2), None

    def forward(self, t, state):
        x = state[0]
        if self.noise is None:
            self.noise = torch.randn_like(x)
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            dx = self.field(torch.cat([x, t.expand(len(x), 1)], 1))
            (along,) = torch.autograd.grad(dx, x, self.noise, create_graph=True)
        return dx, -(along * self.noise).sum(1)


def flow(odeint):
    model, x = Flow(), torch.randn(6, 2)
    losses = []
    for _ in range(2):
        model.noise = None
        z, change = odeint(model, (x, torch.zeros(6)), torch.tensor([0.0, 1.0]), **TIGHT)
        losses.append((0.5 * z[-1].square().sum(1) + change[-1]).mean())
    return sum(losses), list(model.parameters())


class Hamiltonian(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = net(2, 16, 1)

    def forward(self, t, state):
        with torch.enable_grad():
            state = state if state.requires_grad else state.requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(state).sum(), state, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


def hamiltonian(odeint):
    model, state = Hamiltonian(), torch.randn(5, 2, requires_grad=True)
    return odeint(model, state, torch.linspace(0, 2, 5), **TIGHT).square().sum(), [state, *model.parameters()]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.field, self.cell = net(4, 16, 4), nn.GRUCell(2, 4)

    def forward(self, t, h):
        return self.field(h)


def ode_rnn(odeint):
    model, data, times = Recurrent(), torch.randn(7, 3, 2), torch.rand(8).cumsum(0)
    h = torch.zeros(3, 4)
    for x, start, end in zip(data, times, times[1:]):
        h = odeint(model, h, torch.stack([start, end]), method="euler")[-1]
        h = model.cell(x, h)
    return h.square().sum(), list(model.parameters())


def hypernetwork(odeint):
    hyper, y0 = net(2, 16, 12), torch.randn(4, 3, requires_grad=True)
    weight, bias = hyper(torch.randn(2)).split([9, 3])

    class Field(nn.Module):
        def forward(self, t, y):
            return torch.tanh(y @ weight.view(3, 3) + bias * t)

    ys = odeint(Field(), y0, torch.linspace(0, 1, 3), **TIGHT)
    return ys.square().sum(), [y0, *hyper.parameters()]


class Bayesian(nn.Module):
    """Weights are drawn before every solve, by the reparametrisation trick."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.full((3, 3), -2.0))
        self.weight = None

    def draw(self):
        self.weight = self.mean + self.log_scale.exp() * torch.randn(3, 3)

    def forward(self, t, y):
        return torch.tanh(y @ self.weight)


def bayesian(odeint):
    model, y0, losses = Bayesian(), torch.randn(4, 3), []
    for _ in range(3):
        model.draw()
        losses.append(odeint(model, y0, torch.tensor([0.0, 1.0]), **TIGHT)[-1].square().sum())
    return sum(losses), list(model.parameters())


class Falling(nn.Module):
    def __init__(self):
        super().__init__()
        self.gravity, self.drag = nn.Parameter(torch.tensor(9.8)), nn.Parameter(torch.tensor(0.1))

    def forward(self, t, state):
        return state[1], -self.gravity - self.drag * state[1]


def terminal_time(odeint):
    library = torch_ACA if odeint.__module__.startswith("torch_ACA") else torchdiffeq
    model = Falling()
    height, speed = torch.tensor([5.0], requires_grad=True), torch.tensor([0.3], requires_grad=True)
    t, (heights, speeds) = library.odeint_event(
        model, (height, speed), torch.tensor(0.0), event_fn=lambda t, state: state[0], odeint_interface=odeint, **TIGHT
    )
    return t + 0.1 * speeds[-1].sum() + heights[0].sum(), [height, speed, *model.parameters()]


class Diffusion(nn.Module):
    """Heat on a graph, with the sparse matrix of its edges."""

    def __init__(self):
        super().__init__()
        edges = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]])
        self.matrix = torch.sparse_coo_tensor(edges, torch.full((8,), 0.5), (4, 4)).coalesce()
        self.rate = nn.Parameter(torch.tensor(0.7))

    def forward(self, t, y):
        return self.rate * (torch.sparse.mm(self.matrix, y) - y)


def diffusion(odeint):
    model, y0 = Diffusion(), torch.randn(4, 2, requires_grad=True)
    return odeint(model, y0, torch.linspace(0, 3, 4), **TIGHT).square().sum(), [y0, *model.parameters()]


PROGRAMS = [conditional, controlled, flow, hamiltonian, ode_rnn, hypernetwork, bayesian, terminal_time, diffusion]
# their adjoint looks for parameters of func alone, and has none of what these programs train besides; in the flow it
# takes the noise of the last solve for the backward pass of every one
NOT_BY_THEIR_ADJOINT = {conditional, controlled, hypernetwork, bayesian, flow}


def outcome(program, odeint):
    torch.manual_seed(0)
    loss, wanted = program(odeint)
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [loss, *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found))]


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_values_and_gradients_are_those_of_odeint(program, gradient):
    if program is ode_rnn and gradient == "adjoint":
        pytest.skip("single steps of Euler: the continuous adjoint is another gradient")

    def odeint(*arguments, **keywords):
        return torch_ACA.odeint(*arguments, gradient=gradient, **keywords)

    odeint.__module__ = torch_ACA.__name__
    for ours, theirs in zip(outcome(program, odeint), outcome(program, torchdiffeq.odeint), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p not in NOT_BY_THEIR_ADJOINT])
def test_values_and_gradients_are_those_of_odeint_adjoint(program):
    results = zip(outcome(program, torch_ACA.odeint_adjoint), outcome(program, torchdiffeq.odeint_adjoint), strict=True)
    for ours, theirs in results:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_fall_without_drag_is_the_formula():
    """The time of the event and its derivatives by sqrt(2 h / g), to a hundred times the tolerance."""
    model = Falling()
    with torch.no_grad():
        model.drag.zero_()
    height = torch.tensor([5.0], requires_grad=True)
    t, _ = torch_ACA.odeint_event(
        model, (height, torch.zeros(1)), torch.tensor(0.0), event_fn=lambda t, state: state[0], **TIGHT
    )
    found = torch.autograd.grad(t, [height, model.gravity])
    fall = math.sqrt(10 / 9.8)
    assert [t.item(), *(g.item() for g in found)] == pytest.approx([fall, fall / 10, -fall / 19.6], abs=1e-7)
