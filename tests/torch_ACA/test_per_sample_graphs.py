"""Graphs that rows with steps of their own keep beside the states, within a budget."""

import pytest
import torch
from torch import nn

from tests.torch_ACA.test_per_sample import EXPLICIT, TOLERANCES, assert_close, batch, peak_bytes, van_der_pol
from torch_ACA import ReplayError, methods, solve
from torch_ACA.gradients.storage import Budget

ROOM = [2**18, 2**19, 2**20]  # bytes for graphs: from a few tries to nearly all


def room(n_bytes):
    return Budget(n_bytes=0, spare=n_bytes)


def results(method, memory, **options):
    """Outputs, and gradients in starts, stiffness, times and what all rows share; evaluations of the backward pass."""
    torch.manual_seed(0)
    mu, y0, t = (x.requires_grad_() for x in batch())
    shared = torch.tensor([0.7, 0.2], requires_grad=True)

    def func(t, y):
        return van_der_pol(mu)(t, y) * shared[0] + torch.where(t < (2.0 if options else 9.0), 0.3, -0.3) * shared[1]

    solution = solve(func, y0, t, method=method, per_sample=True, memory=memory, options=options, **TOLERANCES)
    loss = (solution.ys * torch.cos(torch.arange(solution.ys.numel())).view_as(solution.ys)).sum()
    bars = torch.autograd.grad(loss, [y0, mu, t, shared], retain_graph=True)
    count = solution.stats.n_backward_f_evals
    again = torch.autograd.grad(loss, [y0, mu, t, shared])
    return [solution.ys, *bars], count, again, solution.stats


@pytest.mark.parametrize("options", [{}, {"jump_t": [2.0]}, {"jump_t": [2.0], "land_on_t": True}], ids=str)
@pytest.mark.parametrize(
    "method", ["Dopri5", *(pytest.param(name, marks=pytest.mark.slow) for name in EXPLICIT if name != "Dopri5")]
)
def test_gradients_are_those_of_the_replay(method, options):
    """The same operations on the same numbers, added up in another order."""
    expected, most, _, stats = results(method, "states", **options)
    assert len(set(stats.n_accepted.tolist())) > 1 and (method != "Dopri5" or int(stats.n_rejected.sum()) > 0)
    counts = []
    for memory in (*map(room, ROOM), None, "unlimited"):
        found, count, again, _ = results(method, memory, **options)
        for one, other in zip(found, expected):
            assert_close(one, other)
        for one, other in zip(again, expected[1:]):  # without the graphs, which are used up
            assert_close(one, other)
        counts.append(count)
    assert most >= counts[0] >= counts[1] >= counts[2] >= counts[-2] >= counts[-1] == 0 < counts[0]
    assert any(0 < count < most for count in counts)  # some of the tries alone


def test_states_alone_are_kept_where_that_is_asked_for():
    _, count, _, stats = results("Dopri5", "states", land_on_t=True)
    assert count == 6 * int(stats.n_accepted.max())


@pytest.mark.slow
def test_memory_is_the_budget():
    """A mebibyte beside the states, and the graph of one try, which the backward pass of the others takes as well."""
    width, rows = 64, 16
    net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    y0 = torch.randn(rows, width).requires_grad_()

    def run(memory):
        solve(net, y0, [0.0, 3.0], per_sample=True, memory=memory, rtol=1e-9, atol=1e-9).ys[-1].sum().backward()

    net.forward = lambda t, y: nn.Sequential.forward(net, y)
    for memory in ("states", room(2**20), "unlimited"):
        run(memory)
    one_try = 7 * 3 * rows * width * 8
    peaks = [peak_bytes(lambda: run(memory)) for memory in ("states", room(2**20), "unlimited")]
    assert peaks[0] < peaks[1] <= peaks[0] + 2**20 + one_try < peaks[2]


