"""Batches of independent rows: every library solves the same problem."""

import pytest
import torch

from benchmarks import solvers
from benchmarks.cases import CASES, ROWS
from benchmarks.measure import checked
from benchmarks.problems import build
from benchmarks.row_problems import PROBLEMS


@pytest.fixture(scope="module", params=[pytest.param("rows_lotka_volterra", marks=pytest.mark.slow), "rows_recurrent"])
def case(request):
    problem = build(request.param, PROBLEMS, quick=True)
    return problem, problem.reference_solution()


@pytest.mark.parametrize("name", [
    ROWS[0], pytest.param(ROWS[1], marks=pytest.mark.slow), ROWS[2], pytest.param(ROWS[3], marks=pytest.mark.slow),
])  # fmt: skip
def test_states_and_gradients_are_right_to_within_the_tolerance(case, name):
    problem, reference = case
    prepared, row = checked(name, problem, reference)
    if prepared is None:
        assert solvers.missing(name, problem) == row["status"], row["status"]  # absent, and says so: not failed
        pytest.skip(row["status"])
    assert row["state_error"] < 100 * problem.rtol and row["gradient_error"] < 100 * problem.rtol
    prepared()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_reference_is_that_of_each_row_alone(name):
    """The joint solve in a scaled time, which errors are measured against, against rows with steps of their own."""
    problem = build(name, PROBLEMS, quick=True)
    ys, gradient = problem.reference_solution()
    check = solvers.SOLVERS["aca, per_sample"].prepare(problem).check()
    assert float((check.ys - ys).norm() / ys.norm()) < 1e-3
    assert float((check.gradient - gradient).norm() / gradient.norm()) < 1e-3
    assert problem.accepted_evaluations() <= check.nfe_forward


def test_row_solvers_say_what_they_are_for():
    for name in ROWS[:3]:
        assert solvers.missing(name, build("mlp_heun")) == "for batches of independent rows"
    assert all(CASES[name].problems == (name,) for name in PROBLEMS)
    torch.testing.assert_close(*(build("rows_mlp", PROBLEMS, seed=3).y0 for _ in range(2)), rtol=0, atol=0)
