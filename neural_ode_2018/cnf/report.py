"""Tables over all runs of flows, rendered from their records."""

from harness.cli import run_main
from harness.environment import ROOT
from neural_ode_2018.cnf.experiment import CNF
from neural_ode_2018.part import write_report

HEADINGS = {
    "nll": ("NLL", ".3f"),
    "kl": ("KL", ".3f"),
    "probability": ("total probability", ".5f"),
    "inverse_error": ("inverse error", ".1e"),
    "density_error": ("log-density error", ".1e"),
    "inverse_error_tight": ("inverse error, tight", ".1e"),
    "evaluations": ("NFE", ".0f"),
    "seconds": ("seconds", ".0f"),
}
NOTES = (
    "NLL: negative log-likelihood of new samples, nats; KL: of the flow from the target, nats. Total probability: the "
    "midpoint rule over the square, of what lies in it. Errors: the largest after forward and inverse, of a point and "
    "of its log-density; tight: with a tolerance of 1e-9. NFE: of one solve. The paper draws its losses and gives no "
    "numbers."
)


def main(argv=None):
    write_report(CNF, argv, HEADINGS, NOTES, ROOT / "neural_ode_2018" / "README.md")


if __name__ == "__main__":
    run_main(main)
