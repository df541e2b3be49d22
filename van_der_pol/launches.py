"""What scripts/run_van_der_pol.sh measures and trains."""

from harness.launch import Job, Launch

MEASUREMENTS = ("depth.py", "rebuild.py", "gradient_error.py", "picture.py")

# Of each problem and method. Those that a claim compares have what docs/verdicts.md asked for once five seeds were run
# (of the neural field, whose methods differ least, 29; of the parameter, where the adjoint method seldom finishes, 75);
# the others show that direct is ACA, and what MALI does.
OTHERS = {"direct": 5, "mali": 5}
SEEDS = {
    "parameter": {"aca": 169, "naive": 75, "adjoint": 169, **OTHERS},
    "neural": {"aca": 302, "naive": 156, "adjoint": 302, **OTHERS},
}
COUNT = sum(sum(counts.values()) for counts in SEEDS.values())


def measure():
    return [Job(("--overwrite",), script=script) for script in MEASUREMENTS]


def train():
    jobs = [
        Job(("--problem", problem, "--gradient", gradient, "--seed", str(seed), "--threads", "1"),
            f"train/{problem}_{gradient}_seed{seed}")
        for seed in range(max(max(counts.values()) for counts in SEEDS.values()))  # outermost: a cut leaves whole ones
        for problem, counts in SEEDS.items()
        for gradient, seeds in counts.items()
        if seed < seeds
    ]  # fmt: skip
    return measure() + jobs


LAUNCHES = {
    "": Launch(
        "Measure and draw the van der Pol experiment, at most 5 minutes on 2 cores; train: and what is missing of the "
        f"training runs, {COUNT} in all, an hour on 2 cores (--seeds 5: minutes).",
        {"measure": measure, "train": train},
        report=(("plot.py",),),
        jobs=2,
    )
}
