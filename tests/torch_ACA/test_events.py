"""Event times and the states there: closed forms and torchdiffeq as oracles; and that the search leaves no trace."""

import collections
import gc
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

import torch_ACA
from torch_ACA import (
    Callbacks,
    NoEventError,
    NonFiniteError,
    SecondDerivativeError,
    SolverError,
    TooManyEvaluationsError,
    odeint,
    odeint_adjoint,
    odeint_event,
    solve,
    solve_event,
)
from torch_ACA.events import _first_not_positive, without_graph

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

with_torchdiffeq = pytest.mark.skipif(torchdiffeq is None, reason="torchdiffeq is not installed")

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
# method and gradient -> (keywords, tolerance of derivatives): fixed steps leave the error of their order, the
# leapfrog is of second order and would take 1e5 steps for less
WAYS = {
    "aca": (dict(gradient="aca", **TIGHT), 1e-8),
    "direct": (dict(gradient="direct", method="dopri8", **TIGHT), 1e-8),
    "naive": (dict(gradient="naive", method="dopri8", **TIGHT), 1e-8),
    "adjoint": (dict(gradient="adjoint", method="dopri8", **TIGHT), 1e-8),
    "mali": (dict(gradient="mali", h=1e-3, rtol=1e-5, atol=1e-7), 1e-4),
    "aca, RK4": (dict(gradient="aca", method="RK4", h=0.03), 1e-6),
    "direct, midpoint": (dict(gradient="direct", method="midpoint", h=0.02), 1e-3),
    "naive, RK4": (dict(gradient="naive", method="RK4", h=0.03), 1e-6),
    "adjoint, RK4": (dict(gradient="adjoint", method="RK4", h=0.03), 1e-6),
    "aca, 4 states": (dict(gradient="aca", memory=4, **TIGHT), 1e-8),
}
TWICE = [name for name in WAYS if name.split(",")[0] in ("aca", "direct", "naive")]


class Growth:
    """y' = a t y from (t0, y0) to y = c, and beside it z' = cos t: everything depends on time."""

    start = [1.0, 0.7, 0.2, 2.0]  # y0, a, t0, c

    @staticmethod
    def exact(y0, a, t0, c):
        t = torch.sqrt(t0**2 + 2 * torch.log(c / y0) / a)
        return torch.stack([t, torch.sin(t) - torch.sin(t0), c])

    @staticmethod
    def solved(y0, a, t0, c, **keywords):
        func = lambda t, s: {"y": a * t * s["y"], "z": torch.cos(t) * torch.ones_like(s["z"])}  # noqa: E731
        state = {"y": y0.reshape(1, 1), "z": torch.zeros(1)}
        t, ys = solve_event(func, state, t0, lambda t, s: s["y"] - c, **keywords)
        return torch.stack([t, ys["z"][-1, 0], ys["y"][-1, 0, 0]])


class Backwards(Growth):
    """The same, from a later time down to a smaller y."""

    start = [2.0, 0.7, 1.5, 1.2]

    @staticmethod
    def solved(*parameters, **keywords):
        return Growth.solved(*parameters, reverse_time=True, **keywords)


class Throw:
    """A ball thrown upwards: the floor at c, the drag-free fall, the state a tuple."""

    start = [1.0, 3.0, 9.8, 0.3]  # height, velocity, gravity, floor

    @staticmethod
    def exact(x, v, g, c):
        end = torch.sqrt(v**2 + 2 * g * (x - c))
        return torch.stack([(v + end) / g, c, -end])

    @staticmethod
    def solved(x, v, g, c, **keywords):
        func = lambda t, s: (s[1], -g * torch.ones_like(s[1]))  # noqa: E731
        t, ys = solve_event(func, (x, v), 0.0, lambda t, s: s[0] - c, **keywords)
        return torch.stack([t, ys[0][-1], ys[1][-1]])


class Spiral:
    """z' = (-d + i w) z, complex: until |z|^2 is c; then the angle is w T."""

    start = [1.5, 0.4, 2.0, 0.9]  # z0, d, w, c

    @staticmethod
    def exact(z0, d, w, c):
        t = torch.log(z0**2 / c) / (2 * d)
        return torch.stack([t, torch.sqrt(c) * torch.cos(w * t), torch.sqrt(c) * torch.sin(w * t)])

    @staticmethod
    def solved(z0, d, w, c, **keywords):
        z0 = torch.complex(z0, torch.zeros_like(z0)).reshape(1)
        func = lambda t, z: torch.complex(-d, w) * z  # noqa: E731
        t, z = solve_event(func, z0, 0.0, lambda t, z: z.abs() ** 2 - c, **keywords)
        return torch.stack([t, z[-1, 0].real, z[-1, 0].imag])


PROBLEMS = [Growth, Backwards, Throw, Spiral]


def jacobian(f, start):
    """Value of f at numbers, and its first derivatives [outputs, numbers]."""
    leaves = [torch.tensor(p, requires_grad=True) for p in start]
    values = f(*leaves)
    rows = []
    for value in values:
        row = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        rows.append(torch.stack([torch.zeros(()) if bar is None else bar for bar in row]))
    return values.detach(), torch.stack(rows)


def hessian(f, start):
    """Second derivatives [numbers, numbers] of a weighted sum of the outputs of f."""
    leaves = [torch.tensor(p, requires_grad=True) for p in start]
    values = f(*leaves)
    total = values @ torch.tensor([1.0, 0.7, -1.3])[: len(values)]
    rows = []
    for bar in torch.autograd.grad(total, leaves, create_graph=True):
        row = torch.autograd.grad(bar, leaves, retain_graph=True, allow_unused=True)
        rows.append(torch.stack([torch.zeros(()) if b is None else b for b in row]))
    return torch.stack(rows)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_time_state_and_first_derivatives(problem, way):
    keywords, tolerance = WAYS[way]
    values, exact_rows = jacobian(problem.exact, problem.start)
    found, rows = jacobian(lambda *p: problem.solved(*p, **keywords), problem.start)
    assert float((found - values).abs().max()) < tolerance
    assert float((rows - exact_rows).abs().max()) < 10 * tolerance


