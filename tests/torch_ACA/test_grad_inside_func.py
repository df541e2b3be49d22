"""Funcs that differentiate something themselves: Hamiltonians, scores, divergences."""

import pytest
import torch
from torch import nn

from tests.torch_ACA.programs import EXACT, KINDS, assert_close, gradients, keywords_of, plain, square, tolerance_of
from torch_ACA import ODEBlock, odeint, solve


def hamiltonian(net):
    def f(t, x):
        x = x.requires_grad_(True)
        (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return torch.stack([g[:, 1], -g[:, 0]], 1)

    return f


def by_its_argument(net):
    """Without a word of what requires grad: it takes the argument to do so, as it does where y0 does."""

    def f(t, x):
        (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return g

    return f


def with_a_leaf_of_its_own(net):
    def f(t, x):
        z = x.detach().clone().requires_grad_(True) if not x.requires_grad else x
        (g,) = torch.autograd.grad(net(z).sum(), z, create_graph=True)
        return g

    return f


def by_func(net):
    energy = lambda x: net(x).sum()  # noqa: E731
    return lambda t, x: -torch.func.grad(energy)(x)


def by_vmap(net):
    energy = lambda x: net(x).squeeze()  # noqa: E731
    return lambda t, x: torch.func.vmap(torch.func.grad(energy))(x)


def by_jvp(net):
    return lambda t, x: torch.func.jvp(net, (x,), (torch.cos(x),))[1] * x


def under_enable_grad(net):
    def f(t, x):
        with torch.enable_grad():
            x = x.requires_grad_(True)
            (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return g

    return f


def sets_requires_grad(net):
    def f(t, x):
        with torch.enable_grad():
            x.requires_grad = True
            (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return g

    return f


FUNCS = [hamiltonian, by_its_argument, with_a_leaf_of_its_own, by_func, by_vmap, by_jvp, under_enable_grad]


def network():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def program(make):
    def solved(integrate):
        net = network()
        y0 = torch.randn(3, 2, requires_grad=True)
        return square(integrate(make(net), y0.sin())), [y0, *net.parameters()]

    return solved


@pytest.mark.parametrize("make", FUNCS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_plain_autograd(kind, make):
    found = gradients(program(make), lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys)
    assert_close(found, gradients(program(make), plain(kind)), tolerance_of(kind))


@pytest.mark.parametrize("make", FUNCS)
@pytest.mark.parametrize("kind", EXACT)
def test_second_derivatives_are_those_of_plain_autograd(kind, make):
    found = gradients(program(make), lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys, order=2)
    assert_close(found, gradients(program(make), plain(kind), order=2), 1e-11)


@pytest.mark.parametrize("make", [
    by_func, by_vmap, by_jvp, lambda net: lambda t, x: torch.func.jacrev(net)(x).sum((0, 1, 2)) * x,
])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2])
def test_a_transform_may_be_the_first_to_meet_a_tensor_with_a_history(kind, make, order):
    if order == 2 and kind not in EXACT:
        pytest.skip("no second derivatives")

    def solved(integrate):
        encoder = torch.linspace(0.5, 1.0, 2).requires_grad_()
        context = encoder.sin()
        func = make(lambda x: torch.cos(context * x).sum(-1, keepdim=True))
        y0 = torch.randn(3, 2, requires_grad=True)
        return square(integrate(func, y0)), [encoder, y0]

    found = gradients(solved, lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys, order=order)
    assert_close(found, gradients(solved, plain(kind), order=order), tolerance_of(kind) if order == 1 else 1e-11)


@pytest.mark.parametrize("make", FUNCS)
@pytest.mark.parametrize("keywords", [
    {"method": "Rodas5P"}, {"method": "auto"}, {"method": "Rodas5P", "per_sample": True},
    {"method": "Rodas5P", "jac_structure": "rows"},
])  # fmt: skip
def test_methods_that_solve_with_the_jacobian(keywords, make):
    found, expected = (
        gradients(program(make), lambda f, y0: solve(f, y0, [0.0, 1.0], rtol=1e-9, atol=1e-10, **chosen).ys)
        for chosen in (keywords, {})
    )
    assert_close(found, expected, 1e-6)  # of two methods with this tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_requires_grad_may_be_set_of_a_leaf(kind):
    def solved(f, y0):
        return solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys

    if kind != "naive":
        expected = gradients(program(under_enable_grad), plain(kind))
        assert_close(gradients(program(sets_requires_grad), solved), expected, tolerance_of(kind))
        return
    with pytest.raises(ValueError, match=r"func sets requires_grad of its state.* write y = y.requires_grad_\(\)"):
        gradients(program(sets_requires_grad), solved)


@pytest.mark.parametrize("keywords", [
    {"method": "Rodas5P"}, {"method": "auto"}, {"method": "Rodas5P", "per_sample": True},
    {"method": "explicit_adams", "h": 0.25},
])  # fmt: skip
def test_requires_grad_is_not_set_of_what_is_part_of_a_graph(keywords):
    with pytest.raises(ValueError, match="func sets requires_grad of its state.* torch.func.grad"):
        gradients(program(sets_requires_grad), lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords).ys)


@pytest.mark.parametrize("make", FUNCS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_around_the_solve(kind, make):
    """Sampling: the same values as with gradients, no graph, and the initial state as it was."""
    net = network()
    y0 = torch.randn(3, 2)
    expected = plain(kind)(make(net), y0.clone().requires_grad_())[-1].detach()
    with torch.no_grad():
        ys = solve(make(net), y0, [0.0, 1.0], **keywords_of(kind)).ys
    assert not ys.requires_grad and not y0.requires_grad and y0.is_leaf
    assert_close([ys[-1]], [expected], tolerance_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_networks_and_a_plain_state(kind):
    net = network().requires_grad_(False)
    y0 = torch.randn(3, 2)
    ys = solve(hamiltonian(net), y0, [0.0, 1.0], **keywords_of(kind)).ys
    expected = plain(kind)(hamiltonian(net), y0.clone())[-1].detach()
    assert_close([ys[-1].detach()], [expected], tolerance_of(kind))
    assert not y0.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_no_evaluation_is_counted_twice(kind):
    net, calls = network(), []
    f = hamiltonian(net)

    def counted(t, x):
        calls.append(1)
        return f(t, x)

    solution = solve(counted, torch.randn(3, 2), [0.0, 1.0], **keywords_of(kind))
    assert abs(len(calls) - solution.stats.n_f_evals) <= 1  # one to find out


def test_a_divergence_in_the_state():
    """A continuous normalising flow: log-density by the exact trace, in a tuple."""

    def flow(integrate):
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

        def f(t, state):
            x = state[0].requires_grad_(True)
            dx = net(x)
            trace = sum(torch.autograd.grad(dx[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
            return dx, -trace

        x, logp = integrate(f, (torch.randn(3, 2), torch.zeros(3)))
        return (x[-1] ** 2).sum() + logp[-1].sum(), list(net.parameters())[:3]

    for kind in KINDS:
        found = gradients(flow, lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys)
        assert_close(found, gradients(flow, plain(kind)), tolerance_of(kind))


def test_own_errors_of_func_pass_through():
    def f(t, x):
        raise RuntimeError("my own")

    for kind in KINDS:
        with pytest.raises(RuntimeError, match="my own"):
            solve(f, torch.ones(2), [0.0, 1.0], **keywords_of(kind))


@pytest.mark.parametrize("entry", [
    lambda f, y0: ODEBlock(f, method="RK4", h=0.25)(y0)[None],
    lambda f, y0: odeint(f, y0, torch.tensor([0.0, 1.0]), method="RK4", options={"step_size": 0.25}),
    lambda f, y0: solve(f, y0, [0.0, 1.0], method="RK4", h=0.25, dense=True)(1.0)[None],
], ids=["block", "odeint", "dense"])  # fmt: skip
def test_other_entries(entry):
    assert_close(gradients(program(hamiltonian), entry), gradients(program(hamiltonian), plain("aca")), 1e-12)
