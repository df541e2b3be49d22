"""Rows that depend on each other are noticed where rows take their own steps, and others are not accused."""

import contextlib
import random

import pytest
import torch

from torch_ACA import JacobianError, solve, solve_event
from torch_ACA.rows.layout import RowLayout
from torch_ACA.rows.ties import Point, RowTies
from torch_ACA.state import StateLayout

K = torch.tensor([[0.5], [20.0], [1.0], [2.0]], dtype=torch.float64)
Y0 = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
REFUSED = "per_sample needs a func whose rows do not depend on each other, but "
BY_METHOD = REFUSED + "|per_sample, but at t = .* func couples rows"  # by the Jacobian's own check, where it is first
MODES = {"gradients": contextlib.nullcontext, "inference": torch.inference_mode}


def first_sees(y, other):
    """In row 0, what another row has."""
    return torch.cat([y[other : other + 1], torch.zeros_like(y[1:])])


def second_sees_first(y):
    return torch.cat([torch.zeros_like(y[:1]), y[:1], torch.zeros_like(y[2:])])


TIED = {
    "the time of the first": lambda t, y: -K * y * torch.cos(t.reshape(-1)[0]),  # no derivative at 0
    "the mean time": lambda t, y: -K * y * torch.cos(t.mean()),
    "the last time": lambda t, y: -K * y * torch.cos(t.max()),
    "a time as a number": lambda t, y: -K * y * (1 + float(t[0])),
    "a pair": lambda t, y: first_sees(y, 1) - K * y,
    "a pair the other way": lambda t, y: second_sees_first(y) - K * y,
    "another pair": lambda t, y: first_sees(y, 3) - K * y,  # of the same half, where autograd looks
    "a pair without a graph": lambda t, y: first_sees(y, 1).detach() - K * y,
    "a mean without a graph": lambda t, y: y.detach().mean(0) - K * y,
    "sorted": lambda t, y: -K * y.sort(0).values,
    "later": lambda t, y: -K * y + torch.where(t > 0.9, 1.0, 0.0) * y.mean(0, keepdim=True),
    "a pair later": lambda t, y: -K * y + torch.where(t > 0.9, 1.0, 0.0) * first_sees(y, 1),
    "for a while": lambda t, y: -K * y + torch.where((t - 0.8).abs() < 0.1, 1.0, 0.0) * y.mean(0, keepdim=True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["Dopri5", "Rodas5P"])
@pytest.mark.parametrize("name", TIED)
def test_ties_are_noticed(name, method, mode):
    with MODES[mode](), pytest.raises((ValueError, JacobianError), match=BY_METHOD):
        solve(TIED[name], Y0, [0.0, 1.0], per_sample=True, method=method, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["a pair without a graph", "later"])
def test_ties_are_noticed_where_rows_are_left_out(name):
    """The other rows are done at 0.5."""
    ends = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.5], [0.0, 0.5]], dtype=torch.float64)
    tied = TIED["later"] if name == "later" else lambda t, y: y.detach().mean(0) - y

    def func(t, y, k):
        return -k * y + (t > 0.9) * y.mean(0, keepdim=True) if name == "later" else tied(t, y)

    with pytest.raises(ValueError, match=REFUSED):
        solve(func, Y0, ends, per_sample=True, args=(K,), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["the time of the first", "a pair without a graph", "later", "a pair later"])
def test_ties_are_noticed_around_a_compiled_loop(name):
    with pytest.raises(ValueError, match=REFUSED):
        solve(TIED[name], Y0, [0.0, 1.0], per_sample=True, rtol=1e-8, atol=1e-8, compile=True)


def test_what_is_said():
    for name, said in (
        ("a time as a number", "row . of its slope depends on the times of others.*solve them jointly"),
        ("a pair without a graph", "row 0 of its slope depends on the states of others"),
        ("a pair the other way", "the slopes of others depend on the state of row 0"),
    ):
        with pytest.raises(ValueError, match=REFUSED + ".*" + said):
            solve(TIED[name], Y0, [0.0, 1.0], per_sample=True)


