"""The fitting problems, shared by train.py and test.py: a field, a trajectory observed late, and their distance."""

import torch

from harness.checkpoint import load_checkpoint
from harness.seeding import generator
from torch_ACA import solve
from van_der_pol.data import START, true_trajectory
from van_der_pol.models import NeuralField, VanDerPol

KIND = "van_der_pol"
PROBLEMS = ("parameter", "neural")
HORIZON = 10.0
# only late, so that a reverse solve has to find its way through the whole transient before
OBSERVED = torch.linspace(7.5, HORIZON, 6, dtype=torch.float64)
NOISE = 0.01
MAX_EVALS = 5_000  # per solve; one that needs more did not finish


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
    return solve(field, start, times, max_evals=MAX_EVALS, **solver)


def load_field(path):
    """The field of a checkpoint of train.py and the name of its run. UsageError for a file that is none."""
    state = load_checkpoint(path, kind=KIND)
    field = new_field(state["settings"]["problem"], state["settings"]["seed"])
    field.load_state_dict(state["field"])
    return field, run_name(**state["settings"])


def run_name(problem, gradient, seed, **others):
    """Name of a run's folder."""
    return f"{problem}_{gradient}_seed{seed}"


@torch.no_grad()
def trajectory_error(field, **solver):
    """Root mean square distance to the true trajectory over [0, HORIZON], None where the solve gave up: dict."""
    times = torch.linspace(0.1, HORIZON, 100, dtype=torch.float64)
    found = predict(field, times, on_failure="return", **solver)
    rmse = (found.ys[1:] - true_trajectory(times)).square().mean().sqrt().item() if found.success else None
    return {"rmse": rmse, "status": found.status, "n_f_evals": found.stats.n_f_evals}
