"""Rodas5P: order, stiff problems of the literature, and a gradient that is that of its steps."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from benchmarks.stiff_fields import (
    POLLU_START,
    ROBERTSON_SCALE,
    ROBERTSON_START,
    ROBERTSON_TIMES,
    pollu,
    robertson,
    robertson_with_sensitivities,
    van_der_pol,
)
from tests.torch_ACA.test_convergence import fitted_order, turned, turning
from torch_ACA import NonFiniteError, SolverError, TooManyEvaluationsError, solve, solve_event
from torch_ACA.compat.torchdiffeq import odeint
from torch_ACA.errors import SecondDerivativeError
from torch_ACA.rosenbrock_tableaus import RODAS5P

ROUNDING = 1e-12  # between two orders of the same float64 operations, relative to the largest entry
METHOD = {"method": "Rodas5P"}
FIXED = METHOD | {"options": {"step_size": 0.13}}  # does not divide the intervals below





def relaxing(w):
    """Follows sin t at a rate of 50, with a nonlinear part that depends on the time."""
    return lambda t, y: torch.tanh(y @ w.T) * torch.cos(t) - 50 * (y - torch.sin(t))


def assert_same(found, expected, tolerance=ROUNDING):
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).detach().abs().max()) <= tolerance * max(1.0, float(other.detach().abs().max()))


# order


def test_coefficients_are_consistent():
    """Numbers with a misprint would still solve something. The linear part of the stage equations is undone by
    (I / gamma - C)^-1: on y' = 1 stage i must be taken at c_i; on y' = t the slopes must add up to 1/2 with the weights
    d of df/dt; the dense output must end on y1. What is left is for the tests of order."""
    s, gamma = RODAS5P.stages, RODAS5P.gamma
    a, C = (np.array([[*row, *[0.0] * (s - len(row))] for row in rows]) for rows in (RODAS5P.a, RODAS5P.C))
    inverse = np.linalg.inv(np.eye(s) / gamma - C)
    assert np.allclose(a @ inverse @ np.ones(s), RODAS5P.c, atol=1e-13)
    assert np.isclose(RODAS5P.b @ inverse @ (np.array(RODAS5P.c) + RODAS5P.d), 0.5, atol=1e-13)
    ends = [float(weight) for weight in RODAS5P.interpolant.exact(1.0)]
    assert np.allclose(ends, RODAS5P.b, atol=1e-13)


def test_global_order():
    ts, errors = torch.linspace(0, 8, 9), []
    for n in (20, 28, 40):
        ys = solve(turning, turned(ts[0]), ts, options={"step_size": 1 / n}, **METHOD).ys
        errors.append(float((ys - turned(ts)).pow(2).mean().sqrt()))
    assert fitted_order([1 / 20, 1 / 28, 1 / 40], errors) == pytest.approx(5, abs=0.2)


def test_local_order_of_dense_output():
    sizes, errors = [0.2 / 2 ** (k / 2) for k in range(5)], []
    for size in sizes:
        ts = torch.tensor([1.0, 1 + 0.37 * size, 1 + 0.71 * size, 1 + size])
        ys = solve(turning, turned(ts[0]), ts, options={"step_size": size}, **METHOD).ys
        errors.append(float((ys[1:3] - turned(ts[1:3])).pow(2).mean().sqrt()))
    assert fitted_order(sizes, errors) == pytest.approx(RODAS5P.dense_order + 1, abs=0.2)


def test_order_where_stiffness_reduces_it():
    """Prothero and Robinson's equation at lambda = -1e6: y = sin t, to which all else contracts at once."""
    sizes, errors = [1 / 10, 1 / 20, 1 / 40], []
    for size in sizes:
        ys = solve(
            lambda t, y: -1e6 * (y - torch.sin(t)) + torch.cos(t), torch.tensor([math.sin(0.3)]), [0.3, 1.3],
            options={"step_size": size}, **METHOD,
        ).ys  # fmt: skip
        errors.append(abs(float(ys[-1, 0]) - math.sin(1.3)))
    assert fitted_order(sizes, errors) >= 2.5


# problems of the literature; errors are RMS over all outputs, in units of the scale


