"""Random numbers: one stream within a solve, moving on from solve to solve, and never turned back."""


import pytest
import torch
from torch import nn

from tests.torch_ACA.programs import KINDS, assert_close, in_two_threads, keywords_of, plain, square, tolerance_of
from torch_ACA import ODEBlock, solve
from torch_ACA.errors import ReplayError, SolverError

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

SHAPE = (3, 2)


class NoiseOnce(nn.Module):
    """Draws its noise at the first evaluation, as FFJORD does."""

    def __init__(self):
        super().__init__()
        self.net, self.e = nn.Linear(2, 2), None

    def forward(self, t, y):
        if self.e is None:
            self.e = torch.randn_like(y)
        return torch.tanh(self.net(y)) * self.e


def run(f, kind, y0=None):
    return solve(f, torch.ones(SHAPE) if y0 is None else y0, [0.0, 1.0], **keywords_of(kind)).ys


def run_in_few_steps(f, kind, y0):
    """The adjoint with fixed steps too, for a func with jumps."""
    keywords = KINDS[kind] | {"method": "RK4", "h": 0.25} if kind == "adjoint" else keywords_of(kind)
    return solve(f, y0, [0.0, 1.0], **keywords).ys


def stream_after(*shapes):
    """Where the stream stands behind these draws from the seed 7, and the numbers drawn."""
    torch.manual_seed(7)
    drawn = [torch.randn(shape) for shape in shapes]
    return torch.get_rng_state(), drawn


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_that_is_drawn_once_per_solve_moves_on(kind, grad):
    f = NoiseOnce()
    state, drawn = stream_after(*[SHAPE] * 4)
    torch.manual_seed(7)
    with torch.set_grad_enabled(grad):
        for i in range(0, 4, 2):
            f.e = None
            ys = run(f, kind)
            assert torch.equal(f.e, drawn[i])
            assert torch.equal(torch.randn(SHAPE), drawn[i + 1])  # behind what func drew
            if grad:
                square(ys).backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_noise_that_is_drawn_once(kind):
    def grads(integrate):
        torch.manual_seed(3)
        f = NoiseOnce()
        return torch.autograd.grad(square(integrate(f, torch.ones(SHAPE))), list(f.net.parameters()))

    assert_close(grads(lambda f, y0: run(f, kind, y0)), grads(plain(kind)), tolerance_of(kind))


@pytest.mark.skipif(torchdiffeq is None, reason="torchdiffeq is not installed")
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_stream_is_that_of_torchdiffeq_after_one_draw(adaptive):
    def states(library):
        f = NoiseOnce()
        torch.manual_seed(7)
        for _ in range(3):
            f.e = None
            if adaptive:
                library.odeint(f, torch.ones(SHAPE), torch.tensor([0.0, 1.0]))
            else:
                library.odeint(
                    f, torch.ones(SHAPE), torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.25}
                )
            torch.randperm(5)
        return f.e, torch.get_rng_state()

    import torch_ACA

    for found, expected in zip(states(torch_ACA), states(torchdiffeq)):
        assert torch.equal(found, expected)


def test_hutchinsons_estimator_is_not_biased():
    """Noise of 200 solves: its mean square is one within five standard errors, and no two are the same."""
    f, seen = NoiseOnce(), []
    for _ in range(200):
        f.e = None
        with torch.no_grad():
            solve(f, torch.ones(SHAPE), [0.0, 1.0], method="Euler", h=0.5)
        seen.append(f.e)
    stacked = torch.stack(seen)
    assert len({float(e[0, 0]) for e in seen}) == 200
    assert abs(float((stacked**2).mean()) - 1) < 5 * (2 / stacked.numel()) ** 0.5


# Draws at every evaluation


def noisy(late=False, more_late=False):
    """One draw at every evaluation; late: only for t > 0.5; more_late: three of them there."""
    seen = []

    def f(t, y):
        if late and t <= 0.5:
            return -y
        noise = [torch.randn_like(y) for _ in range(3 if more_late and t > 0.5 else 1)]
        seen.append(noise[0])
        return sum(noise) * torch.cos(y)

    return f, seen


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluation_sees_the_same_numbers(kind, late):
    f, seen = noisy(late)
    state, (noise,) = stream_after(SHAPE)
    torch.manual_seed(7)
    y0 = torch.ones(SHAPE, requires_grad=True)
    ys = run_in_few_steps(f, kind, y0)
    assert torch.equal(torch.get_rng_state(), state)
    (found,) = torch.autograd.grad(square(ys), y0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(e, noise) for e in seen[-3:])
    if kind == "adjoint":
        return  # its few steps have no oracle
    y0 = torch.ones(SHAPE, requires_grad=True)
    fixed = lambda t, y: -y if late and t <= 0.5 else noise * torch.cos(y)  # noqa: E731
    expected = plain(kind)(fixed, y0)
    assert_close([ys[-1].detach()], [expected[-1].detach()], tolerance_of(kind))
    assert_close([found], torch.autograd.grad(square(expected), y0), tolerance_of(kind))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_stands_behind_whichever_evaluation_drew_most(kind, grad):
    f, _ = noisy(more_late=True)
    state, _ = stream_after(SHAPE, SHAPE, SHAPE)
    torch.manual_seed(7)
    with torch.set_grad_enabled(grad):
        y0 = torch.ones(SHAPE, requires_grad=True)
        ys = run_in_few_steps(f, kind, y0)
        assert torch.equal(torch.get_rng_state(), state)
        if grad:
            square(ys).backward()
            assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 700, 5000])  # the state of the generator turns over after 624 numbers
