"""What torchode's README and its tests solve, solved here: the same results. Rows of a batch take their own steps."""

import math

import pytest
import torch

from torch_ACA import TooManyEvaluationsError, solve, solve_endtime


def powers_and_waves(t):
    """The solution of `driven` through 0 at t = 0 that its tests are made of."""
    double = 2 * t
    waves = (t**2 / 4 - t**4 / 2) * torch.cos(double) + t**3 / 2 * torch.sin(double)
    return waves + 2 * t**4 - t**3 + (math.pi - 0.25) * t**2


def driven(t, y):
    return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3


def assert_close(found, expected, tolerance):
    assert float(((found - expected).abs() / expected.abs().clamp(min=1.0)).max().detach()) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_readme(dtype):
    y0 = torch.tensor([[1.2], [5.0]], dtype=dtype)
    t = torch.stack([torch.linspace(0, 5, 10, dtype=dtype), torch.linspace(3, 4, 10, dtype=dtype)])
    solution = solve(lambda t, y: -0.5 * y, y0, t, per_sample=True, rtol=1e-6, atol=1e-6)
    exact = y0 * torch.exp(-0.5 * (t - t[:, :1]))
    assert_close(solution.ys[..., 0].T, exact, 1e-5)
    assert solution.stats.n_accepted.shape == (2,) and solution.stats.n_accepted[1] < solution.stats.n_accepted[0]
    torchode = pytest.importorskip("torchode")
    theirs = torchode.solve_ivp(lambda t, y: -0.5 * y, y0, t)
    assert_close(solution.ys.transpose(0, 1), theirs.ys, 1e-5)


def test_a_solution_that_is_known():
    t = torch.tensor([[0.1, 0.15, 1.0], [1.0, 1.9, 2.0]])
    y0 = powers_and_waves(t[:, :1])
    ys = solve(driven, y0, t, per_sample=True, rtol=1e-8, atol=1e-8).ys
    assert_close(ys[..., 0].T, powers_and_waves(t), 1e-6)
    torchode = pytest.importorskip("torchode")
    theirs = torchode.solve_ivp(lambda t, y: driven(t[:, None], y), y0, t)
    assert_close(ys.transpose(0, 1), theirs.ys, 1e-4)


def test_outputs_need_not_begin_at_the_start_nor_end_at_the_end():
    """There t_start and t_end are beside t_eval; here they are the first and the last of the times."""
    start, end = torch.tensor([0.5, 0.6, 0.7]), torch.tensor([1.5, 1.6, 1.7])
    wanted = torch.tensor([[0.9, 1.0], [0.9, 0.95], [1.0, 1.7]])
    t = torch.cat([start[:, None], wanted, end[:, None]], 1)
    ys = solve(driven, powers_and_waves(start[:, None]), t, per_sample=True, rtol=1e-8, atol=1e-8).ys[1:-1]
    assert_close(ys[..., 0].T, powers_and_waves(wanted), 1e-6)


def test_end_points_alone():
    t0, t1 = torch.tensor([0.0, 5.0, 2.0]), torch.tensor([10.0, 9.0, 4.5])
    y0 = torch.tensor([[0.0], [1.0], [2.0]])
    y1, _ = solve_endtime(lambda t, y: torch.ones_like(y), y0, t0, t1, per_sample=True)
    assert_close(y1, y0 + (t1 - t0)[:, None], 1e-14)  # rounding


def test_many_outputs_in_one_step_and_rows_that_end_earlier():
    t = torch.tensor([[0.0, 0.25, 0.33, 1.0], [0.0, 0.01, 0.02, 0.03]])
    solution = solve(lambda t, y: torch.ones_like(y), torch.zeros(2, 1), t, per_sample=True, h=0.5)
    assert_close(solution.ys[..., 0].T, t, 1e-14)
    assert solution.stats.n_accepted.tolist() == [2, 1]