@pytest.mark.parametrize("way", TWICE)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_second_derivatives(problem, way):
    keywords, tolerance = WAYS[way]
    exact = hessian(problem.exact, problem.start)
    assert float(exact.abs().max()) > 0.5  # there is something to get wrong
    found = hessian(lambda *p: problem.solved(*p, **keywords), problem.start)
    assert float((found - exact).abs().max()) < 100 * tolerance


@pytest.mark.parametrize("t0", [0.0, 100.0, 1000.0])
@pytest.mark.parametrize("keywords", [{}, {"per_sample": True}], ids=str)
def test_a_time_that_an_event_function_hides_in_float32(keywords, t0):
    """y = y0 + (t - t0) meets 2 + (t - t0) / 2 at t0 + 2 (2 - y0)."""
    y0 = torch.tensor([[0.3]], dtype=torch.float32, requires_grad=True)
    event = lambda t, y: (y - 2 - 0.5 * (t.detach() - t0)).reshape(-1)  # noqa: E731
    t, _ = solve_event(lambda t, y: torch.ones_like(y), y0, t0, event, **keywords)
    (found,) = torch.autograd.grad(t.sum(), y0)
    assert found.item() == pytest.approx(-2.0, rel=1e-3)


@pytest.mark.parametrize("hide", [
    lambda t: t.detach(), lambda t: t.item(), lambda t: 0.3 * t + 0.7 * t.detach(), lambda t: 0.5 * (t + float(t)),
], ids=["detached", "number", "in a part", "a number in a part"])  # fmt: skip
@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "rows"])
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_an_event_function_may_hide_its_time(hide, gradient):
    """exp(k t) = 3 - 2 t: dt/dk = -t exp(k t) / (k exp(k t) + 2). What is hidden has no second derivative."""
    k = torch.ones((), dtype=torch.float64, requires_grad=True)
    y0, rows = torch.ones(1, 1, dtype=torch.float64), gradient == "rows"

    def event(t, y):
        times = [hide(time) for time in t.reshape(-1)]
        return y[:, 0] - 3 + 2 * torch.stack([torch.as_tensor(time, dtype=y.dtype) for time in times])

    keywords = {"per_sample": True} if rows else {"gradient": gradient}
    t, ys = solve_event(lambda t, y: k * y, y0, 0.0, event, rtol=1e-9, atol=1e-9, **keywords)
    (found,) = torch.autograd.grad(t.sum(), k, create_graph=gradient in ("aca", "direct", "naive"))
    at, grown = float(t.detach()), math.exp(float(t.detach()))
    assert found.item() == pytest.approx(-at * grown / (grown + 2), rel=1e-7)
    if found.requires_grad:
        with pytest.raises(SecondDerivativeError):
            torch.autograd.grad(found, k)


@pytest.mark.parametrize("gradient", ["adjoint", "mali"])
def test_second_derivatives_are_right_or_refused(gradient):
    """The gradient of these solves has no derivative; what does not pass through it is still right."""
    keywords, tolerance = WAYS[gradient]
    a, c = (torch.tensor(x, requires_grad=True) for x in (0.8, 2.0))
    t, _ = solve_event(lambda t, y: a * y, torch.ones(1), 0.0, lambda t, y: y - c, **keywords)
    of_c, of_a = torch.autograd.grad(t, [c, a], create_graph=True)
    assert float(torch.autograd.grad(of_c, c, retain_graph=True)[0]) == pytest.approx(-1 / (0.8 * 4), rel=tolerance)
    assert float(torch.autograd.grad(of_c, a, retain_graph=True)[0]) == pytest.approx(-1 / (0.64 * 2), rel=tolerance)
    with pytest.raises(SecondDerivativeError, match=gradient):
        torch.autograd.grad(of_a, a)


def test_third_derivatives_are_refused():
    a = torch.tensor(0.8, requires_grad=True)
    t, ys = solve_event(lambda t, y: a * y, torch.ones(1), 0.0, lambda t, y: y - 2.0, **TIGHT)
    for result in (t, ys.sum()):
        first, = torch.autograd.grad(result, a, create_graph=True)
        second, = torch.autograd.grad(first, a, create_graph=True)
        with pytest.raises(SecondDerivativeError, match="second order"):
            torch.autograd.grad(second, a)


@pytest.mark.parametrize("gradient", ["aca", "naive"])
def test_second_derivatives_of_networks(gradient):
    """No closed form: finite differences of the values and of the gradient. With fixed steps nothing but their error,
    1e-7, comes between the two.
    """
    first, last = nn.Linear(2, 3), nn.Linear(3, 2)
    inputs = [torch.tensor([0.5, -1.0], requires_grad=True), first.bias, torch.tensor([1.0, 0.4], requires_grad=True)]
    keywords = {"gradient": gradient, "method": "RK4", "h": 0.05}

    def func(bias):
        return lambda t, y: last(torch.tanh(y @ first.weight.T + bias)) * torch.cos(t)

    with torch.no_grad():
        level = solve(func(first.bias), inputs[0], [0.0, 0.6], **keywords).ys[-1] @ inputs[2]

    def of(y0, bias, weight):
        event = lambda t, y: y @ weight - level + 0.01 * torch.sin(t - 0.6)  # noqa: E731
        t, ys = solve_event(func(bias), y0, 0.0, event, **keywords)
        return t, ys[-1]

    assert float(of(*inputs)[0]) == pytest.approx(0.6, abs=1e-6)
    assert torch.autograd.gradcheck(of, inputs, eps=1e-5, atol=1e-5, rtol=1e-5)
    assert torch.autograd.gradgradcheck(of, inputs, eps=1e-5, atol=1e-4, rtol=1e-4, nondet_tol=1e-12)


