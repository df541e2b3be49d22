"""Methods from outside of the package: an explicit tableau, and a stepper of another kind.

What is between the marks is shown in docs/methods.md, which a test compares with it.
"""

import math
import types
from fractions import Fraction

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_ACA import Polynomials, Stepper, Tableau, TracedStep, TracedStepper, methods, solve
from torch_ACA.interpolants import cubic_hermite

# begin tableau
third = Fraction(1, 3)
RALSTON_3 = Tableau(
    name="Ralston3",
    order=3,
    c=(0, Fraction(1, 2), Fraction(3, 4)),
    a=((), (Fraction(1, 2),), (0, Fraction(3, 4))),
    b=(2 * third / 3, third, 4 * third / 3),
    b_embedded=(0, 1, 0),  # the midpoint rule, for the error estimate
    embedded_order=2,
    interpolant=cubic_hermite((2 * third / 3, third, 4 * third / 3), end_slope_is_last_stage=False),
    dense_order=3,
    reference="Ralston, Math. Comp. 16, 1962",
)
methods["Ralston3"] = RALSTON_3
# end tableau


# begin stepper
class ExponentialHeun:
    """y' = -rate y + g(t, y) as Heun's method for g, the decay solved exactly (ETD2RK: Cox, Matthews, J. Comput. Phys.
    176, 2002). Its error estimate is the difference to the exponential Euler step."""

    name, order, adaptive, error_order, stages, dense_order = "ExponentialHeun", 2, True, 2, 2, 2
    abilities = TracedStepper.abilities
    interpolant = Polynomials(((1, -1), (0, 1)))  # weights of the slopes in `traced`: theta - theta^2 and theta^2

    def __init__(self, rate):
        self.rate = rate

    def stepper(self, vector_field, *, keep_graphs=False, time_grad=False):
        return ExponentialHeunStepper(self, vector_field, keep_graphs=keep_graphs, time_grad=time_grad)


class ExponentialHeunStepper(TracedStepper):
    def traced(self, t, h, y, t_end, slope=None, *, after_jump=False, before_jump=False):
        rate, f = self.method.rate, self.field.traced
        x = torch.as_tensor(-rate * h, dtype=y.dtype)
        decay, phi1 = torch.exp(x), torch.expm1(x) / x
        phi2 = (phi1 - 1) / x
        slope = f(t, y, side=int(after_jump)) if slope is None else slope
        g = slope + rate * y
        euler = decay * y + h * phi1 * g
        change = f(t_end, euler, side=-int(before_jump)) + rate * euler - g
        error = h * phi2 * change
        end = euler + error
        return TracedStep(end, [slope, (end - y) / h], error)


# end stepper

RATE = 40.0


def func_of(w):
    return lambda t, y: -RATE * y + w * torch.sin(3 * t) * torch.cos(y)


def tensors():
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64, requires_grad=True)
    return w, y0, t


ADDED = {"tableau": "ralston3", "stepper": ExponentialHeun(RATE)}


@pytest.fixture(params=ADDED)
def method(request):
    return ADDED[request.param]


def test_an_added_method_is_known_by_name():
    assert "Ralston3" in methods and methods["ralston3"].b == RALSTON_3.b
    with pytest.raises(ValueError, match="accepted: .*Ralston3"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="Ralston4")
    with pytest.raises(TypeError, match="object lacks members of torch_ACA.Method: name, order, .*, stepper"):
        methods["nothing"] = object()
    half = types.SimpleNamespace(name="half", order=3, adaptive=True, stepper=RALSTON_3.stepper)
    with pytest.raises(ValueError, match="lacks members of torch_ACA.Method: error_order, .*; accepted by name"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method=half)
    with pytest.raises(ValueError, match="got gradient='mali', method='Ralston3'"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method=RALSTON_3, gradient="mali")
    assert issubclass(ExponentialHeunStepper, Stepper)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
def test_solution_and_dense_output(method, gradient):
    w, y0, t = tensors()
    found = solve(func_of(w), y0, t, method=method, rtol=1e-5, atol=1e-6, gradient=gradient)
    exact = solve(func_of(w), y0, t, rtol=1e-8, atol=1e-9)
    assert float((found.ys - exact.ys).abs().max().detach()) < 1e-4
    if gradient != "naive":
        dense = solve(func_of(w), y0, t, method=method, rtol=1e-5, atol=1e-6, gradient=gradient, dense=True)
        assert float((dense(torch.tensor([0.37])) - exact.ys[1]).abs().max().detach()) < 1e-4


@pytest.mark.parametrize("name, order", [("tableau", 3), ("stepper", 2)])
def test_order_of_convergence(name, order):
    w, y0, _ = tensors()
    exact = solve(func_of(w), y0, [0.0, 1.0], rtol=1e-12, atol=1e-13).ys[-1]
    errors = [
        float((solve(func_of(w), y0, [0.0, 1.0], method=ADDED[name], options={"step_size": 1 / n}).ys[-1] - exact)
              .detach().norm())
        for n in (80, 160, 320)
    ]  # fmt: skip
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("keywords", [{}, {"gradient": "direct"}, {"memory": 3}, {"options": {"jump_t": [0.5]}}])
def test_the_gradient_is_that_of_the_accepted_steps(method, keywords):
    w, y0, t = tensors()
    solution = solve(func_of(w), y0, t, method=method, rtol=1e-4, atol=1e-4, record=True, **keywords)
    loss = lambda ys: (ys * torch.arange(1.0, ys.numel() + 1).view_as(ys)).sin().sum()  # noqa: E731
    found = torch.autograd.grad(loss(solution.ys[1:]), (w, y0, t), retain_graph=True)
    expected = torch.autograd.grad(loss(solution.record.graph(y0, t)), (w, y0, t))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
def test_first_and_second_order_by_differences(method, gradient):
    def end(w, y0, t):
        steps = {"step_size": 0.04}
        return solve(func_of(w), y0, t, method=method, options=steps, gradient=gradient).ys[1:]

    w, y0, t = tensors()
    assert gradcheck(end, (w, y0, 0.1 * t.detach()))
    assert gradgradcheck(end, (w, y0, 0.1 * t.detach()), fast_mode=True)
