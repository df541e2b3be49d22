"""Errors of the gradients against exact ones: the toy z' = k z, L = z(T)^2, and the van der Pol equation."""

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp

from harness.cli import run_main
from harness.progress import progress
from harness.seeding import generator
from torch_ACA import GRADIENTS, SolverError, solve_endtime
from van_der_pol import records
from van_der_pol.data import HORIZON, MU, ODE45, START
from van_der_pol.models import Linear, VanDerPol

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

TOY = {"rtol": 1e-5, "atol": 1e-5}  # the paper's for Dopri5 elsewhere (appendix D.4)
RATES = {"growing": 0.3, "contracting": -0.3}
HORIZONS = (1, 2.5, 5, 7.5, 10, 12.5, 15, 17.5, 20)
STARTS = 5
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
MAX_EVALS = 5_000


def main(argv=None):
    args = records.measurement_parser(__doc__, "gradient_error").parse_args(argv)
    torch.set_num_threads(args.threads)
    if torchdiffeq is None:
        print("torchdiffeq is not installed: its rows stay blank (pip install torchdiffeq)")
    records.write(args, progress(rows(args.seed), desc="gradient error"))


def rows(seed):
    """All rows of the record: relative errors of the gradients in the start and in the parameter."""
    solvers = {("torch_ACA", gradient): _ours(gradient) for gradient in GRADIENTS}
    if torchdiffeq:
        solvers["torchdiffeq", "direct"] = _torchdiffeq(torchdiffeq.odeint)
        solvers["torchdiffeq", "adjoint"] = _torchdiffeq(torchdiffeq.odeint_adjoint)
    starts = 1.0 + torch.rand(STARTS, 1, generator=generator("cpu", seed, "toy"), dtype=torch.float64)
    for (library, gradient), solver in solvers.items():
        for flow, k in RATES.items():
            for end in HORIZONS:
                for z0 in starts:
                    exact = 2 * z0 * math.exp(2 * k * end), 2 * end * z0**2 * math.exp(2 * k * end)
                    yield {
                        "problem": "toy", "flow": flow, "library": library, "gradient": gradient, "horizon": end,
                        "start": float(z0), **TOY, **gradient_errors(Linear(k), z0, end, solver, TOY, exact),
                    }  # fmt: skip
    exact = van_der_pol_gradients(START, HORIZON)
    start = torch.tensor(START, dtype=torch.float64)
    for (library, gradient), solver in solvers.items():
        for tolerance in TOLERANCES:
            tight = {"rtol": tolerance, "atol": tolerance * ODE45["atol"] / ODE45["rtol"]}
            yield {
                "problem": "van der Pol", "library": library, "gradient": gradient, "horizon": HORIZON, **tight,
                **gradient_errors(VanDerPol(), start, HORIZON, solver, tight, exact),
            }  # fmt: skip


def gradient_errors(field, start, end, solver, tolerances, exact):
    """Relative errors of d|y(end)|^2 / d start and / d parameter; None, with a status, where the solver gave up.

    :param field: module with one parameter
    :param solver: solver(field, start, end, tolerances) -> y(end), differentiable
    :param exact: both gradients
    """
    start = start.clone().requires_grad_()
    (parameter,) = field.parameters()
    try:
        loss = (solver(field, start, end, tolerances) ** 2).sum()
        found = torch.autograd.grad(loss, [start, parameter])
    except (SolverError, AssertionError, MaxEvals) as error:  # torchdiffeq's failures are assertions
        return {"error_start": None, "error_parameter": None, "status": str(error) or type(error).__name__}
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, (torch.as_tensor(e) for e in exact))]
    return {"error_start": errors[0], "error_parameter": errors[1], "status": "finished"}


def _ours(gradient):
    def solver(field, start, end, tolerances):
        return solve_endtime(field, start, 0.0, end, gradient=gradient, max_evals=MAX_EVALS, **tolerances)[0]

    return solver


class MaxEvals(Exception):
    """torchdiffeq was stopped at the same number of evaluations as our solvers."""


class _Counted(torch.nn.Module):
    """A field that raises `MaxEvals` after that many calls of one direction."""

    def __init__(self, field):
        super().__init__()
        self.field, self.calls = field, 0

    def forward(self, t, y):
        self.calls += 1
        if self.calls > 2 * MAX_EVALS:
            raise MaxEvals(f"{2 * MAX_EVALS} evaluations were reached")
        return self.field(t, y)


def _torchdiffeq(odeint):
    def solver(field, start, end, tolerances):
        times = torch.tensor([0.0, end], dtype=torch.float64)
        return odeint(_Counted(field), start, times, method="dopri5", **tolerances)[-1]

    return solver


def van_der_pol_gradients(start, end, mu=MU):
    """Exact gradients of |y(end)|^2 in y(0) [2] and mu, from the variational equations solved to 1e-12 by scipy."""

    def slope(t, state):
        y1, y2 = state[:2]
        jacobian = np.array([[0.0, 1.0], [-2 * y1 * y2 - 1, mu - y1**2]])
        sensitivity = jacobian @ state[2:].reshape(2, 3)
        sensitivity[1, 2] += y2
        return np.concatenate([[y2, (mu - y1**2) * y2 - y1], sensitivity.ravel()])

    state = np.concatenate([start, np.eye(2, 3).ravel()])
    state = solve_ivp(slope, (0.0, end), state, "DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    found = 2 * state[:2] @ state[2:].reshape(2, 3)
    return found[:2], found[2]


if __name__ == "__main__":
    run_main(main)