class Ball(nn.Module):
    """A falling ball: height and velocity."""

    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(9.8))

    def forward(self, t, state):
        _, velocity = state
        return velocity, -self.gravity * torch.ones_like(velocity)


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_bouncing_ball(interface):
    """Time of the first bounce: sqrt(2 h / g), and its derivatives; then two more bounces."""
    ball = Ball()
    height = torch.tensor([10.0], requires_grad=True)
    state, t = (height, torch.tensor([0.0], requires_grad=True)), torch.tensor(0.0)
    bounces = []
    for _ in range(3):
        t, trajectory = odeint_event(
            ball, state, t, event_fn=lambda t, state: state[0], odeint_interface=interface, rtol=1e-9, atol=1e-9
        )
        bounces.append(t)
        state = (trajectory[0][-1], -0.9 * trajectory[1][-1])
    fall = math.sqrt(2 * 10 / 9.8)
    for n, t in enumerate(bounces):
        factor = 1 + sum(2 * 0.9**k for k in range(1, n + 1))
        g = torch.autograd.grad(t, [height, ball.gravity], retain_graph=True)
        assert float(t) == pytest.approx(fall * factor, abs=1e-6)
        assert float(g[0]) == pytest.approx(fall * factor / 20, abs=1e-6)
        assert float(g[1]) == pytest.approx(-fall * factor / 19.6, abs=1e-6)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
def test_second_derivatives_through_two_bounces(gradient):
    """t2 = (1 + 2 r) sqrt(2 h / g): each solve starts from the event before it."""

    def second_bounce(height, gravity, restitution):
        state, t = (height, 0.0 * height), torch.zeros(())
        for _ in range(2):
            func = lambda t, s: (s[1], -gravity * torch.ones_like(s[1]))  # noqa: E731
            t, ys = solve_event(func, state, t, lambda t, s: s[0], gradient=gradient, **TIGHT)
            state = (ys[0][-1], -restitution * ys[1][-1])
        return t[None]

    exact = lambda h, g, r: ((1 + 2 * r) * torch.sqrt(2 * h / g))[None]  # noqa: E731
    start = [10.0, 9.8, 0.9]
    error = hessian(second_bounce, start) - hessian(exact, start)
    assert float(error.abs().max()) < 1e-6


# ---- which entry, which crossing


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("small", [0, 1])
def test_the_entry_that_crossed_is_differentiated(way, small):
    """The other entry is nearer to zero, but does not cross."""
    keywords, tolerance = WAYS[way]
    c = torch.tensor(0.3, requires_grad=True)
    y = torch.zeros(1)

    def event(t, y):
        entries = [y - c, 1e-4 * (y - 5.0)]
        return torch.cat(entries[::-1] if small == 0 else entries)

    t, ys = solve_event(lambda t, y: torch.sin(y) + 1, y, 0.0, event, **keywords)
    exact = 2 / (1 + math.tan(0.0)) - 2 / (1 + math.tan(0.15))  # of dy / (1 + sin y)
    assert float(t) == pytest.approx(exact, abs=tolerance)
    assert float(ys[-1]) == pytest.approx(0.3, abs=tolerance)
    assert float(torch.autograd.grad(t, c)[0]) == pytest.approx(1 / (1 + math.sin(0.3)), abs=10 * tolerance)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("order", [[0.3, 0.5], [0.5, 0.3], [0.5, 0.3, 0.4, 7.0]])
@pytest.mark.parametrize("keywords", [{"h": 1.0}, {"method": "euler", "h": 1.0}, {"gradient": "mali", "h": 1.0}])
def test_the_first_of_two_crossings_in_a_step(sign, order, keywords):
    levels = sign * torch.tensor(order)
    t, ys = solve_event(
        lambda t, y: torch.ones_like(y), torch.zeros(1), 0.0, lambda t, y: y - levels, reverse_time=sign < 0, **keywords
    )
    assert float(t) == pytest.approx(sign * 0.3, abs=1e-12)
    assert float(ys[-1]) == pytest.approx(sign * 0.3, abs=1e-12)


def test_an_event_of_any_shape():
    t, _ = solve_event(lambda t, y: torch.ones_like(y), torch.zeros(2, 3), 0.0, lambda t, y: y - torch.arange(1.0, 4.0))
    assert float(t) == pytest.approx(1.0, abs=1e-9)


# ---- events without a graph

STEP_EVENTS = {
    "comparison": (lambda t, y: (y > 0.5).squeeze(), math.log(2)),
    "integer": (lambda t, y: (10 * y).int().squeeze() - 5, -math.log(0.6)),
    "float": (lambda t, y: torch.tensor(float(y)) - 0.5, math.log(2)),
    "by time": (lambda t, y: torch.where(t > 0.7, -1.0, 1.0), 0.7),
    "sign of time": (lambda t, y: torch.sign(t - 0.7), 0.7),
    "constants": (lambda t, y: torch.tensor(1.0) if t < 0.7 else torch.tensor(-1.0), 0.7),
}


