"""Test a trained flow: fit, total probability, and whether its inverse undoes it."""

from functools import partial

from harness.cli import run_main
from harness.testing import test
from neural_ode_2018.cnf.experiment import CNF

main = partial(test, CNF)

if __name__ == "__main__":
    run_main(main)
