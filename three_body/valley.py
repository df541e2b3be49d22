"""Train Newton's law with unknown masses for the paper's first epochs from many seeds: which runs miss the true masses.

A run that ends with a mass off by more than `FAR` sits in a wrong valley of the loss. Seeds are shared by all methods.
Runs that are on record are skipped, interrupted ones go on; `report.py --record` packs them, and counts.
"""

from harness import packed
from harness.cli import ArgumentParser, non_negative_int, positive_int, run_main
from harness.training import train
from three_body.experiment import ThreeBody

FAR = 0.5
RUN = ("--resume", "auto", "--device", "cpu", "--threads", "1", "--checkpoint-every", "0")
PROFILES = ("valley", "valley-tight")
# what decides most for its time comes first: the continuous adjoint solves back between any two of 1,000 points
METHODS = ("aca", "aca-own-time", "naive", "direct", "adjoint")
ORDER = tuple((profile, method) for method in METHODS for profile in PROFILES)


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--seeds", type=positive_int, default=40, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--from-seed", type=non_negative_int, default=0, metavar="N", help="leave out those before")
    parser.add_argument("--profile", choices=PROFILES, help="one of them; the default is all, in turn")
    parser.add_argument("--method", choices=METHODS, help="one of them; the default is all, in turn")
    args = parser.parse_args(argv)
    experiment, worst = ThreeBody(), 0
    for profile, method in ORDER:
        if args.profile not in (None, profile) or args.method not in (None, method):
            continue
        for seed in range(args.from_seed, args.seeds):
            flags = ["--profile", profile, "--seed", str(seed), "--gradient", method.partition("-")[0]]
            flags += ["--own-time"] if method.endswith("own-time") else []
            if packed.read(experiment.folder(experiment.new_settings(*flags)), "summary.json") is None:
                worst = max(worst, train(experiment, [*flags, *RUN]))
            if worst > 1:  # wrong usage or an interruption; a run that fails is a result
                return worst
    return worst


if __name__ == "__main__":
    run_main(main)
