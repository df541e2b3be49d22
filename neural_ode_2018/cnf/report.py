"""Tables over all runs of flows, rendered from their records."""

from harness.cli import run_main
from harness.environment import ROOT
from harness.verdicts import verdict_table
from neural_ode_2018.cnf.experiment import CNF
from neural_ode_2018.cnf.models import SOLVED
from neural_ode_2018.part import smaller, write_report

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

BOUNDS = (
    ("probability", 1.0, 1e-3, "total probability is 1 within"),
    ("inverse_error_tight", 0.0, 1e-6, "forward and inverse at a tolerance of 1e-9 return every sample within"),
)


def comparisons(rows):
    """That continuous flows fit better than planar ones of the same width."""
    widths = {(row["what"], row["width"]): "kl" if row.get("nll") is None else "nll" for row in rows}
    return [smaller(rows, what, f"cnf-aca-{width}", f"nf-{width}", field, ".3f")
            for (what, width), field in widths.items()]  # fmt: skip


def claims(rows):
    """The text on them, and on what every continuous flow has to do."""
    continuous = [row for row in rows if row["model"] in SOLVED]
    texts = [verdict_table(comparisons(rows))]
    for field, best, bound, name in BOUNDS:
        found = [abs(row[field] - best) for row in continuous]
        kept = sum(error <= bound for error in found)
        texts.append(f"- {name} {bound:g}: {kept} of {len(found)} continuous flows, at most {max(found):.1e}\n")
    return texts[0] + "\n" + "".join(texts[1:]) if continuous else texts[0]


def main(argv=None):
    write_report(CNF, argv, HEADINGS, NOTES, ROOT / "neural_ode_2018" / "README.md", claims)


if __name__ == "__main__":
    run_main(main)
