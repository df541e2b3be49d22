"""Solves and backward passes inside of `torch.inference_mode`: what they are outside of it."""

import contextlib

import pytest
import torch

from torch_ACA import solve, solve_event

STIFF = {"method": "Rodas5P", "rtol": 1e-6, "atol": 1e-6}


def both_modes(run):
    """What run() gives with autograd merely off, and in inference mode."""
    found = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found.append(run())
    return found


@pytest.mark.parametrize("keywords", [
    {}, {"jac_structure": "rows"}, {"per_sample": True}, {"method": "auto", "rtol": 1e-4, "atol": 1e-4},
    {"per_sample": True, "args": True}, {"jac": True},
], ids=str)  # fmt: skip
def test_stiff_methods_take_the_derivatives_of_a_func_of_the_time_and_of_tensors_made_there(keywords):
    def run():
        rates = torch.tensor([[3.0, 400.0], [5.0, 300.0], [2.0, 500.0]], dtype=torch.float64)
        given = dict(keywords)
        if "args" in given:
            given["args"] = (rates,)
        if "jac" in given:
            given["jac"] = lambda t, y: torch.diag((-rates).flatten())

        def func(t, y, rates=rates):
            return rates * (torch.sin(3 * t) - y)

        solution = solve(func, torch.ones(3, 2, dtype=torch.float64), [0.0, 0.3, 1.0], **STIFF | given)
        return solution.ys, solution.stats

    (expected, counts), (found, as_many) = both_modes(run)
    assert torch.equal(expected, found)
    for name in ("n_accepted", "n_rejected", "n_jacobians"):
        assert torch.equal(*(torch.as_tensor(getattr(stats, name)) for stats in (counts, as_many)))


def test_a_stiff_solve_to_an_event():
    def run():
        rate = torch.tensor(300.0, dtype=torch.float64)
        return solve_event(
            lambda t, y: rate * (torch.sin(3 * t) - y), torch.zeros(1, dtype=torch.float64), 0.0,
            event_fn=lambda t, y: y[0] - 0.5, **STIFF,
        )  # fmt: skip

    (expected, _), (found, _) = both_modes(run)
    torch.testing.assert_close(expected, found, rtol=1e-6, atol=0)  # without a derivative, to the tolerance


@pytest.mark.parametrize("keywords", [
    {"method": "Dopri5"}, {"method": "Dopri5", "memory": "states"}, {"gradient": "adjoint"}, {"gradient": "mali"},
    {"method": "explicit_adams", "h": 0.1}, {"method": "Dopri5", "per_sample": True},
    STIFF, STIFF | {"memory": "states"}, STIFF | {"gradient": "direct"}, STIFF | {"jac_structure": "rows"},
    STIFF | {"per_sample": True},
], ids=str)  # fmt: skip
def test_the_backward_pass_is_the_same(keywords):
    matrix = torch.tensor([[-1.0, 0.5], [0.3, -9.0]], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for mode in (contextlib.nullcontext, torch.inference_mode):
        ys = solve(lambda t, y: torch.tanh(y @ matrix.T), y0, [0.0, 0.4, 1.0], **keywords).ys
        for _ in range(2):  # the second time, kept graphs are used up
            with mode():
                bars = torch.ones_like(ys)
                found.append(torch.autograd.grad(ys, [y0, matrix], bars, retain_graph=True))
    for bars in found[1:]:
        for a, b in zip(found[0], bars, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.loops
@pytest.mark.usefixtures("ungenerated")
@pytest.mark.parametrize("keywords", [{}, pytest.param({"per_sample": True}, marks=pytest.mark.slow)], ids=str)
def test_generated_code_has_the_jacobian(keywords):
    """It is generated in inference mode, and serves outside of it."""
    rates = torch.tensor([-1e4, -1.0], dtype=torch.float64)

    def func(t, y):
        return y * rates + torch.tanh(y).flip(-1)

    counts = []
    for mode in (torch.inference_mode, torch.no_grad):
        for compile in (True, False):
            with mode():
                y0 = torch.ones(1, 2, dtype=torch.float64)
                counts.append(solve(func, y0, [0.0, 1.0], **STIFF | keywords, compile=compile).stats)
    for stats in counts:
        assert int(torch.as_tensor(stats.n_accepted).sum()) == int(torch.as_tensor(counts[-1].n_accepted).sum()) < 100
