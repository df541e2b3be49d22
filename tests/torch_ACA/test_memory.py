"""A budget of memory changes what is kept and recomputed, never the gradient."""

import math
import weakref

import pytest
import torch

from torch_ACA import ODEBlock, odeint, odesolve_adjoint, solve
from torch_ACA.gradients.graph_room import SHARED_GRAPHS
from torch_ACA.gradients.storage import UNLIMITED, Budget, Storage
from torch_ACA.saved_tensors import SavedTensors

N = 12  # steps of the solves below


@pytest.fixture
def field():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()


def gradients(field, memory, *, gradient="aca", method="Dopri5", options=None, times=(0.0, 0.31, 2.0), **keywords):
    """Of a loss over all outputs, with respect to y0, the times and the parameters; and the counts of the solve."""
    y0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    options = {"step_size": 2.0 / N} if options is None else options
    solution = solve(
        lambda t, y: field(y) + torch.sin(5 * t) * y, y0, t,
        method=method, options=options, gradient=gradient, memory=memory, **keywords,
    )  # fmt: skip
    found = torch.autograd.grad((solution.ys**2).sum(), [y0, t, *field.parameters()])
    return found, solution.stats


@pytest.mark.parametrize("memory", [pytest.param(2, marks=pytest.mark.slow), 5, "600B", "20 kB", "unlimited"])
@pytest.mark.parametrize("method", ["Dopri5", "HeunEuler", "rk4"])  # FSAL; pays for all stages; and with its own slope
@pytest.mark.parametrize("options", [None, {"step_size": 2.0 / N, "jump_t": [0.3, 1.0]}, {}])
def test_gradient_is_the_same_to_the_last_bit(field, memory, method, options):
    keywords = {"h": 2.0 / N} if options == {} else {"options": options}
    keywords |= {"options": {}, "rtol": 1e-3, "atol": 1e-3} if options == {} else {}
    expected, _ = gradients(field, None, method=method, **keywords)
    found, _ = gradients(field, memory, method=method, **keywords)
    assert all(torch.equal(one, other) for one, other in zip(expected, found))


def test_unlimited_evaluates_nothing_again(field):
    found, stats = gradients(field, "unlimited")
    expected, of_direct = gradients(field, None, gradient="direct")
    assert stats.n_backward_f_evals == of_direct.n_backward_f_evals == 0
    assert all(torch.equal(one, other) for one, other in zip(expected, found))


def test_more_memory_means_fewer_evaluations(field):
    """From a few states over all of them to all graphs; with half of the graphs about half of the evaluations."""
    counts = [gradients(field, m)[1].n_backward_f_evals for m in (2, 4, 8, "states", "512KiB", "unlimited")]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == len(counts), counts


@pytest.mark.parametrize(("steps", "states"), [(1, 2), (5, 2), (100, 3), (1000, 12), (10_000, 50), (10_000, 9_000)])
def test_binomial_schedule(steps, states):
    """Every state comes out, in order; never more are held than allowed; no step is repeated more often than needed."""
    storage = Storage(Budget(states=states, n_bytes=0), state_bytes=8, graph_bytes=0)
    most_held = 0
    for i in range(steps):
        storage.add(object(), i, None)
        most_held = max(most_held, len(storage._states))
    storage.close(steps)
    repeated = [0] * steps

    def advance(state, first, last):
        assert state == first
        for i in range(first, last):
            repeated[i] += 1
        return last

    kept = storage.release()
    assert list(storage.backwards(kept, advance)) == list(range(steps, -1, -1))
    assert most_held <= states + 1 and len(kept) <= states + 1  # the end comes on top
    repetitions = 1
    while math.comb(states + repetitions, repetitions) < steps:
        repetitions += 1
    assert max(repeated) <= repetitions
    if (steps, states) == (10_000, 50):
        # against one forward and one recomputation with its VJP (about 2) per step: less than twice the time
        assert sum(repeated) <= 3 * steps


def test_long_solve_in_the_memory_of_fifty_states():
    y0 = torch.ones(1000, dtype=torch.float64, requires_grad=True)

    def held(memory):
        with SavedTensors() as saved:
            y1 = solve(lambda t, y: -y, y0, [0.0, 1.0], method="Euler", h=1e-3, memory=memory).ys[-1]
            states = saved.held / 8000
        return torch.autograd.grad(y1.sum(), y0)[0], states

    expected, all_states = held(None)
    found, few = held(50)
    assert torch.equal(expected, found)
    assert few <= 52 < 1_000 <= all_states  # y0 and the final state come on top


