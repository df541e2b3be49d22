"""Stiff rows that take steps of their own: a Rosenbrock method with a Jacobian for each row."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from benchmarks.stiff_fields import ROBERTSON_SCALE, ROBERTSON_START, robertson, robertson_with_sensitivities
from torch_ACA import SolverOptions, TooManyEvaluationsError, solve, solve_event
from torch_ACA.errors import JacobianError, SecondDerivativeError
from torch_ACA.rosenbrock_tableaus import RODAS5P
from torch_ACA.rows.problem import problem_of_rows
from torch_ACA.rows.solve import RowSolve
from torch_ACA.steppers.dense_output import combine

ROUNDING = 1e-12  # of the same float64 operations in another order, relative to the largest entry
ROWS = 3
SETTINGS = {"method": "Rodas5P", "rtol": 1e-6, "atol": 1e-6}
COARSE = SETTINGS | {"rtol": 1e-3, "atol": 1e-3}  # few steps, where they are compared


def assert_close(found, expected, tolerance=ROUNDING):
    scale = max(1e-300, float(expected.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


def van_der_pol(mu, shared=1.0):
    """States [b, 2], driven by their times, with stiffness mu [b, 1]."""

    def func(t, y):
        x, v = y[:, :1], y[:, 1:]
        return shared * torch.cat([v, mu * ((1 - x * x) * v - x) + 0.1 * torch.cos(t)], 1)

    return func


def wide(mu, shared=1.0):
    """States [b, 10], more numbers than the method has stages, coupled to their neighbours at stiffness mu [b, 1]."""

    def func(t, y):
        return shared * (0.1 * mu * (y.roll(1, 1) - 2 * y + y.roll(-1, 1)) - y**3 + torch.cos(t + torch.arange(10)))

    return func


def batch(width, direction=1):
    """Stiffness [b, 1], starts [b, width] and times [b, 4], a row each."""
    mu = torch.logspace(0, 3, ROWS)[:, None].requires_grad_()
    y0 = (2.0 + 0.1 * torch.randn(ROWS, width)).requires_grad_()
    t = direction * torch.cat([torch.rand(ROWS, 1), 0.1 + 0.3 * torch.rand(ROWS, 3)], 1).cumsum(1)
    return mu, y0, t.requires_grad_()


@pytest.mark.parametrize("field, width", [(van_der_pol, 2), pytest.param(wide, 10, marks=pytest.mark.slow)])
def test_gradient_of_a_row_is_that_of_its_own_accepted_steps(field, width):
    """Against autograd, twice, over the row's steps with its Jacobian written out here; the steps are those that the
    row takes alone, which are the same to the last bit."""
    mu, y0, t = batch(width)
    shared, weights = torch.tensor(0.7, requires_grad=True), torch.randn(4, ROWS, width)
    solution = solve(field(mu, shared), y0, t, per_sample=True, **COARSE)
    loss = (solution.ys * weights).sum()
    found = torch.autograd.grad(loss, [y0, mu, t, shared], retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(loss, [y0, mu, t, shared], create_graph=True)):
        assert_close(one, other)
    (first,) = torch.autograd.grad(loss, shared, create_graph=True)
    seconds = torch.autograd.grad(first, [y0, mu, t])
    shared_bar, expected_seconds = torch.zeros(()), []
    for row in range(ROWS):
        inputs = [x[row : row + 1].detach().requires_grad_() for x in (y0, mu, t)]
        ys = written_out(field(inputs[1], shared), inputs[0], inputs[2][0])
        assert_close(ys, solution.ys[:, row])
        bars = torch.autograd.grad((ys * weights[:, row]).sum(), [*inputs, shared], create_graph=True)
        for one, other in zip(found, bars):
            if one.dim():
                assert_close(one[row : row + 1], other)
        shared_bar += bars[3].detach()
        expected_seconds.append(torch.autograd.grad(bars[3], inputs))
    assert_close(found[3], shared_bar)
    for one, parts in zip(seconds, zip(*expected_seconds)):
        assert_close(one, torch.cat(parts), 10 * ROUNDING)  # sums of far more terms


def written_out(func, y, t):
    """Outputs [m, n] of one row on the steps that it takes alone: the formula of `rosenbrock_tableaus`."""
    asked, tableau = SolverOptions(per_sample=True, **COARSE), RODAS5P
    with torch.no_grad():
        run = RowSolve(problem_of_rows(func, y.detach(), t.detach(), asked)[0])
        run.forward()
    sizes = run.packed.steps["h"].tolist()
    outputs, now = {0: y[0]}, t[0]
    for i, size in enumerate(sizes):
        h = t[-1] - now if i == len(sizes) - 1 else torch.tensor(size)

        def f(time, y):
            return func(time.reshape(1, 1), y[None])[0]

        f_t, J = torch.autograd.functional.jacobian(f, (now, y[0]), create_graph=True)
        W, slopes = torch.eye(len(y[0])) / tableau.gamma - h * J, []
        for a, C, c, d in zip(tableau.a, tableau.C, tableau.c, tableau.d):
            value = f(now + c * h, y[0] + h * combine(a, slopes)) + combine(C, slopes) + h * d * f_t
            slopes.append(torch.linalg.solve(W, value))
        for o in range(1, len(t) - 1):
            theta = (t[o] - now) / h
            if o not in outputs and float(theta.detach()) <= 1:
                outputs[o] = y[0] + h * combine(tableau.interpolant.traced_weights(theta), slopes)
        y, now = (y[0] + h * combine(tableau.b, slopes))[None], now + h
    outputs[len(t) - 1] = y[0]
    return torch.stack([outputs[o] for o in range(len(t))])


@pytest.mark.parametrize("direction", [pytest.param(1, marks=pytest.mark.slow), -1])
def test_a_row_is_as_solved_alone_with_joint_steps(direction):
    """And the number of matrices is that of the joint solve."""
    mu, y0, t = batch(2, direction)
    mu = direction * mu  # stable in this direction
    solution = solve(van_der_pol(mu), y0, t, per_sample=True, **SETTINGS)
    weights = torch.randn(4, ROWS, 2)
    found = torch.autograd.grad((solution.ys * weights).sum(), [y0, mu, t])
    for row in range(ROWS):
        inputs = [x[row : row + 1].detach().requires_grad_() for x in (y0, mu)]
        times = t[row].detach().requires_grad_()
        alone = solve(van_der_pol(inputs[1]), inputs[0], times, **SETTINGS)
        # rounding of the step sizes, times what the steps before make of it
        assert_close(solution.ys[:, row], alone.ys[:, 0], 1e-10)
        bars = torch.autograd.grad((alone.ys[:, 0] * weights[:, row]).sum(), [*inputs, times])
        for one, other in zip(found, bars):
            assert_close(one[row], other.reshape(one[row].shape), 1e-9)
        assert int(solution.stats.n_accepted[row]) == alone.stats.n_accepted
        own = solve(van_der_pol(inputs[1]), inputs[0], times[None], per_sample=True, **SETTINGS)
        counts = ("n_jacobians", "n_factorizations", "n_f_evals")
        assert [getattr(own.stats, name) - getattr(alone.stats, name) for name in counts] == [0, 0, 0]
    accepted = int(solution.stats.n_accepted.max())
    assert accepted <= solution.stats.n_jacobians <= accepted + int(solution.stats.n_rejected.sum())
    assert solution.stats.n_backward_f_evals == RODAS5P.stages * accepted


@pytest.mark.slow
def test_van_der_pol_against_radau():
    """Stiffness over three decades; the error is in units of the tolerance, times its growth along the limit cycle."""
    mu, _, _ = batch(2)
    y0 = torch.tensor([2.0, 0.0]).expand(ROWS, 2)
    ys = solve(van_der_pol(mu), y0, [0.0, 1.0, 2.0], per_sample=True, method="Rodas5P", rtol=1e-8, atol=1e-8).ys
    for row, stiffness in enumerate(mu[:, 0].tolist()):
        def func(t, y, stiffness=stiffness):
            return [y[1], stiffness * ((1 - y[0] ** 2) * y[1] - y[0]) + 0.1 * np.cos(t)]

        reference = solve_ivp(func, (0, 2), [2.0, 0.0], "Radau", [1.0, 2.0], rtol=1e-11, atol=1e-12).y.T
        assert_close(ys[1:, row], torch.tensor(reference), 1e-6)


@pytest.mark.slow
def test_robertson_against_radau():
    """Rows that end between 1 and 1e5, tolerances by component, states and gradients by the rates; each row takes as
    many steps as its own end needs."""
    ends, scale = torch.tensor([1e0, 1e2, 1e4, 1e5]), torch.tensor(ROBERTSON_SCALE)
    p = torch.ones(4, 3, requires_grad=True)
    t = torch.stack([torch.zeros(4), ends], 1)
    solution = solve(
        lambda t, y: robertson(torch, y.T, p.T).T, torch.tensor(ROBERTSON_START).expand(4, 3), t, per_sample=True,
        method="Rodas5P", rtol=1e-6, atol=1e-6 * scale,
    )  # fmt: skip
    bars = torch.autograd.grad((solution.ys[-1] / scale).sum(), p)[0]
    assert solution.stats.n_accepted.diff().min() > 0
    z0, atol = np.concatenate([ROBERTSON_START, np.zeros(9)]), 1e-11 * np.repeat(ROBERTSON_SCALE, 3)
    atol = np.concatenate([1e-11 * ROBERTSON_SCALE, atol])
    z = solve_ivp(robertson_with_sensitivities, (0, 1e5), z0, "Radau", ends.cpu().numpy(), rtol=1e-9, atol=atol).y.T
    assert_close(solution.ys[-1] / scale, torch.tensor(z[:, :3]) / scale, 1e-5)
    assert_close(bars, torch.tensor((z[:, 3:].reshape(4, 3, 3) / ROBERTSON_SCALE[:, None]).sum(1)), 1e-4)


@pytest.mark.parametrize("width", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_given_jacobian(width):
    mu, y0, t = batch(width)
    speeds = torch.arange(1.0, width + 1)

    def func(t, y):
        return -mu * speeds * (y - torch.cos(t))

    def jac(t, y):
        assert t.shape == (ROWS, 1) and y.shape == (ROWS, width)
        return torch.diag_embed(-mu * speeds)

    for settings in ({"jac": jac}, {"jac": jac, "jac_structure": "rows"}):
        found, expected = (
            torch.autograd.grad(solve(func, y0, t, per_sample=True, **SETTINGS, **given).ys.sum(), [y0, mu, t])
            for given in (settings, {})
        )
        for one, other in zip(found, expected):
            assert_close(one, other, 1e-9)
    with pytest.raises(JacobianError, match="not df/dy as autograd finds it"):
        solve(func, y0, t, per_sample=True, jac=lambda t, y: torch.diag_embed(-2 * mu * speeds), **SETTINGS)


def test_nested_states_and_float32():
    mu, y0, t = (value.detach() for value in batch(2))

    def nested(t, state):
        x, v = state
        assert t.shape == (ROWS,)
        slope = van_der_pol(mu)(t[:, None], torch.cat([x[:, None], v], 1))
        return slope[:, 0], slope[:, 1:]

    ys = solve(van_der_pol(mu), y0, t, per_sample=True, **SETTINGS).ys
    x, v = solve(nested, (y0[:, 0], y0[:, 1:]), t, per_sample=True, **SETTINGS).ys
    assert_close(torch.cat([x[..., None], v], 2), ys)
    single = solve(van_der_pol(mu.float()), y0.float(), t.float(), per_sample=True, **COARSE).ys
    assert single.dtype == torch.float32
    assert_close(single, ys, 1e-2)  # rtol 1e-3


def test_events_of_stiff_rows():
    """x' = -mu (x - cos t), which follows cos t: each row is at 1/2 at its own time."""
    mu = torch.tensor([[1e2], [1e4], [1e6]], requires_grad=True)

    def func_of(mu):
        return lambda t, y: -mu * (y - torch.cos(t)) - torch.sin(t)

    def event(t, y):
        return y - 0.5 - 1e-3 * mu.detach() ** 0.25

    t, _ = solve_event(func_of(mu), torch.ones(3, 1), 0.0, event, per_sample=True, **SETTINGS)
    assert_close(t, torch.arccos(0.5 + 1e-3 * mu[:, 0] ** 0.25), 1e-5)
    (bar,) = torch.autograd.grad(t.sum(), mu)
    for row in range(3):
        own = mu[row : row + 1].detach().requires_grad_()
        alone, _ = solve_event(
            func_of(own), torch.ones(1, 1), 0.0, lambda t, y: event(t, y)[row], **SETTINGS
        )  # fmt: skip
        assert_close(t[row], alone, 1e-8)
        assert abs(float(torch.autograd.grad(alone, own)[0] - bar[row])) <= 1e-6 * float(bar.abs().max())


