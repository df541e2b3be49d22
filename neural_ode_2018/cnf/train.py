"""Train a flow."""

from functools import partial

from harness.cli import run_main
from harness.training import train
from neural_ode_2018.cnf.experiment import CNF

main = partial(train, CNF)

if __name__ == "__main__":
    run_main(main)