@pytest.fixture(scope="module")
def robertson_reference():
    """States [51, 3], and the gradient of the mean square of the later ones, in units of the scale, by p [3]."""
    z0 = np.concatenate([ROBERTSON_START, np.zeros(9)])
    atol = 1e-11 * np.concatenate([ROBERTSON_SCALE, np.repeat(ROBERTSON_SCALE, 3)])
    z = solve_ivp(
        robertson_with_sensitivities, (0, 1e5), z0, "Radau", ROBERTSON_TIMES, rtol=1e-9, atol=atol
    ).y.T  # fmt: skip
    ys, sensitivities = z[:, :3], z[:, 3:].reshape(-1, 3, 3)
    rows = ys[1:, :, None] / ROBERTSON_SCALE[:, None] ** 2 * sensitivities[1:]
    return ys, 2 * rows.sum((0, 1)) / ys[1:].size


@pytest.mark.parametrize(
    "rtol,dtype,tries,state,gradient",
    [
        (1e-3, torch.float64, 45, 1e-4, 5e-4),
        (1e-6, torch.float64, 115, 1e-6, 5e-6),
        (1e-3, torch.float32, 45, 1e-4, 5e-4),
        (1e-5, torch.float32, 90, 2e-5, 5e-5),
    ],
)
def test_robertson(robertson_reference, rtol, dtype, tries, state, gradient):
    ys, wanted = robertson_reference
    p, scale = torch.ones(3, dtype=dtype, requires_grad=True), torch.tensor(ROBERTSON_SCALE, dtype=dtype)
    found = solve(
        lambda t, y: robertson(torch, y, p), torch.tensor(ROBERTSON_START, dtype=dtype), ROBERTSON_TIMES,
        rtol=rtol, atol=1e-4 * rtol, memory="states", **METHOD,
    )  # fmt: skip
    (bar,) = torch.autograd.grad((found.ys[1:] / scale).pow(2).mean(), p)
    errors = ((found.ys.detach().double().cpu().numpy() - ys) / ROBERTSON_SCALE)[1:]
    stats = found.stats
    assert stats.n_accepted + stats.n_rejected <= tries
    assert np.sqrt((errors**2).mean()) <= state
    assert np.linalg.norm(bar.double().cpu().numpy() - wanted) <= gradient * np.linalg.norm(wanted)
    # a rejected try keeps its Jacobian, and costs a factorisation
    assert stats.n_jacobians == stats.n_accepted and stats.n_factorizations == stats.n_accepted + stats.n_rejected
    assert stats.n_f_evals <= 8 * stats.n_accepted + 7 * stats.n_rejected + 5
    assert stats.n_backward_f_evals == 8 * stats.n_accepted


def test_outputs_inside_steps_are_about_as_good_as_ends_of_steps(robertson_reference):
    """Five times the error at most, where cubic Hermite would have forty."""
    ys, _ = robertson_reference
    errors = []
    for land in (False, True):
        found = solve(
            lambda t, y: robertson(torch, y, torch.ones(3)), torch.tensor(ROBERTSON_START), ROBERTSON_TIMES,
            rtol=1e-5, atol=1e-9, options={"land_on_t": land}, **METHOD,
        ).ys  # fmt: skip
        errors.append(np.sqrt((((found.cpu().numpy() - ys) / ROBERTSON_SCALE) ** 2).mean()))
    assert errors[0] <= 5 * errors[1]


def test_pollu():
    ts, ones = np.linspace(0, 60, 21), np.ones(25)
    reference = solve_ivp(
        lambda t, y: pollu(np, y, ones), (0, 60), POLLU_START, "Radau", ts, rtol=1e-8, atol=1e-14
    ).y.T  # fmt: skip
    scale = np.abs(reference).max(0)
    y0, p = torch.tensor(POLLU_START).requires_grad_(), torch.ones(25, requires_grad=True)
    found = solve(lambda t, y: pollu(torch, y, p), y0, ts, rtol=1e-3, atol=1e-9, **METHOD)
    assert found.stats.n_accepted + found.stats.n_rejected <= 30
    assert np.sqrt((((found.ys.detach().cpu().numpy() - reference) / scale) ** 2).mean()) <= 2e-5
    loss = (found.ys[1:] / torch.tensor(scale)).pow(2).mean()
    by_hand = torch.autograd.grad(loss, [y0, p], retain_graph=True)
    by_autograd = torch.autograd.grad(loss, [y0, p], create_graph=True)
    assert_same(by_hand, by_autograd, tolerance=1e-8)  # a rate of 4e11 cancels in the gradient by y0


