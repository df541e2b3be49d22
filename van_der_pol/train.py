"""Fit the equation's parameter, or a small neural field, to a trajectory observed late."""

from functools import partial

from harness.cli import run_main
from harness.training import train
from van_der_pol.experiment import VanDerPol

main = partial(train, VanDerPol())

if __name__ == "__main__":
    run_main(main)
