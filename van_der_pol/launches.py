"""What scripts/run_van_der_pol.sh measures and trains."""

from harness.launch import Job, Launch

MEASUREMENTS = ("depth.py", "rebuild.py", "gradient_error.py", "picture.py")


def measure():
    return [Job(("--overwrite",), script=script) for script in MEASUREMENTS]


def train():
    jobs = [
        Job(("--problem", problem, "--gradient", gradient, "--seed", str(seed), "--threads", "1"),
            f"train/{problem}_{gradient}_seed{seed}")
        for gradient in ("aca", "direct", "naive", "adjoint", "mali")
        for problem in ("parameter", "neural")
        for seed in range(5)
    ]  # fmt: skip
    return measure() + jobs


LAUNCHES = {
    "": Launch(
        "Measure and draw the van der Pol experiment, at most 5 minutes on 2 cores; train: and what is missing of the "
        "training runs.",
        {"measure": measure, "train": train},
        report=(("plot.py",),),
        jobs=2,
    )
}
