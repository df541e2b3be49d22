"""Train a network on MNIST."""

from functools import partial

from harness.cli import run_main
from harness.training import train
from neural_ode_2018.mnist.experiment import MNIST

main = partial(train, MNIST)

if __name__ == "__main__":
    run_main(main)
