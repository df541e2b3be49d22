"""What func returns for a nested state: dicts by key, lists and tuples by place, anything else is an error."""

import collections
import math

import pytest
import torch

from torch_ACA import odesolve, odesolve_adjoint, odesolve_endtime, solve

GRADIENTS = ["aca", "direct", "naive", "adjoint", "mali"]
TIMES = [0.0, 1.0]


class Pair(collections.namedtuple("Pair", "x v")):
    """A position and a velocity."""


def oscillator(y):
    return -y["x"], y["v"]  # of v, of x


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_keys_in_another_order(gradient):
    """x'' = -x: x(1) = x0 cos 1 + v0 sin 1, to the tolerance of the solves (mali's is second order)."""
    y0 = {"x": torch.ones(1, requires_grad=True), "v": torch.zeros(1, requires_grad=True)}

    def func(t, y):
        v_slope, x_slope = oscillator(y)
        return {"v": v_slope, "x": x_slope}

    tolerance = 1e-5 if gradient == "mali" else 1e-9
    ys = solve(func, y0, TIMES, gradient=gradient, rtol=tolerance, atol=tolerance).ys
    assert list(ys) == ["x", "v"]
    found = torch.autograd.grad(ys["x"][-1], list(y0.values()))
    close = 1e-3 if gradient == "mali" else 1e-7
    assert ys["x"][-1].item() == pytest.approx(math.cos(1), abs=close)
    assert [float(g) for g in found] == pytest.approx([math.cos(1), math.sin(1)], abs=close)


def test_keys_in_another_order_deep_inside_and_of_ordered_dicts():
    y0 = [torch.zeros(()), {"in": collections.OrderedDict(a=torch.ones(2), b=torch.zeros(2))}]
    slopes = lambda t, y: (torch.ones(()), {"in": {"b": -y[1]["in"]["a"], "a": y[1]["in"]["b"]}})  # noqa: E731
    ys = solve(slopes, y0, TIMES, rtol=1e-9, atol=1e-9).ys
    assert float(ys[1]["in"]["a"][-1, 0]) == pytest.approx(math.cos(1), abs=1e-7)


def test_keys_in_another_order_compiled(ungenerated):
    y0 = {"x": torch.ones(1, requires_grad=True), "v": torch.zeros(1)}
    results = []
    for compile in (False, True):
        ys = solve(lambda t, y: {"v": -y["x"], "x": y["v"]}, y0, TIMES, compile=compile).ys
        results.append([ys["x"][-1], *torch.autograd.grad(ys["x"][-1], y0["x"])])
    assert float(results[0][0]) == pytest.approx(math.cos(1), abs=1e-4)
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)  # the same sums, up to rounding


@pytest.mark.parametrize("kind", [tuple, list, Pair._make])
def test_lists_tuples_and_named_tuples_stand_for_each_other(kind):
    y0 = Pair(torch.ones(1), torch.zeros(1))
    ys = solve(lambda t, y: kind([y[1], -y[0]]), y0, TIMES).ys
    assert isinstance(ys, Pair) and float(ys.x[-1]) == pytest.approx(math.cos(1), abs=1e-4)


@pytest.mark.parametrize("y0,returned", [
    ({"x": 1, "v": 0}, lambda y: (y["v"], -y["x"])),
    ({"x": 1, "v": 0}, lambda y: {"x": y["v"], "u": -y["x"]}),
    ({"x": 1, "v": 0}, lambda y: {"x": y["v"], "v": -y["x"], "u": y["x"]}),
    ({"x": 1}, lambda y: -y["x"]),
    ((1, 0), lambda y: {0: y[1], 1: -y[0]}),
    ((1, 0), lambda y: (y[1], -y[0], y[0])),
    ((1, 0), lambda y: y[0]),
    ((1, (0, 2)), lambda y: (y[0], *y[1])),
    (1, lambda y: (y,)),
    (1, lambda y: {"x": y}),
])  # fmt: skip
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_other_nestings_are_refused(y0, returned, gradient):
    y0 = torch.utils._pytree.tree_map(lambda value: torch.full((2,), float(value), requires_grad=True), y0)
    with pytest.raises(ValueError, match=r"func must return a state nested like y0, of shapes .*\(2,\).*, got "):
        solve(lambda t, y: returned(y), y0, TIMES, gradient=gradient)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_complex_slope_of_a_real_state_is_refused(gradient):
    for y0, slope in (
        (torch.ones(2), lambda t, y: 1j * y),
        ((torch.ones(2), torch.ones(2, dtype=torch.complex128)), lambda t, y: (1j * y[0], y[1])),
    ):
        with pytest.raises(TypeError, match=r"complex slope for a real state: make y0(\[0\])? complex"):
            solve(slope, y0, TIMES, gradient=gradient)
    # the other way round is fine
    solve(lambda t, y: y.real, torch.ones(2, dtype=torch.complex128), TIMES, gradient=gradient)


@pytest.mark.parametrize("mode", [odesolve, odesolve_endtime, odesolve_adjoint])
def test_options_dict_returns_nested_states(mode):
    options = {"method": "RK45", "rtol": 1e-9, "atol": 1e-9}
    x, v = mode(lambda t, y: (y[1], -y[0]), (torch.ones(1), torch.zeros(1)), options)
    assert float(x) == pytest.approx(math.cos(1), abs=1e-7) and float(v) == pytest.approx(-math.sin(1), abs=1e-7)
    found = mode(lambda t, y: {"v": -y["x"], "x": y["v"]}, {"x": torch.ones(1), "v": torch.zeros(1)}, options)
    assert found["x"].shape == (1,) and float(found["x"]) == pytest.approx(math.cos(1), abs=1e-7)


def test_options_dict_gives_outputs_and_dense_output_of_nested_states():
    options = {"method": "RK45", "rtol": 1e-9, "atol": 1e-9, "t_eval": [0.2, 0.5, 1.0], "dense_output": True}
    y0 = {"x": torch.ones(2), "v": torch.zeros(2)}
    solver = odesolve(lambda t, y: {"v": -y["x"], "x": y["v"]}, y0, options, return_solver=True)
    out, expected = solver.integrate(y0)["x"], torch.cos(torch.tensor(options["t_eval"]))
    assert out.shape == (3, 2) and float((out[:, 0] - expected).abs().max()) < 1e-7
    at = solver.evaluate_dense_mode([0.2, 0.5, 1.0])["x"]
    assert float((at - out).abs().max()) < 1e-12  # the same interpolant
