"""How good the first gradient of Newton's law with unknown masses is, by method and tolerance, and what spoils it.

All at the masses that a training starts from, with the training's own loss. Exact: the gradient of a solve by dopri8 at
1e-13, checked by central differences of scipy's solution. Rows by ``kind``:

tolerance    relative error of each method's gradient, and of the loss
horizon      for some seeds: the same at the paper's tolerance where the loss ends earlier, with the distance of the
             closest pair there
correction   the same for aca with other settings, and what they cost
differences  how far each gradient is from central differences of the loss that the solver computes: with step sizes
             that it chooses anew, and on the grid of the first solve
step         for these seeds: what each step adds to the difference of naive and aca: the derivative of the loss in
             the step's end, times that of this end in the masses, both by differences
"""

from functools import partial

import numpy as np
import torch
from scipy.integrate import solve_ivp

from harness.cli import run_main
from harness.measurement import measurement_parser, write_parts
from harness.seeding import seed_everything
from three_body.data import PAPER, as_dict, simulate, time_grid
from three_body.experiment import ThreeBody
from three_body.models import NewtonODE
from three_body.own_time import extent, solve_in_own_time
from three_body.physics import distances, slope
from torch_ACA import SolverError, solve

SEEDS = list(range(10))
THOROUGH = 4  # seeds from this one on: only BRIEF tolerances, not the adjoint, and no differences
BRIEF = (1e-3, 1e-5, 1e-7, 1e-9)
TOLERANCES = {  # those of the other methods end where they cost much and show nothing new
    "aca": tuple(10.0**-k for k in range(3, 13)),
    "naive": tuple(10.0**-k for k in range(3, 10)),
    "adjoint": (1e-3, 1e-5, 1e-7, 1e-9),
    "aca, own time": tuple(10.0**-k for k in range(3, 10)),
}
PAPERS = 1e-5  # tolerance of section D.4
HORIZONS = tuple(k / 10 for k in range(1, 11))
LOOKED_INTO = (2, 0)  # seeds with rows of every kind: one whose gradient is far off, and an ordinary one
EXACT = {"method": "dopri8", "rtol": 1e-13, "atol": 1e-13}
SHIFT, TIGHT_SHIFT = 1e-7, 1e-5  # of a mass for differences: of what the solver computes, and of scipy's solution
NEAR = 0.1  # distance below which a correction lands often
CORRECTIONS = {
    "as it is": {},
    "lands 20 times": {"step_t": 20},
    "lands 100 times": {"step_t": 100},
    "lands where bodies are near": {"step_t": "near"},
    "safety 0.5": {"safety": 0.5},
    "PI controller": {"beta": 0.04},
    "dopri8": {"method": "dopri8"},
    "direct": {"gradient": "direct"},
    "own time": {"own_time": True},
}
FOLDER = ThreeBody().results / "first_gradient"


class Problem:
    """The field that a training with this seed starts from, and the training's loss until a horizon."""

    def __init__(self, seed, horizon=1.0):
        times = time_grid(1.0)
        self.times = times[: round(horizon * len(times))]
        self.truth = simulate(PAPER, times)[: len(self.times), None]
        seed_everything(seed)
        self.model = NewtonODE()

    def loss(self, states):
        return ((states - self.truth)[:, :, :3] ** 2).sum((-2, -1)).mean()

    def solve(self, masses=None, **keywords):
        """The solution with these masses (None: the model's own)."""
        own = self.model.masses
        field = self.model if masses is None else lambda t, y: slope(masses, y)
        settings = {"method": "Dopri5", "rtol": PAPERS, "atol": PAPERS} | keywords
        with torch.set_grad_enabled(masses is None and own.requires_grad):
            if settings.pop("own_time", False):
                return solve_in_own_time(field, self.truth[0], self.times, extent(self.truth, self.times), **settings)
            return solve(field, self.truth[0], self.times, **settings)

    def gradient(self, **keywords):
        """The gradient [3] of the loss in the masses, the loss, and the solution."""
        solution = self.solve(**keywords)
        loss = self.loss(solution.ys)
        (gradient,) = torch.autograd.grad(loss, [self.model.masses])
        return gradient, float(loss.detach()), solution

    def by_differences(self, loss_of, shift):
        """Central differences [3] of a function of the masses."""
        masses, found = self.model.masses.detach(), []
        for direction in shift * torch.eye(3, dtype=torch.float64):
            found.append((loss_of(masses + direction) - loss_of(masses - direction)) / (2 * shift))
        return torch.stack([torch.as_tensor(one) for one in found])

    def loss_by_scipy(self, masses):
        def field(t, y):
            return slope(masses, torch.from_numpy(y).view(6, 3)).flatten().numpy()

        start, times = self.truth[0].flatten().numpy(), self.times.numpy()
        found = solve_ivp(field, times[[0, -1]], start, "DOP853", t_eval=times, rtol=1e-13, atol=1e-13).y
        return self.loss(torch.from_numpy(found.T.copy()).view(-1, 1, 6, 3))


def main(argv=None):
    args = measurement_parser(__doc__.partition("\n")[0], FOLDER).parse_args(argv)
    torch.set_num_threads(args.threads)
    write_parts(args, SEEDS, rows, system=as_dict(PAPER))


