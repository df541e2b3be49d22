"""method="auto": an explicit method and Rodas5P take turns, and the gradient is that of the steps they took."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from benchmarks.stiff_fields import ROBERTSON_SCALE, ROBERTSON_START, ROBERTSON_TIMES, robertson, van_der_pol
from torch_ACA import ODEBlock, TooManyEvaluationsError, methods, solve, solve_event
from torch_ACA.errors import SecondDerivativeError
from torch_ACA.rosenbrock_tableaus import RODAS5P
from torch_ACA.switching import SwitchingMethod
from torch_ACA.tableaus import TABLEAUS

ROUNDING = 1e-12  # between two orders of the same float64 operations, relative to the largest entry
AUTO = {"method": "auto"}


def assert_same(found, expected, tolerance=ROUNDING):
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).detach().abs().max()) <= tolerance * max(1.0, float(other.detach().abs().max()))


def turns(record):
    """The methods in turn, and how many steps each took."""
    return [(name, len(list(steps))) for name, steps in itertools.groupby(record.methods)]


def stiff_for_a_while(w, context=0.0, sign=1):
    """Follows sin t at a rate that rises from 1 to 3000 and falls again."""

    def func(t, y):
        rate = 1 + 3000 * torch.exp(-((6 * (t - 1.5)) ** 2))
        return torch.tanh(w @ y) * torch.cos(t) - sign * rate * (y - torch.sin(t)) + 0.1 * context * torch.cos(y)

    return func


# which method takes a step


def test_without_stiffness_it_is_the_explicit_method_to_the_last_bit():
    w, results = torch.randn(3, 3, requires_grad=True), []
    for method in ("Dopri5", "auto"):
        solution = solve(lambda t, y: torch.tanh(w @ y), torch.ones(3), [0.0, 0.7, 3.0], method=method, record=True)
        results.append([solution.ys, *torch.autograd.grad(solution.ys[-1].sum(), w)])
    assert all(torch.equal(one, other) for one, other in zip(*results))
    assert solution.record.methods == ("Dopri5",) * solution.stats.n_accepted
    assert solution.stats.n_stiff_steps == solution.stats.n_jacobians == 0


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_robertson(rtol):
    """Some explicit steps find that it is stiff; all later ones are Rodas5P's, with one Jacobian each."""
    solution = solve(
        lambda t, y: robertson(torch, y, torch.ones(3)), torch.tensor(ROBERTSON_START), ROBERTSON_TIMES, rtol=rtol,
        atol=1e-4 * rtol, record=True, **AUTO,
    )  # fmt: skip
    reference = solve_ivp(
        lambda t, y: robertson(np, y, np.ones(3)), (0, 1e5), ROBERTSON_START, "Radau", ROBERTSON_TIMES, rtol=1e-10,
        atol=1e-12 * ROBERTSON_SCALE,
    ).y.T  # fmt: skip
    stats, errors = solution.stats, (solution.ys.cpu().numpy() - reference) / ROBERTSON_SCALE
    assert np.sqrt((errors[1:] ** 2).mean()) <= rtol
    (first, n_explicit), (second, n_stiff) = turns(solution.record)
    assert (first, second) == ("Dopri5", "Rodas5P") and n_explicit <= 30
    assert stats.n_stiff_steps == stats.n_jacobians == n_stiff <= n_explicit + n_stiff == stats.n_accepted
    assert n_stiff <= stats.n_factorizations <= n_stiff + stats.n_rejected


def test_it_turns_back():
    solution = solve(stiff_for_a_while(torch.eye(3)), torch.ones(3), [0.0, 3.0], rtol=1e-5, record=True, **AUTO)
    assert [name for name, _ in turns(solution.record)] == ["Dopri5", "Rodas5P", "Dopri5"]


@pytest.mark.slow
def test_relaxation_oscillation():
    """Between its jumps van der Pol's equation is stiff, and in them it is not."""
    ts = np.linspace(0, 2000, 41)
    reference = solve_ivp(
        lambda t, y: van_der_pol(np, y, np.ones(1)), (0, 2000), [2.0, 0.0], "Radau", ts, rtol=1e-10, atol=1e-13
    ).y.T  # fmt: skip
    solution = solve(
        lambda t, y: van_der_pol(torch, y, torch.ones(1)), torch.tensor([2.0, 0.0]), ts, rtol=1e-6, atol=1e-6,
        record=True, **AUTO,
    )  # fmt: skip
    assert np.sqrt((((solution.ys.cpu().numpy() - reference) / [2.0, 1e-2]) ** 2).mean()) <= 1e-4
    assert [name for name, _ in turns(solution.record)][:4] == ["Dopri5", "Rodas5P"] * 2
    assert solution.stats.n_accepted + solution.stats.n_rejected <= 600


