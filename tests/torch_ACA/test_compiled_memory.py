"""Compiled loops within a budget of states: where it has no room for all of them, chunks are filled again."""

import pytest
import torch

from tests.torch_ACA.programs import slow
from torch_ACA import ReplayError, solve

pytestmark = [
    pytest.mark.loops, pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated"),
]  # fmt: skip


class Problem:
    """Some 75 steps of two numbers, which take 16 bytes, with outputs inside steps."""

    def __init__(self):
        self.y0 = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        self.matrix = torch.tensor([[0.2, -1.0], [1.0, -0.3]], dtype=torch.float64, requires_grad=True)
        self.times = torch.tensor([0.0, 0.2, 0.49, 1.0, 1.9, 2.0], dtype=torch.float64, requires_grad=True)

    def func(self, t, y):
        return 3 * torch.tanh(y @ self.matrix) + torch.where(t < 0.5, 1.0, -1.0)

    def solution(self, memory, *, method="RK23", jump_t=(), compile=True):
        return solve(
            self.func, self.y0, self.times, method=method, rtol=1e-6, atol=1e-6, options={"jump_t": list(jump_t)},
            memory=memory, compile=compile,
        )  # fmt: skip

    def bars(self, ys, *, create_graph=False):
        weights = torch.linspace(1, 2, ys.numel()).reshape(ys.shape)
        return torch.autograd.grad(
            (weights * ys).sum(), [self.y0, self.matrix, self.times], create_graph=create_graph
        )  # fmt: skip


@pytest.mark.parametrize("keywords", [
    {"jump_t": [0.5]}, slow({}), slow({"method": "Rodas5P", "jump_t": [0.5]}),
], ids=str)  # fmt: skip
@pytest.mark.parametrize(("memory", "fills"), [(8, 9), slow(13, 6), (40, 2), slow("300B", 9), slow(10_000, 1)])
def test_the_gradient_is_the_same(memory, fills, keywords, looped):
    """A chunk is filled as often as the binomial schedule says, which is seldom: ``fills`` times on average."""
    problem = Problem()
    free = problem.solution(None, **keywords)
    expected = problem.bars(free.ys)
    looped.clear()
    tight = problem.solution(memory, **keywords)
    found = problem.bars(tight.ys)
    for a, b in zip((free.ys, *expected), (tight.ys, *found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (free.stats.n_accepted, free.stats.n_rejected) == (tight.stats.n_accepted, tight.stats.n_rejected)
    assert free.stats.n_f_evals == tight.stats.n_f_evals
    chunks = looped.count("backward")
    assert chunks <= looped.count("forward") <= fills * chunks and (fills == 1 or looped.count("forward") > chunks)


def test_states_stay_within_the_budget():
    """What autograd holds until the backward pass: states and slopes of beginnings, the end, and what func uses."""
    problem, sizes = Problem(), []
    for memory in (None, 16):
        ys = problem.solution(memory).ys
        (grad_fn,) = [fn for fn, _ in _graph(ys.grad_fn) if hasattr(fn, "saved_tensors")]
        sizes.append(sum(x.numel() for x in grad_fn.saved_tensors) // 2)
    assert sizes[1] <= 16 + 6 < 60 < sizes[0]  # y0, times and the matrix besides


def test_second_derivatives_and_what_has_changed_take_the_steps_as_they_were():
    problem, found = Problem(), []
    for memory, compile in ((None, False), (8, True)):
        y0_bar, *_ = problem.bars(problem.solution(memory, jump_t=[0.5], compile=compile).ys, create_graph=True)
        found.append(torch.autograd.grad(y0_bar.sum(), [problem.y0, problem.matrix]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    ys = problem.solution(8).ys
    problem.matrix.data.add_(0.1)
    with pytest.raises(ReplayError, match="func is not what it was"):
        problem.bars(ys)


def _graph(fn, seen=None):
    """The nodes of autograd's graph, with the nodes behind them."""
    seen = {} if seen is None else seen
    if fn is not None and fn not in seen:
        seen[fn] = [behind for behind, _ in fn.next_functions]
        for behind in seen[fn]:
            _graph(behind, seen)
    return seen.items()