@pytest.mark.parametrize("gradient", torch_ACA.GRADIENTS)
@pytest.mark.parametrize("name", STEP_EVENTS)
def test_events_without_a_graph(name, gradient):
    """The time is a constant; the state is differentiable at that time."""
    event, exact = STEP_EVENTS[name]
    w = torch.tensor(1.0, requires_grad=True)
    keywords, tolerance = WAYS[gradient]
    t, ys = solve_event(lambda t, y: -w * y, torch.ones(1), 0.0, event, **keywords)
    assert float(t) == pytest.approx(exact, abs=tolerance)
    assert not t.requires_grad
    expected = -exact * math.exp(-exact)
    assert float(torch.autograd.grad(ys[-1].sum(), w)[0]) == pytest.approx(expected, abs=10 * tolerance)


@with_torchdiffeq
@pytest.mark.parametrize("name", STEP_EVENTS)
def test_events_without_a_graph_as_in_torchdiffeq(name):
    w = torch.tensor(1.0, requires_grad=True)
    results = []
    for module in (torch_ACA, torchdiffeq):
        t, ys = module.odeint_event(
            lambda t, y: -w * y, torch.ones(1), torch.tensor(0.0), event_fn=STEP_EVENTS[name][0],
            odeint_interface=module.odeint,
        )
        results.append(torch.stack([t.detach(), ys[-1, 0].detach(), torch.autograd.grad(ys[-1].sum(), w)[0]]))
    assert float((results[0] - results[1]).abs().max()) < 1e-6  # both at rtol 1e-7


@with_torchdiffeq
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_torchdiffeq(field, reverse):
    """A loss of both time and state, an event of both."""
    gradients = []
    for module in (torch_ACA, torchdiffeq):
        y0 = torch.tensor([0.2, -0.4, 0.1], requires_grad=True)
        t, ys = module.odeint_event(
            field, y0, torch.tensor(0.1), event_fn=lambda t, y: ((y - y0.detach()) ** 2).sum() - 0.01 - 0.02 * t,
            reverse_time=reverse, odeint_interface=module.odeint, rtol=1e-10, atol=1e-12,
        )
        loss = t**2 + (ys[-1] ** 2).sum()
        gradients.append([loss.detach(), *torch.autograd.grad(loss, [y0, *field.parameters()])])
    for ours, theirs in zip(*gradients):
        assert float((ours - theirs).abs().max()) < 1e-7


@pytest.mark.parametrize("event", [lambda t, y: float(y) - 0.5, lambda t, y: bool(y > 0.5)])
def test_events_that_return_numbers(event):
    assert float(solve_event(lambda t, y: -y, torch.ones(1), 0.0, event)[0]) == pytest.approx(math.log(2), abs=1e-5)


def test_a_flat_event_function_gives_no_wrong_gradient():
    w = torch.tensor(1.0, requires_grad=True)
    for event in (lambda t, y: torch.sign(y - 0.5), lambda t, y: w - 0.5 - float(y)):
        t, ys = solve_event(lambda t, y: -w * y, torch.ones(1), 0.0, event, **TIGHT)
        assert float(t) == pytest.approx(math.log(2), abs=1e-9)
        assert float(torch.autograd.grad(ys[-1].sum(), w)[0]) == pytest.approx(-0.5 * math.log(2), abs=1e-9)
        with pytest.raises(ValueError, match=r"event_fn has no slope where it comes to zero, at t = 0\.693"):
            torch.autograd.grad(t, w)


def test_an_event_that_falls_to_a_plateau_at_a_time_beside_others():
    """Its time is a constant, whatever the other entries depend on; one that falls with the state is not known."""
    w, end = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), torch.tensor(2.0, dtype=torch.float64)
    y0 = torch.ones(2, dtype=torch.float64)

    def solved(falls):
        def event(t, y):
            return torch.stack([y[0] + 5, falls(t, y)])

        t, ys = solve_event(lambda t, y: -w * y, y0, 0.0, event, **TIGHT)
        later = solve(lambda t, y: -w * y, ys[-1], torch.stack([t, torch.tensor(4.0, dtype=torch.float64)]), **TIGHT)
        return t, torch.autograd.grad(later.ys[-1].sum(), w)[0]

    t, g = solved(lambda t, y: torch.where(t < end, end - t, 0.0))
    assert float(t) == pytest.approx(2.0, abs=1e-9)
    assert float(g) == pytest.approx(-8 * math.exp(-2), abs=1e-8)
    with pytest.raises(ValueError, match="event_fn has no slope where it comes to zero"):
        solved(lambda t, y: torch.sign(y[0] - 0.5))


def test_which_entries_are_known_to_be_constants():
    a, c = torch.ones(2, requires_grad=True).exp(), torch.ones(2)
    assert without_graph(torch.stack([a[0], c[0], a[1]])) == [1]
    assert without_graph(torch.stack([a[0], c[0], a[1]]).view(1, 3).reshape(-1).double()) == [1]
    for dim in (1, -1):
        assert without_graph(torch.stack([a, c], dim)) == [1]
    assert without_graph(c) == [0, 1]
    # parts that are rows, or of whose size nothing is known
    for values in (torch.stack([a, c]), torch.stack([a, c], -2), torch.cat([a, c[:0]]), torch.cat([c[:1], a])):
        assert without_graph(values) == []


