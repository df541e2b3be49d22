"""Test a trained network, with the solver of its training, another one, or at many tolerances."""

from functools import partial

from harness.cli import run_main
from harness.testing import test
from neural_ode_2018.mnist.experiment import MNIST

main = partial(test, MNIST)

if __name__ == "__main__":
    run_main(main)
