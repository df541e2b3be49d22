"""The lists of runs that scripts/run_cifar*.sh train and test."""

from cifar_classification import predictions
from cifar_classification.data import missing
from harness.launch import Job, Launch

OTHER_SOLVERS = (
    (("--method", "RK23", "--rtol", "1e-3", "--atol", "1e-3"), None),
    (("--method", "Euler", "--h", "0.2"), None),
)
# flags of the gradient methods, with the same solver (MALI has its own), and with the one that the paper gives to each
LIKE_FOR_LIKE = {
    **{name: ("--gradient", name) for name in ("aca", "direct", "naive", "adjoint")},
    "mali": ("--gradient", "mali", "--method", "ALF"),
    **{name: ("--gradient", name) for name in ("torchdiffeq", "torchdiffeq-adjoint")},
}
OWN = {
    name: ("--gradient", name, "--method", "Dopri5", "--rtol", "1e-5", "--atol", "1e-5", *batch)
    for name, batch in (("adjoint", ()), ("naive", ("--batch-size", "32")))
}


def single(profile):
    return [Job(("--profile", profile), tests=OTHER_SOLVERS)]


def row(scale, label, seed, *flags, dataset="cifar10"):
    """A run of the tables, and what they need of a trained model: predictions for the reliability of repeated runs, and
    the supplement's solvers."""
    tests = []
    if label in ("aca", "resnet", "aca-scale", "resnet-scale"):
        tests.append((("--weights", "last", "--predictions"), predictions.FILE))
    if label == "euler" or scale in ("cpu", "paper-350"):
        tests.append((("--all-solvers", "--no-amp"), None))
    flags = ("--profile", scale, "--dataset", dataset, *flags, "--seed", str(seed))
    return Job(flags, f"{scale}/{dataset}_{label}_seed{seed}", tuple(tests))


def table():
    """Seed by seed, so that an unfinished table has all its rows."""
    jobs = []
    for seed in range(5):
        jobs += [row("table", "aca", seed), row("table", "resnet", seed, "--model", "discrete")]
        jobs += [row("table", name, seed, *LIKE_FOR_LIKE[name]) for name in ("adjoint", "naive")]
    jobs.append(row("cpu", "euler", 0, "--method", "Euler"))
    for seed in range(7):  # as many as the spread of three asked for
        jobs.append(row("table", "aca", seed, dataset="cifar100"))
        jobs.append(row("table", "resnet", seed, "--model", "discrete", dataset="cifar100"))
    jobs.append(row("cpu", "aca", 0))
    jobs += [job for seed in range(3) for job in (*further("table", seed), *own_settings("table", seed))]
    return jobs + fair("table", 3, ("--field-scale", "1"), ("--branch-scale", "0.2"))


def paper():
    jobs = []
    for seed in range(10):
        for dataset in ("cifar10", "cifar100"):
            jobs.append(row("paper", "aca", seed, dataset=dataset))
            jobs.append(row("paper", "resnet", seed, "--model", "discrete", dataset=dataset))
    jobs += [row("paper", "euler", 0, "--method", "Euler", "--h", "1"), row("paper-350", "aca", 0)]
    for seed in range(3):
        jobs.append(row("paper", "aca-own", seed, "--lr", "0.01"))
        jobs += own_settings("paper", seed, "--lr", "0.01")
        jobs += [row("paper", name, seed, *LIKE_FOR_LIKE[name]) for name in ("adjoint", "naive")]
        jobs += further("paper", seed)
    return jobs + fair("paper", 10, ("--field-scale", "0.2"), ("--branch-scale", "0.2"))


def gpu():
    """What a GPU decides first: the networks like for like, and then the gradient methods."""
    jobs = []
    for seed in range(5):
        jobs += [row("gpu", "aca", seed), row("gpu", "resnet", seed, "--model", "discrete")]
        jobs.append(row("gpu", "resnet-scale", seed, "--model", "discrete", "--branch-scale", "0.2"))
    return jobs + [row("gpu", name, seed, *LIKE_FOR_LIKE[name]) for seed in range(5) for name in ("naive", "adjoint")]


def fair(scale, seeds, ours, theirs):
    """NODE-18 and ResNet-18 with the other size of their second blocks at the start: then both are there with both."""
    jobs = []
    for seed in range(seeds):
        for dataset in ("cifar10", "cifar100"):
            jobs.append(row(scale, "aca-scale", seed, *ours, dataset=dataset))
            jobs.append(row(scale, "resnet-scale", seed, "--model", "discrete", *theirs, dataset=dataset))
    return jobs


def further(scale, seed):
    """Gradient methods like for like, beside aca, adjoint and naive, and aca with --amp."""
    names = ("direct", "mali", "torchdiffeq", "torchdiffeq-adjoint")
    return [*(row(scale, name, seed, *LIKE_FOR_LIKE[name]) for name in names), row(scale, "aca-amp", seed, "--amp")]


def own_settings(scale, seed, *flags):
    """The other methods with the solver, tolerance and batch that the paper gives to each."""
    return [row(scale, f"{name}-own", seed, *flags, *own) for name, own in OWN.items()]


LAUNCHES = {
    "": Launch(
        "Train NODE-18 with ACA on CIFAR-10, test it with two other solvers and draw its curves.",
        {name: lambda name=name: single(name) for name in ("quick", "paper", "cpu", "table", "gpu", "paper-350")},
        report=(("plot.py", "RUN"),),
        needs=missing,
    ),
    "tables": Launch(
        "Train and test the runs behind the CIFAR tables, then render tables and figures. table: scaled down, minutes "
        "a run on 2 cores; gpu: full width, few epochs, minutes a run on a GPU; paper: full scale, 10 seeds, wants a "
        "GPU.",
        {"table": table, "gpu": gpu, "paper": paper},
        report=(("report.py",),),
        needs=missing,
    ),
    "several": Launch(
        "Train one network on several GPUs, or CPU processes, of one machine or several: data parallel, by torchrun. "
        "--batch-size counts the images of all processes together. The run folder (--out) and the data have to lie on "
        "a disk that all machines see. A run that was interrupted goes on when the command is given again.",
        several=True,
    ),
}
