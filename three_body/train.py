"""Train one model on one three-body system."""

from functools import partial

from harness.cli import run_main
from harness.training import train
from three_body.experiment import ThreeBody

main = partial(train, ThreeBody())

if __name__ == "__main__":
    run_main(main)
