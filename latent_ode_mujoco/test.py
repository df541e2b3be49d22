"""Test a trained model: mean squared error on the full grid, with any solver, and reconstructions to draw."""

from functools import partial

from harness.cli import run_main
from harness.testing import test
from latent_ode_mujoco.experiment import LatentODE

main = partial(test, LatentODE())

if __name__ == "__main__":
    run_main(main)