def test_graphs_kept_fit_the_budget():
    """Measured by autograd's own account: within the budget, and more than half of it used."""
    weight = torch.randn(50, 50, dtype=torch.float64, requires_grad=True)
    y0 = torch.randn(200, 50, dtype=torch.float64, requires_grad=True)
    budget = 20 * 2**20
    with SavedTensors() as saved:
        solution = solve(lambda t, y: (y @ weight).tanh(), y0, [0, 1], method="RK4", h=0.01, memory=f"{budget}B")
    assert solution.stats.n_accepted == 100 and 0.5 * budget < saved.held <= budget


def test_values_of_f_are_not_kept_with_its_graph():
    """The backward pass of a product with a number needs neither factor nor result."""
    values = []

    def func(t, y):
        value = -2.0 * y
        values.append(weakref.ref(value))
        return value

    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    solution = solve(func, y0, [0.0, 1.0], h=0.1, method="rk4", gradient="direct")
    assert len(values) == 4 * 10 and all(value() is None for value in values)
    (found,) = torch.autograd.grad(solution.ys[-1].sum(), y0)
    expected = sum((-0.2) ** k / math.factorial(k) for k in range(5)) ** 10
    torch.testing.assert_close(found, torch.full_like(y0, expected), rtol=1e-13, atol=0)


@pytest.mark.parametrize("memory", [3, "unlimited"])
def test_second_derivatives_and_a_second_backward(field, memory):
    def twice(memory):
        y0 = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
        y1 = solve(lambda t, y: field(y), y0, [0.0, 1.0], rtol=1e-6, atol=1e-6, memory=memory).ys[-1]
        (first,) = torch.autograd.grad((y1**2).sum(), y0, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), y0, retain_graph=True)
        (again,) = torch.autograd.grad((y1**2).sum(), y0)
        return first, second, again

    assert all(torch.equal(one, other) for one, other in zip(twice(None), twice(memory)))


@pytest.mark.parametrize(
    ("memory", "said"),
    [("lots", "'lots'"), ("12", "'12'"), ("3TB", "'3TB'"), (1, "got 1"), (True, "got True"), (0.5, "got 0.5")],
)
def test_bad_budgets_are_named(field, memory, said):
    with pytest.raises(ValueError, match=said):
        gradients(field, memory)


def test_a_budget_below_two_states_and_other_gradient_methods_are_refused(field):
    with pytest.raises(ValueError, match="too little: a state takes 96"):
        gradients(field, "150B")
    with pytest.raises(ValueError, match="memory needs gradient='aca'"):
        gradients(field, "1GB", gradient="direct")
    block = ODEBlock(lambda t, y: -y, memory="1GB")
    with pytest.raises(ValueError, match="memory needs"):
        block.configure(gradient="adjoint")
    assert block.settings["gradient"] == "aca"


def test_settings_reach_the_solver():
    z0 = torch.ones(3, requires_grad=True)
    block = ODEBlock(lambda t, z: -z, method="RK4", h=0.1, rtol=1e-2, memory="unlimited")
    block(z0).sum().backward()
    assert block.stats.n_backward_f_evals == 0
    calls = []
    z1 = odesolve_adjoint(lambda t, z: calls.append(t) or -z, z0, {"method": "RK4", "h": 0.1, "memory": "1MiB"})
    forward = len(calls)
    z1.sum().backward()
    assert len(calls) == forward


def test_budgets_are_read():
    assert Budget.of("1.5GiB").n_bytes == 1.5 * 2**30 and Budget.of("2 gb").n_bytes == 2e9
    assert Budget.of("unlimited") == Budget.of(math.inf) == UNLIMITED


def test_small_graphs_are_kept_and_no_large_ones():
    def backward_calls(rows):
        calls, y0 = [0], torch.ones(rows, 4, dtype=torch.float64, requires_grad=True)

        def func(t, y):
            calls[0] += 1
            return -torch.sin(y) * t

        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        ys = odeint(func, y0, t)
        forward = calls[0]
        (found,) = torch.autograd.grad(ys[-1].sum(), y0)
        backward = calls[0] - forward
        solutions = [solve(func, y0, t, rtol=1e-7, atol=1e-9, memory=memory) for memory in (None, "states")]
        for solution in solutions:
            (expected,) = torch.autograd.grad(solution.ys[-1].sum(), y0)
            assert torch.equal(found, expected)
        assert solutions[0].stats.n_backward_f_evals == backward
        return backward, solutions[1].stats

    count, stats = backward_calls(3)
    assert count == 0 < stats.n_backward_f_evals
    others = SHARED_GRAPHS.share()
    others.take(SHARED_GRAPHS.free)
    count, stats = backward_calls(2**15)  # a graph of a step takes more than there is room for
    assert count == stats.n_backward_f_evals
