"""Nested, complex, low-precision and odd states; every tensor that f uses gets its gradient."""

import copy
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from tests.torch_ACA.programs import assert_close
from torch_ACA import ODEBlock, odeint, solve, solve_event
from torch_ACA.reach import reach


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.defect("nested-states")
def test_nested_states(gradient):
    """The parts of a nested state solve as they would alone with the same steps."""
    y0 = (torch.randn(3), {"a": torch.randn(2, 2, dtype=torch.complex128), "b": [torch.tensor(1.0), torch.zeros(0, 4)]})
    leaves = [y0[0], y0[1]["a"], y0[1]["b"][0], y0[1]["b"][1]]
    for leaf in leaves:
        leaf.requires_grad_()
    rates = [-0.5, 1j, 0.3, 1.0]

    def f(t, y):
        return y[0] * rates[0], {"a": y[1]["a"] * rates[1], "b": [y[1]["b"][0] * rates[2], y[1]["b"][1]]}

    solution = solve(f, y0, [0.0, 0.5, 1.0], gradient=gradient, rtol=1e-6, atol=1e-6)
    found = [solution.ys[0], solution.ys[1]["a"], solution.ys[1]["b"][0], solution.ys[1]["b"][1]]
    for values, leaf, rate in zip(found, leaves, rates):
        assert values.shape == (3, *leaf.shape) and values.dtype == leaf.dtype
        factor = torch.exp(torch.tensor(rate))
        assert torch.allclose(values[-1], leaf * factor, atol=1e-4)
        if values.is_complex():
            (g,) = torch.autograd.grad(values[-1].real.sum(), leaf, retain_graph=True)
            assert torch.allclose(g, factor.conj() * torch.ones_like(leaf), atol=1e-4)
        elif leaf.numel():
            (g,) = torch.autograd.grad(values[-1].sum(), leaf, retain_graph=True)
            assert torch.allclose(g, factor * torch.ones_like(leaf), atol=1e-4)


def test_complex_parameters():
    k = torch.tensor(0.3 + 2j, requires_grad=True)
    z0 = torch.ones(2, dtype=torch.complex128, requires_grad=True)
    for gradient in ("aca", "direct", "naive", "adjoint", "mali"):
        tolerance = 1e-5 if gradient == "mali" else 1e-9
        z = solve(lambda t, z: k * z, z0, [0.0, 1.0], gradient=gradient, rtol=tolerance, atol=tolerance).ys[-1]
        found = torch.autograd.grad((z.abs() ** 2).sum(), [z0, k])
        zz = z0 * torch.exp(k)
        expected = torch.autograd.grad((zz.abs() ** 2).sum(), [z0, k])
        for f, e in zip(found, expected):
            assert float((f - e).abs().max()) < (1e-3 if gradient == "mali" else 1e-7)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.defect("frozen-or-no-parameters", "closure-gets-no-gradient")
def test_captured_tensors(gradient):
    """A closure, a global-free hypernetwork's non-leaf output, a frozen and an unused parameter."""
    hyper, scale = nn.Linear(2, 9), torch.tensor(0.7, requires_grad=True)
    frozen, unused = torch.randn(3).requires_grad_(False), nn.Parameter(torch.randn(3))
    context, y0 = torch.randn(2), torch.randn(4, 3)

    def loss(result):
        weight = hyper(context).view(3, 3)
        return (result(lambda t, y: scale * torch.tanh(y @ weight) + frozen) ** 2).sum()

    def rk4(f):
        y = y0
        for _ in range(4):
            k1 = f(0, y)
            k2 = f(0, y + 0.125 * k1)
            k3 = f(0, y + 0.125 * k2)
            k4 = f(0, y + 0.25 * k3)
            y = y + 0.25 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    wanted = [hyper.weight, hyper.bias, scale]
    expected = torch.autograd.grad(loss(rk4), wanted)
    if gradient == "mali":
        keywords, tolerance = {"options": {"step_size": 0.005}}, 1e-2
    elif gradient == "adjoint":
        keywords, tolerance = {"method": "RK4", "options": {"step_size": 0.25}}, 1e-2
    else:
        keywords, tolerance = {"method": "RK4", "h": 0.25}, 1e-12
    value = loss(lambda f: solve(f, y0, [0.0, 1.0], gradient=gradient, **keywords).ys[-1])
    found = torch.autograd.grad(value, [*wanted, unused], allow_unused=True)
    assert found[-1] is None
    for f, e in zip(found, expected):
        assert float((f - e).abs().max()) <= tolerance * float(e.abs().max())