@pytest.mark.parametrize("rows", [False, True])
def test_a_plateau_of_zeros_is_named(rows):
    """An event that is set to zero behind a time: its time is found, and has no derivative."""
    y0 = torch.zeros(2, 1, requires_grad=True)
    t, _ = solve_event(
        lambda t, y: torch.ones_like(y), y0, 0.0, lambda t, y: torch.where(t > 0.9, 0.0, 1.5 - y), per_sample=rows
    )
    assert bool((t - 0.9).abs().max() < 1e-6)
    where = r"at t = 0\.9, rows 0, 1: .*their event times have" if rows else r"at t = 0\.9: .*the event time has"
    with pytest.raises(ValueError, match=f"{where} no derivative. Return a value that crosses zero with a slope"):
        t.sum().backward()


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("gradient", torch_ACA.GRADIENTS)
def test_a_func_that_detaches_its_time(gradient, detach):
    """y' = p cos(3 t) until y = c, and z' = sin(2 t) beside it; the slope at the event counts, not the graph of t."""
    p, c = (torch.tensor(x, requires_grad=True) for x in (2.0, 0.5))

    def func(t, y):
        t = t.detach() if detach else t
        return torch.stack([p * torch.cos(3 * t), torch.sin(2 * t)])

    keywords = {"h": 1e-2} if gradient == "mali" else {}
    t, ys = solve_event(
        func, torch.zeros(2), 0.0, lambda t, y: y[0] - c, gradient=gradient, rtol=1e-4, atol=1e-4, **keywords
    )
    end = math.asin(1.5 * 0.5) / 3
    of_c = 1 / (2 * math.cos(3 * end))
    twice = gradient not in ("adjoint", "mali")
    found = torch.autograd.grad(t, [p, c], retain_graph=True, create_graph=twice)
    # at tolerance 1e-4; without the slope the error is of order one
    if twice and detach:  # how the slope changes is not known
        with pytest.raises(SecondDerivativeError, match="func or its function hides its time"):
            torch.autograd.grad(found[1], c, retain_graph=True)
    elif twice:  # sin(3 T) = 3 c / p, so dT/dc = 1 / (p cos 3 T)
        of_c_twice = 3 * math.sin(3 * end) * of_c / (2 * math.cos(3 * end) ** 2)
        assert float(torch.autograd.grad(found[1], c, retain_graph=True)[0]) == pytest.approx(of_c_twice, abs=2e-2)
    assert float(found[0]) == pytest.approx(-of_c * 0.25, abs=2e-3)
    assert float(found[1]) == pytest.approx(of_c, abs=2e-3)
    assert float(torch.autograd.grad(ys[-1, 1], c)[0]) == pytest.approx(math.sin(2 * end) * of_c, abs=2e-3)


# ---- what the search leaves behind: nothing


class Normed(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers, self.shapes = nn.Sequential(*layers), []

    def forward(self, t, y):
        self.shapes.append((t.dtype, t.shape, y.dtype, y.shape))
        return -torch.sigmoid(self.layers(y)) - 1


@pytest.mark.parametrize("gradient", torch_ACA.GRADIENTS)
@pytest.mark.parametrize("fixed", [False, True])
def test_batch_statistics_count_as_in_one_solve(gradient, fixed):
    keywords = {"gradient": gradient}
    if fixed:
        keywords |= {"options": {"step_size": 0.03}}
    y0, results = torch.rand(5, 3) + 1, []
    end = None
    for event in (True, False):
        torch.manual_seed(0)
        func = Normed(nn.BatchNorm1d(3))
        if event:
            end, ys = solve_event(func, y0, 0.0, lambda t, y: y.mean() - 0.5, **keywords)
            end = end.item()
        else:
            ys = solve(func, y0, [0.0, end], **keywords).ys
        ys[-1].sum().backward()
        results.append([b.clone() for b in func.buffers()])
    assert results[0][2] == results[1][2] > 1  # batches tracked
    # the event solve ends one Newton step away from where the other one does
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*results))


@pytest.mark.parametrize("gradient", torch_ACA.GRADIENTS)
def test_dropout_draws_one_mask_for_search_and_solve(gradient):
    """Otherwise the solve would not end on the event: its state, and a solve of its own with the same stream, tell."""
    torch.manual_seed(3)
    func = Normed(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    y0, state = torch.rand(5, 3) + 1, torch.get_rng_state()
    end, ys = solve_event(func, y0, 0.0, lambda t, y: y.mean() - 0.5, gradient=gradient)
    after = torch.get_rng_state()
    assert float(ys[-1].mean()) == pytest.approx(0.5, abs=1e-9)
    torch.set_rng_state(state)
    again = solve(func, y0, [0.0, end.item()], gradient=gradient).ys[-1]
    assert float((again - ys[-1]).abs().max()) < 1e-5  # the tolerance
    assert torch.equal(torch.get_rng_state(), after)
    ys[-1].sum().backward()
    assert torch.equal(torch.get_rng_state(), after)


def test_func_is_called_as_in_a_solve():
    """The same kinds of arguments at every evaluation, also for the slope at the event."""
    func = Normed(nn.Linear(3, 3))
    func.float()
    y0 = torch.ones(2, 3, dtype=torch.float32)
    t, ys = solve_event(func, y0, torch.tensor(0.0), lambda t, y: y.mean())
    (t + ys.sum()).backward()
    assert set(func.shapes) == {(torch.float32, torch.Size([]), torch.float32, torch.Size([2, 3]))}
    assert ys.dtype == torch.float32 and t.dtype == torch.float64


def test_every_evaluation_is_counted(monkeypatch):
    """func is called by the vector field and nobody else."""
    counted, calls = [0], [0]
    original = torch_ACA.vector_field.VectorField.call

    def counting(self, t, state):
        counted[0] += 1
        return original(self, t, state)

    def func(t, y):
        calls[0] += 1
        return -y

    monkeypatch.setattr(torch_ACA.vector_field.VectorField, "call", counting)
    solve_event(func, torch.ones(1, requires_grad=True), 0.0, lambda t, y: y - 0.5)[0].backward()
    assert calls[0] == counted[0] > 0


def test_callbacks_see_one_solve():
    times = collections.defaultdict(list)
    noted = {name: lambda t, y, h, name=name: times[name].append((t, h)) for name in ("step", "accept")}
    callbacks = Callbacks(**noted)
    end, _ = solve_event(lambda t, y: -y, torch.ones(1), 0.0, lambda t, y: y - 0.5, callbacks=callbacks, h=0.1)
    accepted = times["accept"]
    assert accepted[0][0] == 0.0
    assert all(t + h == pytest.approx(later) for (t, h), (later, _) in zip(accepted, accepted[1:]))
    assert sum(accepted[-1]) == pytest.approx(end.item(), abs=1e-5)


@pytest.mark.parametrize("gradient", torch_ACA.GRADIENTS)
def test_nothing_waits_for_the_collector(gradient):
    """A cycle of references would keep the tensors of every solve until it runs."""
    weight = torch.tensor(1.0, requires_grad=True)

    def call(backward):
        t, ys = odeint_event(
            lambda t, y: -weight * y, torch.ones(4), torch.tensor(0.0), event_fn=lambda t, y: y[0] - 0.5,
            gradient=gradient, rtol=1e-3, atol=1e-3,
        )
        if backward:
            (t + ys.sum()).backward()

    def alive():
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())  # isinstance asks the objects

    call(True)
    gc.collect()
    gc.disable()
    gc.freeze()  # of what is there before, which takes long to look through, nothing is counted
    try:
        for backward in (False, True, False):
            call(backward)
            assert alive() == 0
    finally:
        gc.unfreeze()
        gc.enable()


