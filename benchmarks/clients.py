"""Programs in the style of torchdiffeq's clients, which run with any library that offers its interface.

Each is a function of where its tensors live (``place``: keywords of tensor factories) and gives a `Client`. What a
training loop does once, building the model, is done there; the solves of an iteration are the client's losses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@dataclass(frozen=True)
class Client:
    """``losses(library)`` yields 0-d tensors, solved for with ``library.odeint`` and ``library.odeint_event``;
    ``wanted``: the tensors whose gradients count."""

    losses: Callable
    wanted: list

    def __call__(self, library):
        """The losses, each with a backward pass before the next one: their sum, and its gradient in all of ``wanted``
        as one vector. With the same random numbers every time."""
        torch.manual_seed(1)
        total, gradient = 0.0, 0.0
        for loss in self.losses(library):
            found = torch.autograd.grad(loss, self.wanted, materialize_grads=True)
            total, gradient = total + loss.detach(), gradient + torch.cat([g.reshape(-1) for g in found])
        return total, gradient


def net(*sizes, place):
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b, **place), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class Conditional(nn.Module):
    """A field that reads what an encoder made of the input, before every solve."""

    def __init__(self, place):
        super().__init__()
        self.encoder, self.field, self.context = net(4, 8, 3, place=place), net(5, 16, 2, place=place), None

    def forward(self, t, y):
        return self.field(torch.cat([y, self.context.expand(len(y), 3)], 1))


def conditional(place):
    model = Conditional(place)
    x, y0, times = torch.randn(1, 4, **place), torch.randn(6, 2, **place), torch.linspace(0, 1, 4, **place)

    def losses(library):
        model.context = model.encoder(x)
        yield library.odeint(model, y0, times, **TIGHT).square().mean()

    return Client(losses, [y0.requires_grad_(), *model.parameters()])


class Controlled(nn.Module):
    """A controlled differential equation: z' = F(z) X'(t), X a cubic spline through the data."""

    def __init__(self, times, place):
        super().__init__()
        self.field, self.times = net(3, 16, 6, place=place), times

    def follow(self, values):
        width = (self.times[1:] - self.times[:-1])[:, None]
        rise = (values[1:] - values[:-1]) / width
        slopes = torch.cat([rise[:1], rise])
        self.a, self.b = slopes[:-1], (3 * rise - 2 * slopes[:-1] - slopes[1:]) / width
        self.c = (slopes[:-1] + slopes[1:] - 2 * rise) / width**2

    def derivative(self, t):
        i = int(((t > self.times).sum() - 1).clamp(0, len(self.times) - 2))
        s = t - self.times[i]
        return self.a[i] + 2 * self.b[i] * s + 3 * self.c[i] * s**2

    def forward(self, t, z):
        return (torch.tanh(self.field(z)).view(-1, 3, 2) @ self.derivative(t)).view(-1, 3)


def controlled(place):
    times, values = torch.linspace(0, 1, 6, **place), torch.randn(6, 2, **place)
    model, z0 = Controlled(times, place), torch.randn(5, 3, **place)
    options = {"jump_t": times[1:-1]}

    def losses(library):
        model.follow(values)
        zs = library.odeint(model, z0, times[[0, -1]], method="dopri5", options=options, **TIGHT)
        yield zs[-1].square().sum()

    return Client(losses, [z0.requires_grad_(), values.requires_grad_(), *model.parameters()])


class Flow(nn.Module):
    """A continuous normalising flow whose trace is estimated with one noise per solve."""

    def __init__(self, place):
        super().__init__()
        self.field, self.noise = net(3, 16, 2, place=place), None

    def forward(self, t, state):
        x = state[0]
        if self.noise is None:
            self.noise = torch.randn_like(x)
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            dx = self.field(torch.cat([x, t.expand(len(x), 1)], 1))
            (along,) = torch.autograd.grad(dx, x, self.noise, create_graph=True)
        return dx, -(along * self.noise).sum(1)


def flow(place):
    model, x = Flow(place), torch.randn(6, 2, **place)
    times = torch.tensor([0.0, 1.0], **place)

    def losses(library):
        for _ in range(2):
            model.noise = None
            z, change = library.odeint(model, (x, x.new_zeros(6)), times, **TIGHT)
            yield (0.5 * z[-1].square().sum(1) + change[-1]).mean()

    return Client(losses, list(model.parameters()))


class Hamiltonian(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.energy = net(2, 16, 1, place=place)

    def forward(self, t, state):
        with torch.enable_grad():
            state = state if state.requires_grad else state.requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(state).sum(), state, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


def hamiltonian(place):
    model, state, times = Hamiltonian(place), torch.randn(5, 2, **place), torch.linspace(0, 2, 5, **place)

    def losses(library):
        yield library.odeint(model, state, times, **TIGHT).square().sum()

    return Client(losses, [state.requires_grad_(), *model.parameters()])


class Recurrent(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.field, self.cell = net(4, 16, 4, place=place), nn.GRUCell(2, 4, **place)

    def forward(self, t, h):
        return self.field(h)


def ode_rnn(place):
    model, data, times = Recurrent(place), torch.randn(7, 3, 2, **place), torch.rand(8, **place).cumsum(0)

    def losses(library):
        h = data.new_zeros(3, 4)
        for x, start, end in zip(data, times, times[1:]):
            h = library.odeint(model, h, torch.stack([start, end]), method="euler")[-1]
            h = model.cell(x, h)
        yield h.square().sum()

    return Client(losses, list(model.parameters()))


def hypernetwork(place):
    hyper, x, y0 = net(2, 16, 12, place=place), torch.randn(2, **place), torch.randn(4, 3, **place)
    times = torch.linspace(0, 1, 3, **place)

    def losses(library):
        weight, bias = hyper(x).split([9, 3])

        class Field(nn.Module):
            def forward(self, t, y):
                return torch.tanh(y @ weight.view(3, 3) + bias * t)

        yield library.odeint(Field(), y0, times, **TIGHT).square().sum()

    return Client(losses, [y0.requires_grad_(), *hyper.parameters()])


class Bayesian(nn.Module):
    """Weights are drawn before every solve, by the reparametrisation trick."""

    def __init__(self, place):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(3, 3, **place))
        self.log_scale = nn.Parameter(torch.full((3, 3), -2.0, **place))
        self.weight = None

    def draw(self):
        self.weight = self.mean + self.log_scale.exp() * torch.randn_like(self.mean)

    def forward(self, t, y):
        return torch.tanh(y @ self.weight)


def bayesian(place):
    model, y0, times = Bayesian(place), torch.randn(4, 3, **place), torch.tensor([0.0, 1.0], **place)

    def losses(library):
        for _ in range(3):
            model.draw()
            yield library.odeint(model, y0, times, **TIGHT)[-1].square().sum()

    return Client(losses, list(model.parameters()))


class Falling(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(9.8, **place))
        self.drag = nn.Parameter(torch.tensor(0.1, **place))

    def forward(self, t, state):
        return state[1], -self.gravity - self.drag * state[1]


def terminal_time(place):
    model, start = Falling(place), torch.tensor(0.0, **place)
    height, speed = torch.tensor([5.0], **place), torch.tensor([0.3], **place)

    def losses(library):
        t, (heights, speeds) = library.odeint_event(
            model, (height, speed), start, event_fn=lambda t, state: state[0], odeint_interface=library.odeint, **TIGHT
        )
        yield t + 0.1 * speeds[-1].sum() + heights[0].sum()

    return Client(losses, [height.requires_grad_(), speed.requires_grad_(), *model.parameters()])


class Diffusion(nn.Module):
    """Heat on a graph, with the sparse matrix of its edges."""

    def __init__(self, place):
        super().__init__()
        edges = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]], device=place["device"])
        matrix = torch.sparse_coo_tensor(edges, torch.full((8,), 0.5, **place), (4, 4), check_invariants=True)
        self.matrix = matrix.coalesce()
        self.rate = nn.Parameter(torch.tensor(0.7, **place))

    def forward(self, t, y):
        return self.rate * (torch.sparse.mm(self.matrix, y) - y)


def diffusion(place):
    model, y0, times = Diffusion(place), torch.randn(4, 2, **place), torch.linspace(0, 3, 4, **place)

    def losses(library):
        yield library.odeint(model, y0, times, **TIGHT).square().sum()

    return Client(losses, [y0.requires_grad_(), *model.parameters()])


class Images(nn.Module):
    """The block of an image classifier: convolutions that see the time as one more channel."""

    def __init__(self, channels, place):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels + 1, channels, 3, padding=1, **place) for _ in range(2))

    def forward(self, t, y):
        for layer in self.layers:
            y = torch.tanh(layer(torch.cat([t.expand_as(y[:, :1]), y], 1)))
        return y


def convolutional(place):
    model, y0 = Images(8, place), torch.randn(4, 8, 7, 7, **place)
    times = torch.tensor([0.0, 1.0], **place)

    def losses(library):
        yield library.odeint(model, y0, times, **TIGHT)[-1].square().mean()

    return Client(losses, [y0.requires_grad_(), *model.parameters()])


class Autonomous(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.field = net(16, 32, 16, place=place)

    def forward(self, t, h):
        return self.field(h)


def short_solves(place, *, steps, count):
    """Solves one behind the other, as between the observations of an ODE-RNN: so many steps of Euler in each."""
    model, h0 = Autonomous(place), torch.randn(32, 16, **place)
    times = torch.linspace(0, 1, steps * count + 1, **place)

    def losses(library):
        h = h0
        for start in range(0, steps * count, steps):
            h = library.odeint(model, h, times[start : start + steps + 1], method="euler")[-1]
        yield h.square().mean()

    return Client(losses, [h0.requires_grad_(), *model.parameters()])


PROGRAMS = {
    program.__name__: program
    for program in (
        *(conditional, controlled, flow, hamiltonian, ode_rnn, hypernetwork, bayesian, terminal_time, diffusion),
        convolutional,
    )
}
SHORT = {"one_step": partial(short_solves, steps=1), "three_steps": partial(short_solves, steps=3)}


def build(name, *, seed=0, quick=False, device="cpu"):
    """The client of that name, the same for the same seed; programs in float64, short solves in float32.

    :param quick: a tenth of the short solves
    """
    torch.manual_seed(seed)
    if name in SHORT:
        return SHORT[name]({"dtype": torch.float32, "device": device}, count=100 if quick else 1000)
    return PROGRAMS[name]({"dtype": torch.float64, "device": device})
