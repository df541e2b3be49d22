"""Spirals as an experiment: its settings, and how a trained model is tested."""

import torch

from harness.cli import UsageError, fraction, positive_float, positive_int
from harness.files import csv_text
from neural_ode_2018.part import Part
from neural_ode_2018.spirals.data import TIMES, make_spirals
from neural_ode_2018.spirals.models import MODELS, SOLVED, build
from neural_ode_2018.spirals.training import SpiralsTraining

# The paper gives the number of spirals and of points. Its batch size, steps, learning rate and tolerances are not
# known: a batch of all, 2,000 steps and 0.01 are those of torchdiffeq's public example, the tolerances are our choice.
PAPER = {
    **{"epochs": 2000, "spirals": 1000, "batch_size": 1000, "lr": 0.01, "decay": 1.0},
    **{"rtol": 1e-5, "atol": 1e-5},
}
QUICK = {"epochs": 150, "batch_size": 100, "decay": 0.985, "rtol": 1e-3, "atol": 1e-3}
NEW = 200  # spirals that were not trained on
SHOWN = 4  # spirals kept for the figures


class Spirals(Part):
    name = "neural_ode_2018/spirals"
    train_help = "Train a model of bi-directional spirals. Defaults are the paper's where it gives them."
    test_help = "Predict what follows and what went before the times that a model was trained on."
    profiles = {"paper": PAPER, "quick": PAPER | QUICK}
    epochs_help = "passes through the spirals"
    checkpoint_every = 100
    files = ("predictions.csv",)
    models, solved = MODELS, SOLVED
    task = "points"
    sizes = {"spirals": "spirals"}

    def add_settings(self, parser):
        parser.add_argument("--points", type=positive_int, default=100, metavar="N", help=f"seen, of {TIMES}")
        parser.add_argument("--spirals", type=positive_int, metavar="N", help="to train on (default: 1000)")
        parser.add_argument("--batch-size", type=positive_int, help="spirals a step (default: the profile's)")
        parser.add_argument("--lr", type=positive_float, help="learning rate of Adam (default: 0.01)")

        parser.add_argument("--decay", type=fraction, help="factor of it per epoch (default: the profile's)")

    def check(self, settings):
        if not 2 <= settings["points"] <= TIMES:
            raise UsageError(f"--points {settings['points']}: from 2 to {TIMES} can be seen")

    def what(self, settings):
        return f"n{settings['points']}"

    def scaled_down(self, settings):
        steps, full = (of["epochs"] * -(-of["spirals"] // of["batch_size"]) for of in (settings, PAPER))
        fewer = [f"{steps} of {full} steps"] if steps < full else []
        if settings["batch_size"] < PAPER["batch_size"]:
            fewer.append(f"batches of {settings['batch_size']} instead of {PAPER['batch_size']}")
        return fewer + super().scaled_down(settings)

    def training(self, settings, device, args, processes):
        return SpiralsTraining(settings, device)

    def tester(self, settings, state, device, args):
        model = build(settings["model"]).to(device)
        model.load_state_dict(state["model"])
        parts = {name: make_spirals(count, settings["points"], settings["seed"], name, device)
                 for name, count in (("train", settings["spirals"]), ("new", NEW))}  # fmt: skip

        def measure(solver):
            row = {}
            for name, data in parts.items():
                seen, ahead, behind = predicted(model, data, solver)
                row[f"rmse_ahead_{name}"] = rmse(ahead, data.truth_ahead)
                row[f"rmse_seen_{name}"] = rmse(seen, data.truth)
                row[f"rmse_behind_{name}"] = rmse(behind, data.truth_behind)
            return row, {"predictions.csv": _shown(data, seen, ahead, behind)}

        return {}, measure

    def test_line(self, row):
        return f"RMSE at later times: {row['rmse_ahead_train']:.4f}, of new spirals {row['rmse_ahead_new']:.4f}"


@torch.no_grad()
def predicted(model, data, solver):
    """Positions [N, T, 2] at the times seen, ahead and behind; None for what a recurrent network cannot tell."""
    times = data.seen_times().to(data.values)
    if solver is None:
        return None, model.continued(data.values, times, data.ahead), None
    z, _ = model.encode(times, data.values)
    onwards, _ = model.decode(z, torch.cat([data.times, data.ahead]), solver)
    back, _ = model.decode(z, torch.cat([data.times[:1], data.behind]), solver)
    return onwards[:, :TIMES], onwards[:, TIMES:], back[:, 1:]


def rmse(points, truth):
    """Root of the mean square error of a coordinate; None without points."""
    return None if points is None else float((points - truth).square().mean().sqrt())


def _shown(data, seen, ahead, behind):
    """CSV: of some spirals at every time the truth, what was seen, and the prediction; blank where there is none."""
    rows = []
    for i in range(SHOWN):
        noisy = dict(zip(data.index[i].tolist(), data.values[i].tolist()))
        for part, times, truth, points in (
            ("behind", data.behind, data.truth_behind, behind),
            ("seen", data.times, data.truth, seen),
            ("ahead", data.ahead, data.truth_ahead, ahead),
        ):
            for j, t in enumerate(times.tolist()):
                observed = noisy.get(j, ["", ""]) if part == "seen" else ["", ""]
                guess = ["", ""] if points is None else points[i, j].tolist()
                numbers = [t, *truth[i, j].tolist(), *observed, *guess]
                rows.append([i, part, *(x if x == "" else f"{x:.4g}" for x in numbers)])
    return csv_text(["spiral", "part", "t", "true_x", "true_y", "seen_x", "seen_y", "x", "y"], rows)


SPIRALS = Spirals()
