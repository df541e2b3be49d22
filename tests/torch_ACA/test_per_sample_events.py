"""Events of rows that take their own steps: each row has its own."""

import math

import pytest
import torch

from torch_ACA import NonFiniteError, TooManyEvaluationsError, solve_event

SETTINGS = {"rtol": 1e-9, "atol": 1e-9}
ALONE = 1e-8  # of a joint solve of the row alone: rounding of its step sizes, times what the steps before make of it


def assert_close(found, expected, tolerance):
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("method", ["Dopri5", "Rodas5P", pytest.param("HeunEuler", marks=pytest.mark.slow)])
@pytest.mark.parametrize("reverse_time", [False, True])
def test_times_and_states_and_their_derivatives(method, reverse_time):
    """Of decays that reach a level: t = t0 + log(y0 / level) / rate."""
    sign, tolerance = -1 if reverse_time else 1, 1e-5 if method == "HeunEuler" else 1e-9
    rate, y0, level = torch.tensor([0.3, 1.0, 5.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.5)
    t0 = torch.tensor([0.0, 0.5, -1.0])
    inputs = [x.requires_grad_() for x in (rate, y0, level, t0)]
    t, ys = solve_event(
        lambda t, y: -sign * rate[:, None] * y, y0[:, None], t0, lambda t, y: y - level, reverse_time=reverse_time,
        method=method, per_sample=True, rtol=tolerance, atol=tolerance,
    )  # fmt: skip
    exact = t0 + sign * torch.log(y0 / level) / rate
    assert t.shape == (3,) and t.dtype == torch.float64 and ys.shape == (2, 3, 1)
    assert_close(t, exact, 100 * tolerance)
    assert_close(ys[1], level.expand(3, 1), 100 * tolerance)
    weights = torch.tensor([1.0, -2.0, 3.0])
    firsts = [torch.autograd.grad((x * weights).sum(), inputs, create_graph=True) for x in (t, exact)]
    for one, other in zip(*firsts):
        assert_close(one, other, 1e3 * tolerance)
    squares = [sum((gradient**2).sum() for gradient in first[:3]) for first in firsts]
    seconds = [torch.autograd.grad(square, inputs[:3], retain_graph=True) for square in squares]
    for one, other in zip(*seconds):
        assert_close(one, other, 1e4 * tolerance)
    for y_bar in torch.autograd.grad(ys[1].sum(), inputs[:2], allow_unused=True):  # the level, whatever they are
        assert_close(y_bar, torch.zeros(3), 1e3 * tolerance)


@pytest.mark.parametrize("method", ["Dopri5", pytest.param("Rodas5P", marks=pytest.mark.slow)])
def test_rows_are_as_alone(method):
    """Pendulums that come down at different times; the second of two entries of the event is the first to cross."""
    lengths = torch.tensor([0.5, 1.0, 4.0, 0.7])[:, None].requires_grad_()
    y0 = torch.tensor([[1.0, 0.0], [0.3, 0.5], [2.0, 0.0], [1.0, 0.1]], requires_grad=True)

    settings = SETTINGS | {"method": method}

    def func_of(lengths):
        return lambda t, y: torch.cat([y[:, 1:], -torch.sin(y[:, :1]) / lengths + 0.1 * torch.cos(t)], 1)

    def event(t, y):
        return torch.stack([y[:, 0] - 10.0, y[:, 0] - 0.1 * t[:, 0]], 1)

    t, ys = solve_event(func_of(lengths), y0, 0.0, event, per_sample=True, **settings)
    weights = torch.randn(4, 2)
    bars = torch.autograd.grad(t.sum() + (weights * ys[1]).sum(), [lengths, y0])
    for row in range(4):
        inputs = [x[row : row + 1].detach().requires_grad_() for x in (lengths, y0)]
        t1, ys1 = solve_event(
            func_of(inputs[0]), inputs[1], 0.0, lambda t, y: event(t.reshape(1, 1), y), **settings
        )
        assert_close(t[row], t1, ALONE)
        assert_close(ys[:, row], ys1[:, 0], ALONE)
        alone = torch.autograd.grad(t1 + (weights[row] * ys1[1]).sum(), inputs)
        for one, other in zip(bars, alone):
            assert_close(one[row], other[0], 100 * ALONE)
    fewer = [2, 0]
    t2, ys2 = solve_event(func_of(lengths[fewer]), y0[fewer], 0.0, event, per_sample=True, **settings)
    assert torch.equal(t2, t[fewer]) and torch.equal(ys2, ys[:, fewer])  # to the last bit


def test_jumps_and_float32_and_nested_states():
    """Filling up at a rate that doubles at t = 1, until full."""
    rates = torch.tensor([2.0, 0.4, 0.25], dtype=torch.float32, requires_grad=True)
    state = {"level": torch.zeros(3, dtype=torch.float32), "other": torch.ones(3, 2, dtype=torch.float32)}

    def func(t, y):
        return {"level": rates * torch.where(t < 1.0, 1.0, 2.0), "other": -y["other"]}

    t, ys = solve_event(
        func, state, 0.0, lambda t, y: y["level"] - 1.0, per_sample=True, options={"jump_t": [1.0], "max_step": 0.3}
    )
    exact = torch.where(rates > 1, 1 / rates, 0.5 + 0.5 / rates)
    assert_close(t, exact.double(), 1e-5)  # float32
    assert ys["other"].shape == (2, 3, 2) and ys["other"].dtype == torch.float32
    found, expected = (torch.autograd.grad(x.sum(), rates)[0] for x in (t, exact))
    assert_close(found, expected, 1e-4)


def test_an_event_that_falls_to_a_plateau_at_a_time_beside_others():
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)

    def event(t, y):
        return torch.stack([y[:, 0] - 0.5, torch.where(t < 1.0, 1.0 - t, 0.0)[:, 0]], -1)

    t, ys = solve_event(lambda t, y: -y, y0, 0.0, event, per_sample=True, **SETTINGS)
    assert_close(t, torch.tensor([math.log(2), 1.0], dtype=torch.float64), 1e-8)
    t_bar, y_bar = (torch.autograd.grad(x.sum(), y0, retain_graph=True)[0] for x in (t, ys[1]))
    assert_close(t_bar, torch.tensor([[1.0], [0.0]], dtype=torch.float64), 1e-7)  # the first one's is log(y0 / 0.5)
    assert_close(y_bar, torch.tensor([[0.0], [math.exp(-1)]], dtype=torch.float64), 1e-7)


