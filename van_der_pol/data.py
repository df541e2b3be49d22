"""What the fields act on: starting points, an observed trajectory, a photograph."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import image
from scipy.integrate import solve_ivp

from harness.seeding import generator
from van_der_pol.models import MU

START = (2.0, 0.0)  # appendix D.1 of the paper
HORIZON = 25.0  # the paper does not give its interval
ODE45 = {"rtol": 1e-3, "atol": 1e-6}  # MATLAB's defaults, which the paper used
STEP_CONTROL = {"safety": 0.9}  # scipy's: with the same steps its results can be compared digit by digit


def starting_points(count, seed):
    """The paper's start and ``count`` - 1 random ones in the square [-3, 3]^2, float64 [count, 2]."""
    others = torch.rand(count - 1, 2, generator=generator("cpu", seed, "starts"), dtype=torch.float64)
    return torch.cat([torch.tensor([START], dtype=torch.float64), 6 * others - 3])


def equation(t, y, mu=MU):
    """The van der Pol equation for scipy: an implementation apart from `models.VanDerPol`."""
    return [y[1], (mu - y[0] ** 2) * y[1] - y[0]]


def true_trajectory(times):
    """The exact solution from START at increasing times [m], to about 1e-11: float64 [m, 2] (scipy's DOP853)."""
    solution = solve_ivp(equation, (0.0, times[-1]), START, "DOP853", t_eval=times, rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solution.y.T.copy())


def observations(times, noise, seed):
    """The true trajectory at ``times`` with Gaussian noise of standard deviation ``noise``: float64 [m, 2]."""
    truth = true_trajectory(times)
    return truth + noise * torch.randn(truth.shape, generator=generator("cpu", seed, "noise"), dtype=torch.float64)


def photograph(side=96):
    """Grace Hopper's portrait, which matplotlib ships, cut to the face and averaged down: float64 [3, side, side] in
    [0, 1].
    """
    pixels = image.imread(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    square = torch.from_numpy(pixels[20:404, 64:448].astype(np.float64) / 255).permute(2, 0, 1)
    return torch.nn.functional.adaptive_avg_pool2d(square, side)
