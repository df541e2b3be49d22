import pytest
import torch
from scipy.integrate import solve_ivp

from torch_ACA import solve
from van_der_pol.data import HORIZON, ODE45, START, STEP_CONTROL, equation
from van_der_pol.models import VanDerPol
from van_der_pol.reconstruction import invert, replay, solve_back

Y0 = torch.tensor(START, dtype=torch.float64)


def rebuilt_starts(horizon, rtol, atol, method="RK45"):
    """y(0) as rebuilt in reverse time by our solver and by scipy's."""
    solver = {"method": method, "rtol": rtol, "atol": atol}
    times = torch.tensor([0.0, horizon], dtype=torch.float64)
    forward = solve(VanDerPol(), Y0, times, options=STEP_CONTROL, **solver)
    ours = solve_back(VanDerPol(), forward.ys[-1], times, options=STEP_CONTROL, **solver)
    assert ours.success
    there = solve_ivp(equation, (0.0, horizon), START, **solver)
    back = solve_ivp(equation, (horizon, 0.0), there.y[:, -1], **solver)
    return ours.ys[-1], torch.from_numpy(back.y[:, -1].copy())


@pytest.mark.parametrize("horizon", [5.0, 15.0, HORIZON])
def test_reverse_time_agrees_with_scipy_at_tight_tolerance(horizon):
    ours, scipys = rebuilt_starts(horizon, 1e-8, 1e-8)
    assert (ours - scipys).abs().max() < 1e-6


@pytest.mark.parametrize("horizon", [5.0, 15.0, HORIZON])
def test_reverse_time_loses_the_start_at_ode45s_tolerance_in_both(horizon):
    for rebuilt in rebuilt_starts(horizon, **ODE45):
        assert (rebuilt - Y0).norm() > 1


@pytest.mark.parametrize("gradient", ["aca", "direct"])
@pytest.mark.parametrize("method", ["RK12", "RK23", "RK45"])
def test_every_replayed_step_is_the_stored_next_state_bit_for_bit(method, gradient):
    solution = solve(VanDerPol(), Y0.clone().requires_grad_(), (0.0, 10.0), method=method, gradient=gradient, **ODE45)
    times, stored, replayed = replay(solution)
    assert len(times) == solution.stats.n_accepted + 1
    assert times[0] == 0 and times[-1] == 10 and torch.equal(stored[-1], solution.ys[-1])
    assert torch.equal(stored, replayed)


def test_a_field_that_changed_since_is_not_replayed_bit_for_bit():
    field, shift = VanDerPol(), [0.0]
    solution = solve(lambda t, y: field(t, y) + shift[0], Y0.clone().requires_grad_(), (0.0, 10.0), **ODE45)
    shift[0] = 1e-12
    _, stored, replayed = replay(solution)
    assert not torch.equal(stored, replayed)


def test_mali_inverts_its_own_steps():
    solution = solve(VanDerPol(), Y0.clone().requires_grad_(), (0.0, 3.0), gradient="mali", **ODE45)
    times, states = invert(solution)
    assert times[0] == pytest.approx(0.0, abs=1e-12)
    # rounding, amplified by less than exp(integral of y1^2 - mu over 3) < 1e4
    assert (states[0] - Y0).norm() < 1e-11
