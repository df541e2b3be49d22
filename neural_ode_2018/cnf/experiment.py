"""Flows as an experiment: its settings, and how a trained flow is tested."""

import torch

from harness.cli import UsageError, positive_float, positive_int
from harness.files import csv_text
from harness.seeding import generator
from neural_ode_2018.cnf.data import DENSITIES, KNOWN, grid, log_constant, log_density, samples
from neural_ode_2018.cnf.models import END, MODELS, SOLVED, build, log_normal
from neural_ode_2018.cnf.models import log_density as flow_log_density
from neural_ode_2018.cnf.training import EPOCH, CNFTraining
from neural_ode_2018.part import Part

# The paper gives the optimisers: 10,000 steps of Adam for continuous flows, 500,000 of RMSprop for planar ones. Batch,
# learning rate, tolerances and the interval [0, 10] are not known: they are those of torchdiffeq's public example. An
# epoch is 50 steps.
PAPER = {
    **{"epochs": {"cnf": 10_000 // EPOCH, "nf": 500_000 // EPOCH}, "width": 32, "batch_size": 512, "lr": 1e-3},
    **{"trace": "exact", "rtol": 1e-5, "atol": 1e-5},
}
# Learning rates of the quick profile are, for each model, the best of some in steps of a factor of 3, by samples and a
# seed that no run here has.
QUICK = {
    **{"epochs": {"cnf": 10, "nf": 24}, "batch_size": 256, "lr": {"cnf": 5e-3, "nf": 2e-2}},
    **{"rtol": 1e-4, "atol": 1e-4},
}
TESTED = 4096  # samples
TIGHT = {"method": "Dopri5", "rtol": 1e-9, "atol": 1e-9}  # shows that only the solver keeps an inverse from being exact
QUADRATURE, DRAWN = 240, 80  # points on a side, of the total probability and of pictures
FRAMES, FOLLOWED = 13, 400  # of the flow over time, and how many samples it has
PULLED = 8000  # points at a time


class Flows(Part):
    name = "neural_ode_2018/cnf"
    train_help = "Train a normalising flow. Defaults are the paper's where it gives them."
    test_help = "Test a trained flow: fit, total probability, and whether its inverse undoes it."
    profiles = {"paper": PAPER, "quick": PAPER | QUICK}
    epochs_help = f"{EPOCH} steps each"
    checkpoint_every = 100
    files = ("density.csv", "flow.csv", "samples.csv")
    models, solved = MODELS, SOLVED
    task = "density"
    sizes = {"epochs": "epochs", "batch_size": "samples a step"}

    def add_settings(self, parser):
        parser.add_argument("--density", choices=DENSITIES, default=DENSITIES[0], help="what is learnt")
        parser.add_argument("--width", type=positive_int, help="hidden units of cnf, layers of nf (default: 32)")
        parser.add_argument("--trace", choices=["exact", "hutchinson"], help="of cnf, in training (default: exact)")
        parser.add_argument("--batch-size", type=positive_int, help="samples a step (default: the profile's)")
        parser.add_argument("--lr", type=positive_float, help="learning rate (default: the profile's)")

    def check(self, settings):
        if settings["model"] not in SOLVED and settings["trace"] != "exact":
            raise UsageError(f"--trace {settings['trace']} is for cnf, not for --model {settings['model']}")

    def label(self, settings):
        estimated = "-hutchinson" if settings["trace"] == "hutchinson" else ""
        return f"{super().label(settings)}{estimated}-{settings['width']}"

    def training(self, settings, device, args, processes):
        return CNFTraining(settings, device)

    def tester(self, settings, state, device, args):
        known = settings["density"] in KNOWN
        flow = build(settings, known).to(device)
        flow.load_state_dict(state["model"])
        # total probability and inverse are to 1e-3 and better: in double precision, whose solves may be that exact
        flow.double()
        z = torch.randn(TESTED, 2, generator=generator("cpu", "test"), dtype=torch.float64).to(device)

        @torch.no_grad()
        def measure(solver):
            x, change, stats = flow.push(z, solver)
            row = {"probability": _probability(flow, solver, device), "evaluations": stats and stats.n_f_evals}
            row["inverse_error"], row["density_error"] = _round_trip(flow, z, solver)
            if settings["model"] in SOLVED:
                row["inverse_error_tight"], row["density_error_tight"] = _round_trip(flow, z, TIGHT)
            if known:
                fit = (log_normal(z) + change - log_density(x)).mean() + log_constant()
            else:
                fit = -flow_log_density(flow, samples(settings["density"], TESTED, "test").to(z), solver)[0].mean()
            row["kl" if known else "nll"] = float(fit)
            files = {"density.csv": _drawn(flow, solver, device)}
            if settings["model"] in SOLVED:
                files["flow.csv"] = _flow(flow, z[:FOLLOWED], solver)
            else:
                files["samples.csv"] = csv_text(["x", "y"], _numbers(x[:FOLLOWED]))
            return row, files

        return {}, measure

    def test_line(self, row):
        fit = next(f"{name} {row[name]:.4f}" for name in ("nll", "kl") if name in row)
        return (f"{fit}; total probability {row['probability']:.5f}; inverse to {row['inverse_error']:.1e}, "
                f"log-density to {row['density_error']:.1e}")  # fmt: skip


def _round_trip(flow, z, solver):
    """Largest error of a point, and of its log-density, after forward and inverse of z [B, 2]."""
    x, change, _ = flow.push(z, solver)
    back, change_back, _ = flow.pull(x, solver)
    return float((back - z).abs().max()), float((change + change_back).abs().max())


def _densities(flow, centres, solver, device):
    """Densities [N] of a flow at ``centres`` [N, 2]."""
    parts = centres.double().to(device).split(PULLED)
    return torch.cat([flow_log_density(flow, part, solver)[0].exp() for part in parts])


def _probability(flow, solver, device):
    """Integral of the flow's density over the square, by the midpoint rule."""
    centres, area = grid(QUADRATURE)
    return float(_densities(flow, centres, solver, device).sum() * area)


def _drawn(flow, solver, device):
    """CSV: the density on a grid, a row for each x."""
    density = _densities(flow, grid(DRAWN)[0], solver, device).view(DRAWN, DRAWN)
    return csv_text([f"y{j}" for j in range(DRAWN)], _numbers(density))


def _flow(flow, z, solver):
    """CSV: where samples are at FRAMES times, a row for each time."""
    points, _, _ = flow.path(z, torch.linspace(0, END, FRAMES, dtype=torch.float64), solver)
    return csv_text([f"{axis}{i}" for i in range(len(z)) for axis in "xy"], _numbers(points.flatten(1)))


def _numbers(rows):
    return [[f"{number:.3g}" for number in row] for row in rows.tolist()]


CNF = Flows()
