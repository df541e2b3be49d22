"""The elementary functions of generated code: their errors in units in the last place, and that they are used."""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torch_ACA.compilation.elementary import DECOMPOSITIONS, power, tanh
from torch_ACA.compilation.generate import graph_of

F32 = torch.float32
ULP = 2.0**-23


def test_tanh_is_that_of_single_precision():
    """1.2 units: half of one for the result, the rest of the sum at the end, and of 1 - 2 / (e^2x + 1) near `SMALL`."""
    x = torch.cat([torch.linspace(-10, 10, 2_000_001, dtype=F32), torch.logspace(-37, 0, 200_001, dtype=F32)])
    exact = torch.tanh(x.double())
    error = (tanh(x).double() - exact).abs() / exact.abs().clamp(min=2.0**-126)
    assert float(error.max()) < 1.25 * ULP
    assert torch.equal(tanh(-x), -tanh(x))


def test_tanh_of_what_is_no_usual_number():
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 3e38], dtype=F32)
    assert torch.equal(tanh(x), torch.tanh(x)) and torch.equal(tanh(x).signbit(), x.signbit())
    assert bool(tanh(torch.tensor(math.nan, dtype=F32)).isnan())


@pytest.mark.parametrize(("dtype", "taken"), [(torch.float32, True), (torch.float64, False), (torch.bfloat16, False)])
def test_graphs_have_it_in_single_precision(dtype, taken):
    def function(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (bar,) = torch.autograd.grad(torch.tanh(x).sum(), x)
        return torch.tanh(x.detach()), bar

    x = torch.linspace(-3, 3, 101).to(dtype)
    graph = graph_of(function, [x])
    names = {str(node.target) for node in graph.graph.nodes}
    assert ("aten.copysign.Tensor" in names) == taken and ("aten.tanh.default" in names) != taken
    for one, other in zip(graph(x), function(x)):
        torch.testing.assert_close(one, other, rtol=8 * ULP, atol=2 * ULP)  # 1 - tanh^2 where tanh is near 1


@pytest.mark.parametrize("exponent", [1.5, -1.5, 2.5, -2.5, 3.5, -3.5])
def test_powers_with_halves(exponent):
    """Two units: half of one for each operation, of which a quotient and a root only halve what came before. Single
    precision, whose exact values double precision knows; the sequence of operations is the same in both."""
    x = torch.logspace(-8, 8, 400_001, dtype=F32)
    exact = x.double() ** exponent
    error = (power(x, exponent).double() - exact).abs() / exact
    assert float(error.max()) < 2 * ULP
    x = torch.tensor([0.0, math.inf, -1.0, math.nan, 1e-38, 3e38], dtype=F32)
    torch.testing.assert_close(power(x, exponent), x**exponent, equal_nan=True, rtol=2 * ULP, atol=0)


@pytest.mark.parametrize("exponent", [0.5, -0.5, 2, -1, 3.0, 0.3, 4.5, math.inf, math.nan])
def test_other_powers_are_left_alone(exponent):
    assert power(torch.ones(2), exponent) is NotImplemented
    assert power(torch.ones(2, dtype=torch.bfloat16), 1.5) is NotImplemented


def test_graphs_have_powers_and_their_derivatives():
    def function(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (bar,) = torch.autograd.grad((x**-1.5).sum(), x)
        return bar

    x = torch.linspace(0.1, 3, 101, dtype=torch.float64)
    graph = graph_of(function, [x])
    assert "aten.pow.Tensor_Scalar" not in {str(node.target) for node in graph.graph.nodes}
    torch.testing.assert_close(graph(x), function(x), rtol=4 * 2.0**-52, atol=0)


def test_only_known_functions_are_replaced():
    assert list(DECOMPOSITIONS) == [torch.ops.aten.tanh.default, torch.ops.aten.pow.Tensor_Scalar]
    graph = make_fx(torch.sin, DECOMPOSITIONS)(torch.ones(3))
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [torch.ops.aten.sin.default]
