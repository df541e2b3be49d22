"""torchdiffeq's interface at its edges: what its users hand over without a thought, and what they get there."""

import math
import warnings

import pytest
import torch
from torch import nn

from torch_ACA import SolverError, odeint, odeint_adjoint, odeint_dense, solve
from torch_ACA.compat.torchdiffeq import METHODS, SOLVERS, find_parameters

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

with_torchdiffeq = pytest.mark.skipif(torchdiffeq is None, reason="torchdiffeq is not installed")
INTERFACES = [odeint, odeint_adjoint]
ONE, T = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0])
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")


def decay(t, y):
    return -y


class Stiff(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(20.0))

    def forward(self, t, y):
        return -self.rate * y


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", [*METHODS, "scipy_solver"])
def test_a_single_time(interface, method):
    y0 = {"a": torch.ones(2, 3, requires_grad=True), "b": torch.ones(())}
    ys = interface(lambda t, y: y, y0, torch.tensor([0.3]), method=method)
    assert ys["a"].shape == (1, 2, 3) and ys["b"].shape == (1,) and torch.equal(ys["a"][0], y0["a"])
    assert torch.equal(torch.autograd.grad(ys["a"].sum(), y0["a"])[0], torch.ones(2, 3))


@with_torchdiffeq
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_a_step_size_does_not_fix_the_steps_of_adaptive_methods(interface):
    """With steps of 0.25 the stiff decay explodes: (1 - 5 + ...)^4."""
    results = []
    for library in (__import__("torch_ACA"), torchdiffeq):
        module = Stiff()
        with pytest.warns(UserWarning, match="step_size"):
            y = getattr(library, interface)(module, ONE, T, method="dopri5", options={"step_size": 0.25})[-1]
        y.sum().backward()
        results.append((float(y.detach()), float(module.rate.grad)))
    # 2e-9 of a state that began at 1, to the tolerances of 1e-9
    assert results[0] == pytest.approx(results[1], abs=1e-8) and abs(results[0][0]) < 1e-8


@pytest.mark.parametrize("method,options,unused", [
    ("dopri5", {"max_iters": 9, "eps": 0.1}, "max_iters, eps"),
    ("dopri5", {"step_size": 0.1, "perturb": True, "grid_constructor": print}, "step_size, perturb, grid_constructor"),
    ("rk4", {"step_size": 0.1, "first_step": 0.5, "max_num_steps": 3}, "first_step, max_num_steps"),
    ("dopri5", {"dtype": torch.float32}, "dtype"), ("rk4", {"max_iters": 9}, "max_iters"),
    ("scipy_solver", {"jump_t": [0.5], "step_size": 0.1}, "jump_t, step_size"),
])  # fmt: skip
@pytest.mark.parametrize("interface", INTERFACES)
def test_options_without_use_warn_at_the_callers_line(method, options, unused, interface):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = interface(decay, ONE, T, method=method, options=options)[-1]
    message = f"options that have no effect with method {method!r}: {unused}"
    assert [(str(w.message), w.filename) for w in caught] == [(message, __file__)]
    assert float(y) == pytest.approx(math.exp(-1), abs=1e-2)  # an error of one step of rk4