# ---- edges


@pytest.mark.parametrize("keywords", [{}, {"method": "RK4", "h": 0.25}, {"gradient": "mali", "h": 0.25}])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_event_on_the_end_of_a_step(keywords, sign):
    """Four steps of 0.25 end on it exactly; step_t makes the adaptive method do the same."""
    c = torch.tensor(1.0 * sign, requires_grad=True)
    t, _ = solve_event(
        lambda t, y: torch.ones_like(y), torch.zeros(1), 0.0, lambda t, y: y - c, reverse_time=sign < 0,
        options={"step_t": [sign * 1.0]}, **keywords,
    )
    assert float(t) == pytest.approx(sign, abs=1e-12)
    assert float(torch.autograd.grad(t, c)[0]) == pytest.approx(1.0, abs=1e-12)


def test_an_entry_that_is_zero_at_t0_counts_when_it_comes_back():
    t, _ = solve_event(lambda t, y: torch.cos(t) * torch.ones_like(y), torch.zeros(1), 0.0, lambda t, y: y, h=0.5)
    assert float(t) == pytest.approx(math.pi, abs=1e-5)


def test_touching_without_crossing():
    """y = (t - 1)^2 is zero at the end of a step, where its slope is zero as well."""
    func = lambda t, y: 2 * (t - 1) * torch.ones_like(y)  # noqa: E731
    keywords = {"method": "midpoint", "h": 0.25}  # exact for this func
    with pytest.raises(ValueError, match="touches the event"):
        solve_event(func, torch.ones(1), 0.0, lambda t, y: y, **keywords)
    with torch.no_grad():
        t, _ = solve_event(func, torch.ones(1), 0.0, lambda t, y: y, **keywords)
    assert float(t) == pytest.approx(1.0, abs=1e-7)  # where rounding makes (t - 1)^2 zero


@pytest.mark.parametrize("slope", [0.0, 1e-5])
def test_a_crossing_with_hardly_a_slope_keeps_its_time(slope):
    """g = (y - 1)^3 at y = t: the error of the solution, divided by g', could be anything."""
    event = lambda t, y: (y - 1) ** 3 + slope * (y - 1)  # noqa: E731
    with torch.no_grad():
        func = lambda t, y: torch.cos(10 * t) * 0.01 + torch.ones_like(y)  # noqa: E731
        t, _ = solve_event(func, torch.zeros(1), 0.0, event, rtol=1e-3, atol=1e-3)
    exact = 1.0 - math.sin(10.0) / 1000  # to first order in 0.001
    assert float(t) == pytest.approx(exact, abs=5e-3)  # the tolerance in y is 1e-3 + 1e-3 y for every step
    if slope == 0.0:
        y0 = torch.zeros(1, requires_grad=True)
        with pytest.raises(ValueError, match="slope"):  # at once, or where y is 1 to the last bit, from the gradient
            solve_event(lambda t, y: torch.ones_like(y), y0, 0.0, event)[0].backward()


@pytest.mark.parametrize("gradient", torch_ACA.GRADIENTS)
def test_no_event_within_max_evals(gradient):
    with pytest.raises(TooManyEvaluationsError, match="of func. No event was met so far: look at event_fn"):
        solve_event(
            lambda t, y: torch.cos(t) * torch.ones_like(y), torch.ones(1), 0.0, lambda t, y: y + 2, max_evals=2000,
            gradient=gradient,
        )


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("reverse_time", [False, True])
def test_no_event_on_the_whole_way(rows, reverse_time):
    """A state that stands still lets steps grow until the search ends: an error of a solve, and a ValueError."""
    with pytest.raises(NoEventError, match="no event was met from t = 3 on.*max_step.* reverse_time") as caught:
        solve_event(
            lambda t, y: 0 * y, torch.ones(2, 1), 3.0, lambda t, y: y + 1, per_sample=rows, reverse_time=reverse_time
        )
    error = caught.value
    assert isinstance(error, SolverError) and isinstance(error, ValueError)
    assert abs(error.t) > 1e9 and (error.t < 0) == (error.h < 0) == reverse_time
    assert error.n_steps > 0 and error.n_f_evals > 0 and ("rows 0, 1: " in str(error)) == rows
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.t == error.t


