"""The stiff problems of the benchmark, and the solvers that are compared on them."""

import numpy as np
import pytest
import torch

from benchmarks import solvers, stiff
from benchmarks.cases import CASES, STIFF_ROWS
from benchmarks.measure import checked
from benchmarks.problems import build


def test_hires_ends_where_the_literature_says():
    problem = build("stiff_hires", stiff.PROBLEMS, tolerance=1e-8)
    end = stiff.radau(problem)[-1]
    assert end[0].item() == pytest.approx(0.7371312573325668e-3, rel=1e-6)
    assert end[7].item() == pytest.approx(0.2850e-2, rel=1e-3)


def test_rows_are_systems_of_their_own():
    """The field of rows is that of each row, and so are the states by scipy."""
    problem = build("stiff_robertson_rows", stiff.PROBLEMS, quick=True, tolerance=1e-4)
    rows = stiff.radau(problem)
    assert rows.shape == (1, 16, 3)
    y = torch.rand(16, 3)
    slope = problem.func(0.0, y)
    for i in (0, 7):
        field = stiff.StiffField(problem.func.field, problem.func.factors[i])
        assert torch.equal(field(0.0, y[i]), slope[i])
        alone = stiff.StiffProblem(
            "one", field, problem.y0[i], problem.times, "Rodas5P", 1e-4, problem.atol, scale=problem.scale
        )
        assert torch.equal(stiff.radau(alone)[0], rows[0, i])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("stiff") and "van_der_pol" not in name])
def test_states_and_gradients_are_right_to_within_the_tolerance(name):
    """A gradient of other outputs, of fewer parameters or in other units would be off by far more. The local tolerance
    is amplified on the way, by auto's explicit steps at the border of stability most; Dopri5 is left out."""
    problem = build(name, stiff.PROBLEMS, quick=True, tolerance=1e-5)
    reference = problem.reference_solution()
    for solver in sorted({*CASES[name].solvers} - {"Dopri5"}):
        prepared, row = checked(solver, problem, reference)
        if prepared is None:
            assert solvers.missing(solver, problem) == row["status"], row["status"]
            continue
        assert row["state_error"] < 1e-3, solver
        if solver.startswith("scipy"):
            assert row["gradient_error"] is None
        else:
            assert row["gradient_error"] < 1e-2 and row["tries"] > 10, solver


def test_solvers_of_stiff_problems_are_for_them_alone():
    problem = build("mlp_heun")
    assert all(solvers.missing(name, problem) == "for stiff problems" for name in (*STIFF_ROWS, "Dopri5"))
    problem = build("stiff_pollu", stiff.PROBLEMS)
    assert all(solvers.missing(name, problem) is None for name in ("Rodas5P", "auto", "Dopri5"))
    assert all(solvers.missing(name, problem) == "for batches of independent rows" for name in STIFF_ROWS[-2:])


def test_errors_are_in_units_of_the_scale():
    problem = build("stiff_robertson", stiff.PROBLEMS)
    ys = torch.ones(4, 3)
    assert float(problem.loss(ys)) == pytest.approx(float((1 / problem.scale**2).sum()))
    assert float(problem.loss(ys)) == pytest.approx(float(problem.loss(np.ones((4, 3)))))
