"""Autocast is for func alone: the solver's own sums keep their precision, and a backward pass may run inside it."""

import pytest
import torch
from torch import nn

from tests.torch_ACA.programs import KINDS, keywords_of
from torch_ACA import ODEBlock, odeint, odeint_dense, solve

DEVICE = torch.get_default_device().type
CASTS = [torch.bfloat16, torch.float16]


def keywords_in_low_precision(kind):
    """The adjoint with fixed steps: half precision never meets its tolerance."""
    return KINDS[kind] | {"method": "RK4", "h": 0.25} if kind == "adjoint" else keywords_of(kind)


def cast(dtype=torch.bfloat16, **keywords):
    return torch.autocast(DEVICE, dtype, **keywords)


def untouched(t, y):
    """Nothing that autocast changes."""
    return -y + torch.sin(3 * t)


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_func_that_autocast_does_not_touch_gives_the_same_bits(kind, dtype):
    def found():
        y0 = torch.tensor([1 / 3, 2.0], dtype=torch.float32, requires_grad=True)
        ys = solve(untouched, y0, [0.0, 0.4, 1.0], **keywords_of(kind)).ys
        (g,) = torch.autograd.grad(ys[1:].sum(), y0)
        return ys, g

    expected = found()
    with cast(dtype):
        for a, b in zip(found(), expected):
            assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dopri8", "rk4"])
def test_interpolated_outputs_keep_their_bits(method):
    y0, t = torch.tensor([1 / 3]), torch.tensor([0.0, 0.31, 1.0])
    options = {"options": {"step_size": 0.25}} if method == "rk4" else {}
    y0 = y0.float()
    plain = odeint(untouched, y0, t, method=method, **options)
    dense = odeint_dense(untouched, y0, 0.0, 1.0, method=method, **options)(torch.linspace(0, 1, 7))
    with cast():
        assert torch.equal(odeint(untouched, y0, t, method=method, **options), plain)
        solution = odeint_dense(untouched, y0, 0.0, 1.0, method=method, **options)
        assert torch.equal(solution(torch.linspace(0, 1, 7)), dense)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).float()


def parameters_gradient(kind, inside):
    """Gradients with the backward pass inside or outside of autocast, and the dtypes that func returned."""
    net, seen = network(), []

    def f(t, y):
        out = net(y)
        seen.append(out.dtype)
        return out

    y0 = torch.ones(3, 4, dtype=torch.float32, requires_grad=True)
    keywords = keywords_in_low_precision(kind)
    with cast():
        loss = (solve(f, y0, [0.0, 1.0], **keywords).ys[-1] ** 2).sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert set(seen) == {torch.bfloat16}
    return [y0.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_inside_is_that_outside(kind):
    outside, inside = parameters_gradient(kind, False), parameters_gradient(kind, True)
    for a, b in zip(inside, outside):
        assert a.dtype == torch.float32
        # the same operations; of naive, autograd's own graph runs in what is active
        assert torch.equal(a, b) if kind != "naive" else torch.allclose(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", ["aca", "direct", "naive"])
def test_second_derivatives_inside(kind):
    def second(context):
        net = network()
        y0 = torch.ones(3, 4, dtype=torch.float32, requires_grad=True)
        with context:
            ys = solve(lambda t, y: torch.tanh(net(y)), y0, [0.0, 1.0], **keywords_of(kind)).ys
            (g,) = torch.autograd.grad((ys[-1] ** 2).sum(), y0, create_graph=True)
            (g**2).sum().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    found, expected = second(cast()), second(cast(enabled=False))
    # bfloat16 has three digits
    assert float((found - expected).norm() / expected.norm()) < 5e-2


def test_autocast_inside_func_is_its_own():
    net = network()
    y0 = torch.ones(3, 4, dtype=torch.float32)

    def f(t, y):
        with cast():
            return net(y).float()

    for kind in KINDS:
        net.zero_grad()
        solve(f, y0, [0.0, 1.0], **keywords_in_low_precision(kind)).ys[-1].sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in net.parameters())


def test_autocast_is_as_it_was_afterwards():
    y0 = torch.ones(2, dtype=torch.float32, requires_grad=True)
    with cast():
        ys = solve(untouched, y0, [0.0, 1.0]).ys
        assert torch.is_autocast_enabled(DEVICE) and torch.get_autocast_dtype(DEVICE) == torch.bfloat16
        ys.sum().backward()
        assert torch.is_autocast_enabled(DEVICE)

        def fails(t, y):
            raise KeyError("own")

        with pytest.raises(KeyError):
            solve(fails, y0, [0.0, 1.0])
        assert torch.is_autocast_enabled(DEVICE)
    assert not torch.is_autocast_enabled(DEVICE)


def test_a_block_between_layers_in_autocast():
    torch.manual_seed(0)
    net = network()
    model = nn.Sequential(nn.Linear(4, 4), ODEBlock(lambda t, y: net(y)), nn.Linear(4, 2)).float()
    with cast():
        loss = model(torch.randn(5, 4, dtype=torch.float32)).float().pow(2).sum()
        loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_prepared_weights_under_autocast():
    """A captured tensor with a history, made in half precision outside."""
    net = network()
    for kind in KINDS:
        net.zero_grad()
        with cast():
            ctx = net(torch.ones(3, 4, dtype=torch.float32))
            assert ctx.dtype == torch.bfloat16
            y0 = torch.ones(3, 4, dtype=torch.float32)
            keywords = keywords_in_low_precision(kind)
            loss = solve(lambda t, y: y @ ctx.t() @ ctx, y0, [0.0, 0.25], **keywords).ys[-1].sum()
        loss.backward()
        g = net[0].weight.grad.clone()
        if kind == "aca":
            expected = g
        assert float((g - expected).norm() / expected.norm()) < 0.1  # methods differ, a double count does not pass