def test_parameter_that_only_a_later_time_uses():
    """The first call does not see it; it is found because it belongs to the module."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))

        def forward(self, t, y):
            return (self.early if t < 0.5 else self.late) * torch.ones_like(y)

    module = Late()
    y = solve(module, torch.zeros(1), [0.0, 1.0], method="RK4", h=0.25, options={"jump_t": [0.5]}).ys[-1]
    y.sum().backward()
    assert float(module.early.grad) == pytest.approx(0.5, abs=1e-14)
    assert float(module.late.grad) == pytest.approx(0.5, abs=1e-14)


@pytest.mark.defect("frozen-or-no-parameters")
def test_module_parameters_without_use_get_no_gradient():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, t, y):
            return self.used(y)

    module = Extra()
    ODEBlock(module)(torch.randn(3, 2)).sum().backward()
    assert module.spare.weight.grad is None and module.used.weight.grad is not None


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.defect("buffer-emptied")
def test_func_that_returns_its_own_buffer_or_parameter(gradient):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("field", torch.ones(3))
            self.drift = nn.Parameter(torch.ones(3))

        def forward(self, t, y):
            return self.field if y.shape == (3,) else self.drift

    module = Constant()
    y0 = torch.zeros(3, requires_grad=True)
    y = solve(module, y0, [0.0, 2.0], gradient=gradient, h=0.5).ys[-1]
    assert torch.allclose(y, 2 * torch.ones(3)) and torch.equal(module.field, torch.ones(3))
    assert torch.equal(torch.autograd.grad(y.sum(), y0)[0], torch.ones(3))
    y = solve(lambda t, y: module.drift, y0, [0.0, 2.0], gradient=gradient, h=0.5).ys[-1]
    assert torch.allclose(torch.autograd.grad(y.sum(), module.drift)[0], 2 * torch.ones(3))
    assert torch.equal(module.drift, torch.ones(3))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.defect("shapes")
def test_shapes_and_dtypes(shape, dtype):
    y0 = torch.ones(shape, dtype=dtype, requires_grad=True)
    ys = solve(lambda t, y: -y, y0, [0.0, 1.0, 2.0]).ys
    assert ys.shape == (3, *shape) and ys.dtype == dtype and torch.equal(ys[0], y0)
    (g,) = torch.autograd.grad(ys[-1].sum(), y0)
    assert g.shape == shape and (g.numel() == 0 or float((g - torch.exp(torch.tensor(-2.0))).abs().max()) < 1e-4)


def test_bfloat16_states_are_carried_in_float32():
    y0 = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    seen = []
    ys = solve(lambda t, y: seen.append(y.dtype) or -y, y0, [0.0, 1.0], rtol=1e-3, atol=1e-3).ys
    assert ys.dtype == torch.bfloat16 and set(seen) == {torch.bfloat16}
    ys[-1].float().sum().backward()
    assert y0.grad.dtype == torch.bfloat16 and float((y0.grad.float() - 0.3679).abs().max()) < 0.01


def test_channels_last_stays():
    seen = []

    def f(t, y):
        seen.append(y.is_contiguous(memory_format=torch.channels_last))
        return -y

    y0 = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    ys = solve(f, y0, [0.0, 1.0]).ys
    assert all(seen) and torch.allclose(ys[-1], y0 * torch.exp(torch.tensor(-1.0)), atol=1e-5)
    ys[-1].sum().backward()
    assert torch.allclose(y0.grad, torch.exp(torch.tensor(-1.0)).expand_as(y0), atol=1e-5)


def test_tolerances_per_part():
    y0 = (torch.ones(2), torch.ones(3))
    f = lambda t, y: (-y[0], torch.cos(20 * t) * y[1])  # noqa: E731
    loose = solve(f, y0, [0.0, 1.0], rtol=(1e-9, 1e-1), atol=(1e-9, 1e-1)).stats
    tight = solve(f, y0, [0.0, 1.0], rtol=1e-9, atol=1e-9).stats
    assert loose.n_accepted < tight.n_accepted


def test_dense_output_of_a_nested_state():
    y0 = {"a": torch.ones(2), "b": torch.ones(())}
    solution = solve(lambda t, y: {"a": -y["a"], "b": y["b"]}, y0, [0.0, 2.0], rtol=1e-9, atol=1e-9, dense=True)
    at = solution(1.3)
    assert at["a"].shape == (2,) and at["b"].shape == ()
    assert float(at["b"]) == pytest.approx(3.6692966676, abs=1e-6)
    assert solution(torch.linspace(0, 2, 9))["a"].shape == (9, 2)
    with pytest.raises(ValueError, match="dense output covers"):
        solution(2.1)
    with pytest.raises(ValueError, match="dense=True"):
        solve(lambda t, y: y, torch.ones(1), [0.0, 1.0])(0.5)


def test_autocast_around_f_keeps_the_state_in_float32():
    net = nn.Linear(8, 8).float()
    seen = []

    def f(t, y):
        out = net(y)
        seen.append(out.dtype)
        return torch.tanh(out)

    y0 = torch.randn(4, 8, dtype=torch.float32, requires_grad=True)
    with torch.autocast(y0.device.type, torch.bfloat16):
        y = solve(f, y0, [0.0, 1.0], method="HeunEuler", rtol=1e-2, atol=1e-2).ys[-1]
    assert y.dtype == torch.float32
    y.sum().backward()  # outside of autocast: the recomputation must still use it
    assert set(seen) == {torch.bfloat16} and net.weight.grad.dtype == torch.float32


def test_data_parallel_replicas():
    """Replicas hold their parameters as non-leaf tensors, out of parameters()."""
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, t, y):
            return torch.tanh(y @ self.weight)

    original = Slope()
    replica = original._replicate_for_data_parallel()
    replica.weight = original.weight * 1.0  # what broadcasting leaves: a tensor with a history
    x = torch.randn(2, 3)
    solve(replica, x, [0.0, 1.0], method="RK4", h=0.25).ys[-1].sum().backward()
    found, original.weight.grad = original.weight.grad, None
    solve(original, x, [0.0, 1.0], method="RK4", h=0.25).ys[-1].sum().backward()
    assert float((found - original.weight.grad).abs().max()) < 1e-12


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
def test_a_part_of_a_slope_may_lack_axes_of_size_one(gradient):
    """As where a sum, of no axes, goes into a part of shape (1,); of a state that is one tensor it is a mistake."""
    net, keywords = nn.Linear(3, 3).double(), {"gradient": gradient}
    keywords |= {"method": "ALF", "h": 0.01} if gradient == "mali" else {"rtol": 1e-8, "atol": 1e-8}
    y0 = torch.ones(2, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def gradients(shape):
        def func(t, y):
            slope = net(y[0])
            return slope, slope.square().sum().reshape(shape)

        y, total = solve(func, y0, [0.0, 1.0], **keywords).ys
        assert total.shape == (2, 1)
        return torch.autograd.grad(y[-1].sum() + total[-1].sum(), list(net.parameters()))

    for found, expected in zip(gradients(()), gradients((1,))):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"func returned shape \(2,\) for y0\[1\], but the state has \(1,\)"):
        solve(lambda t, y: (y[0], torch.zeros(2)), y0, [0.0, 1.0], **keywords)
    with pytest.raises(ValueError, match=r"func returned shape \(\), but the state has \(1,\)"):
        solve(lambda t, y: y.sum(), y0[1], [0.0, 1.0], **keywords)


def test_what_is_searched_is_the_users():
    """Neither this package's own code, nor figures and what they lead to; the weight beside them is found."""
    figure = plt.figure()
    figure.add_subplot().plot([1, 2])
    module = nn.Linear(2, 2)
    module.solver, module.figure, module.plot = odeint, figure, plt.plot
    module.show = lambda: plt.show()
    found = reach(lambda t, y: module(y))
    assert len(found.tensors) == 2 and len(found.search._seen) < 100
    plt.close(figure)


