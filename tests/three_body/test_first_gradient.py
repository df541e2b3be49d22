"""The study of the first gradient: what it says of the two kinds of gradient, on a short horizon."""

import pytest
import torch

from three_body import findings
from three_body.data import PAPER
from three_body.first_gradient import CORRECTIONS, EXACT, Problem, corrected, differences, errors, steps


@pytest.fixture(scope="module")
def problem():
    return Problem(seed=0, horizon=0.2)


def test_each_gradient_is_that_of_what_it_holds_constant(problem):
    """Central differences of shifts of 1e-7 are good to some 1e-8 of the gradient. Naive holds the very first step's
    size constant, which the solver does not. Before the first encounter all are near each other."""
    found = differences(problem)
    assert found["frozen_aca"] < 1e-7 and found["anew_naive"] < 0.1 * found["anew_aca"]


@pytest.mark.slow
def test_the_steps_add_up_to_the_difference_of_the_gradients(problem):
    """The first step's size is a constant to naive, and chosen by the slope at the masses where differences are taken:
    some parts in a thousand."""
    aca, naive = (problem.gradient(gradient=name)[0] for name in ("aca", "naive"))
    total = torch.tensor([row["added"] for row in steps(problem)]).double().sum(0)
    assert (total - (naive - aca)).norm() < 0.05 * (naive - aca).norm()


@pytest.mark.slow
def test_corrections_are_solves_with_a_gradient(problem):
    exact, loss, solution = problem.gradient(**EXACT)
    for name, changed in CORRECTIONS.items():
        row = errors(problem, exact, loss, **corrected(changed, problem, solution))
        assert row["status"] == "finished" and row["error"] < 0.1, name


@pytest.mark.parametrize(
    ("masses", "is_far"), [(PAPER.masses, False), ([1.1, 1.1, 1.41], True), ([0.61, 1.1, 0.9], False)]
)
def test_far(masses, is_far):
    assert findings.far(masses) == is_far


@pytest.mark.parametrize(("early", "end", "fate"), [
    ([1.7, 1.1, 0.9], PAPER.masses, 0), (PAPER.masses, [1.1, 2.1, 0.9], 1), (PAPER.masses, PAPER.masses, 2),
])  # fmt: skip
def test_what_became_of_a_run(early, end, fate):
    assert findings.fate({"early": early, "end": end}) == findings.FATES[fate]
    assert findings.fate({"early": early, "end": None}) is None  # it failed, or had few epochs
