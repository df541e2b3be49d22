"""Test a trained model: mean squared error on the full grid, with any solver, and reconstructions to draw."""

import csv
import io
import json
from pathlib import Path

import torch

from harness.checkpoint import load_checkpoint
from harness.cli import (
    ArgumentParser,
    UsageError,
    non_negative_int,
    positive_float,
    positive_int,
    resolve_device,
    run_main,
    usage_errors,
)
from harness.environment import describe
from harness.files import atomic_write
from latent_ode_mujoco.data import FOLDER, NAMES, POINTS, load, prepare
from latent_ode_mujoco.evaluation import test_batch, test_error
from latent_ode_mujoco.models import build
from latent_ode_mujoco.settings import KIND, solver_of, title
from torch_ACA import METHODS
from torch_ACA.settings import checked_settings


def parser():
    result = ArgumentParser("Test a trained model on the trajectories that it was not trained on.")
    result.add_argument("checkpoint", metavar="FILE", help="checkpoint.pt of a training run")
    result.add_argument("--method", choices=METHODS, help="solver (without it: as in training, with mali too: Dopri5)")
    result.add_argument("--rtol", type=positive_float, help="relative tolerance (without it: as in training)")
    result.add_argument("--atol", type=positive_float, help="absolute tolerance (without it: as in training)")
    result.add_argument("--h", type=positive_float, help="step size, which fixed-step methods need")
    result.add_argument("--shown", type=non_negative_int, default=3, metavar="N", help="reconstructions that are kept")
    result.add_argument("--data", default=FOLDER, metavar="DIR", help="data folder")
    result.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto (CUDA where there is one)")
    result.add_argument("--threads", type=positive_int, help="CPU threads (without it: PyTorch's choice)")
    result.add_argument(
        "--out", metavar="DIR", help="where test.json and reconstructions.csv go (without it: nowhere)"
    )
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    saved = load_checkpoint(args.checkpoint, kind=KIND, map_location=device)
    settings = saved["settings"]
    solver = _solver(args, settings)
    task = prepare(load(args.data, settings["trajectories"]), settings["task"], settings["seed"], device)
    model = build(settings, solver).to(device)
    model.load_state_dict(saved["model"])
    batch = test_batch(task.test, settings)
    mse, prediction = test_error(model, batch, settings)
    result = {
        "title": title(settings),
        "training": saved["status"],
        "iterations": saved["iteration"],
        "mse": mse,
        "trajectories": len(task.test),
        "solver": solver,
        "evaluations": None if prediction.stats is None else prediction.stats.n_f_evals,
        "minimum": task.minimum.tolist(),
        "maximum": task.maximum.tolist(),
        "environment": describe(),
    }
    for name in ("title", "training", "mse", "evaluations"):
        print(f"{name}: {result[name]}")
    if args.out:
        _write(Path(args.out), result, batch, prediction, args.shown)


def _solver(args, settings):
    """Keywords of `solve` for the test; None for a model that solves no ODE."""
    given = {name: value for name in ("method", "rtol", "atol", "h") if (value := getattr(args, name)) is not None}
    trained = solver_of(settings)
    if trained is None:
        if given:
            raise UsageError(f"--{next(iter(given))} would have no effect: {settings['model']} solves no ODE")
        return None
    # without a gradient to take, gradient="aca" is a plain solve
    trained["gradient"] = "aca"
    if trained["method"] == "ALF":
        trained["method"] = "Dopri5"
    solver = trained | given
    with usage_errors():
        checked_settings(solver["method"], "aca", solver["rtol"], solver["atol"], solver.get("h"), None)
    return solver


def _write(folder, result, batch, prediction, shown):
    """test.json, and reconstructions.csv: of some trajectories at every grid point, whether it was observed, and the
    true and the predicted state (the mean over samples), normalised; what a task does not have is left empty."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "test.json") as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trajectory", "t", "observed", *(f"true_{name}" for name in NAMES), *NAMES])
    predicted = prediction.mean.mean(1)
    first = int(batch.target_index[0])
    for i in range(min(shown, len(batch.targets))):
        observed = dict(zip(batch.index[i].tolist(), batch.values[i].tolist()))
        for point in range(int(batch.target_index[-1]) + 1):
            is_target = point >= first
            true = batch.targets[i, point - first].tolist() if is_target else observed.get(point)
            if true is None:
                continue
            guess = predicted[point - first, i].tolist() if is_target else [float("nan")] * len(NAMES)
            table.writerow([i, point / POINTS, int(point in observed), *(f"{x:.5g}" for x in (*true, *guess))])
    with atomic_write(folder / "reconstructions.csv") as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    run_main(main)
