"""The fitting problems: a field, a trajectory observed late, their distance, and a field in training."""

import torch

from harness.seeding import generator
from harness.solvers import solver_of
from harness.training import Training
from torch_ACA import SavedTensors, solve
from van_der_pol.data import START, observations, true_trajectory
from van_der_pol.models import NeuralField, VanDerPol

PROBLEMS = ("parameter", "neural")
HORIZON = 10.0
# only late, so that a reverse solve has to find its way through the whole transient before
OBSERVED = torch.linspace(7.5, HORIZON, 6, dtype=torch.float64)
NOISE = 0.01


def new_field(problem, seed):
    """The field to train: the equation with a parameter off by a random amount, or a small random network."""
    if problem == "parameter":
        return VanDerPol(0.4 + 0.4 * torch.rand((), generator=generator("cpu", seed, "parameter")).item())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NeuralField()


def predict(field, times, **solver):
    """`Solution` of the field from START at time 0, with ys at increasing ``times`` [m]; the first row is the start."""
    times = torch.cat([torch.zeros(1, dtype=torch.float64), times])
    start = torch.tensor(START, dtype=torch.float64, device=next(field.parameters()).device)
    return solve(field, start, times, **solver)


@torch.no_grad()
def trajectory_error(field, **solver):
    """Root mean square distance to the true trajectory over [0, HORIZON], None where the solve gave up: dict."""
    times = torch.linspace(0.1, HORIZON, 100, dtype=torch.float64)
    found = predict(field, times, on_failure="return", **solver)
    rmse = (found.ys[1:] - true_trajectory(times)).square().mean().sqrt().item() if found.success else None
    return {"rmse": rmse, "status": found.status, "n_f_evals": found.stats.n_f_evals}


class VanDerPolTraining(Training):
    """An epoch is one step of Adam on all that was observed; a row of metrics is of the state before it."""

    def __init__(self, settings, device):
        field = new_field(settings["problem"], settings["seed"]).to(device)
        super().__init__(settings, field, torch.optim.Adam(field.parameters(), lr=settings["lr"]))
        self.observed = observations(OBSERVED, NOISE, settings["seed"]).to(device)

    def advance(self):
        with SavedTensors() as self._saved:
            return super().advance()

    def loss(self):
        solution = predict(self.model, OBSERVED, **solver_of(self.settings))
        loss = (solution.ys[1:] - self.observed).square().mean()
        self._saved.peak = self._saved.held
        scalars = {"Train/Parameter": self.model.mu.detach()} if hasattr(self.model, "mu") else {}
        return loss, scalars, solution.stats

    def end_epoch(self, scalars):
        return scalars | {"Solver/SavedBytes": self._saved.peak}, {}

    def summary(self):
        return {"test": trajectory_error(self.model.cpu(), method="Dopri5", rtol=1e-8, atol=1e-8, max_evals=5_000)}
