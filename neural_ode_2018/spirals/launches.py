"""The lists of runs that scripts/run_neural_ode_2018.sh spirals trains and tests."""

from harness.launch import Launch
from neural_ode_2018.spirals.experiment import SPIRALS
from neural_ode_2018.spirals.models import MODELS, SOLVED

POINTS = (30, 50, 100)


def runs(profile, seed, gradients):
    for points in POINTS:
        flags = ("--profile", profile, "--points", str(points), "--seed", str(seed))
        for model in MODELS:
            for gradient in gradients if model in SOLVED else (None,):
                yield SPIRALS.job(*flags, "--model", model, *(("--gradient", gradient) if gradient else ()))


def quick():
    return [job for seed in range(5) for job in runs("quick", seed, ["aca"])]


def paper():
    return [job for seed in range(5) for job in runs("paper", seed, ["aca", "naive", "mali", "adjoint"])]


LAUNCHES = {
    "": Launch(
        "Train and test a latent ODE and two recurrent networks on spirals, then write tables and figures. quick: "
        "scaled down, 5 seeds of at most 10 minutes on 2 cores; paper: full size, 5 seeds, gradient methods, hours.",
        {"quick": quick, "paper": paper},
        machine={"--device": "cpu", "--threads": "1"},  # fastest for models this small
        report=(("report.py",), ("plot.py",)),
    )
}
