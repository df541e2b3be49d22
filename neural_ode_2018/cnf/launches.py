"""The lists of runs that scripts/run_neural_ode_2018.sh cnf trains and tests."""

from harness.launch import Launch
from neural_ode_2018.cnf.data import DENSITIES
from neural_ode_2018.cnf.experiment import CNF

WIDTHS = (2, 8, 32)


def runs(profile, seed, widths):
    for density in DENSITIES:
        flags = ("--profile", profile, "--density", density, "--seed", str(seed))
        for model in CNF.models:
            for width in widths:
                yield CNF.job(*flags, "--model", model, "--width", str(width))


def quick():
    jobs = [job for seed in range(5) for job in runs("quick", seed, WIDTHS[-1:])]
    estimated = ("--profile", "quick", "--density", "moons", "--trace", "hutchinson")
    return jobs + [CNF.job(*estimated, "--seed", str(seed)) for seed in range(5)]


def paper():
    jobs = [job for seed in range(5) for job in runs("paper", seed, WIDTHS)]
    further = [("--gradient", name) for name in ("naive", "mali", "adjoint")] + [("--trace", "hutchinson")]
    return jobs + [CNF.job("--seed", str(seed), *flags) for seed in range(5) for flags in further]


LAUNCHES = {
    "": Launch(
        "Train and test continuous and planar flows in the plane, then write tables, figures and animations. quick: "
        "scaled down, 5 seeds of at most 10 minutes on 2 cores; paper: full size, 5 seeds, days.",
        {"quick": quick, "paper": paper},
        machine={"--device": "cpu", "--threads": "1"},  # fastest for models this small
        report=(("report.py",), ("plot.py",)),
    )
}
