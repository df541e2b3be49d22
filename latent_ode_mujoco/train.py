"""Train one model on the hopper's trajectories."""

from functools import partial

from harness.cli import run_main
from harness.training import train
from latent_ode_mujoco.experiment import LatentODE

main = partial(train, LatentODE())

if __name__ == "__main__":
    run_main(main)
