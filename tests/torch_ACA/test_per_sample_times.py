"""Rows with steps of their own: padded and equal times, landing times, jumps."""

import itertools
import math

import pytest
import torch

from torch_ACA import SecondDerivativeError, solve

ROWS = 5
SAME = 1e-12  # of the same float64 operations in another order, relative to the largest entry
# of a joint solve of the row alone: rounding of its step sizes, times what the steps before make of it
ALONE = 1e-9
SETTINGS = {"rtol": 1e-6, "atol": 1e-6}


def forced(rates, jump=None):
    """Row-wise, driven by its time, with a push that comes at ``jump``."""

    def func(t, y):
        pushed = 0.0 if jump is None else torch.where(t < jump, 1.0, -2.0) * torch.cos(y)
        return torch.stack([y[:, 1], -rates[:, 0] * torch.sin(y[:, 0])], 1) + 0.3 * torch.cos(rates * t) + pushed

    return func


def batch(direction=1):
    """Rates [b, 1], starts [b, 2] and times [b, 6], all with gradients."""
    rates = torch.logspace(-1, 1, ROWS)[:, None].requires_grad_()
    y0 = torch.randn(ROWS, 2).requires_grad_()
    t = direction * torch.cat([0.2 * torch.rand(ROWS, 1), 0.1 + 0.4 * torch.rand(ROWS, 5)], 1).cumsum(1)
    return rates, y0, t.requires_grad_()


def assert_close(found, expected, tolerance):
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


def assert_rows_are_as_alone(jump=None, direction=1, t=None, **keywords):
    """States, and gradients in everything, of every row against a joint solve of that row; and the hand-written VJP
    against autograd over the same steps."""
    rates, y0, given = batch(direction)
    t = given if t is None else t(given.detach()).requires_grad_()
    there = ~t.detach().isnan()
    weights = torch.randn(t.shape[1], ROWS, 2)
    settings = SETTINGS | keywords
    ys = solve(forced(rates, jump), y0, t, per_sample=True, **settings).ys
    assert torch.equal(~ys.detach().isnan().any(2), there.T)
    loss = torch.where(there.T[..., None], ys * weights, 0.0).sum()
    found = torch.autograd.grad(loss, [y0, rates, t], retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(loss, [y0, rates, t], create_graph=True)):
        assert_close(one, other, SAME)
    for row in range(ROWS):
        rate, start = (x[row : row + 1].detach().requires_grad_() for x in (rates, y0))
        times = t[row, there[row]].detach().requires_grad_()
        alone = solve(forced(rate, jump), start, times, **settings).ys
        count = int(there[row].sum())
        assert_close(ys[:count, row], alone[:, 0], ALONE)
        bars = torch.autograd.grad((alone[:, 0] * weights[:count, row]).sum(), [start, rate, times])
        assert_close(found[0][row], bars[0][0], ALONE)
        assert_close(found[1][row], bars[1][0], ALONE)
        assert_close(found[2][row, :count], bars[2], ALONE)
        assert not bool(found[2][row, count:].any())


LANDING = [
    {"step_t": [0.3, 0.7, 1.1]}, {"land_on_t": True}, {"jump_t": [0.6]}, {"jump_t": [0.6], "land_on_t": True},
    {"jump_t": [0.6], "step_t": [0.3], "interp": "cubic"},
]  # fmt: skip


