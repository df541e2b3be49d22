"""The options dict of the authors' packages: names, times and calls as their scripts have them."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch

from torch_ACA import odesolve, odesolve_adjoint, odesolve_adjoint_sym12, odesolve_endtime, solve
from torch_ACA.compat import TorchDiffEqPack

TIGHT = {"method": "Dopri5", "rtol": 1e-9, "atol": 1e-9}
X = torch.linspace(1, 2, 3, dtype=torch.float64)


def decay(t, y):
    return -y


@pytest.mark.parametrize("mode", [odesolve, odesolve_endtime, odesolve_adjoint, TorchDiffEqPack.odesolve])
def test_both_names_of_the_initial_state(mode):
    results = [mode(decay, X, TIGHT), mode(decay, z0=X, options=TIGHT), mode(decay, y0=X, options=TIGHT)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert float((results[0] - X * math.exp(-1)).abs().max()) < 1e-7
    for names in ({}, {"z0": X, "y0": X}):
        with pytest.raises(TypeError, match="give the initial state once"):
            mode(decay, options=TIGHT, **names)
    with pytest.raises(TypeError, match="options must be a dict, got None"):
        mode(decay, X)


@pytest.mark.parametrize("mode", [odesolve, odesolve_endtime, odesolve_adjoint])
def test_keys_of_their_code_are_accepted(mode):
    keys = ("regenerate_graph", "print_time", "end_point_mode", "delete_graph", "keep_small_step",
            "interpolation_method", "print_direction", "step_dif_ratio", "print_message")  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = mode(decay, X, TIGHT | dict.fromkeys(keys, False), regenerate_graph=False)
    assert torch.equal(found, mode(decay, X, TIGHT))
    assert sorted(str(w.message) for w in caught) == sorted(f"option {key!r} has no effect here" for key in keys)
    assert {w.filename for w in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mode(decay, X, TIGHT | {"safety": None, "h": None, "print_time": None})


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_kinds_of_times_and_equal_ones(kind):
    out = odesolve(decay, X, TIGHT | {"t_eval": kind([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])})
    expected = torch.exp(-torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0]))[:, None] * X
    assert out.shape == (6, 3) and float((out - expected).abs().max()) < 1e-7
    assert torch.equal(out[2], out[3]) and torch.equal(out[0], X)
    assert odesolve(decay, X, TIGHT | {"t_eval": kind([0.0, 0.0])}).shape == (2, 3)


def test_gradient_of_a_time_in_t_eval():
    t = torch.tensor(0.5, requires_grad=True)
    out = odesolve(decay, X, TIGHT | {"t_eval": [0.0, t, t, 1.0]})
    (g,) = torch.autograd.grad(out[1:3].sum(), t)
    assert float(g) == pytest.approx(-2 * float(X.sum()) * math.exp(-0.5), abs=1e-6)


def test_times_beyond_the_end_are_solved_on_to_with_a_warning():
    """Their three-body test asks for times up to 2 with t1 = 1."""
    for sign in (1.0, -1.0):
        options = TIGHT | {"t1": sign, "t_eval": [0.0, sign, 2 * sign]}
        with pytest.warns(UserWarning, match="t_eval reaches to .*2, beyond t1 = .*1: solved on to it") as caught:
            out = odesolve(lambda t, y: -sign * y, X, options)
        assert [w.filename for w in caught] == [__file__]
        assert float((out[-1] - X * math.exp(-2)).abs().max()) < 1e-7
        with pytest.raises(ValueError, match="t_eval must not lie before t0 = 0"):
            odesolve(decay, X, TIGHT | {"t1": sign, "t_eval": [-0.1 * sign, 0.5 * sign]})


@pytest.mark.parametrize("mode", [odesolve_endtime, odesolve_adjoint])
def test_the_end_time_modes_ignore_t_eval(mode):
    with pytest.warns(UserWarning, match="'t_eval' has no effect here"):
        assert torch.equal(mode(decay, X, TIGHT | {"t_eval": [0.5]}), mode(decay, X, TIGHT))


def test_a_single_time_has_an_axis_unless_it_is_not_wanted():
    options = TIGHT | {"t_eval": [0.4]}
    assert odesolve(decay, X, options).shape == (1, 3)
    assert odesolve(decay, X, options | {"squeeze_single_time": True}).shape == (3,)
    assert TorchDiffEqPack.odesolve(decay, X, options).shape == (3,)
    assert TorchDiffEqPack.odesolve(decay, X, TIGHT | {"t_eval": [0.4, 1.0]}).shape == (2, 3)


def test_solvers_are_called_as_there():
    options = TIGHT | {"dense_output": True, "t_eval": [0.0, 0.3, 1.0]}
    solver = odesolve(decay, options=options, return_solver=True)
    out, steps = solver.integrate(X, return_steps=True)
    assert out.shape == (3, 3) and steps[-1] == 1.0 and all(a < b for a, b in zip(steps, steps[1:]))
    assert float((solver(0.7) - X * math.exp(-0.7)).abs().max()) < 1e-7 and solver(0.7).shape == X.shape
    assert solver.neval == solve(decay, X, [0.0, 0.3, 1.0], method="Dopri5", rtol=1e-9, atol=1e-9).stats.n_f_evals
    again, same = solver.integrate(X, predefine_steps=steps, return_steps=True)
    assert same == steps and float((again - out).abs().max()) < 1e-12  # the same steps, up to rounding
    halves = solver.integrate(X, predefine_steps=torch.tensor([0.5, 1.0]), return_steps=True)[1]
    assert halves == [0.5, 1.0]
    assert float((solver.integrate(y0=X, t0=0.5, t_eval=[1.0]) - X * math.exp(-0.5)).abs().max()) < 1e-7


@pytest.mark.parametrize("mode,gradient", [(odesolve_endtime, "direct"), (odesolve_adjoint, "aca")])
def test_end_time_solvers(mode, gradient):
    solver = mode(decay, X, TIGHT, True)
    y0 = X.clone().requires_grad_()
    end, steps = solver.integrate(y0, return_steps=True)
    assert torch.equal(end, mode(decay, X, TIGHT)) and steps[-1] == 1.0
    (g,) = torch.autograd.grad(end.sum(), y0)
    assert float((g - math.exp(-1)).abs().max()) < 1e-7


@pytest.mark.parametrize("method,h,tolerance", [("sym12async", None, 1e-3), ("fixedstep_sym12async", 0.01, 1e-4),
                                                ("Sym12Async", 0.01, 1e-3)])  # fmt: skip
@pytest.mark.parametrize("mode", [odesolve_adjoint_sym12, odesolve, odesolve_adjoint, odesolve_endtime])
def test_sym12async_is_mali(method, h, tolerance, mode):
    y0, rate = X.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
    options = {"method": method, "h": h, "rtol": 1e-4, "atol": 1e-4, "t0": 0.0, "t1": 1.0}
    end = mode(lambda t, y: -rate * y, y0, options)
    assert type(end.grad_fn).__name__ != "NoneType" and end.shape == X.shape
    found = torch.autograd.grad(end.sum(), [y0, rate])
    assert float((found[0] - math.exp(-0.5)).abs().max()) < tolerance  # second order
    assert float(found[1]) == pytest.approx(-float(X.sum()) * math.exp(-0.5), abs=10 * tolerance)
    expected = solve(lambda t, y: -rate * y, X, [0.0, 1.0], gradient="mali", rtol=1e-4, atol=1e-4,
                     **({"options": {"step_size": h}} if method.startswith("fixed") else {"h": h})).ys[-1]
    assert torch.equal(end, expected)


def test_sym12_refuses_other_methods():
    with pytest.raises(ValueError, match="method must be sym12async or fixedstep_sym12async, got 'RK4'"):
        odesolve_adjoint_sym12(decay, X, {"method": "RK4", "h": 0.1})
    with pytest.raises(ValueError, match="fixedstep_sym12async takes fixed steps: give the step size h"):
        odesolve_adjoint_sym12(decay, X, {"method": "fixedstep_sym12async"})


@pytest.mark.parametrize("path,names", [
    ("odesolver", "odesolve Solver"), ("odesolver.ode_solver", "odesolve"),
    ("odesolver.adaptive_grid_solver", "RK12 RK23 RK45 Dopri5"),
    ("odesolver_mem", "odesolve_adjoint odesolve_endtime odesolve_adjoint_sym12"),
    ("odesolver_mem.adjoint_mem", "odesolve_adjoint odesolve_adjoint_sym12"),
    ("odesolver_mem.ode_solver_endtime", "odesolve_endtime"),
    ("compat.TorchDiffEqPack", "odesolve odesolve_adjoint odesolve_endtime odesolve_adjoint_sym12"),
])  # fmt: skip
def test_import_paths_of_their_scripts(path, names):
    module = importlib.import_module(f"torch_ACA.{path}")
    assert all(callable(getattr(module, name)) for name in names.split()) and set(module.__all__) == set(names.split())


@pytest.mark.parametrize("name", ["RK12", "RK23", "RK45", "Dopri5"])
def test_solvers_by_the_name_of_their_method(name):
    make = getattr(importlib.import_module("torch_ACA.odesolver.adaptive_grid_solver"), name)
    with pytest.warns(UserWarning, match="keep_small_step"):
        solver = make(decay, t0=0.0, t1=1.0, h=None, rtol=1e-5, atol=1e-5, neval_max=1000, keep_small_step=True)
    expected = odesolve(decay, X, {"method": name, "rtol": 1e-5, "atol": 1e-5, "t_eval": [0.5, 1.0]})
    assert torch.equal(solver.integrate(X, t_eval=[0.5, 1.0]), expected)


def test_messages_stay_short():
    """Of a thousand bad times a few are named."""
    times = torch.linspace(0, 1, 1000)
    times[500:] = math.nan
    with pytest.raises(ValueError) as caught:
        solve(decay, X, times)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError) as caught:
        solve(decay, X, [0.0, 1.0], options={"jump_t": times.tolist()})
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError) as caught:
        odesolve(decay, X, TIGHT | {"t_eval": torch.linspace(-1, 1, 1000)})
    assert len(str(caught.value)) < 200
    dense = solve(decay, X, [0.0, 1.0], dense=True)
    with pytest.raises(ValueError) as caught:
        dense(torch.linspace(2, 3, 1000))
    assert len(str(caught.value)) < 200


def test_safety_is_left_out_of_fixed_steps_with_a_warning():
    options = {"method": "RK4", "h": 0.1}
    with pytest.warns(UserWarning, match="safety has no effect with the steps of RK4"):
        found = odesolve_adjoint(decay, X, options | {"safety": 0.5})
    assert torch.equal(found, odesolve_adjoint(decay, X, options))


def test_dense_output_is_left_out_of_reversible_steps_with_a_warning():
    options = {"method": "sym12async", "t_eval": [0.5, 1.0]}
    with pytest.warns(UserWarning, match="dense_output has no effect with gradient='mali'"):
        found = odesolve(decay, X, options | {"dense_output": True})
    assert torch.equal(found, odesolve(decay, X, options))


def test_what_is_not_available_names_a_substitute():
    with pytest.raises(ValueError, match="method 'ode23s' is not available here; use Rodas5P"):
        odesolve(decay, X, {"method": "ode23s"})
