"""Seconds per training iteration of the latent ODE by gradient method, beside torchdiffeq's in the same model."""

import statistics
import time
from types import SimpleNamespace

import torch

from harness.cli import ArgumentParser, UsageError, add_common_arguments, apply_common_arguments, positive_int, run_main
from harness.files import check_folder
from harness.record import Run
from latent_ode_mujoco.data import FOLDER, load
from latent_ode_mujoco.experiment import PROFILES, LatentODE
from latent_ode_mujoco.tasks import prepare
from latent_ode_mujoco.training import LatentODETraining
from torch_ACA import Stats

OURS = ("aca", "direct", "naive", "adjoint")
THEIRS = ("odeint", "odeint_adjoint")
WARM_UP = 3  # iterations of each contestant that are not counted


def contestant(name, settings, task, device):
    """A fresh training whose latent ODE is solved by one of OURS or, with the prefix torchdiffeq., of THEIRS."""
    if name in OURS:
        return LatentODETraining(settings | {"gradient": name}, task, device)
    training = LatentODETraining(settings, task, device)
    training.model.integrate = _torchdiffeq(name.removeprefix("torchdiffeq."), settings)
    return training


def _torchdiffeq(name, settings):
    try:
        import torchdiffeq
    except ImportError as error:
        raise UsageError("torchdiffeq is not installed: pip install torchdiffeq, or leave it out of --of") from error
    solve, method = getattr(torchdiffeq, name), settings["method"].lower()

    def integrate(field, z, times):
        ys = solve(field, z, times.to(z), rtol=settings["rtol"], atol=settings["atol"], method=method)
        return SimpleNamespace(ys=ys, stats=Stats())

    return integrate


def parser():
    result = ArgumentParser("Time training iterations of the latent ODE, one contestant after the other in each round.")
    names = (*OURS, *(f"torchdiffeq.{name}" for name in THEIRS))
    result.add_argument("--of", nargs="+", choices=names, default=names, metavar="NAME", help="contestants")
    result.add_argument("--profile", choices=list(PROFILES), default="table", help="sizes of the model")
    result.add_argument("--sample", type=float, choices=[0.1, 0.2, 0.5], default=0.1, help="fraction observed")
    result.add_argument("--all-targets", action="store_true", help="predict the whole grid, whatever the profile says")
    result.add_argument("--rounds", type=positive_int, default=20, metavar="N", help="iterations of each contestant")
    result.add_argument("--trajectories", type=positive_int, default=500, metavar="N", help="of the data set")
    add_common_arguments(result, out=None, data=FOLDER, data_env="HOPPER_DATA")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    device = apply_common_arguments(args)
    experiment = LatentODE()
    flags = ["--profile", args.profile, "--sample", str(args.sample), "--seed", str(args.seed)]
    settings = experiment.new_settings(*flags) | {"trajectories": args.trajectories}
    if args.all_targets:
        settings["targets"] = None
    name = f"{args.profile}-{args.sample * 100:g}" + ("-all-targets" if args.all_targets else "")
    folder = args.out or experiment.results / "speed" / name
    check_folder(folder)
    states = load(args.data, args.trajectories)
    task = prepare(states, settings["task"], args.seed, device, settings["validation"])
    run = Run.start(folder, vars(args), settings=settings, overwrite=args.overwrite)
    trainings = {name: contestant(name, settings, task, device) for name in args.of}
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds = {name: [] for name in args.of}
    for round_ in range(-WARM_UP, args.rounds):
        for name in args.of:  # interleaved: what slows the machine down for a while slows all of them
            start = clock()
            trainings[name].advance()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(clock() - start)
        if round_ >= 0:
            run.log(round_ + 1, {f"Seconds/{name}": taken[-1] for name, taken in seconds.items()})
    medians = {name: statistics.median(taken[WARM_UP:]) for name, taken in seconds.items()}
    run.finish({"title": experiment.title(settings), "clock": clock.__name__, "median_seconds": medians})
    for name, median in medians.items():
        print(f"{name}: {1e3 * median:.1f} ms")


if __name__ == "__main__":
    run_main(main)