@pytest.mark.slow
def test_van_der_pol():
    """Two periods at mu = 1000; the error is that of the times at which the solution jumps."""
    ts, ones = np.linspace(0, 3000, 61), np.ones(1)
    reference = solve_ivp(
        lambda t, y: van_der_pol(np, y, ones), (0, 3000), [2.0, 0.0], "Radau", ts, rtol=1e-10, atol=1e-13
    ).y.T  # fmt: skip
    found = solve(
        lambda t, y: van_der_pol(torch, y, torch.ones(1)), torch.tensor([2.0, 0.0]), ts, rtol=1e-4, atol=1e-4, **METHOD
    )
    assert found.stats.n_accepted + found.stats.n_rejected <= 350
    errors = (found.ys.cpu().numpy() - reference) / np.array([2.0, 1e-2])
    assert np.sqrt((errors**2).mean()) <= 1e-3


# gradients

VARIANTS = {
    "interpolated": {},
    "landing": {"options": {"land_on_t": True}},
    "fixed": {"options": {"step_size": 0.13}},
    "jump": {"options": {"jump_t": [0.4], "step_t": [0.5]}},
    "perturbed": {"options": {"step_size": 0.1, "perturb": True}},
    "first order": {"rtol": 1e-2, "atol": 1e-2},
}


