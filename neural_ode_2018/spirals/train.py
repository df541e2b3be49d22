"""Train one model of the spirals."""

from functools import partial

from harness.cli import run_main
from harness.training import train
from neural_ode_2018.spirals.experiment import SPIRALS

main = partial(train, SPIRALS)

if __name__ == "__main__":
    run_main(main)
