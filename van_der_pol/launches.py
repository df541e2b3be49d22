"""What scripts/run_van_der_pol.sh measures and trains."""

from harness.launch import Job, Launch

MEASUREMENTS = ("depth.py", "rebuild.py", "gradient_error.py", "picture.py")

GRADIENTS = ("aca", "direct", "naive", "adjoint", "mali")
SEEDS = 75  # what docs/verdicts.md asked for once five were run, 69 at most, and a few to spare


def measure():
    return [Job(("--overwrite",), script=script) for script in MEASUREMENTS]


def train():
    jobs = [
        Job(("--problem", problem, "--gradient", gradient, "--seed", str(seed), "--threads", "1"),
            f"train/{problem}_{gradient}_seed{seed}")
        for seed in range(SEEDS)  # outermost: a cut leaves whole comparisons
        for problem in ("parameter", "neural")
        for gradient in GRADIENTS
    ]  # fmt: skip
    return measure() + jobs


LAUNCHES = {
    "": Launch(
        "Measure and draw the van der Pol experiment, at most 5 minutes on 2 cores; train: and what is missing of the "
        f"training runs, of {SEEDS} seeds, an hour (--seeds 5: a few minutes).",
        {"measure": measure, "train": train},
        report=(("plot.py",),),
        jobs=2,
    )
}
