"""Test a trained model: error of its trajectory, learnt masses, drift of energy and momentum."""

import csv
import io
import json
import math
from pathlib import Path

import torch

from harness.checkpoint import load_checkpoint
from harness.cli import ArgumentParser, UsageError, positive_float, positive_int, resolve_device, run_main, usage_errors
from harness.environment import describe
from harness.files import atomic_write
from three_body.data import System, simulate, time_grid
from three_body.evaluation import measures, predict
from three_body.models import RECURRENT, build
from three_body.settings import KIND, solver_of, title
from three_body.training import masses_of
from torch_ACA import METHODS
from torch_ACA.settings import checked_settings

DRAWN_POINTS = 400  # of the trajectory, kept for the figures


def parser():
    result = ArgumentParser("Test a trained model on the trajectory it was trained on the first part of.")
    result.add_argument("checkpoint", metavar="FILE", help="checkpoint.pt of a training run")
    result.add_argument("--weights", choices=["best", "last"], default="best", help="best: least error in training")
    result.add_argument("--method", choices=METHODS, help="solver (without it: as in training, with mali too: Dopri5)")
    result.add_argument("--rtol", type=positive_float, help="relative tolerance (without it: as in training)")
    result.add_argument("--atol", type=positive_float, help="absolute tolerance (without it: as in training)")
    result.add_argument("--h", type=positive_float, help="step size, which fixed-step methods need")
    result.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (CUDA where there is one)")
    result.add_argument("--threads", type=positive_int, help="CPU threads (without it: PyTorch's choice)")
    result.add_argument("--out", metavar="DIR", help="where test.json and trajectory.csv go (without it: nowhere)")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    saved = load_checkpoint(args.checkpoint, kind=KIND, map_location=device)
    settings = saved["settings"]
    solver = _solver(args, settings)
    weights = saved["best"]["weights"] if args.weights == "best" else saved["model"]
    model = build(settings["model"]).to(device)
    model.load_state_dict(weights)

    system = System(**settings["system"])
    times = time_grid(settings["until"][1], settings["points"])
    truth = simulate(system, times)[:, None].to(device)
    true_masses = torch.tensor(system.masses, dtype=torch.float64, device=device)
    predicted, status = predict(model, truth, times, solver)
    masses = masses_of(weights)
    result = {
        "title": title(settings),
        "weights": args.weights,
        "epoch": saved["best"]["epoch"] if args.weights == "best" else saved["epoch"],
        "training": saved["status"],
        "prediction": status,
        **measures(predicted, truth, times, true_masses, settings["until"][0]),
        "masses": masses,
        "mass_error": masses and max(abs(m - true) for m, true in zip(masses, system.masses)),
        "solver": solver,
        "environment": describe(),
    }
    for name in ("title", "training", "prediction", "mse", "mse_trained", "masses", "mass_error"):
        print(f"{name}: {result[name]}")
    if args.out:
        _write(Path(args.out), result, times, truth, predicted)


def _solver(args, settings):
    """Keywords of `solve` for the test; None for a recurrent network."""
    given = {name: value for name in ("method", "rtol", "atol", "h") if (value := getattr(args, name)) is not None}
    if settings["model"] in RECURRENT:
        if given:
            raise UsageError(f"--{next(iter(given))} would have no effect: {settings['model']} solves no ODE")
        return None
    # without a gradient to take, gradient="aca" is a plain solve
    trained = solver_of(settings) | {"gradient": "aca"}
    if trained["method"] == "ALF":
        trained["method"] = "Dopri5"
    solver = trained | given
    with usage_errors():
        checked_settings(solver["method"], "aca", solver["rtol"], solver["atol"], solver.get("h"), None)
    return solver


def _write(folder, result, times, truth, predicted):
    """test.json, and trajectory.csv: at some of the times, the true and predicted positions and their distance."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "test.json") as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
    rows = torch.linspace(0, len(times) - 1, min(len(times), DRAWN_POINTS)).round().long().tolist()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    axes = [f"{axis}{body}" for body in (1, 2, 3) for axis in "xyz"]
    table.writerow(["t", "error", *(f"true_{name}" for name in axes), *axes])
    for i in rows:
        true, shown = truth[i, 0, :3].flatten(), predicted[i : i + 1, 0, :3].flatten()  # empty where it has failed
        error = [float((shown - true).norm())] if len(shown) else [math.nan]
        positions = shown.tolist() or [math.nan] * 9
        table.writerow(f"{number:.5g}" for number in [float(times[i]), *error, *true.tolist(), *positions])
    with atomic_write(folder / "trajectory.csv") as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    run_main(main)