@pytest.mark.parametrize("order", ["most first", "most last"])
def test_the_furthest_of_long_draws(order, size):
    lengths = (3 * size, size) if order == "most first" else (size, 3 * size)
    torch.manual_seed(7)
    torch.rand(3 * size)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    solve(
        lambda t, y: -y + 0 * torch.rand(lengths[int(t > 0.5)]).sum(), torch.ones(1), [0.0, 1.0], method="RK4", h=0.25
    )
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_masks_are_one_per_solve_and_differ_between_solves(kind, late):
    dropout, seen = nn.Dropout(0.5), []

    def f(t, y):
        if late and t <= 0.5:
            return -y
        out = dropout(torch.ones_like(y))
        seen.append(out.clone())
        return out - y

    masks = []
    for _ in range(3):
        seen.clear()
        y0 = torch.ones(8, 8, requires_grad=True)
        square(run_in_few_steps(f, kind, y0)).backward()
        masks.append(seen[-1])
        assert torch.equal(seen[-2], seen[-1])
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


@pytest.mark.parametrize("kind", ["aca", "direct", "naive", "adjoint", "mali"])
def test_late_draws_with_chosen_steps_cost_what_fixed_numbers_do(kind):
    """Numbers drawn anew at every evaluation would drive the step size to nothing."""
    noise = torch.randn(8, 8)
    keywords = KINDS[kind] | {"rtol": 1e-6, "atol": 1e-6, "max_evals": 20_000}
    if kind == "mali":
        keywords |= {"rtol": 1e-3, "atol": 1e-3}
    y0 = torch.ones(8, 8)
    fixed = solve(lambda t, y: -y if t <= 0.5 else noise - y, y0, [0.0, 1.0], **keywords).stats
    drawn = solve(lambda t, y: -y if t <= 0.5 else torch.randn_like(y) - y, y0, [0.0, 1.0], **keywords).stats
    assert drawn.n_f_evals < 3 * fixed.n_f_evals


def test_a_late_draw_leaves_the_counts_of_one_solve():
    """The solve begins anew where a draw comes late: its first try leaves no trace."""
    norm, dropout = nn.BatchNorm1d(2), nn.Dropout(0.5)
    f = lambda t, y: norm(y) if t <= 0.5 else dropout(norm(y))  # noqa: E731
    square(solve(f, torch.randn(SHAPE), [0.0, 1.0], method="RK4", h=0.25).ys).backward()
    assert int(norm.num_batches_tracked) == 16


def test_a_block_in_training_draws_anew_and_can_be_repeated():
    dropout = nn.Dropout(0.5)
    block = ODEBlock(lambda t, y: dropout(y), method="RK4", h=0.25)
    x = torch.ones(8, 8)
    torch.manual_seed(1)
    one, two = block(x), block(x)
    torch.manual_seed(1)
    assert torch.equal(block(x), one) and torch.equal(block(x), two) and not torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_solve_that_fails_does_not_turn_the_stream_back(kind):
    def f(t, y):
        noise = torch.randn_like(y)
        return y * float("nan") if t > 0.5 else noise

    _, (_, behind) = stream_after(SHAPE, SHAPE)
    torch.manual_seed(7)
    with pytest.raises(SolverError):
        run(f, kind)
    assert torch.equal(torch.randn(SHAPE), behind)


def test_a_func_that_raises_does_not_turn_the_stream_back():
    def f(t, y):
        torch.randn_like(y)
        if t > 0.5:
            raise KeyError("own")
        return -y

    _, (_, behind) = stream_after(SHAPE, SHAPE)
    torch.manual_seed(7)
    with pytest.raises(KeyError):
        run(f, "aca")
    assert torch.equal(torch.randn(SHAPE), behind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_solve_inside_func_that_draws(kind):
    """y(1) is linear in w for given noise, so that the gradient times w is y(1)."""
    w = torch.tensor([0.5, 2.0], requires_grad=True)
    dropout = nn.Dropout(0.5)
    inner = lambda s, z: dropout(w)  # noqa: E731
    f = lambda t, y: solve(inner, 0 * y, [0.0, 1.0], method="Euler", h=0.5).ys[-1]  # noqa: E731
    ys = solve(f, torch.zeros(2), [0.0, 1.0], **keywords_of(kind)).ys
    (found,) = torch.autograd.grad(ys[-1].sum(), w)
    assert float(found @ w.detach()) == pytest.approx(float(ys[-1].detach().sum()), rel=1e-9)


def test_draws_in_two_threads_are_right_or_refused():
    """Each solve is linear in w for a given mask: the gradient times w is its end, or the replay says otherwise."""
    failures, refused, right = [], [], []

    def work():
        dropout = nn.Dropout(0.5)
        for _ in range(15):
            w = torch.rand(40).add(1).requires_grad_()
            ys = solve(lambda t, y: dropout(w), torch.zeros(40), [0.0, 1.0], method="RK4", h=0.25).ys
            try:
                (g,) = torch.autograd.grad(ys[-1].sum(), w)
            except ReplayError:
                refused.append(1)
                continue
            off = abs(float(g @ w.detach() - ys[-1].detach().sum()))
            (failures if off > 1e-9 else right).append(off)

    in_two_threads(work)
    assert not failures and len(refused) + len(right) == 30
