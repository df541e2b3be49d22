"""Test a trained model of the spirals: how well it predicts what it has not seen."""

from functools import partial

from harness.cli import run_main
from harness.testing import test
from neural_ode_2018.spirals.experiment import SPIRALS

main = partial(test, SPIRALS)

if __name__ == "__main__":
    run_main(main)