class Rate(nn.Module):
    """y' = c w y + b sin(t), row by row."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(-0.5)), nn.Parameter(torch.tensor(0.2))
        self.c, self.cut = 1.0, False

    def forward(self, t, y):
        return self.c * (self.w.detach() if self.cut else self.w) * y + self.b * torch.sin(t)


def number(f):
    f.c = 1.7


def slightly(f):
    f.c = 1.001


def detached(f):
    f.cut = True


def in_place(f):
    with torch.no_grad():
        f.w *= 1.5


@pytest.mark.parametrize("memory", [room(2**18), None, "unlimited"], ids=["some", "default", "unlimited"])
@pytest.mark.parametrize("options", [{}, {"jump_t": [0.5]}], ids=str)
@pytest.mark.parametrize("method", ["Dopri5", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dopri8", "RK23"))])
@pytest.mark.parametrize("change", [number, slightly, detached, in_place])
def test_kept_graphs_are_not_mixed_with_what_func_has_become(change, method, options, memory):
    """Either the gradient is that of the func that was, or it is refused."""
    y0, times = torch.linspace(0.5, 2.0, 4)[:, None], torch.tensor([0.0, 0.43, 0.97, 1.0])

    def value(f):
        jump = (lambda t: 1.0 * (t > 0.5)) if options else (lambda t: 0.0)
        solution = solve(
            lambda t, y: f(t, y) + jump(t), y0, times, method=method, per_sample=True, memory=memory, options=options,
            rtol=1e-6, atol=1e-6,
        )  # fmt: skip
        return solution.ys[1:].sum(), solution.stats

    expected, f = Rate(), Rate()
    loss, stats = value(expected)
    want = torch.autograd.grad(loss, [expected.w, expected.b])
    own = methods[method].stages - methods[method].fsal
    assert (stats.n_backward_f_evals == 0) != (0 < stats.n_backward_f_evals < own * int(stats.n_accepted.max()))
    assert (stats.n_backward_f_evals > 0) == (memory not in (None, "unlimited"))
    (found, _), leaves = value(f), [f.w, f.b]
    change(f)
    try:
        bars = torch.autograd.grad(found, leaves)
    except RuntimeError as error:
        assert "modified by an inplace" in str(error) if change is in_place else isinstance(error, ReplayError)
        assert memory != "unlimited" or change is in_place
        return
    for one, other in zip(bars, want):
        assert_close(one, other)


def test_rows_that_stand_still_do_not_spoil_gradients_of_what_all_share():
    """0 times infinity is NaN: the derivative of func by w is infinite at the end of the first row, where it waits."""
    w, y0 = torch.tensor(1.0, requires_grad=True), torch.ones(2, 1, requires_grad=True)
    times, ends = torch.tensor([[0.0, 1.0], [0.0, 9.0]]), torch.tensor([[1.0], [12.0]])

    def func(t, y):
        return torch.sqrt(w * (ends - t).abs()) - 0.1 * y + torch.cos(ends * t)

    def bars(memory):
        solution = solve(func, y0, times, method="RK23", per_sample=True, memory=memory)
        found = torch.autograd.grad(solution.ys[-1].sum(), [w, y0])
        assert all(bool(torch.isfinite(bar).all()) for bar in found)
        return found, solution.stats

    expected, stats = bars("states")
    found, kept = bars(None)
    assert int(stats.n_accepted[0]) < int(stats.n_accepted[1])
    assert kept.n_backward_f_evals >= stats.n_backward_f_evals > 0  # nothing else helps here
    for one, other in zip(found, expected):
        assert_close(one, other)


def test_rows_that_fail_keep_no_graphs():
    w, y0 = torch.tensor(1.0, requires_grad=True), torch.ones(2, 1)
    rows = torch.arange(2)[:, None]
    solution = solve(
        lambda t, y: torch.where((rows == 0) & (t > 0.5), torch.nan, -w * y), y0, [0.0, 1.0], per_sample=True,
        on_failure="return",
    )  # fmt: skip
    (found,) = torch.autograd.grad(solution.ys[-1, 1].sum(), w)
    assert solution.stats.n_backward_f_evals > 0
    assert abs(float(found) + float(torch.exp(torch.tensor(-1.0)))) < 1e-4
