"""Rodas5P with its loop compiled: the steps of eager ones, their gradient, and a way out that is told."""

import math
import warnings

import pytest
import torch

from tests.torch_ACA.programs import slow
from torch_ACA import JacobianError, StepSizeUnderflowError, solve
from torch_ACA.compilation import code, generate, rosenbrock_steps
from torch_ACA.rosenbrock_tableaus import RODAS5P

pytestmark = [
    pytest.mark.loops, pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated"),
]  # fmt: skip
METHOD = {"method": "Rodas5P", "rtol": 1e-4, "atol": 1e-6}


def relaxing(width):
    """Follows sin t at a rate of 50, with a part that couples the components and depends on the time."""
    w = torch.linspace(-1, 1, width * width, dtype=torch.float64).reshape(width, width).requires_grad_()
    return lambda t, y: torch.tanh(y @ w.T) * torch.cos(t) - 50 * (y - torch.sin(t)), w


def results(func, y0, times, wanted, **keywords):
    solution = solve(func, y0, times, **METHOD | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel(), dtype=torch.float64).reshape(solution.ys.shape)
    gradients = torch.autograd.grad((weights * solution.ys).sum(), wanted)
    return [solution.ys.detach(), *gradients], solution.stats


def assert_as_eager(*arguments, tolerance=1e-12, **keywords):
    (eager, counts), (found, compiled_counts) = (results(*arguments, **keywords, compile=c) for c in (False, True))
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))
    assert (counts.n_accepted, counts.n_rejected) == (compiled_counts.n_accepted, compiled_counts.n_rejected)
    return compiled_counts


@pytest.mark.parametrize(("width", "times"), [
    (3, [0.0, 0.31, 0.32, 2.0]), (rosenbrock_steps.INVERTED + 1, [2.0, 0.0]), slow(3, [2.0, 0.0]),
    slow(rosenbrock_steps.INVERTED + 1, [0.0, 0.31, 0.32, 2.0]),
], ids=["inverted", "factored, backwards", "inverted, backwards", "factored"])  # fmt: skip
def test_agrees_with_eager_steps(width, times, looped):
    """By the inverse of a small matrix, by the factors of a wide one; in the state, what is captured, and all times."""
    func, w = relaxing(width)
    if times[0] > times[-1]:
        func, w = (lambda t, y, forward=func: -forward(t, y)), w
    y0 = torch.linspace(-1, 1, width, dtype=torch.float64, requires_grad=True)
    times = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    counts = assert_as_eager(func, y0, times, [y0, times, w])
    assert looped == ["forward", "backward"] and counts.n_accepted > 5
    assert counts.n_jacobians == counts.n_factorizations == counts.n_accepted + counts.n_rejected


def test_rejected_tries_and_tolerances_of_each_component(looped):
    """Van der Pol's relaxation, mu = 100, through one jump."""
    mu = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)

    def van_der_pol(t, y):
        return torch.stack([y[1], mu * ((1 - y[0] ** 2) * y[1]) - y[0]])

    atol = torch.tensor([1e-6, 1e-4], dtype=torch.float64)
    # the jump multiplies rounding by about 1e4
    counts = assert_as_eager(van_der_pol, y0, [0.0, 100.0], [y0, mu], atol=atol, tolerance=1e-8)
    assert counts.n_rejected > 0 and "forward" in looped


@pytest.mark.parametrize("width", [3, slow(rosenbrock_steps.INVERTED + 1)], ids=["inverted", "factored"])
def test_rows_have_blocks_of_their_own(width, looped):
    rates = torch.tensor([[1.0], [30.0], [900.0]], dtype=torch.float64, requires_grad=True)
    y0 = torch.linspace(0.5, 1.5, 3 * width, dtype=torch.float64).reshape(3, width).requires_grad_()

    def field(t, y):
        return rates * (torch.cos(t) - y) + y.roll(1, 1) * torch.sin(y)

    assert_as_eager(field, y0, [0.0, 1.0], [y0, rates], jac_structure="rows")
    assert looped == ["forward", "backward"]


def test_rows_that_are_coupled_are_refused():
    y0 = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(JacobianError, match="func couples rows"):
        solve(lambda t, y: y.roll(1, 0) - y, y0, [0.0, 1.0], jac_structure="rows", compile=True, **METHOD)


def test_second_derivatives_take_the_accepted_steps_again():
    func, w = relaxing(2)
    y0, found = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True), []
    for compile in (False, True):
        end = solve(func, y0, [0.0, 1.0], compile=compile, **METHOD).ys[-1]
        (first,) = torch.autograd.grad(end.square().sum(), y0, create_graph=True)
        found.append([first.detach(), *torch.autograd.grad(first.sum(), (y0, w))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_singular_matrix_is_a_rejected_try(looped):
    """The first step makes it singular: h J = I / gamma to the last bit."""
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    counts = assert_as_eager(lambda t, y: y * (1 / RODAS5P.gamma), y0, [0.0, 2.0], [y0], options={"first_step": 1.0})
    assert counts.n_rejected > 0


def test_errors_are_those_of_eager_steps():
    messages = []
    for compile in (False, True):
        with pytest.raises(StepSizeUnderflowError) as caught:
            solve(lambda t, y: y * y, torch.ones(1, dtype=torch.float64), [0.0, 2.0], compile=compile, **METHOD)
        messages.append(str(caught.value))
    assert all("atol per component" in message for message in messages)


@pytest.mark.filterwarnings("default:compile=True")
@pytest.mark.parametrize(("keywords", "reason"), [
    ({"jac": lambda t, y: -torch.eye(2, dtype=torch.float64)}, "jac was given: leave it out.*"),
    ({"memory": 3}, "memory is limited to less than 8 states"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_what_cannot_be_compiled_runs_as_it_is(keywords, reason, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("code was generated that nothing calls")

    monkeypatch.setattr(code, "generated", refuse)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match=rf"for falling Rodas5P runs as it is \({reason}\)"):
        assert_as_eager(falling, y0, [0.0, 1.0], [y0], **keywords)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_as_eager(falling, y0, [0.0, 1.0], [y0], **keywords)


def falling(t, y):
    return -y


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, rosenbrock_steps.INVERTED + 1], ids=["inverted", "factored"])
def test_generated_loops(width, monkeypatch, looped, capfd):
    monkeypatch.setattr(generate, "BACKEND", "inductor")
    func, w = relaxing(width)
    y0 = torch.linspace(-1, 1, width, dtype=torch.float64, requires_grad=True)
    assert_as_eager(func, y0, [0.0, 0.3, 2.0], [y0, w], tolerance=1e-11)
    assert looped == ["forward", "backward"] and "c-shim" not in "".join(capfd.readouterr())


def test_the_inverse_solves_to_rounding():
    """Of a matrix whose rows differ by twelve orders, as those of stiff problems do, both ways; of a singular one it
    gives nothing finite."""
    torch.manual_seed(0)
    scale = 10.0 ** torch.arange(0, -12, -3, dtype=torch.float64)
    matrix = torch.randn(4, 4, dtype=torch.float64) / scale[:, None]
    vector, solver = torch.randn(4, 1, dtype=torch.float64), rosenbrock_steps._Inverted
    for adjoint, exact in ((False, matrix), (True, matrix.mT)):
        found = solver.solve(*solver.kept(matrix), vector, adjoint=adjoint)
        expected = torch.linalg.solve(exact, vector)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    singular = solver.kept(torch.ones(4, 4, dtype=torch.float64))
    assert not math.isfinite(float(solver.solve(*singular, vector, adjoint=False).sum()))
