"""Depth of the graph and memory of the gradient methods as the tries per step grow, on a field of sudden changes."""

import torch

from harness.cli import run_main
from harness.progress import progress
from harness.solvers import MEMORY
from torch_ACA import SavedTensors, solve
from van_der_pol import records
from van_der_pol.graph_depth import graph_depth
from van_der_pol.models import Pulses

HORIZON = 3.0
SOLVER = {"method": "RK45", "rtol": 1e-4, "atol": 1e-4}
MAX_STEP = 0.1  # or the solver would step over pulses
GRADIENTS = ("naive", "direct", "aca")
# a rejected step is retried with at least this share of its size: the closer to 1, the more tries per accepted step
SHRINKS = (0.2, 0.8, 0.9, 0.95, 0.98)
SPEEDS = (40.0, 45.0, 50.0, 55.0, 60.0)


def main(argv=None):
    args = records.measurement_parser(__doc__, "depth").parse_args(argv)
    torch.set_num_threads(args.threads)
    records.write(args, progress(rows(), desc="depth"))


def rows():
    """All rows of the record: one per speed of the pulses, shrinking factor and gradient method."""
    for speed in SPEEDS:
        for shrink in SHRINKS:
            for gradient in GRADIENTS:
                chosen = {"speed": speed, "shrink": shrink, "gradient": gradient}
                yield chosen | SOLVER | measure(**chosen)


def measure(speed, shrink, gradient):
    """Counts and sizes of one solve and its backward pass, and the relative error of d y1(T) / d speed.

    :returns: dict; ``depth``: nodes on the longest chain of derivatives from y(T) to the start. For aca and direct it
        is that of the accepted steps' functional graph, which their backward passes walk without holding it
    """
    field = Pulses(speed)
    start = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    vjps = []

    def counted(t, y):
        slope = field(t, y)
        if slope.requires_grad:
            slope.register_hook(lambda bar: vjps.append(1))
        return slope

    options = {"dfactor": shrink, "max_step": MAX_STEP}
    with SavedTensors() as saved:
        memory = MEMORY if gradient == "aca" else None
        solution = solve(
            counted, start, (0.0, HORIZON), gradient=gradient, memory=memory, options=options, record=True, **SOLVER
        )
        held = saved.held
        depth = graph_depth(solution.ys if gradient == "naive" else _accepted_graph(solution, start))
        saved.peak = held
        (found,) = torch.autograd.grad(solution.ys[-1, 0], [field.speed])
    stats, exact = solution.stats, exact_gradient(field)
    return {
        "tries_per_step": 1 + stats.n_rejected / stats.n_accepted,
        "n_accepted": stats.n_accepted,
        "depth": depth,
        "held_bytes": held,
        "peak_bytes": saved.peak,
        "n_f_evals": stats.n_f_evals,
        "n_backward_f_evals": stats.n_backward_f_evals,
        "n_vjps": len(vjps),
        "error": abs(float(found) - exact) / abs(exact),
    }


def _accepted_graph(solution, start):
    """y at the output times as the functional graph of the accepted steps alone, their sizes constant."""
    return solution.record.graph(start, torch.tensor([0.0, HORIZON], dtype=torch.float64))


def exact_gradient(field):
    """d y1(T) / d speed = -sin(angle) * (time spent in pulses), for the start (1, 0)."""
    times = torch.linspace(0.0, HORIZON, 400_001, dtype=torch.float64)
    inside = float(torch.trapezoid(field.pulse(times), times))
    angle = HORIZON + (field.speed.item() - 1) * inside
    return -float(torch.sin(torch.tensor(angle, dtype=torch.float64))) * inside


if __name__ == "__main__":
    run_main(main)
