"""Solving in a time of its own: the trajectory and gradient of an ordinary tight solve, and a flag that says so."""

import pytest
import torch

from harness.cli import UsageError
from three_body.data import PAPER, simulate, time_grid
from three_body.experiment import ThreeBody, label
from three_body.models import NewtonODE
from three_body.own_time import extent, solve_in_own_time
from three_body.training import ThreeBodyTraining
from torch_ACA import SolverError, solve

TIMES = time_grid(0.2, 100)


def test_states_and_gradients_are_those_of_a_tight_solve():
    """Both solves are within 1e-11; before the first encounter little multiplies that. The masses are off, so that the
    trajectory takes another extent than the one given, which is also too short."""
    truth = simulate(PAPER, TIMES)[:, None]
    torch.manual_seed(0)
    model = NewtonODE()
    weights = torch.randn(len(TIMES), 1, 6, 3, dtype=torch.float64)
    found = []
    for own_time in (False, True):
        keywords = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12}
        if own_time:
            solution = solve_in_own_time(model, truth[0], TIMES, extent(truth, TIMES) / 2, **keywords)
        else:
            solution = solve(model, truth[0], TIMES, **keywords)
        (gradient,) = torch.autograd.grad((weights * solution.ys).sum(), [model.masses])
        found.append((solution.ys.detach(), gradient))
    (ys, gradient), (own_ys, own_gradient) = found
    assert own_ys.shape == ys.shape and (own_ys - ys).abs().max() < 1e-9
    assert (own_gradient - gradient).norm() / gradient.norm() < 1e-8


def test_a_run_in_its_own_time_is_named_so_and_trains():
    settings = ThreeBody().new_settings("--own-time", "--until", "0.1", "0.2", "--points", "500")
    assert label(settings) == "ode-aca-own-time"
    training = ThreeBodyTraining(settings, torch.device("cpu"))
    first, _ = training.advance()
    assert first["Solver/Backward"] > 0 and torch.isfinite(training.model.masses).all()


@pytest.mark.parametrize("flags", [("--gradient", "adjoint"), ("--gradient", "naive"), ("--model", "lstm")])
def test_methods_without_dense_output_are_refused(flags):
    with pytest.raises(UsageError, match="own-time"):
        ThreeBody().new_settings("--own-time", *flags)


def test_a_collision_ends_in_an_error():
    """Two bodies at rest, and a third far away: they fall into each other, where their own time never arrives."""
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [9.0, 0.0, 0.0]], dtype=torch.float64)
    start = torch.cat([positions, torch.zeros(3, 3, dtype=torch.float64)])[None]
    with pytest.raises(SolverError, match="collided"):
        solve_in_own_time(NewtonODE(), start, time_grid(1.0, 10), 0.5, rtol=1e-6, atol=1e-6)