@pytest.mark.parametrize("gradient", ["aca", "direct"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backward", [False, True])
def test_equal_to_autograd_through_the_same_steps(gradient, variant, backward):
    """In y0, all times, a parameter and a tensor with a history, where func jumps and where it does not. The steps
    out of place, which autograd goes through, are those of create_graph=True."""
    w = torch.randn(3, 3, requires_grad=True)
    y0 = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    ts = torch.tensor([0.0, 0.33, 0.7, 1.0])
    ts = (ts.flip(0) if backward else ts).requires_grad_()
    context, rate = (2 * w).sum(0), (30.0 if backward else -30.0)

    def func(t, y):
        jump = torch.sign(t - 0.4) * (variant == "jump")
        return torch.tanh(w @ y) * torch.cos(t) + rate * (y - torch.sin(t)) + context * y**2 * (0.1 + jump)

    keywords = {"rtol": 1e-4, "atol": 1e-6, "gradient": gradient} | METHOD | VARIANTS[variant]
    ys = solve(func, y0, ts, **keywords).ys
    loss = (ys**2 * torch.linspace(1, 2, 12).view(4, 3)).sum()
    by_hand = torch.autograd.grad(loss, [y0, w, ts], retain_graph=True)
    assert_same(by_hand, torch.autograd.grad(loss, [y0, w, ts], create_graph=True))


def test_gradient_by_the_start_of_a_stiff_problem_is_good_at_loose_tolerances():
    """Diffusion with a reaction, by the method of lines. At its border of stability an explicit method takes 130 steps
    to a good state, and its exact gradient is noise."""
    n = 32
    x = torch.arange(1, n + 1) / (n + 1)

    def func(t, y):
        u = torch.nn.functional.pad(y, (1, 1))
        return (u[2:] - 2 * y + u[:-2]) * 0.1 * (n + 1) ** 2 + torch.tanh(1.5 * y) * 3 - 0.7

    def gradient(method, tolerance):
        y0 = (torch.sin(torch.pi * x) + 0.5 * torch.sin(3 * torch.pi * x)).requires_grad_()
        end = solve(func, y0, [0.0, 1.0], method=method, rtol=tolerance, atol=tolerance).ys[-1]
        return torch.autograd.grad((end**2).mean(), y0)[0]

    expected = gradient("Rodas5P", 1e-8)
    errors = [float((gradient(method, 1e-3) - expected).norm() / expected.norm()) for method in ("Rodas5P", "Dopri5")]
    assert errors[0] < 1e-3 and errors[1] > 0.1


def test_naive_is_the_same_where_steps_are_fixed():
    w, y0 = torch.randn(3, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    ts = torch.tensor([0.0, 0.33, 1.0], requires_grad=True)
    found = []
    for gradient in ("naive", "aca"):
        for options in ({"step_size": 0.13}, {"step_size": 0.13, "jump_t": [0.4]}):
            ys = solve(relaxing(w), y0, ts, gradient=gradient, options=options, **METHOD).ys
            found.append(torch.autograd.grad((ys**2).sum(), [y0, w, ts]))
    assert_same(found[0], found[2])
    assert_same(found[1], found[3])


@pytest.mark.parametrize("memory", [2, 5, "20 kB", "unlimited"])
@pytest.mark.parametrize("size", [3, 10])  # fewer numbers than stages, and more
def test_gradient_is_the_same_to_the_last_bit_with_any_memory(memory, size):
    w = torch.randn(size, size, requires_grad=True)
    found = []
    for budget in (None, memory):
        y0 = torch.linspace(-1, 1, size).requires_grad_()
        ts = torch.tensor([0.0, 0.31, 2.0], requires_grad=True)
        ys = solve(relaxing(w), y0, ts, memory=budget, rtol=1e-4, atol=1e-6, **METHOD).ys
        found.append(torch.autograd.grad((ys**2).sum(), [y0, ts, w]))
    assert all(torch.equal(one, other) for one, other in zip(*found))


@pytest.mark.parametrize("dtype,tolerance", [(torch.complex128, ROUNDING), (torch.complex64, 1e-5)])
def test_nested_and_complex_states(dtype, tolerance):
    real = torch.empty(0, dtype=dtype).real.dtype
    w = torch.randn(3, dtype=real, requires_grad=True)
    a, b = torch.randn(2, dtype=dtype, requires_grad=True), torch.randn(3, 1, dtype=real, requires_grad=True)
    ts = torch.tensor([0.0, 0.4, 1.0], requires_grad=True)

    def func(t, state):
        a, b = state["a"], state["b"]
        slope_of_b = -b * b.abs() + (a.abs() ** 2).sum() * torch.sin(t)
        return {"a": -30 * a * (1 + 0.1j) + (w * b[:, 0]).sum() * 1j, "b": slope_of_b}

    ys = solve(func, {"a": a, "b": b}, ts, rtol=1e-4, atol=1e-6, **METHOD).ys
    loss = (ys["a"].abs() ** 2).sum() + (ys["b"] ** 2).sum()
    by_hand = torch.autograd.grad(loss, [a, b, w, ts], retain_graph=True)
    assert_same(by_hand, torch.autograd.grad(loss, [a, b, w, ts], create_graph=True), tolerance)
    exact = solve(func, {"a": a, "b": b}, ts, rtol=1e-9, atol=1e-9).ys if dtype == torch.complex128 else ys
    assert float((exact["a"] - ys["a"]).detach().abs().max()) < 1e-3


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("dense", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gradcheck_and_gradgradcheck(gradient, dense):
    if dense and gradient == "naive":
        pytest.skip("dense output belongs to aca and direct")

    def outputs(y0, t, w):
        func = lambda t, y: torch.tanh(w @ y) * torch.cos(t) - 5 * (y - torch.sin(t))  # noqa: E731
        solution = solve(func, y0, t, gradient=gradient, dense=dense, options={"step_size": 0.37}, **METHOD)
        return solution([0.11, 0.5, 0.9]) if dense else solution.ys

    inputs = [torch.randn(2), torch.tensor([0.0, 0.37, 1.0]), torch.randn(2, 2)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(outputs, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(outputs, inputs, atol=1e-6)


def test_transforms():
    w, y0 = torch.randn(2, 2), torch.randn(2)
    end = lambda y0: solve(relaxing(w), y0, [0.0, 1.0], **FIXED).ys[-1]  # noqa: E731
    expected = torch.autograd.functional.jacobian(end, y0)
    assert_same([torch.func.jacrev(end)(y0)], [expected])
    assert_same([torch.func.jvp(end, (y0,), (torch.ones(2),))[1]], [expected.sum(1)])


def test_event():
    """The equation contracts to cos t - sin(t) / 30 + ..., which meets 0.5 where an explicit method finds it too."""
    times = []
    for method in ("Rodas5P", "Dopri5"):
        rate = torch.tensor(30.0, requires_grad=True)
        t, _ = solve_event(
            lambda t, y: -rate * (y - torch.cos(t)), torch.ones(1), 0.0, lambda t, y: y - 0.5,
            method=method, rtol=1e-9, atol=1e-9,
        )  # fmt: skip
        times.append([t.detach(), *torch.autograd.grad(t, rate)])
    assert_same(*times, tolerance=1e-7)


def test_without_gradients():
    """Inference mode and no_grad take the same steps, though func is differentiated inside."""
    w, y0 = torch.randn(3, 3, requires_grad=True), torch.randn(3)
    expected = solve(relaxing(w), y0, [0.0, 1.0], **METHOD).ys.detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(solve(relaxing(w), y0, [0.0, 1.0], **METHOD).ys, expected)


# func and its Jacobian


class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x


class Twice(Square):
    @staticmethod
    def backward(ctx, bar):
        return 2 * ctx.saved_tensors[0] * bar


class Once(Square):
    @staticmethod
    @once_differentiable
    def backward(ctx, bar):
        return 2 * ctx.saved_tensors[0] * bar


class InNumpy(Square):
    @staticmethod
    def backward(ctx, bar):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * x.detach().cpu().numpy() * bar.detach().cpu().numpy()).to(x)


class OfItsForwardPass(Square):
    """Right once: to its derivative, what it saved is a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(2 * x)
        return x * x

    @staticmethod
    def backward(ctx, bar):
        return bar * ctx.saved_tensors[0]


def squared_by(kind):
    return lambda t, y: -20 * y + kind.apply(y)


def test_backward_pass_of_a_custom_function_that_is_differentiable():
    results = []
    for func in (squared_by(Twice), lambda t, y: -20 * y + y * y):
        y0 = torch.linspace(-1, 1, 3, requires_grad=True)
        (bar,) = torch.autograd.grad(solve(func, y0, [0.0, 1.0], rtol=1e-4, **METHOD).ys[-1].sum(), y0)
        results.append([bar])
    assert_same(*results)


@pytest.mark.parametrize("kind", [Once, InNumpy, OfItsForwardPass])
@pytest.mark.parametrize("keywords", [
    {"gradient": "aca"}, {"gradient": "direct"}, {"gradient": "naive"}, {"per_sample": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_pass_without_a_derivative_is_refused(kind, keywords, dtype):
    y0 = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    with pytest.raises(SecondDerivativeError, match="func's own backward pass has no derivative"):
        solve(squared_by(kind), y0, [0.0, 1.0], **keywords, **METHOD)


class Rounded(torch.autograd.Function):
    """Straight through: its gradient is that of another function."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, bar):
        return bar


class Masked(Rounded):
    """Saves a constant that its derivative does not miss."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward((x > 0).to(x))
        return x.relu()

    @staticmethod
    def backward(ctx, bar):
        return bar * ctx.saved_tensors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("func", [
    squared_by(Twice), lambda t, y: -20 * y + Twice.apply(y.relu()), lambda t, y: -y + 0.1 * Rounded.apply(4 * y) * y,
    lambda t, y: -20 * Twice.apply(y).sqrt(), lambda t, y: -y + 1e6 * Twice.apply(y - 1e3),
    lambda t, y: -y * Masked.apply(y), lambda t, y: Twice.apply(-y),
    lambda t, y: solve(lambda s, z: -Twice.apply(z), y, [0.0, 0.1]).ys[-1], lambda t, y: -y + 0.0 * Twice.apply(y),
])  # fmt: skip
def test_custom_functions_that_are_differentiable_are_not_refused(func, dtype):
    for seed in range(5):
        torch.manual_seed(seed)
        y0 = torch.randn(40, dtype=dtype, requires_grad=True)
        solve(func, y0, [0.0, 1e-6], **METHOD)


def test_jacobian_row_by_row_is_the_same_and_said_once():
    y0 = torch.randn(3)
    expected = solve(squared_by(Twice), y0, [0.0, 1.0], **METHOD).ys
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = solve(squared_by(InNumpy), y0, [0.0, 1.0], **METHOD)
    assert_same([found.ys], [expected])
    assert found.stats.n_jacobians > 1
    assert [str(w.message)[:45] for w in said] == ["the Jacobian of func is computed row by row: "]


def test_jacobian_in_chunks_is_the_same(monkeypatch):
    w, y0 = torch.randn(10, 10), torch.randn(10)
    expected = solve(relaxing(w), y0, [0.0, 1.0], **METHOD).ys
    monkeypatch.setattr("torch_ACA.linearisation.AT_ONCE", 3 * 16 * 10 * 8)
    assert_same([solve(relaxing(w), y0, [0.0, 1.0], **METHOD).ys], [expected])


@pytest.mark.parametrize("hide", [torch.Tensor.detach, float])
def test_func_that_hides_its_time_is_told_what_it_costs(hide):
    def func(t, y):
        return -50 * (y - torch.cos(torch.as_tensor(hide(t))))

    with pytest.warns(UserWarning, match="func changes with its time, and autograd does not know"):
        hidden = solve(func, torch.ones(1), [0.0, 1.0], **METHOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = solve(lambda t, y: -50 * (y - torch.cos(t)), torch.ones(1), [0.0, 1.0], **METHOD)
    assert float((hidden.ys - seen.ys).abs().max()) < 1e-4


def test_empty_state():
    assert solve(lambda t, y: -y, torch.zeros(0), [0.0, 1.0], **METHOD).ys.shape == (2, 0)


def test_batch_norm_counts_evaluations_of_accepted_steps():
    norm = torch.nn.BatchNorm1d(2)
    solution = solve(lambda t, y: -5 * norm(y), torch.randn(4, 2, requires_grad=True), [0.0, 1.0], rtol=1e-3, **METHOD)
    before = int(norm.num_batches_tracked)
    assert before == 8 * solution.stats.n_accepted
    solution.ys[-1].sum().backward()
    assert int(norm.num_batches_tracked) == before


# failures


def test_singular_matrix_is_a_rejected_try():
    """W = 1 / gamma - h J vanishes at the first step size; with fixed steps there is no other."""
    func = lambda t, y: y / RODAS5P.gamma  # noqa: E731
    solution = solve(func, torch.ones(1), [0.0, 1.0], options={"first_step": 1.0}, rtol=1e-6, **METHOD)
    assert solution.stats.n_rejected > 0
    assert float(solution.ys[-1]) == pytest.approx(math.exp(1 / RODAS5P.gamma), rel=1e-4)
    with pytest.raises(NonFiniteError):
        solve(func, torch.ones(1), [0.0, 1.0], options={"step_size": 1.0}, **METHOD)


@pytest.mark.parametrize("gradient", ["aca", "naive"])
def test_errors_of_explicit_methods_name_it(gradient):
    func = lambda t, y: -1e6 * (y - torch.cos(t))  # noqa: E731
    y0 = torch.ones(1, requires_grad=True)
    with pytest.raises(TooManyEvaluationsError, match="method='Rodas5P'"):
        solve(func, y0, [0.0, 10.0], gradient=gradient, max_evals=200)
    assert solve(func, y0, [0.0, 10.0], gradient=gradient, max_evals=200, **METHOD).success


@pytest.mark.parametrize("keywords", [{"gradient": "mali"}, {"gradient": "adjoint"}, {"per_sample": True}, {"h": 1e-5}])
def test_errors_of_other_explicit_solves_name_it(keywords):
    y0 = torch.ones(2, 1, requires_grad=True)
    with pytest.raises(TooManyEvaluationsError, match="method='Rodas5P'"):
        solve(lambda t, y: -1e6 * (y - torch.cos(t)), y0, [0.0, 10.0], max_evals=200, **keywords)


def test_error_of_the_backward_solve_of_the_adjoint_names_it():
    """The forward solve is done by Rodas5P; backwards the equation explodes."""
    y0 = torch.ones(1, requires_grad=True)
    end = solve(
        lambda t, y: -1e4 * (y - torch.cos(t)), y0, [0.0, 10.0], gradient="adjoint", adjoint={"method": "Dopri5"},
        max_evals=2000, **METHOD,
    ).ys[-1]  # fmt: skip
    with pytest.raises(SolverError, match="backward solve of the adjoint, .* method='Rodas5P'"):
        end.sum().backward()


@pytest.mark.parametrize(
    "keywords,message",
    [
        ({"gradient": "adjoint"}, "method Rodas5P cannot solve backwards: give adjoint="),
        ({"gradient": "mali"}, "go together"),
        ({"compile": "step"}, "compiles single steps; Rodas5P needs compile=True"),
        ({"compile": "reduce-overhead"}, "compiles single steps; Rodas5P needs compile=True"),
        ({"options": {"interp": "linear"}}, "Rodas5P has its own dense output"),
    ],
)
def test_what_it_does_not_go_with(keywords, message):
    with pytest.raises(ValueError, match=message):
        solve(lambda t, y: -y, torch.ones(2, requires_grad=True), [0.0, 1.0], **METHOD | keywords)


def test_adjoint_with_another_method_backwards():
    w, y0 = torch.randn(3, 3, requires_grad=True), torch.randn(3)
    bars = []
    for keywords in ({"gradient": "adjoint", "adjoint": {"method": "Dopri5"}}, {}):
        end = solve(relaxing(w), y0, [0.0, 0.2], rtol=1e-9, atol=1e-9, **METHOD, **keywords).ys[-1]
        bars.append(torch.autograd.grad((end**2).sum(), w))
    assert_same(*bars, tolerance=1e-6)


def test_names_of_torchdiffeq():
    y0 = torch.ones(2)
    func = lambda t, y: -100 * (y - torch.cos(t))  # noqa: E731
    t = torch.tensor([0.0, 1.0])
    assert torch.equal(odeint(func, y0, t, method="rodas5p"), odeint(func, y0, t, method="Rodas5P"))
    with pytest.raises(ValueError, match="not available here; use Rodas5P"):
        odeint(func, y0, t, method="trbdf2")