def test_rows_without_an_event_are_named():
    """Those that meet theirs are not: of three, the first has none."""
    with pytest.raises(NoEventError, match="row 0: no event was met"):
        solve_event(
            lambda t, y: torch.zeros_like(y), torch.tensor([[0.0], [1.0], [2.0]]), 0.0,
            lambda t, y: torch.where(y > 0.5, t - y, 1.0), per_sample=True,
        )  # fmt: skip


def test_search_and_solve_have_max_evals_each():
    keywords = {"method": "RK4", "h": 0.1, "max_evals": 45}  # 10 steps of 4 evaluations
    t, _ = solve_event(lambda t, y: torch.ones_like(y), torch.zeros(1), 0.0, lambda t, y: y - 0.95, **keywords)
    assert float(t) == pytest.approx(0.95)


def test_jumps_of_func_are_landed_on():
    """y' is 1 up to t = 1/2 and 3 behind it; the event lies behind the jump, and on it."""
    func = lambda t, y: torch.where(t < 0.5, 1.0, 3.0) * torch.ones_like(y)  # noqa: E731
    for level, exact, slope in ((2.0, 1.0, 3.0), (0.25, 0.25, 1.0)):
        c = torch.tensor(level, requires_grad=True)
        t, _ = solve_event(func, torch.zeros(1), 0.0, lambda t, y: y - c, options={"jump_t": [0.5, 1e6]})
        assert float(t) == pytest.approx(exact, abs=1e-9)
        assert float(torch.autograd.grad(t, c)[0]) == pytest.approx(1 / slope, abs=1e-9)


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode])
def test_without_gradients(no_grad):
    """The same value; in inference mode, where the event function has no derivative, to the tolerance."""
    net, event = nn.Linear(2, 2), lambda t, y: (y**2).sum() - 3
    func = lambda t, y: net(y) + 1  # noqa: E731
    t, ys = solve_event(func, torch.ones(2), 0.0, event)
    with no_grad():
        t2, ys2 = solve_event(func, torch.ones(2), 0.0, event)
    assert not t2.requires_grad and not ys2.requires_grad
    exact = no_grad is torch.no_grad
    assert abs(float(t - t2)) < (1e-14 if exact else 1e-4)
    assert float((ys - ys2).abs().max()) < (1e-14 if exact else 1e-4)


def test_params_alone_get_gradients():
    w, other = (torch.tensor(x, requires_grad=True) for x in (1.0, 2.0))
    t, ys = solve_event(
        lambda t, y: -w * y * other, torch.ones(1), 0.0, lambda t, y: y - 0.5, params=[w], **TIGHT
    )
    of_w, of_other = torch.autograd.grad(t, [w, other], allow_unused=True, create_graph=True)
    assert of_other is None
    assert float(of_w) == pytest.approx(-math.log(2) / 2, abs=1e-9)
    assert float(torch.autograd.grad(of_w, w)[0]) == pytest.approx(math.log(2), abs=1e-8)


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_event_function_that_returns_nothing_is_named(per_sample):
    with pytest.raises(TypeError, match="event_fn must return a tensor or a number, got NoneType"):
        solve_event(lambda t, y: -y, torch.ones(2, 1), 0.0, lambda t, y: None, per_sample=per_sample)


def test_arguments_that_cannot_be_used():
    f, y0, event = lambda t, y: -y, torch.ones(1), lambda t, y: y - 0.5
    for name, value in (("dense", True), ("on_failure", "return")):
        with pytest.raises(TypeError, match=name):
            solve_event(f, y0, 0.0, event, **{name: value})
    with pytest.raises(ValueError, match="give step_size"):
        solve_event(f, y0, 0.0, event, method="RK4", options={"grid": [0.0, 1.0]})
    with pytest.raises(TypeError, match="real numbers"):
        solve_event(f, y0, 0.0, lambda t, y: torch.complex(y, y))
    with pytest.raises(TypeError, match="got 0"):
        solve_event(f, y0, 0.0, lambda t, y: y[:0])
    with pytest.raises(NonFiniteError, match="event_fn returned NaN"):
        solve_event(f, y0, 0.0, lambda t, y: torch.log(y - 0.9) + 100)


def test_an_event_function_may_change_what_it_gets():
    event = lambda t, y: y.sub_(0.5)  # noqa: E731
    y0 = torch.ones(1, requires_grad=True)
    t, ys = solve_event(lambda t, y: -y, y0, 0.0, event, **TIGHT)
    assert float(t) == pytest.approx(math.log(2), abs=1e-9) and ys[0].tolist() == [1.0]
    assert float(torch.autograd.grad(t, y0)[0]) == pytest.approx(1.0, abs=1e-9)


# ---- torchdiffeq's interface


def test_backward_in_time_and_fixed_steps():
    f = lambda t, y: torch.ones_like(y)  # noqa: E731
    t, _ = odeint_event(f, torch.tensor([1.0]), torch.tensor(0.0), event_fn=lambda t, y: y + 1, reverse_time=True)
    assert float(t) == pytest.approx(-2.0, abs=1e-9)
    options = {"step_size": 0.3}
    t, _ = odeint_event(f, torch.tensor([1.0]), 0.0, event_fn=lambda t, y: y - 2, method="rk4", options=options)
    assert float(t) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("gradient", torch_ACA.GRADIENTS)
