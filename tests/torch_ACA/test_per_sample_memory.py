"""Budgets of memory for rows that take steps of their own."""

import pytest
import torch

from tests.torch_ACA.test_per_sample import assert_close, peak_bytes
from torch_ACA import ReplayError, solve

ROWS = 5
METHODS = ["Dopri5", "HeunEuler", "RK23", "fehlberg2", "Rodas5P"]  # with and without FSAL, an end slope, a Jacobian
BUDGETS = [2, 3, 7, "200B", "2kB", "unlimited"]


def results(method, memory, *, fails=False, **options):
    """Gradients in starts, stiffness and times [b, 5], second derivatives and counts, of rows with a jump at 0.6, of
    which one has fewer times and, with ``fails``, one fails on its way and one at its start."""
    torch.manual_seed(0)
    mu = torch.logspace(-1, 1, ROWS)[:, None].requires_grad_()
    y0 = (torch.tensor([2.0, 0.0]) + 0.1 * torch.randn(ROWS, 2)).requires_grad_()
    t = torch.cat([0.3 * torch.rand(ROWS, 1), 0.1 + 0.4 * torch.rand(ROWS, 4)], 1).cumsum(1)
    t[0, 0], t[1, 3:] = 0.0, torch.nan
    rows = torch.arange(ROWS)[:, None]

    def func(t, y):
        x, v = y[:, :1], y[:, 1:]
        slope = torch.cat([v, mu * (1 - x * x) * v - x + 0.1 * t + torch.where(t < 0.6, 1.0, -1.0)], 1)
        return torch.where((rows == 2) & (t >= 0.8) | (rows == 3), torch.nan, slope) if fails else slope

    inputs = [y0, mu, t.requires_grad_()]
    solution = solve(
        func, y0, t, method=method, per_sample=True, memory=memory, rtol=1e-3, atol=1e-3, options=options,
        on_failure="return",
    )  # fmt: skip
    weights = torch.randn_like(solution.ys)
    loss = torch.where(solution.ys.isnan(), 0.0, solution.ys * weights).sum()
    found = torch.autograd.grad(loss, inputs, retain_graph=True)
    stats = solution.stats
    evaluations = stats.n_backward_f_evals
    (first,) = torch.autograd.grad(loss, y0, create_graph=True)
    return (solution.ys, *found, *torch.autograd.grad(first.sum(), inputs)), evaluations, stats.n_accepted


@pytest.mark.parametrize(
    "method", [METHODS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS[1:])]
)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"jump_t": [0.6]}, pytest.param({"jump_t": [0.6, 0.0], "land_on_t": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_result_is_the_same_for_every_budget(method, fails, options):
    """To the last bit: a state that is made again is the one that was. Kept graphs add up in another order."""
    expected, fewest, counts = results(method, "states", fails=fails, **options)
    assert not fails or (int(counts[3]) == 0 and int(counts.max()) > int(counts[4]) // 2)
    evaluations = []
    for memory in BUDGETS:
        found, count, _ = results(method, memory, fails=fails, **options)
        for one, other in zip(found, expected):
            if memory == "unlimited":
                assert_close(one.nan_to_num(), other.nan_to_num())
            else:
                assert torch.equal(one.nan_to_num(), other.nan_to_num()), memory
        evaluations.append(count)
    keeps = method != "Rodas5P" and not fails  # graphs, with enough room
    # less room, more evaluations; with enough of it, none beside those of the replay
    assert evaluations[0] >= evaluations[1] >= evaluations[2] >= fewest < evaluations[1]
    assert evaluations[-1] == (0 if keeps else fewest)
    assert evaluations[3] == evaluations[0]  # 200 bytes are two states of 80


def test_the_steps_are_made_again_once_where_a_few_checkpoints_do():
    """c checkpoints and r repetitions reach (c + r)! / (c! r!) steps, the first of which is the replay."""
    speeds = torch.logspace(-1, 1, 4)[:, None]
    y0 = torch.ones(4, 1, requires_grad=True)
    solution = solve(lambda t, y: speeds * torch.cos(speeds * t), y0, [0.0, 4.0], per_sample=True, memory=9)
    solution.ys[-1].sum().backward()
    most = int(solution.stats.n_accepted.max())
    assert int(solution.stats.n_accepted.sum()) > 4 * 9 and most <= 55  # = 11! / (9! 2!)
    # the replay and at most two further passes, with one evaluation more for each of their pieces
    assert 2 * 6 * most < solution.stats.n_backward_f_evals <= 3 * 6 * most + 2 * 9


def test_a_func_that_has_changed_is_noticed():
    y0, rate = torch.ones(3, 1, requires_grad=True), torch.tensor([[1.0], [2.0], [4.0]])
    solution = solve(lambda t, y: -rate * y * torch.cos(t), y0, [0.0, 9.0], per_sample=True, memory=3)
    rate *= 1.01
    with pytest.raises((ReplayError, RuntimeError), match="not what it was|modified by an inplace"):
        solution.ys.sum().backward()


def test_a_budget_without_room_is_refused():
    with pytest.raises(ValueError, match="memory of 50 bytes is too little: a state takes 48"):
        solve(lambda t, y: -y, torch.ones(3, 2, requires_grad=True), [0.0, 1.0], per_sample=True, memory="50B")


@pytest.mark.slow
def test_memory_is_the_budget():
    """Beside that of one step, and the times and sizes of all."""
    speeds, width = torch.logspace(-1, 1, 32)[:, None], 256
    y0, state = torch.randn(32, width).requires_grad_(), 32 * width * 8

    def func(t, y):
        return speeds * torch.cat([y[:, width // 2 :], -y[:, : width // 2]], 1)

    def run(t1, memory):
        solution = solve(func, y0, [0.0, t1], per_sample=True, h=0.01, rtol=1e-4, atol=1e-4, memory=memory)
        solution.ys[-1].sum().backward()

    one_step = peak_bytes(lambda: run(0.01, "states"))
    for budget in (2, 8, f"{4 * state}B"):
        states = budget if isinstance(budget, int) else 4
        assert peak_bytes(lambda budget=budget: run(6.0, budget)) - one_step <= (states + 3) * state
    assert peak_bytes(lambda: run(6.0, "states")) - one_step > 20 * state