@pytest.mark.parametrize(
    "method, options, direction",
    [
        ("Dopri5", LANDING[4], 1),
        ("HeunEuler", LANDING[2], -1),
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in itertools.product(["Rodas5P"], LANDING[:4], [1, -1])),
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in itertools.product(["Dopri5", "HeunEuler", "fehlberg2", "RK23"], LANDING, [1, -1])),
    ],
    ids=str,
)  # fmt: skip
def test_rows_land_where_they_are_told(method, options, direction):
    options = {name: [direction * x for x in value] if isinstance(value, list) else value
               for name, value in options.items()}  # fmt: skip
    settings = SETTINGS if method in ("Dopri5", "Rodas5P") else {"rtol": 1e-3, "atol": 1e-3}  # others take many steps
    jump = 0.6 * direction if "jump_t" in options else None
    assert_rows_are_as_alone(jump, direction, method=method, options=options, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Dopri5", "Rodas5P"])
def test_rows_start_at_a_jump_and_end_on_one(method):
    def from_jump(t):
        t[0, 0], t[1, -1], t[2, 2] = 0.6, 0.6, 0.6  # at the start, at the end, and at an output
        return t.sort(1)[0]

    for options in ({"jump_t": [0.6]}, {"jump_t": [0.6], "land_on_t": True}):
        assert_rows_are_as_alone(0.6, t=from_jump, method=method, options=options)


@pytest.mark.parametrize("options", [{"jump_t": [1.0]}, {"jump_t": [1.0], "land_on_t": True}], ids=["", "landing"])
def test_an_output_at_the_start_lies_behind_a_jump_there(options):
    """Onwards from 1 y' = -y, back from it y' = 0.4 y: gradients in both times follow from the slopes there."""
    times = [[1.0, 1.0, 1.5], [1.0, 1.0, 0.5], [1.0, 1.0, 1.0]]
    t, y0 = torch.tensor(times, requires_grad=True), torch.tensor([[2.0], [3.0], [5.0]])
    func = lambda t, y: torch.where(t < 1.0, 0.4, -1.0) * y  # noqa: E731
    ys = solve(func, y0, t, per_sample=True, options=options, rtol=1e-9, atol=1e-9).ys[..., 0]
    ends = torch.tensor([2.0 * math.exp(-0.5), 3.0 * math.exp(-0.2), 5.0])
    assert_close(ys[1], y0[:, 0], 1e-15)
    assert_close(ys[2], ends, 1e-8)
    rates, zero = torch.tensor([-1.0, 0.4, -1.0]), torch.zeros(3)
    for number, slopes in ((1, rates * y0[:, 0]), (2, rates * ends)):
        (found,) = torch.autograd.grad(ys[number].sum(), t, retain_graph=True)
        expected = [-slopes, slopes, zero] if number == 1 else [-slopes, zero, slopes]
        assert_close(found, torch.stack(expected, 1), 1e-8)


def test_a_jump_is_met_from_both_sides():
    """The slope of |t - 1| is 1 behind the jump and -1 before it, to the last bit: no step has a wrong slope in it."""
    seen = []

    def func(t, y):
        seen.extend(t[:, 0].tolist())
        return torch.where(t < 1.0, -1.0, 1.0).expand_as(y)

    ends = torch.tensor([0.9, 1.5, 3.0])
    t = torch.stack([torch.zeros(3), ends], 1)
    ys = solve(func, torch.ones(3, 1), t, per_sample=True, options={"jump_t": [1.0]}).ys
    assert_close(ys[-1, :, 0], (ends - 1).abs(), 1e-14)  # rounding
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    assert float(below) in seen and 1.0 not in seen


@pytest.mark.parametrize(
    "options, direction",
    [
        (None, 1),
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in [(None, -1), *itertools.product([{"land_on_t": True}, {"step_t": [0.4]}], [1, -1])]),
    ],
    ids=str,
)  # fmt: skip
def test_rows_with_fewer_times(options, direction):
    def padded(t):
        for row, count in enumerate((6, 1, 2, 4, 5)):
            t[row, count:] = float("nan")
        return t

    rates, y0, _ = batch()
    if direction == 1:  # a row with one time takes no step, and has no solve of its own to compare with
        t = padded(batch()[2].detach())
        ys = solve(forced(rates), y0, t, per_sample=True, options=options).ys
        assert torch.equal(ys[0], y0) and bool(ys[1:, 1].isnan().all())
        y0_bar, rates_bar = torch.autograd.grad(ys.nansum(), [y0, rates])
        assert torch.equal(y0_bar[1], torch.ones(2)) and float(rates_bar[1]) == 0.0 and bool(y0_bar.isfinite().all())

    def padded_to_two(t):
        t = padded(torch.cat([t[:, :1], t], 1)[:, 1:])
        t[1, 1] = t[1, 0] + 0.2 * direction
        return t

    assert_rows_are_as_alone(None, direction, t=padded_to_two, options=options)


