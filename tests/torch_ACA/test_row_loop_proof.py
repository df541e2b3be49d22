"""What the graph of func shows of its rows: never more than is so."""

import random

import pytest
import torch
from torch import nn

from tests.torch_ACA.test_tied_rows import REFUSED, TIED, Y0
from torch_ACA import solve
from torch_ACA.compilation.func_graph import Differentiable, NotCompilable, Tracer
from torch_ACA.compilation.row_loop_proof import rows_are_apart
from torch_ACA.rows.layout import RowLayout
from torch_ACA.rows.ties import RowTies
from torch_ACA.state import StateLayout

pytestmark = [pytest.mark.loops, pytest.mark.usefixtures("ungenerated")]
ROWS, WIDTH = 4, 4  # alike: places must be told by where they come from, not by their sizes


def shown(func, y):
    """What is shown of func, for a state y."""
    layout = StateLayout(y)
    rows, flat = RowLayout(layout), layout.flatten(y).detach()
    t = rows.time(torch.linspace(0.0, 1.0, len(y), dtype=layout.dtype))
    graph, inputs = Tracer(layout, None)(func, t, flat, differentiable=Differentiable(True, False))
    return rows_are_apart(graph, t, flat, graph.others(inputs), len(y))


W = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(0))
SCALES = torch.linspace(1.0, 2.0, ROWS, dtype=torch.float64)[:, None]
NET = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, WIDTH)).double()
IMAGES = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv1d(4, 1, 1)).double()
BATCH_NORM = nn.BatchNorm1d(WIDTH).double()


def attention(y):
    """Over the entries of each row."""
    x = y[:, :, None] * W[:1]
    return (torch.softmax(x @ x.transpose(1, 2), -1) @ x).mean(-1)


APART = {
    "a network": lambda t, y: NET(y) * torch.cos(t),
    "data of rows": lambda t, y: -SCALES * y + t,
    "slices": lambda t, y: torch.cat([y[:, 1:], -torch.sin(y[:, :1])], 1),
    "columns": lambda t, y: torch.stack([y[:, 1] * y[:, 2], -y[:, 0], y[:, 3], t[:, 0] * y[:, 1]], -1),
    "unbound": lambda t, y: torch.stack([a + b for a, b in zip(y.unbind(1), y.flip(1).unbind(1))], 1),
    "views": lambda t, y: torch.tanh(y.view(ROWS, 2, 2).transpose(1, 2).reshape(ROWS, WIDTH)),
    "the other way round": lambda t, y: (W @ y.T).T - y.t().contiguous().T,
    "attention in a row": lambda t, y: attention(y) - y,
    "sums": lambda t, y: y - y.sum(1, keepdim=True) * torch.linalg.vector_norm(y, dim=1)[:, None],
    "images": lambda t, y: IMAGES(y[:, None])[:, 0],
    "parts": lambda t, y: torch.cat(y.split(2, 1)[::-1], 1),
    "ordered": lambda t, y: y.sort(1).values + y.cumsum(1) * torch.where(y > 0, y, t),
    "of time alone": lambda t, y: torch.cos(t).expand(ROWS, WIDTH),
    "constant": lambda t, y: W,
}
MIXED = {
    "a mean": lambda t, y: y - y.mean(0),
    "all summed": lambda t, y: y - y.sum(),
    "a norm": lambda t, y: y / torch.linalg.vector_norm(y),
    "attention over the batch": lambda t, y: torch.softmax(y @ y.T, -1) @ y,
    "a product from the left": lambda t, y: W @ y,
    "transposed": lambda t, y: y.T,
    "added to its transpose": lambda t, y: y + y.T,
    "rows along columns": lambda t, y: y + t[:, 0],
    "turned": lambda t, y: y.flip(0),
    "rolled": lambda t, y: y.roll(1, 0),
    "chosen": lambda t, y: y[[1, 0, 2, 3]],
    "one for all": lambda t, y: y[:1] * torch.ones_like(y),
    "one for all, expanded": lambda t, y: y[0].expand(ROWS, WIDTH),
    "halves": lambda t, y: torch.cat([y[2:], y[:2]]),
    "shifted": lambda t, y: torch.cat([y.reshape(-1)[1:], y.reshape(-1)[:1]]).reshape(ROWS, WIDTH),
    "views across rows": lambda t, y: y.reshape(2, 8).T.reshape(ROWS, WIDTH),
    "softmax over rows": lambda t, y: torch.softmax(y, 0),
    "sums along rows": lambda t, y: y.cumsum(0),
    "a detached mean": lambda t, y: y.detach().mean(0) - y,
    "batch norm in training": lambda t, y: BATCH_NORM(y),
    "normalised over all": lambda t, y: nn.functional.layer_norm(y, (ROWS, WIDTH)),
    "channels for rows": lambda t, y: IMAGES(y.T[:, None])[:, 0].T.reshape(WIDTH, ROWS) + y.T,
}


