"""How good the gradient of Newton's law is on the way: at masses that recorded runs of ode-aca had later.

Of the runs with the paper's settings, by method, for `SEEDS`. The gradient at the first iterate is
first_gradient.py's, which says what exact means. Without the records of ``run_three_body.sh --claims`` there is nothing
to measure.
"""

import torch

from harness import packed
from harness.cli import UsageError, run_main
from harness.measurement import measurement_parser, write_parts
from harness.record import read_epochs
from three_body.data import PAPER, as_dict
from three_body.experiment import ThreeBody
from three_body.first_gradient import EXACT, Problem, errors
from torch_ACA import SolverError

SEEDS = list(range(25))
AT = tuple(range(1, 50, 8))  # epochs before whose step the gradient is asked for
METHODS = {
    "aca": {"gradient": "aca"},
    "naive": {"gradient": "naive"},
    "aca, own time": {"gradient": "aca", "own_time": True},
}
FOLDER = ThreeBody().results / "later_gradients"
RUNS = ThreeBody().results / "paper" / PAPER.name / "ode-aca"


def main(argv=None):
    args = measurement_parser(__doc__.partition("\n")[0], FOLDER).parse_args(argv)
    for seed in SEEDS:
        if packed.read(RUNS / f"seed{seed}", "summary.json") is None:
            raise UsageError(f"{RUNS / f'seed{seed}'} is not on record: run scripts/run_three_body.sh --claims")
    torch.set_num_threads(args.threads)
    write_parts(args, SEEDS, rows, system=as_dict(PAPER))


def rows(seed):
    """For each epoch of AT that the run came to: the errors of each method, or why nothing is known of them."""
    problem, masses_of = Problem(seed), masses_before(RUNS / f"seed{seed}")
    for epoch in AT:
        if epoch not in masses_of:
            return
        with torch.no_grad():
            problem.model.masses.copy_(torch.tensor(masses_of[epoch], dtype=torch.float64))
        own = {"seed": seed, "epoch": epoch, "masses": masses_of[epoch]}
        try:
            exact, loss, _ = problem.gradient(**EXACT)
        except SolverError as error:
            yield own | {"method": None, "status": str(error)}
            continue
        for method, keywords in METHODS.items():
            yield own | {"method": method, "exact": exact.tolist()} | errors(problem, exact, loss, **keywords)


def masses_before(folder):
    """{epoch: the masses before its step} of a run."""
    rows = [row for row in read_epochs(folder) if "Masses/1" in row]
    return {row["step"]: [row[f"Masses/{i}"] for i in (1, 2, 3)] for row in rows}


if __name__ == "__main__":
    run_main(main)