def test_backwards_in_time_no_explicit_step_is_stiff():
    """The contraction becomes growth, which accuracy resolves: nothing is to be gained from an implicit step."""
    w = torch.zeros(3, 3)
    solution = solve(stiff_for_a_while(w), torch.ones(3), [1.5, 1.49], rtol=1e-5, record=True, **AUTO)
    assert [name for name, _ in turns(solution.record)] == ["Dopri5"]


@pytest.mark.parametrize("name", ["Dopri5", "Tsit5", "RK4", "Euler", "bosh3"])
def test_interval_of_stability(name):
    """Just inside it a step of y' = -y damps, just outside it does not."""
    tableau = methods[name]
    for factor, damps in ((0.99, True), (1.01, False)):
        h = factor * tableau.real_stability
        end = solve(lambda t, y: -y, torch.ones(1), [0.0, h], method=name, options={"step_size": h}).ys[-1]
        assert (abs(float(end)) <= 1) == damps


def test_pairs_that_cannot_take_turns():
    with pytest.raises(ValueError, match="bosh3 and Rodas5P cannot take turns|RK23 and Rodas5P cannot take turns"):
        SwitchingMethod("other", methods["bosh3"], RODAS5P)


def test_another_pair():
    pair = SwitchingMethod("other", TABLEAUS["tsit5"], RODAS5P)
    y0 = torch.ones(3, requires_grad=True)
    solution = solve(stiff_for_a_while(torch.eye(3)), y0, [0.0, 2.2, 3.0], rtol=1e-5, method=pair, record=True)
    assert len(turns(solution.record)) == 3
    loss = (solution.ys**2).sum()
    assert_same(*(torch.autograd.grad(loss, [y0], create_graph=again, retain_graph=True) for again in (False, True)))


# gradients

VARIANTS = {
    "interpolated": {},
    "landing": {"options": {"land_on_t": True}},
    "jump": {"options": {"jump_t": [1.4, 1.6], "step_t": [1.01]}},
    "dense": {"dense": True},
}
TIMES = torch.linspace(-0.6, 3.6, 29)  # in steps of both, and in those next to a change of methods


