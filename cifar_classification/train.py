"""Train NODE-18 on CIFAR, or another network, with another solver or gradient method: --help lists what there is."""

from functools import partial

from cifar_classification.experiment import Cifar
from harness.cli import run_main
from harness.training import train

main = partial(train, Cifar())

if __name__ == "__main__":
    run_main(main)
