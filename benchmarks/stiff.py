"""Stiff problems: Rodas5P beside what else there is, with errors in units of what each component reaches."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import nn

from benchmarks import stiff_fields as fields
from benchmarks.problems import Check, Problem, flat
from torch_ACA import solve

TIGHT = 1e-10


class StiffField(nn.Module):
    """A field of `stiff_fields`, with the factors on its constants, or its weights, as parameters [k], or [b, k] for
    rows [b, n]."""

    def __init__(self, field, factors):
        super().__init__()
        self.field, self.factors = field, nn.Parameter(torch.as_tensor(factors, dtype=torch.float64))

    def forward(self, t, y):
        return self.slope(torch, y, self.factors)

    def slope(self, xp, y, factors):
        """df/dt by another library."""
        return self.field(xp, y, factors) if y.ndim == 1 else self.field(xp, y.T, factors.T).T


@dataclass(frozen=True)
class StiffProblem(Problem):
    """``scale`` [n]: what the components reach; ``atol`` is in proportion to rtol; ``by_rows``: y0 [b, n] are
    independent systems. The gradient is that in the factors alone."""

    scale: torch.Tensor | None = None
    by_rows: bool = False
    counts_start = False

    def measured(self, ys):
        return ys / (self.scale if isinstance(ys, torch.Tensor) else self.scale.numpy())

    @property
    def solver(self):
        structure = {"jac_structure": "rows"} if self.by_rows else {}
        return {"method": self.method, "rtol": self.rtol, "atol": self.atol} | structure

    def reference_solution(self):
        """As that of a `Problem`; states by scipy's Radau, the gradient by Rodas5P."""
        tight = replace(self, rtol=TIGHT, atol=self.atol * TIGHT / self.rtol)
        ys = solve(self.func, self.y0, self.times, **tight.solver).ys[1:]
        gradients = torch.autograd.grad(self.loss(ys), [*self.func.parameters()])
        return flat([self.measured(radau(tight))]), flat(gradients)


def radau(problem):
    """States behind times[0] by scipy, row by row."""
    factors, starts = (x.detach().numpy() for x in (problem.func.factors, problem.y0))
    if not problem.by_rows:
        factors, starts = factors[None], starts[None]
    rows = [
        solve_ivp(
            lambda t, y, p=p: problem.func.field(np, y, p), problem.times[[0, -1]].tolist(), start, "Radau",
            problem.times.tolist(), rtol=problem.rtol, atol=problem.atol,
        )
        for p, start in zip(factors, starts)
    ]  # fmt: skip
    for row in rows:
        if not row.success:
            raise RuntimeError(row.message)
    ys = torch.tensor(np.stack([row.y.T[1:] for row in rows], 1))
    return ys if problem.by_rows else ys[:, 0]


class Radau:
    """scipy's Radau, without a gradient; like `solvers.Prepared`."""

    def __init__(self, problem):
        self.problem = problem

    def __call__(self):
        return radau(self.problem)

    def check(self):
        return Check(flat([self.problem.measured(self())]), None, None, None)


def _problem(title, field, start, times, factors, scale, absolute):
    """:param factors: p of the field, or how many ones
    :param absolute: atol over rtol
    """
    factors = np.ones(factors) if isinstance(factors, int) else factors

    def build(quick, tolerance=1e-6):
        y0 = torch.as_tensor(start, dtype=torch.float64)
        return StiffProblem(
            title, StiffField(field, factors), y0, torch.as_tensor(times, dtype=torch.float64), "Rodas5P", tolerance,
            tolerance * absolute, scale=torch.as_tensor(scale, dtype=torch.float64).expand(len(y0)),
        )  # fmt: skip

    return build


def robertson_rows(quick, tolerance=1e-6):
    """Systems whose constants differ, by some 20 %."""
    count = 16 if quick else 256
    one = PROBLEMS["stiff_robertson"](quick, tolerance)
    factors = torch.exp(0.2 * torch.randn(count, 3, dtype=torch.float64))
    return replace(
        one, title=f"Robertson, {count} rows", func=StiffField(fields.robertson, factors), by_rows=True,
        y0=one.y0.expand(count, 3).contiguous(), times=one.times[[0, -1]],
    )  # fmt: skip


def reaction_diffusion(quick, tolerance=1e-6):
    n = 16 if quick else 64
    return _problem(
        f"Diffusion with a learned reaction, {n}", fields.reaction_diffusion, fields.reaction_diffusion_start(n),
        np.linspace(0, 1, 11), fields.REACTION_WEIGHTS.ravel(), 1.0, 1.0,
    )(quick, tolerance)  # fmt: skip


_HIRES_SCALE = (1, 0.0038, 0.0028, 0.05, 0.19, 0.75, 0.0057, 0.0057)
_POLLU_SCALE = (
    *(5.7e-2, 0.2, 1e-9, 0.04, 4e-7, 2e-7, 0.1, 0.33, 0.01, 3e-8, 2e-8, 7e-3, 1e-2, 3e-3, 6e-3, 1e-16, 7e-3, 3e-3),
    *(1e-4, 6e-5),
)
PROBLEMS = {
    "stiff_robertson": _problem(
        "Robertson", fields.robertson, fields.ROBERTSON_START, fields.ROBERTSON_TIMES, 3, fields.ROBERTSON_SCALE, 1e-4
    ),
    "stiff_robertson_rows": robertson_rows,
    "stiff_hires": _problem(
        "HIRES", fields.hires, fields.HIRES_START, np.linspace(0, 321.8122, 51), 6, _HIRES_SCALE, 1e-3
    ),
    "stiff_pollu": _problem(
        "POLLU", fields.pollu, fields.POLLU_START, np.linspace(0, 60, 21), 25, _POLLU_SCALE, 1e-6
    ),
    "stiff_reaction_diffusion": reaction_diffusion,
    "stiff_van_der_pol": _problem(
        "Van der Pol, mu = 1000", fields.van_der_pol, [2.0, 0.0], np.linspace(0, 3000, 61), 1, [2.0, 1e-2], 1.0
    ),
}
