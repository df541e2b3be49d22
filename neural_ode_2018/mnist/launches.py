"""The lists of runs that scripts/run_neural_ode_2018.sh mnist trains and tests."""

from dataclasses import replace

from harness.launch import Job, Launch
from neural_ode_2018.mnist.experiment import MNIST
from neural_ode_2018.mnist.models import SOLVED

MEMORY = Job((), script="memory.py")


def run(profile, seed, model, *gradient):
    flags = ("--profile", profile, "--seed", str(seed), "--model", model)
    job = MNIST.job(*flags, *(("--gradient", *gradient) if gradient else ()))
    swept = model in SOLVED and seed == 0  # one network is enough for the figure, and its tests take minutes
    return replace(job, tests=(*job.tests, (("--sweep",), None))) if swept else job


def table(profile, seeds, *gradients):
    runs = [("resnet",), ("rk-net",), *(("ode-net", gradient) for gradient in gradients)]
    return [run(profile, seed, *which) for seed in range(seeds) for which in runs]


def quick():
    return [MEMORY, *table("quick", 5, "aca", "adjoint")]


def cpu():
    return [run("cpu", 0, "ode-net", "aca")]


def paper():
    return [MEMORY, *table("paper", 5, "aca", "adjoint", "naive", "mali")]


LAUNCHES = {
    "": Launch(
        "Train and test ODE-Net and the networks beside it on MNIST, measure memory against depth, then write tables "
        "and figures. quick: scaled down, 5 seeds of at most 10 minutes on 2 cores; cpu: one ODE-Net on all images, at "
        "most an hour on 2 cores; paper: full settings, 5 seeds, for GPUs.",
        {"quick": quick, "cpu": cpu, "paper": paper},
        report=(("report.py",), ("plot.py",)),
    )
}
