"""Rows that fail while the others go on."""

import sys

import pytest
import torch

from torch_ACA import NonFiniteError, SolverError, TooManyEvaluationsError, solve

SAME = 1e-12  # of the same float64 operations in another order, relative to the largest entry
SETTINGS = {"per_sample": True, "on_failure": "return", "rtol": 1e-8, "atol": 1e-8}
TIMES = torch.tensor([0.0, 0.3, 0.7, 1.2, 2.0], dtype=torch.float64)


def squared(rates):
    """y' = rate y^2, which is 1 / (1 - rate t) from 1, and ends where y is 4."""
    return lambda t, y: torch.where(y < 4, rates * y * y, torch.nan)


def assert_close(found, expected, tolerance):
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize(
    "method", ["Dopri5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("HeunEuler", "Rodas5P"))]
)
@pytest.mark.parametrize(
    "options",
    [{"jump_t": [0.5]}, *(pytest.param(x, marks=pytest.mark.slow) for x in (None, {"land_on_t": True}))],
    ids=str,
)  # fmt: skip
def test_rows_that_fail_are_nan_behind_their_last_output(method, options):
    rates = torch.tensor([1.0, -1.0, 1.0, 0.3])[:, None].requires_grad_()
    y0 = torch.ones(4, 1, requires_grad=True)
    tolerance = 1e-3 if method == "HeunEuler" else 1e-6
    settings = SETTINGS | {"method": method, "options": options, "rtol": tolerance, "atol": tolerance}
    solution = solve(squared(rates), y0, TIMES, **settings)
    ys = solution.ys[..., 0]
    assert int(solution.stats.n_accepted[0]) > 3
    assert torch.equal(ys.isnan(), (TIMES[:, None] > 0.75) & torch.tensor([True, False, True, False]))
    assert_close(ys.nan_to_num(), ((1 / (1 - rates * TIMES)).T * ~ys.isnan()).nan_to_num(), 100 * tolerance)
    # the others are those of a solve without the rows that fail, to the last bit
    alone = solve(squared(rates[[1, 3]]), y0[[1, 3]], TIMES, **settings)
    assert torch.equal(alone.ys, solution.ys[:, [1, 3]]) and alone.success and alone.row_errors == (None, None)
    assert alone.status == "finished" and not solution.success
    assert [isinstance(error, NonFiniteError) for error in solution.row_errors] == [True, False, True, False]
    assert str(solution.row_errors[2]).startswith("row 2: ") and abs(solution.row_errors[2].t - 0.75) < 1e-3
    assert str(solution.error).startswith("rows 0, 2: ") and solution.status == str(solution.error)
    (found,) = torch.autograd.grad(solution.ys.nansum(), rates, retain_graph=True)
    (other,) = torch.autograd.grad(alone.ys.sum(), rates)
    assert_close(found[[1, 3]], other[[1, 3]], SAME)
    t = TIMES[:3]
    assert_close(found[[0, 2], 0], (t / (1 - t) ** 2).sum().expand(2), 1e3 * tolerance)
    for loss in (solution.ys.nansum(), solution.ys.square().sum()):  # NaN, and its cotangents with it
        inputs = [rates, y0]
        by_hand = torch.autograd.grad(loss, inputs, retain_graph=True)
        for one, two in zip(by_hand, torch.autograd.grad(loss, inputs, create_graph=True)):
            if loss.isfinite():
                assert_close(one, two, SAME)
            assert bool(one.isfinite().all())


def test_gradient_of_a_failed_row_is_that_of_its_own_solve():
    """Times and all, against the joint solve of the row alone, which fails as well."""
    rates, y0 = torch.tensor([[1.0], [0.5]], requires_grad=True), torch.ones(2, 1, requires_grad=True)
    t = TIMES.expand(2, -1).contiguous().requires_grad_()
    found = solve(squared(rates), y0, t, **SETTINGS).ys
    bars = torch.autograd.grad(found[:3].sum(), [rates, y0, t])
    inputs = [x[:1].detach().requires_grad_() for x in (rates, y0)] + [TIMES.clone().requires_grad_()]
    alone = solve(squared(inputs[0]), inputs[1], inputs[2], on_failure="return", rtol=1e-8, atol=1e-8).ys
    assert len(alone) == 3
    for one, other in zip(bars, torch.autograd.grad(alone.sum(), inputs)):
        # rounding of step sizes, times the growth of errors of 1 / (1 - t)
        assert_close(one[0], other.reshape(one[0].shape), 1e-9)


def test_rows_that_fail_at_the_start():
    """Where func is infinite at the start of a row, nothing of that reaches the others' gradients."""
    scale = torch.tensor(1.0, requires_grad=True)
    y0 = torch.tensor([[1.0], [0.0], [2.0], [0.0]], requires_grad=True)
    solution = solve(lambda t, y: scale / y, y0, [0.0, 0.5, 1.0], **SETTINGS)
    assert torch.equal(solution.ys[1:].isnan()[..., 0], torch.tensor([[False, True, False, True]]).expand(2, 4))
    assert torch.equal(solution.ys[0], y0)
    assert [type(error) for error in solution.row_errors] == [type(None), NonFiniteError] * 2
    alone = solve(lambda t, y: scale / y, y0[[0, 2]], [0.0, 0.5, 1.0], **SETTINGS)
    for create_graph in (False, True):
        ours, theirs = (
            torch.autograd.grad(s.ys.nansum(), [scale, y0], create_graph=create_graph, retain_graph=True)
            for s in (solution, alone)
        )
        assert_close(ours[0], theirs[0], SAME)
        assert_close(ours[1][[0, 2]], theirs[1][[0, 2]], SAME)
    everything = solve(lambda t, y: scale / y, torch.zeros(2, 1, requires_grad=True), [0.0, 1.0], **SETTINGS)
    assert bool(everything.ys[1].isnan().all()) and str(everything.error).startswith("rows 0, 1: y0 holds")
    everything.ys.nansum().backward()
    with pytest.raises(NonFiniteError, match="rows 1, 3: y0 holds"):
        solve(lambda t, y: scale / y, y0, [0.0, 0.5, 1.0], **SETTINGS | {"on_failure": "raise"})


def test_all_rows_that_fail_are_named():
    """Also those that fail long after the first, and for another reason."""
    speeds = torch.tensor([[0.0], [0.0], [9.0], [0.0]])
    rates = torch.tensor([[2.0], [0.0], [0.0], [1.0]])

    def func(t, y):
        return squared(rates)(t, y) + torch.cos(speeds * t) * speeds

    settings = SETTINGS | {"options": {"max_num_steps": 60}, "rtol": 1e-5, "atol": 1e-5}
    solution = solve(func, torch.ones(4, 1), [0.0, 20.0], **settings)
    assert [error is None for error in solution.row_errors] == [False, True, False, False]
    assert isinstance(solution.row_errors[2], TooManyEvaluationsError)
    with pytest.raises(SolverError) as raised:
        solve(func, torch.ones(4, 1), [0.0, 20.0], **settings | {"on_failure": "raise"})
    said = str(raised.value)
    assert "row 2: max_num_steps = 60" in said and "row 0 at t = 0.37" in said
    assert said.startswith("rows 0, 3: ")
    everyone = solve(func, torch.ones(4, 1), [0.0, 20.0], **SETTINGS | {"max_evals": 30})
    assert "rows 0, 1, 2, 3: max_evals = 30" in str(everyone.error)


def test_more_rows_than_a_line_holds():
    with pytest.raises(NonFiniteError, match="rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more: "):
        solve(lambda t, y: 1 / y, torch.zeros(12, 1), [0.0, 1.0], per_sample=True)


def test_failures_of_nested_float32_states_backwards_in_time():
    rates = torch.tensor([-1.0, 1.0], dtype=torch.float32, requires_grad=True)
    y0 = (torch.ones(2, 2, dtype=torch.float32), torch.zeros(2, dtype=torch.float32))

    def func(t, y):
        return rates[:, None] * y[0] ** 2, t[:, 0] + 0 * y[1]  # infinite at t = -1 in row 0

    solution = solve(func, y0, -TIMES, per_sample=True, on_failure="return")
    assert not solution.success and all(bool(leaf[3:, 0].isnan().all()) for leaf in solution.ys)
    assert_close(solution.ys[0][:, 1, 0].double(), 1 / (1 + TIMES), 1e-4)
    solution.ys[0].nansum().backward()
    t = -TIMES
    assert_close(rates.grad[1], 2 * (t / (1 - t) ** 2).sum(), 1e-3)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes there")
@pytest.mark.parametrize("func", [lambda t, y: float(t) * y, lambda t, y: t.expand(3) * y], ids=["number", "shape"])
def test_a_func_that_takes_one_time_is_told_of_the_times_of_rows(func):
    with pytest.raises((RuntimeError, ValueError)) as error:
        solve(func, torch.ones(4, 3), [0.0, 1.0], per_sample=True)
    assert error.value.__notes__ == ["With per_sample=True func gets the times of all rows: t of shape [4, 1]."]