@pytest.mark.parametrize("mode", MODES)
def test_events_of_rows_that_are_tied(mode):
    events = {
        "at the start": lambda t, y: torch.cat([y[:1] - 0.5 * y[1:2] + 0.1, y[1:] - 0.5]),
        "later": lambda t, y: y - 0.5 - 1e-3 * (t > 0.2) * y.detach().amin(),
    }
    for event_fn in events.values():
        with MODES[mode](), pytest.raises(ValueError, match="event_fn of each row alone, but that of row"):
            solve_event(lambda t, y: -K * y, Y0, 0.0, event_fn, per_sample=True)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_any_two_rows_are_told_apart_in_both_directions(count):
    rows = RowLayout(StateLayout(torch.zeros(count, 1, dtype=torch.float64)))
    times, (before, after) = torch.zeros(2, count, dtype=torch.float64), torch.randn(2, count, dtype=torch.float64)

    def refuse(row, what, t):
        raise ValueError(f"{row} {what}")

    for one in range(count):
        for other in set(range(count)) - {one}:
            calls = []

            def evaluate(t, y, side, one=one, other=other, calls=calls):
                calls.append(y)
                return y.index_add(0, torch.tensor([one]), y[other : other + 1])[:, None]

            first, second = (Point(t, y, evaluate(t, y, 0)) for t, y in zip(times, (before, after)))
            ties = RowTies(evaluate, rows, 2.0**-52, refuse)
            with pytest.raises(ValueError, match=f"{one} states"):
                ties.look(first, second, last=True)
            calls.clear()
            RowTies(lambda t, y, side, calls=calls: calls.append(y) or y[:, None], rows, 2.0**-52, refuse).look(
                *(Point(t, y, y[:, None]) for t, y in zip(times, (before, after))), last=True
            )
            assert len(calls) == max(2, (count - 1).bit_length())


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["BatchNorm", "GroupNorm", "LayerNorm", "attention", "bfloat16"])
def test_rows_that_are_not_tied(kind):
    shape = (6, 5, 8) if kind == "attention" else (6, 8)
    trained = torch.nn.BatchNorm1d(8)
    trained(3 * torch.randn(64, 8))
    net = {
        "BatchNorm": trained.eval, "GroupNorm": lambda: torch.nn.GroupNorm(2, 8),
        "LayerNorm": lambda: torch.nn.LayerNorm(8), "attention": Attention, "bfloat16": lambda: torch.nn.Linear(8, 8),
    }[kind]().float()  # fmt: skip
    y0 = torch.randn(shape, dtype=torch.float32)
    around = torch.autocast(y0.device.type, torch.bfloat16) if kind == "bfloat16" else contextlib.nullcontext()
    for method in ("Dopri5", "Rodas5P"):
        with around, torch.no_grad():  # the fused attention has no second derivative
            assert solve(lambda t, y: net(y) - y, y0, [0.0, 1.0], per_sample=True, method=method).success


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(20, 200, 20))])
def test_random_networks_are_not_accused(first):
    """The rounding of a row does not depend on the numbers in other rows by more than what is allowed for."""
    for seed in range(first, first + 20):
        torch.manual_seed(seed)
        width, count = 2 + seed % 7, 2 + seed % 31
        layers = torch.nn.Linear(width, 64), torch.nn.Tanh(), torch.nn.Linear(64, width)
        net, y0 = torch.nn.Sequential(*layers).float(), torch.randn(count, width, dtype=torch.float32)
        solve(lambda t, y, net=net: net(y) * torch.cos(t), y0, [0.0, 1.0], per_sample=True, rtol=1e-3, atol=1e-3)


