"""The lists of runs that scripts/run_latent_ode.sh trains and tests."""

from harness.launch import Job, Launch
from harness.testing import RECORD
from latent_ode_mujoco.data import missing

# Seed by seed, so that a cut leaves whole rows; the continuous adjoint comes last: with many outputs it is slowest.
MODELS = (
    *("rnn", "rnn-decay", "rnn-repaired", "latent-ode-aca", "latent-ode-naive", "latent-ode-rnn-aca", "rnn-vae"),
    "latent-ode-adjoint",
)


def job(profile, task, percent, seed, name):
    """A run of a model, of which ``name`` also tells the gradient method, or that it is repaired."""
    model, _, variant = name.rpartition("-")
    own = ["--model", name]
    if name.startswith("latent-ode"):
        own = ["--model", model, "--gradient", variant]
    elif variant == "repaired":
        own = ["--model", model, "--repaired"]
    flags = ["--profile", profile, "--task", task, "--sample", f"0.{percent}", "--seed", str(seed), *own]
    return Job(tuple(flags), f"{profile}/{task}-{percent}/{name}/seed{seed}", tests=((("--weights", "last"), RECORD),))


def quick():
    jobs = [job("quick", "interpolation", 10, 0, name) for name in MODELS]
    return [*jobs, job("quick", "extrapolation", 50, 0, "latent-ode-aca")]


def table(profile="table", seeds=4):  # so many as the rule for claims asked for after three
    return [
        job(profile, "interpolation", percent, seed, name)
        for seed in range(seeds)
        for percent in (10, 20, 50)
        for name in MODELS
    ]


def paper():
    further = [(percent, seed) for seed in range(3) for percent in (10, 20, 50)]
    return table("paper", seeds=3) + [job("paper", "extrapolation", *which, "latent-ode-aca") for which in further]


LAUNCHES = {
    "": Launch(
        "Train and test the models of the latent-ODE table on hopper data, then draw curves, reconstructions and "
        "tables. quick: scaled down, at most 15 minutes on 2 cores; table: every row, 3 fractions, 4 seeds, scaled "
        "down so far that 2 cores take hours; paper: the same rows and extrapolation with the full recipe, for GPUs.",
        {"quick": quick, "table": table, "paper": paper},
        machine={"--device": "cpu", "--threads": "1"},  # fastest for models of the scaled-down sizes
        report=(("report.py",), ("plot.py",)),
        needs=missing,
    )
}
