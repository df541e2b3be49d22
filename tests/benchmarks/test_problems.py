"""What is solved, and the references that errors are measured against."""

import pytest
import torch

from benchmarks.limit import Limit
from benchmarks.problems import PROBLEMS, TRIANGLE, build
from three_body.data import simulate
from torch_ACA import solve
from van_der_pol.gradient_error import van_der_pol_gradients


def test_the_same_seed_gives_the_same_problem_at_any_tolerance():
    first, second, other = build("mlp_dopri5"), build("mlp_dopri5"), build("mlp_dopri5", seed=1)
    assert torch.equal(first.y0, second.y0) and not torch.equal(first.y0, other.y0)
    assert all(torch.equal(a, b) for a, b in zip(first.func.parameters(), second.func.parameters()))


def test_references_agree_with_independent_solutions():
    problem = build("van_der_pol")
    _, gradient = problem.reference_solution()
    of_start, of_mu = van_der_pol_gradients(problem.y0.tolist(), float(problem.times[-1]))
    # both carry the rounding of some hundred steps at 1e-12
    assert gradient.tolist() == pytest.approx([*of_start, of_mu], rel=1e-8)

    problem = build("three_body_outputs")
    ys, _ = problem.reference_solution()
    truth = simulate(TRIANGLE, problem.times)[1:]
    assert (ys - truth.flatten()).norm() / truth.norm() < 1e-10


def test_reference_leaves_the_problem_as_it_was():
    problem = build("mlp_heun")
    before = [p.clone() for p in problem.func.parameters()]
    problem.reference_solution()
    assert all(p.dtype == torch.float32 and torch.equal(p, b) for p, b in zip(problem.func.parameters(), before))


def test_loss_is_a_mean_over_outputs():
    ys = torch.arange(12.0).view(2, 2, 3)
    assert build("three_body_end").loss(ys) == sum(i * i for i in range(12)) / 2


@pytest.mark.parametrize("name, stages", [("three_body_end", 6), ("mlp_heun", 2)])
def test_the_limit_counts_the_stages_of_accepted_steps(name, stages):
    problem = build(name)
    stats = solve(problem.func, problem.y0, problem.times, **problem.solver).stats
    assert problem.accepted_evaluations() == stages * stats.n_accepted + 1

    calls, vjps = [], []

    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.func = problem.func

        def forward(self, t, y):
            slope = self.func(t, y)
            calls.append(slope.requires_grad)
            if slope.requires_grad:
                slope.register_hook(lambda bar: vjps.append(1))
            return slope

    object.__setattr__(problem, "func", Watched())
    limit = Limit(problem, 5)
    limit.evaluations()
    assert calls == [False] * 5 and not vjps
    limit.vjps()
    assert calls[5:] == [True] * 5 and len(vjps) == 5


def test_steps_grow_with_the_horizon():
    counts = [build(name).n_accepted() for name in PROBLEMS if name.startswith("memory_")]
    assert counts == pytest.approx([10, 40, 160], rel=0.15)