def test_a_masked_loss_has_gradients_without_nan():
    """Where a loss leaves padding out with a product or with where, the NaN there reach no gradient."""
    rates, y0, t = batch()
    t = t.detach()
    t[0, 2:] = t[3, 4:] = float("nan")
    mask = ~t.isnan().T[..., None]
    ys = solve(forced(rates), y0, t, per_sample=True).ys
    chosen = torch.autograd.grad(ys[mask.expand_as(ys)].square().sum(), [y0, rates], retain_graph=True)
    for loss in (torch.where(mask, ys.square(), 0.0).sum(), (mask * ys.nan_to_num().square()).sum()):
        for one, other in zip(torch.autograd.grad(loss, [y0, rates], retain_graph=True), chosen):
            assert_close(one, other, SAME)
    total = (mask * ys.square()).sum()
    assert bool(total.isnan())
    for one, other in zip(torch.autograd.grad(total, [y0, rates]), chosen):
        assert_close(one, other, SAME)


def test_equal_times():
    """A row may stand still: padded by its last time, with an output at its start, or with one time alone."""
    rates, y0, t = batch()
    plain = solve(forced(rates), y0, t, per_sample=True, **SETTINGS)
    weights = torch.randn(6, ROWS, 2)
    for options in (None, {"land_on_t": True}):
        still = t.detach().clone()
        still[0, 3:] = still[0, 3:4]
        still[1, 1] = still[1, 0]
        still[2, :] = still[2, :1]
        still.requires_grad_()
        ys = solve(forced(rates), y0, still, per_sample=True, options=options, **SETTINGS).ys
        assert torch.equal(ys[1, 1], y0[1]) and torch.equal(ys[:, 2], y0[2].expand(6, 2))
        assert_close(ys[3:, 0], ys[3, 0].expand(3, 2), SAME)
        for row in (3, 4) if options is None else ():
            assert torch.equal(ys[:, row], plain.ys[:, row])
        found = torch.autograd.grad((ys * weights).sum(), [y0, still])
        assert_close(found[0][2], weights[:, 2].sum(0), SAME)
        slope = forced(rates)(still[:, :1], y0)[2]  # of a row that stands still: y(t1) moves by f dt1, and by -f dt0
        assert_close(found[1][2, 1:].sum(), (weights[1:, 2] @ slope).sum(), SAME)
        assert_close(found[1][2, 0], -(weights[1:, 2] @ slope).sum(), SAME)
        alone = solve(forced(rates[1:2]), y0[1:2], still[1, 1:].detach(), options=options, **SETTINGS).ys
        assert_close(ys[1:, 1], alone[:, 0], ALONE)
    ys = solve(forced(rates), y0, still, per_sample=True).ys
    with pytest.raises(SecondDerivativeError, match="all the same"):
        torch.autograd.grad(ys.sum(), still, create_graph=True)


