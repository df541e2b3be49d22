import numpy as np
import pytest
import torch

from torch_ACA import solve_endtime
from van_der_pol import depth, gradient_error, picture
from van_der_pol.data import ODE45, START, photograph, true_trajectory
from van_der_pol.gradient_error import gradient_errors, van_der_pol_gradients
from van_der_pol.models import Convolution, Linear, VanDerPol


def ours(gradient):
    return gradient_error._ours(gradient)


def test_exact_gradients_agree_with_differences_of_the_true_trajectory():
    def loss(start, mu):
        y, _ = solve_endtime(VanDerPol(mu), torch.tensor(start, dtype=torch.float64), 0.0, 3.0, rtol=1e-12, atol=1e-12)
        return float((y.detach() ** 2).sum())

    step = 1e-4  # central differences: truncation about step^2, rounding about 1e-12 / step
    of_start, of_mu = van_der_pol_gradients(START, 3.0)
    differences = [
        (loss((2.0 + step, 0.0), 0.15) - loss((2.0 - step, 0.0), 0.15)) / (2 * step),
        (loss((2.0, step), 0.15) - loss((2.0, -step), 0.15)) / (2 * step),
        (loss(START, 0.15 + step) - loss(START, 0.15 - step)) / (2 * step),
    ]
    assert [*of_start, of_mu] == pytest.approx(differences, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("gradient", ["aca", "naive", "adjoint"])
def test_toy_gradients_are_right_at_tight_tolerance(gradient):
    exact = 2 * np.exp(-2.0), 2 * 2 * np.exp(-2.0)
    start, tight = torch.ones(1, dtype=torch.float64), {"rtol": 1e-10, "atol": 1e-10}
    row = gradient_errors(Linear(-0.5), start, 2.0, ours(gradient), tight, exact)
    assert row["status"] == "finished"
    assert max(row["error_start"], row["error_parameter"]) < 1e-7


def test_a_solve_that_gives_up_leaves_its_errors_blank():
    exact = van_der_pol_gradients(START, 25.0)
    row = gradient_errors(VanDerPol(), torch.tensor(START, dtype=torch.float64), 25.0, ours("adjoint"), ODE45, exact)
    assert row["error_start"] is None and "step size" in row["status"]


def test_the_adjoint_is_worse_than_aca_on_van_der_pol():
    exact, start = van_der_pol_gradients(START, 25.0), torch.tensor(START, dtype=torch.float64)
    tolerances = {"rtol": 1e-5, "atol": 1e-8}
    errors = {g: gradient_errors(VanDerPol(), start, 25.0, ours(g), tolerances, exact) for g in ("aca", "adjoint")}
    assert errors["adjoint"]["error_start"] > 10 * errors["aca"]["error_start"]


def test_true_trajectory_is_on_the_solvers_path():
    times = torch.linspace(0.5, 10.0, 5, dtype=torch.float64)
    y, _ = solve_endtime(VanDerPol(), torch.tensor(START, dtype=torch.float64), 0.0, 10.0, rtol=1e-10, atol=1e-10)
    assert (true_trajectory(times)[-1] - y).norm() < 1e-8


def test_the_photograph_is_replayed_exactly_and_lost_in_reverse_time():
    photo, times = photograph(16), torch.linspace(0.0, 5.0, 3, dtype=torch.float64)
    assert photo.shape == (3, 16, 16) and 0 <= photo.min() < photo.max() <= 1
    states = picture.rebuild(Convolution(0, scale=picture.SCALE), photo, times, ODE45)
    assert torch.equal(states["forward"][0], photo)
    assert torch.equal(states["aca"], states["forward"])
    assert picture.relative_errors(states["adjoint"], states["forward"])[0] > 0.05


def test_only_the_naive_graph_grows_with_the_tries():
    few, many = ({g: depth.measure(50.0, shrink, g) for g in ("naive", "aca")} for shrink in (0.2, 0.9))
    assert many["aca"]["tries_per_step"] > 1.5 * few["aca"]["tries_per_step"]
    assert many["aca"]["depth"] < 1.1 * few["aca"]["depth"]
    assert many["naive"]["depth"] > 1.4 * few["naive"]["depth"]
    assert many["aca"]["held_bytes"] < many["naive"]["held_bytes"] / 20
