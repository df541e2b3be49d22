"""Test a trained model with the solver of its training or, without retraining, with another one, or with many."""

from functools import partial

from cifar_classification.experiment import Cifar
from harness.cli import run_main
from harness.testing import test

main = partial(test, Cifar())

if __name__ == "__main__":
    run_main(main)
