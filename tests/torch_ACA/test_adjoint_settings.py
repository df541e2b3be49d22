"""Settings of the continuous adjoint's backward solve: its norm, its tolerances, the steps of a grid."""

import math

import pytest
import torch
from torch import nn

from torch_ACA import odeint, odeint_adjoint, solve

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

T = torch.tensor([0.0, 0.4, 1.0])


def test_a_norm_of_ones_own_gets_the_parts_of_the_augmented_state(field):
    seen = []

    def norm(parts):
        seen.append([tuple(part.shape) for part in parts])
        assert parts[0] == 0.0
        return max(part.abs().max() for part in parts)

    y0 = torch.randn(5, 3, requires_grad=True)
    ys = odeint_adjoint(field, y0, T, rtol=1e-8, atol=1e-8, adjoint_options={"norm": norm})
    (found,) = torch.autograd.grad((ys**2).sum(), y0)
    (expected,) = torch.autograd.grad((odeint(field, y0, T, rtol=1e-10, atol=1e-10) ** 2).sum(), y0)
    assert float((found - expected).abs().max()) < 1e-6  # a hundred times the tolerance
    shapes = [(), (5, 3), (5, 3), *sorted(tuple(p.shape) for p in field.parameters())]
    assert len(seen) > 5 and all([*s[:3], *sorted(s[3:])] == shapes for s in seen)


@pytest.mark.skipif(torchdiffeq is None, reason="torchdiffeq is not installed")
@pytest.mark.parametrize("nested", [False, True])
def test_the_norm_gets_what_that_of_torchdiffeq_gets(nested):
    """The same number of parts, of the same shapes, in the same order: one parameter, so that there is but one."""
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((4,), 0.3))

        def forward(self, t, y):
            slope = lambda part: -self.scale.sum() * part  # noqa: E731
            return tuple(map(slope, y)) if nested else slope(y)

    y0 = torch.ones(2, 3)
    seen = {}
    for library in (odeint_adjoint, torchdiffeq.odeint_adjoint):
        def norm(parts, library=library):
            seen[library] = [tuple(part.shape) for part in parts]
            return max(part.abs().max() for part in parts)

        ys = library(Scaled(), (y0, y0[0]) if nested else y0, T, adjoint_options={"norm": norm})
        (ys[0] if nested else ys)[-1].sum().backward()
    ours, theirs = seen.values()
    assert ours == theirs and len(ours) == (6 if nested else 4)


def test_the_norms_weigh_what_they_say():
    """A parameter whose gradient wiggles takes small steps, unless the norm leaves it out."""
    wiggle = nn.Parameter(torch.zeros(()))

    def func(t, y):
        return -y + wiggle * torch.sin(100 * t)

    counts = {}
    norms = {"default": None, "seminorm": "seminorm", "own": lambda parts: max(p.abs().max() for p in parts[:3])}
    for name, norm in norms.items():
        adjoint = {"options": {"norm": norm}}
        solution = solve(func, torch.ones(1, requires_grad=True), T, gradient="adjoint", adjoint=adjoint)
        solution.ys[-1].sum().backward()
        counts[name] = solution.stats.n_backward_f_evals
    assert counts["default"] > 3 * counts["seminorm"] and counts["own"] < 2 * counts["seminorm"]


def test_the_forward_norm_measures_the_state_and_its_cotangent_backwards():
    """With a norm that sees nothing, the backward solve of func without parameters has no reason to reject a step."""
    results = [
        solve(lambda t, y: torch.cos(20 * t) * y, torch.ones(1, requires_grad=True), T, gradient="adjoint",
              h=0.5, options=options)
        for options in ({}, {"norm": lambda y: 0.0 * y.abs().max()})
    ]  # fmt: skip
    for solution in results:
        solution.ys.sum().backward()
    assert results[1].stats.n_backward_f_evals < 0.5 * results[0].stats.n_backward_f_evals


@pytest.mark.parametrize("tolerances", [
    {"rtol": [1e-9, 1e-6], "atol": [1e-9, 1e-6]}, {"rtol": (1e-9, 1e-6), "atol": 1e-9},
    {"adjoint_rtol": [1e-9, 1e-6], "adjoint_atol": (1e-9, torch.full((2,), 1e-6))},
])  # fmt: skip
def test_tolerances_per_part(tolerances):
    scale = torch.tensor(0.5, requires_grad=True)
    y0 = (torch.ones(3, requires_grad=True), torch.ones(2))
    ys = odeint_adjoint(lambda t, y: (-scale * y[0], torch.cos(9 * t) * y[1]), y0, T, **tolerances)
    found = torch.autograd.grad(ys[0][-1].sum(), [y0[0], scale])
    assert float((found[0] - math.exp(-0.5)).abs().max()) < 1e-6  # a thousand times the tolerance of that part
    assert float(found[1]) == pytest.approx(-3 * math.exp(-0.5), abs=1e-5)


def test_tolerances_of_a_tensor_given_as_a_list():
    y0 = torch.ones(2, requires_grad=True)
    ys = odeint_adjoint(lambda t, y: -y, y0, T, rtol=[1e-9, 1e-9], atol=[1e-9, 1e-3])
    assert float((torch.autograd.grad(ys[-1].sum(), y0)[0] - math.exp(-1)).abs().max()) < 1e-6


def test_sparse_gradients():
    """An embedding with sparse gradients gets those of a dense one."""
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(5, 3, sparse=sparse)
        index = torch.tensor([1, 3, 1])
        ys = solve(lambda t, y: torch.tanh(y * embedding(index)).sum(0).expand_as(y), torch.ones(3, 3), T,
                   gradient="adjoint")  # fmt: skip
        ys.ys.sum().backward()
        results.append(embedding.weight.grad)
    assert results[0].abs().max() > 0.1 and torch.equal(results[0], results[1])


def test_cotangents_that_are_not_finite_give_gradients_that_are_not():
    """As where the scale of a loss overflows: `torch.amp.GradScaler` then leaves the step out."""
    y0, w = torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)
    times = T.clone().requires_grad_()
    ys = solve(lambda t, y: -w * y, y0, times, gradient="adjoint").ys
    for gradient in torch.autograd.grad((ys[-1] * torch.tensor([1.0, math.inf])).sum(), [y0, w, times]):
        assert not bool(gradient.isfinite().any())
    ys = odeint_adjoint(lambda t, y: -y, y0, T, method="rk4", options={"step_size": 0.1})  # which goes on all the same
    (gradient,) = torch.autograd.grad((ys[-1] * torch.tensor([1.0, math.inf])).sum(), y0)
    assert gradient.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("points", [2, 4])
def test_a_grid_is_stepped_through_backwards_as_well(points):
    """gradient of y(1) of y' = 3 w y by 30 steps of rk4: the exact one to 1e-5; one step per output is 0.1 off."""
    w = torch.tensor(-1.0, requires_grad=True)
    t = torch.linspace(0, 1, points)
    grid = torch.linspace(0, 1, 31)
    ys = solve(lambda t, y: w * y * 3, torch.ones(1), t, gradient="adjoint", method="rk4", options={"grid": grid}).ys
    (g,) = torch.autograd.grad(ys[-1].sum(), w)
    assert float(g) == pytest.approx(3 * math.exp(-3), abs=1e-5)
    (backwards,) = torch.autograd.grad(
        solve(lambda t, y: -3 * w * y, torch.ones(1), t.flip(0), gradient="adjoint", method="rk4",
              options={"grid": grid.flip(0)}).ys[-1].sum(), w)  # fmt: skip
    assert float(backwards) == pytest.approx(3 * math.exp(-3), abs=1e-5)
