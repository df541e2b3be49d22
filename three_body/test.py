"""Test a trained model: error of its trajectory, learnt masses, drift of energy and momentum."""

from functools import partial

from harness.cli import run_main
from harness.testing import test
from three_body.experiment import ThreeBody

main = partial(test, ThreeBody())

if __name__ == "__main__":
    run_main(main)