def test_events_that_have_no_slope():
    y0 = torch.tensor([[1.0], [2.0]], requires_grad=True)
    t, ys = solve_event(lambda t, y: -y, y0, 0.0, lambda t, y: y < 0.5, per_sample=True, **SETTINGS)
    assert_close(t, torch.log(y0[:, 0] / 0.5), 1e-8)
    assert not t.requires_grad
    assert_close(torch.autograd.grad(ys[1].sum(), y0)[0], 0.5 / y0, 1e-8)
    t, ys = solve_event(lambda t, y: -y, y0, 0.0, lambda t, y: torch.sign(y - 0.5), per_sample=True)
    with pytest.raises(ValueError, match=r"no slope .* row 1:"):
        t[1].backward(retain_graph=True)
    ys[1].sum().backward(retain_graph=True)
    with torch.inference_mode():
        t, _ = solve_event(lambda t, y: -y, y0.detach(), 0.0, lambda t, y: y - 0.5, per_sample=True, **SETTINGS)
    assert_close(t, torch.log(y0[:, 0] / 0.5), 1e-8)


def test_what_cannot_be_is_named():
    y0 = torch.tensor([[1.0], [2.0], [0.4]])

    def decay(t, y):
        return -y

    with pytest.raises(ValueError, match="event_fn of each row alone"):
        solve_event(decay, y0, 0.0, lambda t, y: y - y.mean(), per_sample=True)
    with pytest.raises(TypeError, match="real numbers .* b = 3 rows"):
        solve_event(decay, y0, 0.0, lambda t, y: y.sum(), per_sample=True)
    with pytest.raises(TooManyEvaluationsError, match="row 2: max_evals = 200 .* No event was met"):
        solve_event(decay, y0, 0.0, lambda t, y: y - 0.5, per_sample=True, max_evals=200)
    with pytest.raises(NonFiniteError, match="row 2: event_fn returned NaN"):
        solve_event(decay, y0, 0.0, lambda t, y: (y - 0.5) ** 0.5, per_sample=True)
    with pytest.raises(ValueError, match="touches the event .* rows 0, 1, 2"):
        solve_event(lambda t, y: torch.ones_like(y), y0 - 3, 0.0, lambda t, y: y**3, per_sample=True)
    with torch.no_grad():
        t, _ = solve_event(lambda t, y: torch.ones_like(y), y0 - 3, 0.0, lambda t, y: y**3, per_sample=True)
    assert_close(t, (3 - y0)[:, 0], 1e-5)
    with pytest.raises(ValueError, match="event lies at t0 itself: rows 0, 1, 2"):
        solve_event(lambda t, y: -torch.ones_like(y), 0 * y0, 1.0, lambda t, y: y < 0, per_sample=True)
    with pytest.raises(ValueError, match="gradient='aca'"):
        solve_event(decay, y0, 0.0, lambda t, y: y - 0.5, per_sample=True, gradient="mali")


def test_without_gradients_a_row_that_touches_leaves_others_as_they_are():
    """Row 0 meets exp(y) - 2 with a slope, row 1 meets y^9 at its turning point."""

    def first_event_time(touches):
        def event(t, y):
            return torch.where(torch.tensor([[False], [touches]]), y**9, torch.exp(2 * y) - 2)

        with torch.no_grad():
            y0 = torch.tensor([[-0.3], [-1.0]], dtype=torch.float64)
            times, _ = solve_event(
                lambda t, y: 1.5 + torch.sin(3 * t) + 0.1 * y, y0, 0.0, event, per_sample=True, rtol=1e-3, atol=1e-3
            )
            return times[0]

    assert first_event_time(True) == first_event_time(False)
