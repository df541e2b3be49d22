"""The lists of runs that scripts/run_three_body.sh trains and tests."""

from harness.launch import Job, Launch
from harness.testing import RECORD

MODELS = ("ode-aca", "node-aca", "lstm", "lstm-aug", "ode-naive", "node-naive", "ode-adjoint", "node-adjoint")
# Which models are compared, and the seeds that docs/verdicts.md asked for once five were run: the cheapest first, and
# seed by seed, so that a cut leaves whole comparisons.
COMPARED = (
    (("ode-aca", "node-aca"), 14),
    (("node-aca", "node-naive"), 30),
    (("ode-aca", "ode-naive"), 25),
    (("ode-aca", "ode-adjoint"), 44),
)
# What helps ACA to the true masses, with as many seeds: profiles and models.
REPAIRS = (("paper", "ode-aca-own-time"), ("tight", "ode-aca"))
REPAIRED_SEEDS = 25


def job(profile, system, seed, name):
    """A run of a model, of which ``name`` also tells the gradient method."""
    model, _, gradient = name.partition("-") if name not in ("lstm", "lstm-aug") else (name, "", "")
    flags = ["--profile", profile, "--system", system, "--seed", str(seed), "--model", model]
    gradient, _, own_time = gradient.partition("-")
    flags += ["--gradient", gradient] if gradient else []
    flags += ["--own-time"] if own_time else []
    where = system if system == "paper" else f"random-{system}"
    return Job(tuple(flags), f"{profile}/{where}/{name}/seed{seed}", tests=(((), RECORD),))


def quick():
    gradients = ("aca", "naive", "adjoint")  # the continuous adjoint comes last: with many outputs it is slowest
    names = ["lstm", "lstm-aug", *(f"{model}-{gradient}" for model in ("node", "ode") for gradient in gradients)]
    return [job("released", "paper", 0, "ode-aca"), *(job("quick", "paper", 0, name) for name in names)]


def claims():
    jobs = [job("paper", "paper", seed, name) for names, seeds in COMPARED for seed in range(seeds) for name in names]
    jobs += [job(profile, "paper", seed, name) for seed in range(REPAIRED_SEEDS) for profile, name in REPAIRS]
    return list(dict.fromkeys(jobs))


def paper():
    jobs = [job("released", "paper", seed, "ode-aca") for seed in range(5)]
    jobs += [job("paper", "paper", seed, name) for seed in range(5) for name in MODELS]
    jobs += [job("paper", str(system), 0, name) for system in range(1, 6) for name in MODELS]
    return list(dict.fromkeys(jobs + claims()))


LAUNCHES = {
    "": Launch(
        "Train and test every model of the three-body problem, then draw figures, animations and tables. quick: scaled "
        "down, minutes on 2 cores; claims: at the paper's settings, the seeds that its claims on ACA need, "
        "hours; paper: 5 seeds of the paper's system, then 5 random systems, then those seeds, more hours.",
        {"quick": quick, "claims": claims, "paper": paper},
        machine={"--device": "cpu", "--threads": "1"},  # fastest for models this small
        report=(("report.py",), ("plot.py",)),
    )
}