@pytest.mark.parametrize("name", APART)
def test_rows_that_are_apart(name):
    assert shown(APART[name], torch.randn(ROWS, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_are_not(name):
    y = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    try:
        assert not shown(MIXED[name], y)
    except NotCompilable:
        assert name == "batch norm in training"


@pytest.mark.parametrize("name", TIED)
def test_ties_that_depend_on_values_are_not_overlooked(name):
    try:
        assert not shown(TIED[name], Y0)
    except NotCompilable:
        assert name == "a time as a number"


def turned(x, choose):
    """x in some other shape."""
    kind = choose.choice(["permute", "reshape", "unsqueeze", "squeeze", "flip", "cat", "slice"])
    axis = choose.randrange(x.dim())
    if kind == "permute":
        return x.permute(*choose.sample(range(x.dim()), x.dim()))
    if kind == "unsqueeze":
        return x.unsqueeze(axis)
    if kind == "squeeze":
        return x.squeeze()
    if kind == "flip":
        return x.flip(axis)
    if kind == "cat":
        return torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, 0, 1)], axis)
    if kind == "slice":
        return torch.cat(x.split(1, axis)[::-1], axis)
    sizes, left = [], x.numel()
    while left > 1 and choose.random() < 0.8:
        sizes.append(choose.choice([d for d in (1, 2, 4, 8) if left % d == 0]))
        left //= sizes[-1]
    return x.reshape(*sizes, left)


def test_random_views():
    """What is shown is so: entries of a row stay in it."""
    numbers, t = torch.arange(ROWS, dtype=torch.float64)[:, None].expand(ROWS, WIDTH), torch.zeros(ROWS, 1)
    n_shown = n_stay = 0
    for seed in range(150):

        def func(y, seed=seed):
            choose = random.Random(seed)
            for _ in range(choose.randrange(1, 6)):
                y = turned(y, choose)
            return y.reshape(ROWS, WIDTH)

        def graph(t, flat, others, func=func):
            return func(flat.view(ROWS, WIDTH)).reshape(-1)

        stay = torch.equal(func(numbers), numbers)
        apart = rows_are_apart(graph, t, numbers.reshape(-1), [], ROWS)
        assert stay or not apart, seed
        n_shown, n_stay = n_shown + apart, n_stay + stay
    assert n_shown > 0.6 * n_stay > 15


@pytest.fixture
def looks(monkeypatch):
    """Halves of rows that are looked at."""
    found, tied = [], RowTies._tied
    monkeypatch.setattr(RowTies, "_tied", lambda *arguments: (found.append(1), tied(*arguments))[1])
    return found


@pytest.mark.parametrize("gradients", [True, False])
def test_nothing_is_looked_at_where_the_graph_shows_it(gradients, looks):
    y0 = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=gradients)
    eager = solve(APART["a network"], y0, [0.0, 1.0], per_sample=True)
    assert len(looks) > 0
    looks.clear()
    compiled = solve(APART["a network"], y0, [0.0, 1.0], per_sample=True, compile=True)
    assert not looks
    torch.testing.assert_close(compiled.ys, eager.ys, rtol=1e-12, atol=1e-12)


def test_what_the_graph_does_not_show_is_looked_at(looks):
    y0, order = torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.arange(ROWS)
    solve(lambda t, y: -y[order], y0, [0.0, 1.0], per_sample=True, compile=True)
    assert looks
    with pytest.raises(ValueError, match=REFUSED):
        solve(lambda t, y: -y.detach()[order.flip(0)], y0, [0.0, 1.0], per_sample=True, compile=True)