def test_options_without_use_of_the_backward_solve_warn_too():
    y0 = ONE.clone().requires_grad_()
    with pytest.warns(UserWarning, match="no effect with method 'dopri5': dtype, step_size"):
        odeint_adjoint(decay, y0, T, adjoint_options={"dtype": torch.float32, "step_size": 0.5})


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("options", [
    {"step_size": None}, {"first_step": None, "step_t": None, "jump_t": None, "grid_constructor": None},
    {"dtype": torch.float64}, {"norm": torch.linalg.vector_norm},
])  # fmt: skip
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_what_means_the_default_does_not_warn(interface, options, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ys = interface(decay, ONE, T, method=method, options=options)
    if "norm" not in options:
        assert torch.equal(ys, interface(decay, ONE, T, method=method))


@with_torchdiffeq
@pytest.mark.parametrize("method,adjoint_method,options,adjoint_options", [
    ("dopri5", "rk4", None, None), ("dopri5", "rk4", None, {"step_size": 0.1}), ("rk4", "dopri5", None, None),
    ("rk4", "rk4", None, None), ("rk4", "euler", {"step_size": 0.1}, {"step_size": 0.01}), ("euler", None, None, None),
    ("euler", None, {"step_size": 0.1}, None), ("midpoint", None, {"grid_constructor": 11}, None),
    ("midpoint", "euler", {"grid_constructor": 11}, {"grid_constructor": 21}),
    ("dopri5", "midpoint", None, {"grid_constructor": 21}),
])  # fmt: skip
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_of_the_backward_solve(field, method, adjoint_method, options, adjoint_options, reverse):
    """Fixed steps: the same sums as theirs up to rounding, but for the gradients of times, which they integrate."""
    t = torch.tensor([0.0, 0.5, 1.0])
    t = t.flip(0) if reverse else t

    def made(options):
        if options is None or "grid_constructor" not in options:
            return options
        n = options["grid_constructor"]
        return {"grid_constructor": lambda f, y, t: torch.linspace(t[0].item(), t[-1].item(), n)}

    results = []
    for library in (odeint_adjoint, torchdiffeq.odeint_adjoint):
        torch.manual_seed(0)
        y0 = torch.randn(4, 3).requires_grad_()
        keywords = {"options": made(options), "adjoint_options": made(adjoint_options)}
        if library is odeint_adjoint and (options is None or "grid_constructor" in options) and method != "dopri5":
            keywords["options"] = (keywords["options"] or {}) | {"interp": "linear"}
        ys = library(field, y0, t, rtol=1e-8, atol=1e-8, method=method, adjoint_method=adjoint_method, **keywords)
        results.append([ys, *torch.autograd.grad((ys**2).sum(), [y0, *field.parameters()])])
    adaptive = "dopri5" in (method, adjoint_method)
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if adaptive else 1e-11, atol=1e-6 if adaptive else 1e-11)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_grid_of_ones_own_must_not_require_grad(interface):
    times = torch.linspace(0, 1, 5, requires_grad=True)
    with pytest.raises(ValueError, match="grid must not require grad"):
        interface(decay, ONE, T, method="euler", options={"grid_constructor": lambda f, y, t: times})
    found = interface(decay, ONE, T.clone().requires_grad_(), method="euler",
                      options={"grid_constructor": lambda f, y, t: torch.linspace(t[0].item(), t[-1].item(), 3)})
    assert found.requires_grad  # in t: the ends of the grid follow it


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method,never", [
    ("rk4", "callback_accept_step, callback_reject_step"),
    ("scipy_solver", "callback_step, callback_accept_step, callback_reject_step"), ("dopri5", None),
])  # fmt: skip
def test_callbacks_that_are_never_called_warn(interface, method, never):
    module = Stiff()
    for name in ("step", "accept_step", "reject_step"):
        setattr(module, f"callback_{name}", lambda t, y, dt: None)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        interface(module, ONE, T, method=method)
    expected = [] if never is None else [f"method {method!r} never calls {never}"]
    assert [str(w.message) for w in caught] == expected


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint"])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_return_what_becomes_infinite_or_nan(gradient, method):
    """The caller checks the loss, and skips the batch."""
    y0 = torch.full((2,), 3.0, requires_grad=True)
    ys = odeint(lambda t, y: y**2, y0, torch.linspace(0, 4, 30), method=method, gradient=gradient)
    assert ys.shape == (30, 2) and not torch.isfinite(ys[-1]).any() and torch.isfinite(ys[1]).all()
    ys = odeint(lambda t, y: y * math.nan, y0, T, method=method, gradient=gradient)
    assert torch.equal(ys[0], y0) and torch.isnan(ys[1]).all()
    assert torch.isnan(torch.autograd.grad(ys.sum(), y0)[0]).all()
    with pytest.raises(SolverError):
        solve(lambda t, y: y**2, y0, torch.linspace(0, 4, 30), method=method, h=0.1, gradient=gradient)


def test_failures_of_adaptive_methods_are_assertion_errors_too():
    for interface in INTERFACES:
        with pytest.raises(AssertionError) as caught:
            interface(lambda t, y: y**2, ONE, torch.tensor([0.0, 2.0]))
        assert isinstance(caught.value, SolverError) and isinstance(caught.value, RuntimeError)
        with pytest.raises(AssertionError, match="max_num_steps = 2 was reached"):
            interface(lambda t, y: torch.cos(9 * t) * y, ONE, T, options={"max_num_steps": 2})


def test_missing_methods_name_a_substitute():
    radau = "Rodas5P .*, or scipy_solver with options=.*Radau"
    for method in ("trapezoid", "gl6"):
        for interface in INTERFACES:
            with pytest.raises(ValueError, match=f"{method}' is not available here; use {radau}"):
                interface(decay, ONE, T, method=method)


def test_names_that_programs_look_up():
    assert set(SOLVERS) == {*METHODS, "scipy_solver"} and "dopri5" in SOLVERS
    module = Stiff()
    assert find_parameters(module) == [module.rate]
    ys = odeint_adjoint(lambda t, y: module(t, y), ONE, T, adjoint_params=tuple(find_parameters(module)))
    assert torch.autograd.grad(ys[-1].sum(), module.rate)[0].isfinite()


def test_dense_output_keeps_the_gradient_of_its_times():
    t1 = torch.tensor(2.0, requires_grad=True)
    at = odeint_dense(decay, ONE, 0.0, t1)
    assert float(at(torch.tensor(2.0)).detach()) == pytest.approx(math.exp(-2), abs=1e-7)
