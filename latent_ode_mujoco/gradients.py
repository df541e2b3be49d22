"""How far the gradients of the methods are from the exact one, in the latent ODE's decoder before training.

Of a random linear functional of the latent states at the grid's times, in the field's weights and the first state,
which is drawn from the prior; no data is needed. In the recipe's single precision at its tolerances, at looser ones,
and over longer horizons. Exact: dopri8 at 1e-12 in double precision.
"""

import copy

import torch

from harness.cli import run_main
from harness.measurement import measurement_parser, write_parts
from harness.seeding import generator, seed_everything
from latent_ode_mujoco.data import POINTS
from latent_ode_mujoco.experiment import SOLVED, LatentODE
from latent_ode_mujoco.models import LatentField
from torch_ACA import SolverError, solve

METHODS = ("aca", "naive", "adjoint")
LOOSER = (1, 10, 100)  # factors on the recipe's tolerances
LONGER = (1, 10)  # factors on its horizon
SEEDS = list(range(5))
BATCH, TIMES = 20, 20
FOLDER = LatentODE().results / "gradients"


def main(argv=None):
    args = measurement_parser(__doc__.partition("\n")[0], FOLDER).parse_args(argv)
    torch.set_num_threads(args.threads)
    write_parts(args, SEEDS, rows)


def rows(seed):
    """All rows of a seed: relative errors of the gradient; None, with a status, where a solve gave up."""
    settings = LatentODE().new_settings("--profile", "paper")
    seed_everything(seed)
    field = LatentField(settings["latent"], settings["units"], settings["layers"])
    draw = generator("cpu", seed, "gradients")
    z = torch.randn(BATCH, settings["latent"], generator=draw)
    weights = torch.randn(TIMES, BATCH, settings["latent"], generator=draw)
    for longer in LONGER:
        # the grid of interpolation has half of all points, on [0, 1/2)
        times = torch.linspace(0.0, longer * (POINTS // 2 - 1) / POINTS, TIMES, dtype=torch.float64)
        tight = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12}
        exact, _ = gradient(copy.deepcopy(field).double(), z.double(), times, weights.double(), tight)
        for looser in LOOSER:
            for method in METHODS:
                tolerances = {name: looser * SOLVED[name] for name in ("rtol", "atol")}
                what = {"seed": seed, "horizon": float(times[-1]), "method": method, **tolerances}
                try:
                    found, stats = gradient(field, z, times, weights, {"gradient": method, **tolerances})
                except SolverError as error:
                    yield what | {"error": None, "status": str(error)}
                    continue
                error = float((found.double() - exact).norm() / exact.norm())
                yield what | {"error": error, "status": "finished", "accepted": stats.n_accepted}


def gradient(field, z, times, weights, keywords):
    """The gradient as one vector, and the statistics of the solve."""
    z = z.clone().requires_grad_()
    solution = solve(field, z, times, **keywords)
    found = torch.autograd.grad((weights * solution.ys).mean(), [z, *field.parameters()])
    return torch.cat([one.flatten() for one in found]), solution.stats


if __name__ == "__main__":
    run_main(main)