def test_second_derivatives_through_landing_times_and_jumps():
    """Of y' = -rate y + (1 behind the jump): exact where the order of the method is far behind the tolerance."""
    rate = torch.tensor([[0.5], [2.0], [1.0]], requires_grad=True)
    t = torch.tensor([[0.0, 0.7, 1.5], [0.2, 0.4, 0.9], [0.0, 0.3, float("nan")]], requires_grad=True)
    jump, y0 = 0.5, torch.ones(3, 1)

    def exact(r, a, b):
        free = torch.exp(-r * (b - a))
        return free + torch.where(b > jump, (1 - torch.exp(-r * (b - jump))) / r, 0.0)

    for options in ({"jump_t": [jump]}, {"jump_t": [jump], "land_on_t": True}):
        ys = solve(
            lambda t, y: -rate * y + torch.where(t < jump, 0.0, 1.0), y0, t, per_sample=True, rtol=1e-11, atol=1e-11,
            options=options,
        ).ys  # fmt: skip
        there = ~t.isnan()
        expected = exact(rate, t[:, :1], torch.where(there, t, 1.0))
        losses = [torch.where(there, x, 0.0)[:, 1:].sum() for x in (ys[..., 0].T, expected)]
        for inputs in (rate, t):
            firsts = [torch.autograd.grad(x, inputs, create_graph=True)[0] for x in losses]
            seconds = [torch.autograd.grad(x.sum(), rate, retain_graph=True)[0] for x in firsts]
            assert_close(*firsts, 1e-8)
            assert_close(*seconds, 1e-7)


def test_float32_and_nested_states_land_too():
    rates, _, t = batch()
    t = t.detach().float()
    t[1, 3:] = float("nan")
    state = {"a": torch.ones(ROWS, 3, dtype=torch.float32), "b": torch.zeros(ROWS, dtype=torch.float32)}
    rates = rates.detach().float().requires_grad_()

    def func(t, y):
        return {"b": y["a"].sum(1) * torch.where(t[:, 0] < 0.5, 1.0, 2.0), "a": -rates * y["a"]}

    solution = solve(func, state, t, per_sample=True, options={"jump_t": [0.5], "step_t": [0.1]})
    ys = solution.ys
    assert ys["a"].dtype == ys["b"].dtype == torch.float32
    decay = torch.exp(-rates * (t.nan_to_num() - t[:, :1])).T * ~t.isnan().T
    assert_close(ys["a"][..., 0].nan_to_num(), decay, 1e-4)  # rtol 1e-5 over tens of steps
    (found,) = torch.autograd.grad(ys["a"].nansum(), rates)
    (expected,) = torch.autograd.grad(3 * decay.sum(), rates)
    assert_close(found, expected, 1e-3)


@pytest.mark.parametrize("options", [{"jump_t": [1 / 3]}, {}], ids=["named", "not named"])
def test_gradients_in_times_in_single_precision_at_a_jump(options):
    """A probe of func beside the jump is not taken for a func that changes with its time all along."""
    found = []
    for dtype in (torch.float64, torch.float32):
        t = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64, requires_grad=True)
        ys = solve(
            lambda t, y: torch.where(t < 1 / 3, y, -0.5 * y), torch.ones(3, 2, dtype=dtype), t, per_sample=True,
            options=options, rtol=1e-5, atol=1e-5,
        ).ys  # fmt: skip
        found.append(torch.autograd.grad(ys.sum(), t)[0])
    # what the steps are is decided by errors of 1e-5, which rounding in float32 may move, where the jump is not named
    assert_close(found[1], found[0], 1e-5 if options else 1e-2)


@pytest.mark.parametrize(
    "times, said",
    [
        ([[0.0, float("inf")], [0.0, 1.0]], "finite.*row 0"),
        ([[0.0, 1.0], [float("nan"), 1.0]], "first time.*row 1"),
        ([[0.0, 1.0, 2.0], [0.0, float("nan"), 1.0]], "behind the last.*row 1"),
        ([[0.0, 1.0, 2.0], [0.0, 1.0, 0.5]], "turn round.*row 1"),
        ([[0.0], [0.0]], "m >= 2"),
        ([[0.0, 1.0j], [0.0, 1.0]], "real"),
    ],
)
def test_times_that_cannot_be(times, said):
    with pytest.raises((ValueError, TypeError), match=said):
        solve(lambda t, y: -y, torch.ones(2, 1), torch.tensor(times), per_sample=True)
