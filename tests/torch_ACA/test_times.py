"""Times as people give them: sequences with tensors among them, arrays, single numbers, far from zero."""

import time
import warnings

import numpy as np
import pytest
import torch

from torch_ACA import odeint, odeint_adjoint, solve

GRADIENTS = ["aca", "direct", "naive", "adjoint", "mali"]


def decay(t, y):
    return -y


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_sequence_keeps_the_gradient_of_its_tensors(gradient, kind):
    """The same gradients as from a stacked tensor, to the last bit: it is the same solve."""
    found = []
    for make in (kind, lambda times: torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in times])):
        middle, end = torch.tensor(0.4, requires_grad=True), torch.tensor(1.0, dtype=torch.float32, requires_grad=True)
        ys = solve(decay, torch.ones(2), make([0.0, middle, end]), gradient=gradient).ys
        found.append(torch.autograd.grad((ys**2).sum(), [middle, end]))
    assert all(float(g) < -0.1 for g in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_a_sequence_keeps_them_in_the_interface_of_torchdiffeq_too(interface):
    t1 = torch.tensor(1.0, requires_grad=True)
    (g,) = torch.autograd.grad(interface(decay, torch.ones(1), [0.0, t1])[-1].sum(), t1)
    assert float(g) == pytest.approx(-np.exp(-1.0), abs=1e-7)


@pytest.mark.parametrize("t", [
    [0, 1], (0.0, 1.0), range(2), np.array([0.0, 1.0]), np.array([0.0, 1.0], dtype=np.float32), np.arange(2),
    [np.float32(0.0), torch.tensor(1)], [torch.tensor([0.0]), 1.0],
])  # fmt: skip
def test_kinds_of_times(t):
    solution = solve(decay, torch.ones(1), t)
    assert solution.ts.tolist() == [0.0, 1.0] and solution.ts.dtype == torch.float64
    assert torch.equal(solution.ys, solve(decay, torch.ones(1), torch.tensor([0.0, 1.0])).ys)


@pytest.mark.parametrize("t,error,message", [
    (1.0, TypeError, r"t must be a tensor, array or sequence of times, such as \[0.0, 1.0\], got 1\.0"),
    (None, TypeError, "t must be a tensor, array or sequence of times, .*got None"),
    (["a", "b"], TypeError, "sequence of times, .*got"),
    ([[0.0, 1.0]], TypeError, "sequence of times, .*got"),
    ([0.0, torch.ones(2)], TypeError, "sequence of times, .*got"),
    (torch.tensor(1.0), ValueError, r"t must be 1-D with at least two times, got shape \(\)"),
    (np.ones((2, 2)), ValueError, r"t must be 1-D with at least two times, got shape \(2, 2\)"),
    (torch.ones(2, dtype=torch.complex128), TypeError, "t must be real"),
])  # fmt: skip
@pytest.mark.parametrize("interface", [solve, odeint, odeint_adjoint])
def test_bad_times_are_named(t, error, message, interface):
    with pytest.raises(error, match=message):
        interface(decay, torch.ones(1), t)


def far(state=torch.float32, t0=1.7e9, span=3.0, dtype=torch.float64):
    t = torch.tensor([t0, t0 + span], dtype=dtype)
    return torch.zeros(1, dtype=state, requires_grad=True), t


@pytest.mark.parametrize("interface", [solve, odeint, odeint_adjoint])
def test_times_that_float32_cannot_tell_apart_warn_at_the_callers_line(interface):
    with pytest.warns(UserWarning, match=r"times near 1.7e\+09 to within 2e\+02.*start near 0.*float64") as caught:
        interface(lambda t, y: torch.sin(t) * torch.ones_like(y), *far())
    assert [w.filename for w in caught] == [__file__]


def test_times_that_are_fine_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in (far(torch.float64), far(t0=0.0), far(t0=1e3, span=0.05), far(t0=0.0, span=1e-9)):
            solve(decay, *case)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_callbacks_get_times_in_float64(method):
    class Watched(torch.nn.Module):
        seen = ()

        def forward(self, t, y):
            return -y

        def callback_step(self, t, y, dt):
            self.seen += ((t.dtype, dt.dtype, float(t)),)

        callback_step_adjoint = callback_step

    torch.set_default_dtype(torch.float32)
    watched, t = Watched(), torch.tensor([1e8 + 0.1, 1e8 + 1], dtype=torch.float64)
    odeint_adjoint(watched, torch.ones(1, dtype=torch.float64, requires_grad=True), t, method=method).sum().backward()
    assert {times[:2] for times in watched.seen} == {(torch.float64, torch.float64)}
    assert watched.seen[0][2] == t[0].item() and watched.seen[-1][2] > t[0].item()


def test_many_outputs_cost_linear_time():
    """A list that gives its first entry away takes 7 s for 200,000 outputs; a tenth of a second is usual."""
    t = torch.linspace(0, 1, 200_000)
    for gradient in ("aca", "mali"):
        start = time.process_time()
        solve(decay, torch.ones(1), t, gradient=gradient)
        assert time.process_time() - start < 2.5


@pytest.mark.parametrize("keywords", [
    {}, {"memory": "states"}, {"gradient": "direct"}, {"gradient": "naive"}, {"gradient": "adjoint"},
    {"gradient": "mali", "method": "ALF"}, {"method": "RK4", "h": 0.1}, {"per_sample": True}, {"compile": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("rows", [False, True])
def test_times_may_be_moved_on_in_place(rows, keywords, ungenerated):
    """As in a loop of solves: each keeps its own."""
    if rows and not keywords.get("per_sample"):
        pytest.skip("times of rows")

    def gradient(moved):
        w, y = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), torch.ones(3, 2, dtype=torch.float64)
        t = torch.tensor([0.0, 0.5], dtype=torch.float64).expand(*([3] if rows else []), 2).clone()
        times = []
        for _ in range(3):
            solution = solve(lambda t, y: -w * y * torch.cos(t), y, t, **keywords)
            y = solution.ys[-1]
            times.append(solution.ts)
            if moved:
                t += 0.5
            else:
                t = t + 0.5
        assert [ts.reshape(-1)[0].item() for ts in times] == [0.0, 0.5, 1.0]
        return torch.autograd.grad(y.sum(), w)[0]

    assert torch.equal(gradient(True), gradient(False))
