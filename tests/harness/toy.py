"""The smallest experiment: fit the rate of y' = k y to the true one. Also what a new experiment has to write."""

import torch

from harness.cli import positive_float
from harness.experiment import Experiment
from harness.solvers import add_solver_arguments, settle_solver, solver_of
from harness.training import Training
from torch_ACA import solve


class Field(torch.nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t, y):
        return self.rate * y


class ToyTraining(Training):
    def __init__(self, settings):
        torch.manual_seed(settings["seed"])
        model = Field(-torch.rand(()).item())
        super().__init__(settings, model, torch.optim.Adam(model.parameters()), batches=settings["batches"])

    def loss(self):
        solution = solve(self.model, torch.ones(1, dtype=torch.float64), (0.0, 1.0), **solver_of(self.settings))
        return (solution.ys[-1] - torch.e).square().sum(), {}, solution.stats


class Toy(Experiment):
    name = "toy"
    train_help = "Fit a rate."
    test_help = "Test a rate."
    profiles = {"paper": {"epochs": 6, "lr": 0.1, "batches": 1, "rtol": 1e-3, "atol": 1e-3}}
    profiles["batched"] = profiles["paper"] | {"epochs": 3, "batches": 4}
    checkpoint_every = 2
    files = ("end.csv",)

    def add_arguments(self, parser):
        parser.add_argument("--lr", type=positive_float, help="learning rate; the default is the profile's")
        add_solver_arguments(parser, "of the field")

    def complete(self, values, chosen):
        settings = {name: values[name] for name in ("profile", "seed", "epochs", "lr", "batches")}
        return settings | settle_solver(values, chosen)

    def title(self, settings):
        return f"toy, {settings['epochs']} epochs"

    def place(self, settings):
        return f"{settings['profile']}/seed{settings['seed']}"

    def training(self, settings, device, args, processes):
        return ToyTraining(settings)

    def tester(self, settings, state, device, args):
        model = Field(0.0)
        model.load_state_dict(state["model"])

        def measure(solver):
            solution = solve(model, torch.ones(1, dtype=torch.float64), (0.0, 1.0), **solver)
            return {"end": float(solution.ys[-1].detach())}, {"end.csv": "end\n"}

        return {}, measure

    def test_line(self, row):
        return f"end: {row['end']}"