def test_what_is_refused():
    y0 = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match="rows do not depend on each other"):
        solve(lambda t, y: -y * y.mean(), y0, [0.0, 1.0], per_sample=True, **SETTINGS)
    with pytest.raises(JacobianError, match="per_sample, but at t = .* func couples rows"):
        # by their derivatives alone, and rows 0 and 3 alone, which the first look takes together
        solve(lambda t, y: -y - (y - y.detach())[[3, 1, 2, 0]], torch.ones(4, 2), [0.0, 1.0], per_sample=True,
              **SETTINGS)  # fmt: skip
    with pytest.raises(SecondDerivativeError):
        solve(lambda t, y: _Once.apply(y), y0, [0.0, 1.0], per_sample=True, **SETTINGS)
    with pytest.warns(UserWarning, match="Rodas5P needs that derivative"):
        solve(lambda t, y: -y * t.detach(), y0, [0.0, 1.0], per_sample=True, **SETTINGS)
    with pytest.raises(TooManyEvaluationsError, match="give atol per component"):
        solve(lambda t, y: -y * torch.cos(50 * t), y0, [0.0, 9.0], per_sample=True, max_evals=20, **SETTINGS)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return -(y**2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, bar):
        return -2 * ctx.saved_tensors[0] * bar


@pytest.mark.parametrize("structure", [{"per_sample": True}, {"jac_structure": "rows"}], ids=str)
def test_the_check_of_blocks_knows_the_rounding_of_autocast(structure):
    """Products of half precision with one cotangent and with another differ by that precision; rows that are coupled
    differ by more."""
    layer, y0 = torch.nn.Linear(3, 3, dtype=torch.float32), torch.randn(8, 3, dtype=torch.float32)

    def uncoupled(t, y):
        return layer(y) - 5 * y

    def coupled(t, y):
        return layer(y) - 5 * y[[1, 0, 2, 3, 4, 5, 6, 7]]

    with torch.autocast(y0.device.type, torch.bfloat16):
        ys = solve(uncoupled, y0, [0.0, 1.0], **structure, **COARSE).ys
        with pytest.raises((JacobianError, ValueError), match="couples rows|do not depend on each other"):
            solve(coupled, y0, [0.0, 1.0], **structure, **COARSE)
    assert_close(ys, solve(uncoupled, y0, [0.0, 1.0], **structure, **COARSE).ys, 2e-2)
