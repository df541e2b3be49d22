import pytest
import torch
from scipy.integrate import solve_ivp

from torch_ACA import solve
from van_der_pol.data import HORIZON, ODE45, START, STEP_CONTROL, equation
from van_der_pol.models import VanDerPol
from van_der_pol.reconstruction import solve_back

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
