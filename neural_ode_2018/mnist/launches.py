"""The lists of runs that scripts/run_neural_ode_2018.sh mnist trains and tests."""

from dataclasses import replace

from harness.launch import Job, Launch
from neural_ode_2018.mnist.experiment import MNIST
from neural_ode_2018.mnist.models import SOLVED

MEMORY = Job((), script="memory.py")


def run(profile, seed, model, *gradient):
    flags = ("--profile", profile, "--seed", str(seed), "--model", model)
    job = MNIST.job(*flags, *(("--gradient", *gradient) if gradient else ()))
    return replace(job, tests=(*job.tests, (("--sweep",), None))) if model in SOLVED else job


def table(profile, seeds, *gradients):
    runs = [("resnet",), ("rk-net",), *(("ode-net", gradient) for gradient in gradients)]
    return [run(profile, seed, *which) for seed in range(seeds) for which in runs]


def quick():
    return [MEMORY, *table("quick", 1, "aca", "adjoint")]


def hour():
    return [run("hour", 0, "ode-net", "aca")]


def paper():
    return [MEMORY, *table("paper", 5, "aca", "adjoint", "naive", "mali")]


LAUNCHES = {
    "": Launch(
        "Train and test ODE-Net and the networks beside it on MNIST, measure memory against depth, then write tables "
        "and figures. quick: scaled down, one seed, at most 10 minutes on 2 cores; hour: one ODE-Net on all images; "
        "paper: full settings, 5 seeds, for GPUs.",
        {"quick": quick, "hour": hour, "paper": paper},
        report=(("report.py",), ("plot.py",)),
    )
}
