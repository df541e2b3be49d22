"""Solve the three bodies in a time of their own, which passes slowly where two of them are near each other.

dt/ds = (sum over pairs of distance^-3)^(-1/2), about the time in which the closest pair would fall together, in other
units (a Sundman transformation; its power 3/2 is usual, see Hairer, Lubich and Wanner, Geometric Numerical Integration,
2nd edition, VIII.2.1). An encounter then takes about as much of s as anything else, and steps of equal s move with it
when the masses change. So the derivative at constant step sizes, which ACA's is, loses little. Not part of the paper.
"""

from types import SimpleNamespace

import torch

from three_body.physics import distances
from torch_ACA import SolverError, solve

GROWTH, TRIES = 1.5, 8
HALVINGS = 50  # of the search for an output's s, down to rounding


def pace(state):
    """dt/ds at states [..., 6, 3]: [...]."""
    return (distances(state[..., :3, :]) ** -3).sum(-1) ** -0.5


def extent(states, times):
    """How much of s a trajectory [T, ..., 6, 3] takes, at least."""
    return float(torch.trapezoid(1 / pace(states).flatten(1).amin(1), times))


def solve_in_own_time(func, start, times, end, **solver):
    """As `solve` of one system [1, 6, 3] at ``times`` [T], which begin at 0: its ``ys`` [T, 1, 6, 3] and ``stats``.

    Args:
        end: of s, to begin with; as long as the last time is not reached by then, the solve is made again up to a
            larger one. The ``stats`` are of the last solve.
        solver: keywords of `solve`.

    Raises:
        SolverError: the last time is still not reached after `TRIES` such solves: time stands still in a collision.
    """

    def field(s, state):
        y, t = state
        slowness = pace(y)
        return slowness[:, None, None] * func(t, y), slowness

    state = start, start.new_zeros(1)
    solution = solve(field, state, [0.0, end], dense=True, **solver)
    for _ in range(TRIES):
        if solution.ys[1][-1] >= times[-1]:
            break
        end *= GROWTH
        solution = solve(field, state, [0.0, end], dense=True, **solver)
    else:
        reached, stats = float(solution.ys[1][-1].detach()), solution.stats
        what = f"two bodies have all but collided, and time stands still up to s = {end:g}"
        raise SolverError(reached, 0.0, stats.n_accepted, stats.n_f_evals, what=what)
    y, t = solution(_where(solution, times, end))
    # the marks are constants; what their times lack in derivatives, the step back along the slope has
    return SimpleNamespace(ys=y - func(t, y) * (t - times[:, None])[..., None, None], stats=solution.stats)


@torch.no_grad()
def _where(solution, times, end):
    """The s [T] at which these times are reached, by bisection."""
    low, high = torch.zeros_like(times), torch.full_like(times, end)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        early = solution(middle)[1][:, 0] < times
        low, high = torch.where(early, middle, low), torch.where(early, high, middle)
    return torch.where(times == 0, times, (low + high) / 2)