@pytest.mark.parametrize("gradient", ["aca", pytest.param("direct", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backward", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_equal_to_autograd_through_the_same_steps(gradient, variant, backward):
    """In y0, all times, a parameter and a tensor with a history. The steps out of place, which autograd goes through,
    are those of create_graph=True."""
    y0 = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    w = torch.randn(3, 3, device="cpu").to(y0.device).requires_grad_()  # the same numbers on every device
    ts = (TIMES.flip(0) if backward else TIMES).clone().requires_grad_()
    smooth = stiff_for_a_while(w, (2 * w).sum(0), -1 if backward else 1)

    def func(t, y):
        return smooth(t, y) + torch.sign(t - 1.4) * torch.tanh(y) * (variant == "jump")

    keywords = {"rtol": 1e-3, "atol": 1e-4, "gradient": gradient, "record": True} | AUTO | VARIANTS[variant]
    solution = solve(func, y0, ts, **keywords)
    assert len(turns(solution.record)) >= 3
    ys = solution.ys if variant != "dense" else solution(ts * 0.9 + 0.15)
    loss = (ys**2 * torch.linspace(1, 2, 3 * len(ts)).view(-1, 3)).sum()
    by_hand = torch.autograd.grad(loss, [y0, w, ts], retain_graph=True)
    assert_same(by_hand, torch.autograd.grad(loss, [y0, w, ts], create_graph=True))
    if gradient == "aca":
        assert_same([solution.record.replayed()], [solution.record.states])


def test_naive_takes_the_same_steps():
    """Its gradient, that of the step-size search as well, is the others' to some hundred times the tolerance."""
    results = []
    for gradient in ("naive", "aca"):
        w = torch.eye(3).requires_grad_()
        solution = solve(
            stiff_for_a_while(w), torch.ones(3), TIMES[::6], rtol=1e-5, atol=1e-5, gradient=gradient, record=True,
            **AUTO,
        )  # fmt: skip
        results.append((solution, *torch.autograd.grad((solution.ys**2).sum(), w)))
    (one, of_naive), (other, of_aca) = results
    assert turns(one.record) == turns(other.record) and one.stats.n_stiff_steps == other.stats.n_stiff_steps > 0
    assert_same([one.ys], [other.ys], 1e-10)
    assert_same([of_naive], [of_aca], 1e-2)


def test_naive_is_the_derivative_of_the_search_as_well():
    """By finite differences of whole solves; the detector leaves no trace in the graph."""

    def end(y0):
        return solve(
            stiff_for_a_while(torch.eye(2)), y0, [1.2, 1.8], rtol=1e-3, atol=1e-3, h=0.01, gradient="naive", **AUTO
        ).ys[-1]

    y0 = torch.tensor([0.5, 1.0], requires_grad=True)
    assert torch.autograd.gradcheck(end, y0, atol=1e-5)


@pytest.mark.parametrize("memory", [2, 5, "20 kB", "unlimited"])
def test_gradient_is_the_same_to_the_last_bit_with_any_memory(memory):
    found = []
    for budget in (None, memory):
        w, y0 = torch.eye(3).requires_grad_(), torch.linspace(-1, 1, 3).requires_grad_()
        ts = TIMES[::4].clone().requires_grad_()
        ys = solve(stiff_for_a_while(w), y0, ts, memory=budget, rtol=1e-3, atol=1e-3, **AUTO).ys
        found.append(torch.autograd.grad((ys**2).sum(), [y0, ts, w]))
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_nested_and_complex_states():
    w = torch.randn(3, requires_grad=True)
    a, b = torch.randn(2, dtype=torch.complex128, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    ts = TIMES[::6].clone().requires_grad_()

    def func(t, state):
        a, b = state["a"], state["b"]
        rate = 1 + 3000 * torch.exp(-((6 * (t - 1.5)) ** 2))
        return {"a": -rate * a * (1 + 0.1j) + (w * b[:, 0]).sum() * 1j, "b": -b * b.abs() + (a.abs() ** 2).sum()}

    solution = solve(func, {"a": a, "b": b}, ts, rtol=1e-3, atol=1e-3, record=True, **AUTO)
    assert len(turns(solution.record)) >= 2
    loss = (solution.ys["a"].abs() ** 2).sum() + (solution.ys["b"] ** 2).sum()
    by_hand = torch.autograd.grad(loss, [a, b, w, ts], retain_graph=True)
    assert_same(by_hand, torch.autograd.grad(loss, [a, b, w, ts], create_graph=True))


@pytest.mark.slow
def test_gradgradcheck():
    """Of the graph of the accepted steps, which create_graph=True goes through."""
    y0, t = torch.randn(2, requires_grad=True), torch.tensor([1.2, 1.31, 1.8], requires_grad=True)
    solution = solve(stiff_for_a_while(torch.eye(2)), y0, t, rtol=1e-2, atol=1e-2, record=True, **AUTO)
    assert len(turns(solution.record)) >= 2
    assert torch.autograd.gradcheck(solution.record.graph, (y0, t), atol=1e-6)
    assert torch.autograd.gradgradcheck(solution.record.graph, (y0, t), atol=1e-5)


def test_transforms():
    y0 = torch.randn(2)
    end = lambda y0: solve(stiff_for_a_while(torch.eye(2)), y0, [1.1, 1.6], rtol=1e-3, **AUTO).ys[-1]  # noqa: E731
    expected = torch.autograd.functional.jacobian(end, y0)
    assert_same([torch.func.jacrev(end)(y0)], [expected])
    assert_same([torch.func.jvp(end, (y0,), (torch.ones(2),))[1]], [expected.sum(1)])


def test_event_in_a_stiff_step():
    times = []
    for method in ("auto", "Dopri5"):
        rate = torch.tensor(2000.0, requires_grad=True)
        t, _ = solve_event(
            lambda t, y: -rate * (y - torch.cos(t)), torch.ones(1), 0.0, lambda t, y: y - 0.9,
            method=method, rtol=1e-7, atol=1e-7,
        )  # fmt: skip
        times.append([t.detach(), *torch.autograd.grad(t, rate)])
    assert_same(*times, tolerance=1e-6)


def test_batch_norm_counts_evaluations_of_accepted_steps():
    """Six of an explicit step and one before the first of them, eight of Rodas5P; where it takes over, the slope is
    there already."""
    norm = torch.nn.BatchNorm1d(2)
    rate = lambda t: 1 + 1000 * torch.exp(-((6 * (t - 1.5)) ** 2))  # noqa: E731
    y0 = torch.randn(4, 2, requires_grad=True)
    solution = solve(lambda t, y: -rate(t) * norm(y), y0, [0.0, 2.0], rtol=1e-3, record=True, **AUTO)
    before = int(norm.num_batches_tracked)
    count = sum(6 * n + 1 if name == "Dopri5" else 8 * n - 1 for name, n in turns(solution.record))
    assert len(turns(solution.record)) >= 2 and before == count
    solution.ys[-1].sum().backward()
    assert int(norm.num_batches_tracked) == before


# failures


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, bar):
        return 2 * ctx.saved_tensors[0] * bar


def test_backward_pass_without_a_derivative_is_refused():
    with pytest.raises(SecondDerivativeError, match="func's own backward pass has no derivative"):
        solve(lambda t, y: -y + _Once.apply(y), torch.ones(3, requires_grad=True), [0.0, 1.0], **AUTO)


def test_too_many_evaluations_say_what_helps():
    with pytest.raises(TooManyEvaluationsError, match="give atol per component"):
        solve(stiff_for_a_while(torch.eye(3)), torch.ones(3), [0.0, 3.0], rtol=1e-9, max_evals=100, **AUTO)


@pytest.mark.parametrize(
    "keywords,message",
    [
        ({"gradient": "adjoint"}, "method auto cannot solve backwards: give adjoint="),
        ({"gradient": "mali"}, "go together"),
        ({"compile": True}, "compile is not available with the method auto"),
        ({"options": {"interp": "linear"}}, "auto has its own dense output"),
        ({"options": {"step_size": 0.1}}, "takes none of a given size"),
        ({"options": {"grid": [0.0, 1.0]}}, "takes none of a given size"),
        ({"per_sample": True}, "adaptive steps, got auto: take its stiff one, Rodas5P"),
    ],
)
def test_what_it_does_not_go_with(keywords, message):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: -y, torch.ones(2, requires_grad=True), [0.0, 1.0], **AUTO | keywords)


# other ways to solve


def test_what_was_solved_before_a_failure():
    solution = solve(
        stiff_for_a_while(torch.eye(3)), torch.ones(3, requires_grad=True), TIMES, rtol=1e-3, max_evals=250, dense=True,
        record=True, on_failure="return", **AUTO,
    )  # fmt: skip
    stats, names = solution.stats, solution.record.methods
    assert isinstance(solution.error, TooManyEvaluationsError) and 1 < len(solution.ys) < len(TIMES)
    assert len(names) == stats.n_accepted == len(solution.record.sizes) + 1 and names.count("Rodas5P") > 0
    assert stats.n_stiff_steps == names.count("Rodas5P")
    assert_same([solution(solution.ts)], [solution.ys])


def test_as_a_layer():
    net = torch.nn.Linear(3, 3, dtype=torch.float64)
    func = lambda t, z: torch.tanh(net(z)) - 2000 * (z - torch.sin(t))  # noqa: E731
    z, found = torch.ones(1, 3), []
    for method in ("auto", "Rodas5P"):
        block = ODEBlock(func, method=method, rtol=1e-7, atol=1e-7)
        found.append(torch.autograd.grad(block(z).sum(), net.weight))
        assert block.stats.n_jacobians > 0
    assert_same(*found, tolerance=1e-6)


def test_adjoint_with_an_explicit_method_backwards():
    """On a problem that contracts little, where the backward solve is good."""
    w, found = torch.randn(3, 3, requires_grad=True), []
    for keywords in ({}, {"gradient": "adjoint", "adjoint": {"method": "Dopri5"}}):
        end = solve(lambda t, y: torch.tanh(w @ y), torch.ones(3), [0.0, 1.0], rtol=1e-9, atol=1e-9, **AUTO, **keywords)
        found.append(torch.autograd.grad(end.ys[-1].sum(), w))
    assert_same(*found, tolerance=1e-7)


def test_by_rows():
    """Blocks for the rows, of which the stiffest decides."""
    rates, found = torch.logspace(0, 4, 4)[:, None], []
    for structure in ("dense", "rows"):
        y0 = torch.ones(4, 2, requires_grad=True)
        solution = solve(
            lambda t, y: -rates * (y - torch.cos(t)) * y, y0, [0.0, 0.3, 1.0], rtol=1e-4, atol=1e-4, record=True,
            jac_structure=structure, **AUTO,
        )  # fmt: skip
        found.append([solution.ys, *torch.autograd.grad((solution.ys**2).sum(), y0)])
        assert [name for name, _ in turns(solution.record)] == ["Dopri5", "Rodas5P"]
    assert_same(*found, tolerance=1e-10)
