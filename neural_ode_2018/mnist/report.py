"""Tables over all runs on MNIST, rendered from their records."""

from harness.cli import run_main
from harness.environment import ROOT
from harness.verdicts import verdict_table
from neural_ode_2018.mnist.experiment import MNIST
from neural_ode_2018.part import smaller, write_report

HEADINGS = {
    "test_error": ("test error", ".2%"),
    "parameters": ("parameters", ".0f"),
    "evaluations": ("NFE, test", ".1f"),
    "forward_of_batch": ("NFE forward, one batch", ".0f"),
    "backward_of_batch": ("NFE backward, one batch", ".0f"),
    "seconds": ("seconds", ".0f"),
}
NOTES = (
    "NFE: evaluations of the field in a solve. In the paper, trained fully: ResNet 0.41 % with 0.60 million "
    "parameters, RK-Net 0.47 % and ODE-Net 0.42 % with 0.22 million each."
)


PAIRS = (("resnet", "ode-net-aca"), ("ode-net-aca", "rk-net-direct"), ("ode-net-aca", "ode-net-adjoint"))


def comparisons(rows):
    """Which of two networks errs less; the paper's three are within a tenth of a percent of each other."""
    if len({row["label"] for row in rows}) == 1:
        return []
    return [smaller(rows, "mnist", *pair, "test_error", ".2%", same_network="resnet" not in pair) for pair in PAIRS]


def claims(rows):
    """The text on them."""
    found = comparisons(rows)
    return verdict_table(found) if found else ""


def main(argv=None):
    write_report(MNIST, argv, HEADINGS, NOTES, ROOT / "neural_ode_2018" / "README.md", claims)


if __name__ == "__main__":
    run_main(main)