def rows(seed):
    """All rows of a seed."""
    problem = Problem(seed)
    exact, loss, solution = problem.gradient(**EXACT)
    known = seed in LOOKED_INTO
    check = problem.by_differences(problem.loss_by_scipy, TIGHT_SHIFT) if known else None
    own = {"seed": seed, "masses": problem.model.masses.tolist()}
    yield own | {
        "kind": "exact",
        "gradient": exact.tolist(),
        "loss": loss,
        "differ": relative(check, exact) if known else None,
    }
    for method, tolerances in TOLERANCES.items():
        name, _, own_time = method.partition(", ")
        if seed >= THOROUGH:
            tolerances = BRIEF if method != "adjoint" else ()
        for tolerance in tolerances:
            keywords = {"gradient": name, "rtol": tolerance, "atol": tolerance, "own_time": bool(own_time)}
            what = {"kind": "tolerance", "method": method, "tolerance": tolerance}
            yield own | what | errors(problem, exact, loss, **keywords)
    for name, changed in CORRECTIONS.items():
        keywords = corrected(changed, problem, solution)
        yield own | {"kind": "correction", "name": name} | errors(problem, exact, loss, **keywords)
    if seed < THOROUGH:
        yield own | {"kind": "differences"} | differences(problem)
    if known:
        yield from horizons(seed)
        yield from (own | {"kind": "step"} | row for row in steps(problem))


def errors(problem, exact, exact_loss, **keywords):
    """Relative errors of the gradient and the loss, and costs; None, with a status, where the solver gave up."""
    try:
        gradient, loss, solution = problem.gradient(**keywords)
    except SolverError as error:
        return {"error": None, "status": str(error)}
    stats = solution.stats
    return {
        "error": relative(gradient, exact), "loss_error": abs(loss - exact_loss) / exact_loss, "status": "finished",
        "gradient": gradient.tolist(), "evaluations": stats.n_f_evals + stats.n_backward_f_evals,
        "accepted": stats.n_accepted, "rejected": stats.n_rejected,
    }  # fmt: skip


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())


def horizons(seed):
    for horizon in HORIZONS:
        problem = Problem(seed, horizon)
        exact, loss, solution = problem.gradient(**EXACT)
        near = float(closest(solution)[-1])
        for method in ("aca", "naive"):
            what = {"kind": "horizon", "seed": seed, "horizon": horizon, "method": method, "distance": near}
            yield what | errors(problem, exact, loss, gradient=method)


def closest(solution):
    """The distance of the closest pair at each output [m]."""
    return distances(solution.ys.detach()[:, 0, :3]).min(1).values


def corrected(changed, problem, solution):
    """Keywords of `solve` for one of CORRECTIONS; ``solution`` tells where bodies are near each other."""
    changed = dict(changed)
    if changed.keys() & {"method", "gradient", "own_time"}:
        return changed
    stops = changed.get("step_t")
    if stops == "near":  # at every fifth output there
        near = problem.times[1:-1][closest(solution)[1:-1] < NEAR]
        changed["step_t"] = near[::5].tolist()
    elif stops:
        changed["step_t"] = np.linspace(0, float(problem.times[-1]), stops + 2)[1:-1].tolist()
    return {"options": changed} if changed else {}


def differences(problem):
    """How far the gradients of aca and naive are from central differences of the loss that the solver computes."""
    aca, _, solution = problem.gradient(record=True)
    naive, *_ = problem.gradient(gradient="naive")
    grid = solution.record.times.tolist()

    def loss(masses, **keywords):
        return problem.loss(problem.solve(masses, **keywords).ys)

    anew = problem.by_differences(loss, SHIFT)
    frozen = problem.by_differences(partial(on_grid, problem, grid), SHIFT)
    return {"frozen_aca": relative(aca, frozen), "anew_naive": relative(naive, anew), "anew_aca": relative(aca, anew)}


def on_grid(problem, grid, masses):
    return problem.loss(problem.solve(masses, options={"grid": grid}).ys)


def steps(problem):
    """For each inner end of a step: what its change with the masses adds to the gradient, and the closest distance."""
    masses = problem.model.masses.detach()
    first = problem.solve(masses, record=True).record
    times = first.times

    def ends(masses):
        moved = problem.solve(masses, record=True).record.times
        if len(moved) != len(times):
            raise RuntimeError("a shifted mass changes the number of steps: take a smaller SHIFT")
        return moved

    moves = problem.by_differences(ends, SHIFT)  # [3, steps + 1]
    for i in range(1, len(times) - 1):
        grid, size = times.tolist(), 1e-6 * float(times[i + 1] - times[i - 1])
        losses = []
        for shift in (-size, size):
            grid[i] = float(times[i]) + shift
            losses.append(float(on_grid(problem, grid, masses)))
        added = (losses[1] - losses[0]) / (2 * size) * moves[:, i]
        near = float(distances(first.states[i].view(6, 3)[:3]).min())
        yield {"t": float(times[i]), "h": float(times[i] - times[i - 1]), "added": added.tolist(), "distance": near}


if __name__ == "__main__":
    run_main(main)