def test_the_way_back_leads_to_the_start():
    t = torch.tensor([[0.3, 2.0], [1.5, 6.3]])
    y0 = powers_and_waves(t[:, :1])
    settings = {"per_sample": True, "rtol": 1e-8, "atol": 1e-8}
    y1 = solve(driven, y0, t, **settings).ys[-1]
    assert_close(solve(driven, y1, t.flip(1), **settings).ys[-1], y0, 1e-4)


@pytest.mark.parametrize("options", [None, {"beta": 0.04}, {"land_on_t": True}, {"jump_t": [1.0]}])
def test_rows_in_opposite_directions(options):
    t = torch.tensor([[0.0, 3.0, 5.0], [2.0, 0.5, -8.0]], requires_grad=True)
    y0 = torch.tensor([[1.0], [9.0]], requires_grad=True)
    ys = solve(lambda t, y: 2 * torch.ones_like(y) + 0 * t, y0, t, per_sample=True, options=options).ys[..., 0]
    assert_close(ys.T, torch.tensor([[1.0, 7.0, 11.0], [9.0, 6.0, -11.0]]), 1e-14)
    y_bar, t_bar = torch.autograd.grad(ys[1].sum() + 3 * ys[2].sum(), [y0, t])
    assert_close(y_bar, torch.full((2, 1), 4.0), 1e-14)
    assert_close(t_bar, torch.tensor([-8.0, 2.0, 6.0]).expand(2, 3), 1e-13)


def test_a_row_that_needs_too_many_steps():
    t = torch.tensor([[1.0, 1.1], [2.0, 13.0]])
    settings = {"per_sample": True, "on_failure": "return", "options": {"max_num_steps": 7, "max_step": 1.0}}
    solution = solve(lambda t, y: torch.zeros_like(y), torch.zeros(2, 1), t, **settings)
    assert solution.row_errors[0] is None and isinstance(solution.row_errors[1], TooManyEvaluationsError)
    assert solution.stats.n_accepted[1] == 7


MATRIX = [[-1.4, -0.4, -0.8], [-1.1, 0.9, 0.1], [-1.8, -0.8, -1.1]]


@pytest.mark.parametrize("inside", [True, False])
def test_gradients_of_a_linear_problem(inside):
    """Rows at times of their own, against the matrix exponential."""
    matrix = torch.tensor(MATRIX, requires_grad=True)
    y0 = torch.tensor([[0.3, 1.2, -0.4], [0.6, -0.8, 1.2]], requires_grad=True)
    t = torch.tensor([[0.0, 1.8, 3.0], [2.0, 3.5, 6.0]], requires_grad=True)
    times = t if inside else t[:, ::2]
    ys = solve(lambda t, y: y @ matrix, y0, times, per_sample=True, rtol=1e-10, atol=1e-10).ys[1:]
    exact = torch.stack([
        torch.stack([y0[r] @ torch.matrix_exp(matrix * (times[r, i] - times[r, 0])) for r in range(2)])
        for i in range(1, times.shape[1])
    ])  # fmt: skip
    assert_close(ys, exact, 1e-7)
    inputs = [y0, matrix, t]
    for one, other in zip(torch.autograd.grad(ys.mean(), inputs), torch.autograd.grad(exact.mean(), inputs)):
        assert_close(one, other, 1e-7)


@pytest.mark.parametrize("times, states", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
@pytest.mark.parametrize("method", ["dopri5", pytest.param("adaptive_heun", marks=pytest.mark.slow)])
def test_types_of_times_and_states(times, states, method):
    """There func gets times in their own type; here in that of the state, so that `t * y` has the state's."""

    def func(t, y):
        assert t.dtype == y.dtype == states
        return torch.zeros_like(y)

    t = torch.tensor([[0.0, 1.77, 3.0]], dtype=times)
    y0 = torch.tensor([[0.33, 1.2, -0.4]], dtype=states)
    solution = solve(func, y0, t, per_sample=True, method=method, options={"max_step": 0.5})
    assert solution.ys.dtype == states and solution.ts.dtype == times and solution.stats.n_accepted[0] > 3