def test_times_in_a_list_or_of_any_type(gradient):
    f, y0, event = lambda t, y: -y, torch.ones(1), lambda t, y: y - 0.5
    for t, dtype in (
        ([0.0, 1.0], torch.float64),
        ((0, 1), torch.float64),
        (torch.tensor([0, 1]), torch.float64),
        (torch.tensor([0.0, 1.0], dtype=torch.float32), torch.float32),
    ):
        end, ys = odeint(f, y0, t, event_fn=event, gradient=gradient, rtol=1e-5, atol=1e-5)
        assert end.dtype == dtype and ys.shape == (2, 1)
        assert float(end) == pytest.approx(math.log(2), abs=1e-4)
    end, _ = odeint(f, y0, [0.0, -1.0], event_fn=lambda t, y: y - 2, gradient=gradient, rtol=1e-5, atol=1e-5)
    assert float(end) == pytest.approx(-math.log(2), abs=1e-4)


@pytest.mark.parametrize("t0", [0.0, 0, torch.tensor(0), torch.tensor([0])])
def test_a_start_of_any_type(t0):
    end, _ = odeint_event(lambda t, y: -y, torch.ones(1), t0, event_fn=lambda t, y: y - 0.5)
    assert end.shape == () and end.dtype == torch.float64
    assert float(end) == pytest.approx(math.log(2), abs=1e-7)


def test_the_direction_survives_float32():
    """A start from which one less is the same number."""
    t0 = torch.tensor(2.0**25, dtype=torch.float32)
    end, _ = odeint_event(
        lambda t, y: torch.ones_like(y), torch.zeros(1), t0, event_fn=lambda t, y: y + 64, reverse_time=True
    )
    assert float(end) == 2.0**25 - 64


# ---- the bracket


@pytest.mark.parametrize(
    ("f", "root", "most"),
    [
        (lambda x: 0.37 - x, 0.37, 20),
        (lambda x: math.exp(-3 * x) - math.exp(-1), 1 / 3, 20),
        (lambda x: 0.3 - x**5, 0.3**0.2, 20),
        (lambda x: 1.0 if x < 0.3 else -1.0, 0.3, 54),
        (lambda x: max(0.3 - x, 0.0), 0.3, 54),  # zero behind the crossing
        (lambda x: math.floor(3 - 5 * x), 0.4, 54),
        (lambda x: (0.3 - x) ** 3, 0.3, 54),
        (lambda x: math.inf if x < 0.3 else -math.inf, 0.3, 54),
    ],
)
def test_the_change_is_bracketed(f, root, most):
    """Few evaluations for smooth functions, one more than bisection for any."""
    calls = []
    x = _first_not_positive(lambda x: calls.append(x) or f(x), f(0.0), f(1.0), 2.0**-52)
    assert x == pytest.approx(root, abs=1e-15) or f(root) == 0.0 == f(x)
    assert f(x) <= 0.0 and len(calls) <= most


@pytest.mark.parametrize("kind", [tuple, list])
def test_tensors_in_a_sequence_are_refused(kind):
    """Made one tensor, they would lose their histories."""
    with pytest.raises(TypeError, match="torch.stack"):
        solve_event(lambda t, y: -y, torch.ones(2), 0.0, lambda t, y: kind((y[0] - 0.5, y[1] - 0.3)))


def swing(t, y):
    x, v = y.unbind(-1)
    return torch.stack([v, -x * (1 + 0.1 * x**2)], -1)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("event", [lambda x, c: x**2 - c, lambda x, c: x - c, lambda x, c: x**3 - 0.3 * c])
def test_a_solve_that_goes_on_from_an_event_does_not_meet_it_again(event, per_sample):
    """The value there is zero to rounding, on this side or that: a Poincare section."""
    levels = torch.linspace(0.05, 0.95, 3, dtype=torch.float64)
    for c in (levels,) if per_sample else levels.unbind():
        y, t, times = torch.tensor([1.0, 0.3], dtype=torch.float64).expand(*c.shape, 2), torch.zeros_like(c), []
        for _ in range(5):
            with torch.no_grad():
                t, ys = solve_event(
                    swing, y, t, lambda t, y: event(y[..., 0], c), per_sample=per_sample, rtol=1e-8, atol=1e-8
                )
            y = ys[-1]
            times.append(t)
        assert torch.stack(times).diff(dim=0).min() > 0.1


def test_a_comparison_that_changes_at_once_lies_at_t0_itself():
    with pytest.raises(ValueError, match="the event lies at t0 itself"):
        solve_event(lambda t, y: -torch.ones_like(y), torch.zeros(1), 1.0, lambda t, y: y < 0)


@pytest.mark.parametrize("way", [name for name in WAYS if "adjoint" not in name and "mali" not in name])
def test_time_read_from_a_table_that_ends(way):
    """The second of two events starts at the first one's time; the search goes far, and the table does not."""
    keywords, tolerance = WAYS[way]
    p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    table = [1.0 + 0.1 * k for k in range(40)]

    def field(t, y):
        at = float(t) / 0.1
        return p * (table[int(at)] + (at - int(at)) * 0.1) * torch.ones_like(y)  # 1 + t, and an error beyond t = 4

    t, y = torch.zeros((), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "func changes with its time", UserWarning)  # of naive
        for _ in range(2):  # each goes from y = 0 to 1: p (t + t**2 / 2) is 1, then 2
            t, _ = solve_event(field, y, t, lambda t, y: y[0] - 1, **keywords)
    (gradient,) = torch.autograd.grad(t, p)
    exact = math.sqrt(5) - 1
    assert float(t) == pytest.approx(exact, abs=tolerance)
    assert float(gradient) == pytest.approx(-2 / (1 + exact), abs=10 * tolerance)


def test_an_event_of_the_time_alone_where_the_state_does_not_move():
    for y0 in (torch.zeros(2), torch.ones(2)):
        t, _ = solve_event(lambda t, y: 0 * y, y0, 0.0, lambda t, y: t - 0.5)
        assert float(t) == pytest.approx(0.5, abs=1e-6)
