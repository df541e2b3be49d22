"""What scripts/run_van_der_pol.sh measures and trains."""

from harness.launch import Job, Launch

MEASUREMENTS = ("depth.py", "rebuild.py", "gradient_error.py", "picture.py")

# Of each method. Those that a claim compares have what docs/verdicts.md asked for once five were run; the others show
# that direct is ACA, and what MALI does.
SEEDS = {"aca": 75, "naive": 75, "adjoint": 75, "direct": 5, "mali": 5}


def measure():
    return [Job(("--overwrite",), script=script) for script in MEASUREMENTS]


def train():
    jobs = [
        Job(("--problem", problem, "--gradient", gradient, "--seed", str(seed), "--threads", "1"),
            f"train/{problem}_{gradient}_seed{seed}")
        for seed in range(max(SEEDS.values()))  # outermost: a cut leaves whole comparisons
        for problem in ("parameter", "neural")
        for gradient, seeds in SEEDS.items()
        if seed < seeds
    ]  # fmt: skip
    return measure() + jobs


LAUNCHES = {
    "": Launch(
        "Measure and draw the van der Pol experiment, at most 5 minutes on 2 cores; train: and what is missing of the "
        f"training runs, {2 * sum(SEEDS.values())} in all, half an hour on 2 cores (--seeds 5: minutes).",
        {"measure": measure, "train": train},
        report=(("plot.py",),),
        jobs=2,
    )
}