def test_func_is_not_disturbed():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.n_calls, self.dropout = 0, torch.nn.Dropout()

        def forward(self, t, y):
            self.n_calls += 1
            return -self.dropout(y) * torch.cos(t)

    func, y0 = Counting(), torch.randn(6, 8)
    torch.manual_seed(0)
    func(torch.zeros(6, 1), y0)
    behind_one, func.n_calls = torch.get_rng_state(), 0
    torch.manual_seed(0)
    stats = solve(func, y0, [0.0, 1.0], per_sample=True).stats
    assert func.n_calls == stats.n_f_evals
    assert torch.equal(torch.get_rng_state(), behind_one)


def test_what_says_nothing():
    """A func that is not the same twice, is infinite, or raises where no solution is."""

    def bounded(t, y):
        if float(y.detach().amin()) < 0.85:
            raise ArithmeticError
        return -0.1 * y

    for func in (
        lambda t, y: -y + 1e-9 * random.random(),
        lambda t, y: -y * (1.0 + 0.0 * torch.log(y - 0.85)),
        bounded,
    ):
        assert solve(func, torch.ones(4, 1), [0.0, 0.1], per_sample=True, rtol=1e-3, atol=1e-3).success


PRECISE = {"jac": lambda matrix: torch.block_diag(*matrix), "rows": lambda matrix: matrix}


@pytest.mark.parametrize(
    "asked", [{"per_sample": True}, {"per_sample": True, "args": ()}, {"jac_structure": "rows"}], ids=str
)
@pytest.mark.parametrize("given", [None, "right", "wrong"])
def test_a_network_of_lower_precision_than_the_state(asked, given):
    """The Jacobian is checked to the rounding of the network."""
    for seed in range(8):
        torch.manual_seed(seed)
        net, y0 = torch.nn.Linear(2, 2, dtype=torch.float32), torch.randn(3, 2, dtype=torch.float64)
        matrix = net.weight.detach().double().expand(3, 2, 2) * (1.01 if given == "wrong" else 1.0)
        jac = {} if given is None else {"jac": lambda t, y, *args, matrix=matrix: matrix[: len(y)]}
        wrong = pytest.raises(JacobianError, match="is not df/dy") if given == "wrong" else contextlib.nullcontext()
        with wrong:
            solve(lambda t, y, net=net: net(y.float()).double(), y0, [0.0, 1.0], method="Rodas5P", rtol=1e-3, atol=1e-3,
                  **asked, **jac)  # fmt: skip


def test_arithmetic_of_lower_precision_without_a_tensor_of_it():
    """Products of float32 in a row; the graph tells."""
    y0 = torch.randn(5, 7, 3, dtype=torch.float64)

    def func(t, y):
        x = y.float()
        return ((x @ x.mT) @ x).double() * -0.1

    for asked in ({"per_sample": True}, {"jac_structure": "rows"}):
        assert solve(func, y0, [0.0, 1.0], method="Rodas5P", rtol=1e-3, atol=1e-3, **asked).success


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["Dopri5", "Rodas5P"])
def test_a_jump_at_the_start(method, mode):
    """With the rows' data as arguments, and without gradients, func is looked at behind the jump."""
    k, y0 = K[:2], torch.ones(2, 1, dtype=torch.float64)

    def func(t, y, k):
        return -k * y + torch.where(t > 0.5, 1.0, 0.0)

    settings = {"per_sample": True, "method": method, "options": {"jump_t": [0.5]}, "rtol": 1e-6, "atol": 1e-6}
    exact = 1 / k + (1 - 1 / k) * torch.exp(-0.5 * k)
    with MODES[mode]():
        ends = [
            solve(func, y0, [0.5, 1.0], args=(k,), **settings).ys[-1],
            solve(lambda t, y: func(t, y, k), y0, [0.5, 1.0], **settings).ys[-1],
        ]
    for end in ends:
        torch.testing.assert_close(end.clone(), exact, rtol=1e-5, atol=0.0)