def with_numpy(t, y):
    return torch.as_tensor(-y.numpy())


@pytest.mark.parametrize("keywords", [
    *({"gradient": gradient} for gradient in ("aca", "direct", "naive", "adjoint", "mali")), {"method": "auto"},
    {"method": "RK4", "h": 0.05}, {"params": ()}, {"per_sample": True},
], ids=str)  # fmt: skip
def test_func_may_use_numpy_where_nobody_asks_for_a_gradient(keywords):
    """Though gradients are enabled, as they are by default."""
    y0 = torch.rand(3, 2, dtype=torch.float64)
    ys = solve(with_numpy, y0, [0.0, 1.0], rtol=1e-5, atol=1e-5, **keywords).ys
    expected = solve(lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-5, atol=1e-5, **keywords).ys
    torch.testing.assert_close(ys, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        found = solve(with_numpy, y0, [0.0, 1.0], rtol=1e-5, atol=1e-5, **keywords).ys
    torch.testing.assert_close(found, ys, rtol=0, atol=1e-12)
    for event in (lambda t, y: y[:, :1] - y0[:, :1] / 2, lambda t, y: y.numpy()[:, :1] - y0.numpy()[:, :1] / 2):
        t, _ = solve_event(with_numpy, y0, 0.0, event, **keywords)
        torch.testing.assert_close(t, torch.full_like(t, math.log(2.0)), rtol=0, atol=1e-3)


def test_numpy_and_a_gradient_are_one_clear_line():
    y0, net = torch.ones(2), nn.Linear(2, 2)
    asked, times = y0.clone().requires_grad_(), torch.tensor([0.0, 1.0], requires_grad=True)
    for func, y, t in (
        (with_numpy, asked, [0.0, 1.0]), (with_numpy, y0, times), (lambda t, y: net(y).numpy(), y0, [0.0, 1.0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="^func takes its time, its state, .* array of NumPy, which has no"):
            solve(func, y, t)
    with pytest.raises(ValueError, match="^event_fn takes its time, its state, .* array of NumPy"):
        solve_event(lambda t, y: -y, asked, 0.0, lambda t, y: y.numpy() - 0.5)


def test_a_tensor_that_cannot_be_found_gets_its_gradient_though_nobody_else_asks():
    """func holds it in a place that no search looks into: the first evaluation shows it."""
    hidden = torch.tensor(2.0, requires_grad=True)
    table = np.empty(1, dtype=object)
    table[0] = hidden
    norm = nn.BatchNorm1d(2, affine=False)

    def func(t, y):
        return -table[0] * norm(y)

    plain = copy.deepcopy(norm)
    found = solve(func, torch.rand(4, 2), [0.0, 1.0], method="RK4", h=0.05)
    found.ys.sum().backward()
    assert hidden.grad is not None
    expected = solve(lambda t, y: -hidden * plain(y), torch.rand(4, 2), [0.0, 1.0], method="RK4", h=0.05)
    assert found.stats.n_f_evals == expected.stats.n_f_evals
    assert norm.num_batches_tracked == plain.num_batches_tracked


WAYS = [
    {}, {"memory": "states"}, {"gradient": "direct"}, {"gradient": "naive"}, {"gradient": "adjoint"},
    {"gradient": "mali", "method": "ALF"}, {"per_sample": True}, {"method": "RK4", "h": 0.1},
    {"method": "Euler", "h": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("keywords", WAYS, ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["tensor", "tuple"])
def test_states_that_are_written_into_one_tensor(nested, keywords):
    """As ODE-RNNs do that make room for all hidden states first: a write to one counts as one to all."""
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def step(h):
        if nested:
            return solve(lambda t, y: (net(y[0]),), (h,), [0.0, 0.5], rtol=1e-6, atol=1e-6, **keywords).ys[0][-1]
        return solve(lambda t, y: net(y), h, [0.0, 0.5], rtol=1e-6, atol=1e-6, **keywords).ys[-1]

    def in_one():
        h = torch.zeros(4, 3, 2, dtype=torch.float64)
        h[0] = x
        for i in range(3):
            h[i + 1] = step(h[i])
        return h

    def apart():
        h = [x]
        for _ in range(3):
            h.append(step(h[-1]))
        return torch.stack(h)

    found, expected = (torch.autograd.grad(f().square().sum(), [x, *net.parameters()]) for f in (in_one, apart))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
def test_an_ensemble_whose_module_has_no_weights_of_its_own(gradient):
    """As in the tutorial of torch.func: parameters on "meta", of which func uses none, are no part of the gradient."""
    parts = [nn.Linear(3, 3).double() for _ in range(4)]
    stacked, buffers = torch.func.stack_module_state(parts)
    base = copy.deepcopy(parts[0]).to("meta")

    def func(t, y):
        return torch.func.vmap(lambda p, b, x: torch.func.functional_call(base, (p, b), (x,)))(stacked, buffers, y)

    y0, keywords = torch.randn(4, 5, 3, dtype=torch.float64), {"rtol": 1e-6, "atol": 1e-6, "gradient": gradient}
    keywords |= {"method": "ALF"} if gradient == "mali" else {}
    solve(func, y0, [0.0, 1.0], **keywords).ys[-1].square().sum().backward()
    for i, part in enumerate(parts):
        solve(lambda t, y, part=part: part(y), y0[i], [0.0, 1.0], **keywords).ys[-1].square().sum().backward()
        torch.testing.assert_close(stacked["weight"].grad[i], part.weight.grad, rtol=1e-4, atol=1e-4)  # other steps


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint"])
def test_a_traced_module(gradient):
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    traced = torch.jit.trace(net, torch.ones(2))

    def of(func):
        ys = solve(lambda t, y: func(y), torch.ones(2), [0.0, 1.0], gradient=gradient).ys
        return torch.autograd.grad(ys[-1].sum(), list(net.parameters()))

    assert_close(of(traced), of(net), 1e-12)


@pytest.mark.parametrize("keywords", [
    {"memory": "states"}, {}, {"gradient": "direct"}, {"gradient": "adjoint"}, {"method": "Rodas5P"},
    {"gradient": "mali", "method": "ALF"}, {"per_sample": True}, {"per_sample": True, "memory": "states"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("tied", [False, True])
def test_sparse_gradients_and_sparse_captured_tensors(keywords, tied):
    """Embeddings with sparse gradients, also beside dense ones of the same tensor; weights of a sparse matrix."""
    rows, values = torch.arange(4), torch.rand(4, dtype=torch.float64, requires_grad=True)
    places, weight = torch.stack([rows, rows.roll(1)]), torch.rand(4, 2, dtype=torch.float64, requires_grad=True)

    def gradients(sparse):
        matrix = torch.sparse_coo_tensor(places, values, (4, 4), check_invariants=True)

        def func(t, y):
            x = nn.functional.embedding(rows, weight, sparse=sparse) + (0.1 * weight if tied else 0.1)
            if keywords.get("per_sample"):  # whose rows are apart
                return torch.tanh(x * y)
            return torch.tanh((torch.sparse.mm(matrix, y) if sparse else matrix.to_dense() @ y) * x)

        end = solve(func, torch.ones(4, 2, dtype=torch.float64), [0.0, 1.0], **keywords).ys[-1]
        found = torch.autograd.grad(end.square().sum(), [weight, values], allow_unused=True)
        return [x.to_dense() for x in found if x is not None]

    assert_close(gradients(True), gradients(False), 1e-12)
