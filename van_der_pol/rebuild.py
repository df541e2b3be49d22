"""Rebuild a forward trajectory of the equation backwards, by each gradient method. (test.py --resume WHERE tests a
trained field instead; --help after that lists its flags.)"""

import torch
from scipy.integrate import solve_ivp

from harness.cli import positive_float, run_main
from harness.progress import progress
from torch_ACA import FIXED_STEP_METHODS, METHODS, solve
from van_der_pol import records
from van_der_pol.data import HORIZON, ODE45, START, STEP_CONTROL, equation, starting_points
from van_der_pol.models import VanDerPol
from van_der_pol.reconstruction import solve_back

ADAPTIVE = [name for name in METHODS if name not in (*FIXED_STEP_METHODS, "ALF")]
HORIZONS = (1, 2.5, 5, 7.5, 10, 12.5, 15, 20, 25, 30, 40)
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
SWEPT_METHODS = ("RK12", "RK23", "RK45")
IN_SCIPY = ("RK23", "RK45")
STARTS = 8
MAX_EVALS = 5_000  # a solve that needs more did not finish


def main(argv=None):
    parser = records.measurement_parser(__doc__, "reconstruction")
    parser.add_argument("--method", choices=ADAPTIVE, default="RK45", help="Runge-Kutta method of both directions")
    parser.add_argument("--rtol", type=positive_float, default=ODE45["rtol"], help="relative tolerance, MATLAB's")
    parser.add_argument("--atol", type=positive_float, default=ODE45["atol"], help="absolute tolerance, MATLAB's")
    parser.add_argument("--horizon", type=positive_float, default=HORIZON, help="end T")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    solver = {"method": args.method, "rtol": args.rtol, "atol": args.atol, "options": STEP_CONTROL}
    rows = reconstruction_rows(args.horizon, solver, args.seed)
    records.write(args, progress(rows, desc="reconstruction"))
    for row in records.read(args.out, kind="trajectory", direction="backward"):
        print(f"y(0) as rebuilt by {row['label']}: ({row['y'][0][0]:.6f}, {row['y'][0][1]:.6f})")


def reconstruction_rows(horizon, solver, seed):
    """All rows of the record, see the README."""
    yield from trajectories(horizon, solver)
    labels = ("aca", "direct", "adjoint", "mali", *(["scipy"] if solver["method"] in IN_SCIPY else []))
    for number, start in enumerate(starting_points(STARTS, seed).tolist()):
        for end in HORIZONS:
            for label in ("adjoint",) if number else labels:
                row = start_error(VanDerPol(), start, end, label, solver)
                yield {"kind": "error", "sweep": "horizon", "start": number} | row
    for tolerance in TOLERANCES:
        tight = solver | {"rtol": tolerance, "atol": tolerance * ODE45["atol"] / ODE45["rtol"]}
        for method in SWEPT_METHODS:
            for label in ("aca", "adjoint", *(["scipy"] if method in IN_SCIPY else [])):
                row = start_error(VanDerPol(), START, horizon, label, tight | {"method": method})
                yield {"kind": "error", "sweep": "tolerance"} | row
        row = start_error(VanDerPol(), START, horizon, "mali", tight)
        yield {"kind": "error", "sweep": "tolerance"} | row


def trajectories(horizon, solver):
    """Rows of the trajectory solved forward and of those rebuilt from its end, each with times t and states y."""
    times = torch.linspace(0.0, horizon, 1001, dtype=torch.float64)
    start = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    field = VanDerPol()
    forward = solve(field, start, times, **solver)
    backward = solve_back(field, forward.ys[-1], times, **solver)
    record = solve(field, start, (0.0, horizon), record=True, **solver).record
    yield _trajectory("forward", "aca", times, forward.ys)
    yield _trajectory("backward", "adjoint", backward.ts.flip(0), backward.ys.flip(0))
    yield _trajectory("backward", "aca", record.times, record.replayed())


def _trajectory(direction, label, times, states):
    return {
        "kind": "trajectory", "direction": direction, "label": label, "t": times.tolist(), "y": states.tolist(),
    }  # fmt: skip


def start_error(field, start, horizon, label, solver):
    """How far from the truth what ``label`` (a gradient method, or "scipy") rebuilds after [0, horizon] is.

    :returns: dict with ``error``: for aca and direct the largest of all accepted steps' distances to the stored next
        state, for the others the distance at t = 0, None if a solve gave up (``status`` then says where)
    """
    record = {"label": label, "horizon": horizon, "rtol": solver.get("rtol"), "atol": solver.get("atol")}
    record |= {"method": "ALF" if label == "mali" else solver["method"], "error": None}
    start = torch.tensor(start, dtype=torch.float64)
    if label == "scipy":
        return record | _scipy_error(start, horizon, solver)
    times = torch.tensor([0.0, horizon], dtype=torch.float64)
    gradient = {"gradient": label, "method": record["method"], "on_failure": "return", "max_evals": MAX_EVALS}
    forward = solve(field, start.clone().requires_grad_(), times, record=True, **(solver | {"memory": None} | gradient))
    record |= {"status": forward.status, "n_accepted": forward.stats.n_accepted}
    if not forward.success:
        return record
    if label in ("aca", "direct"):
        stored, rebuilt = forward.record.states, forward.record.replayed()
        return record | {"error": _distance(rebuilt, stored), "bit_for_bit": torch.equal(rebuilt, stored)}
    if label == "mali":
        return record | {"error": _distance(forward.record.replayed()[0], start)}
    back = solve_back(field, forward.ys[-1], times, max_evals=MAX_EVALS, **solver)
    record["status"] = back.status
    return record | ({"error": _distance(back.ys[-1], start), "rebuilt": back.ys[-1].tolist()} if back.success else {})


def _scipy_error(start, horizon, solver):
    options = {"method": solver["method"], "rtol": solver["rtol"], "atol": solver["atol"]}
    forward = solve_ivp(equation, (0.0, horizon), start.numpy(), **options)
    back = solve_ivp(equation, (horizon, 0.0), forward.y[:, -1], **options)
    if not back.success:
        return {"status": back.message}
    rebuilt = torch.from_numpy(back.y[:, -1].copy())
    return {"status": "finished", "error": _distance(rebuilt, start), "rebuilt": rebuilt.tolist()}


def _distance(a, b):
    """Largest Euclidean distance between states [..., 2]."""
    return float(torch.linalg.vector_norm((a - b).detach(), dim=-1).max())


if __name__ == "__main__":
    run_main(main)
