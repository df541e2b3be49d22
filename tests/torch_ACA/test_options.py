"""Options: limits of step sizes hold for every step, values without sense are named, and what is made for an option is
made once."""

import functools
import math
import pickle
import sys

import numpy as np
import pytest
import torch

from torch_ACA import Callbacks, NonFiniteError, ODEBlock, Solution, SolverError, odeint, solve, solve_event

GRADIENTS = ["aca", "direct", "naive", "adjoint", "mali"]
ONE = torch.ones(2, dtype=torch.float64)


def decay(t, y):
    return -y


def sizes_of(func, t, **keywords):
    """Sizes of the accepted steps."""
    sizes = []
    solution = solve(func, ONE, t, callbacks=Callbacks(accept=lambda t, y, h: sizes.append(abs(h))), **keywords)
    return sizes, solution


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("keyword", ["h", "first_step"])
def test_a_first_step_keeps_to_the_limits(gradient, keyword):
    """A pulse of width 0.02 at 0.5, of area 0.02 sqrt(pi): a step of 1 does not see it."""
    def pulse(t, y):
        return torch.exp(-(((t - 0.5) / 0.02) ** 2)) * torch.ones_like(y)

    def first(size, options):
        given = {"h": size} if keyword == "h" else {}
        options = options if keyword == "h" else options | {"first_step": size}
        return sizes_of(pulse, [0.0, 1.0], gradient=gradient, options=options, **given)

    sizes, solution = first(1.0, {"max_step": 0.05})
    assert sizes[0] == 0.05 and max(sizes) < 0.05 * (1 + 1e-8)  # a last step may be longer by rounding
    # the quadrature of a pulse in steps of 2.5 widths, at tolerance 1e-5 of a value near 1
    assert float(solution.ys[-1, 0]) - 1 == pytest.approx(0.02 * math.sqrt(math.pi), rel=0.1)
    sizes, _ = first(1e-6, {"min_step": 0.01})
    assert sizes[0] == 0.01


def test_the_backward_solve_keeps_to_its_limits():
    sizes = []
    callbacks = Callbacks(step=lambda t, y, h: sizes.append(abs(h)))
    adjoint = {"options": {"max_step": 0.05}, "h": 1.0, "callbacks": callbacks}
    solve(decay, ONE.clone().requires_grad_(), [0.0, 1.0], gradient="adjoint", adjoint=adjoint).ys.sum().backward()
    assert sizes[0] == 0.05 and max(sizes) < 0.05 * (1 + 1e-8)


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint", "mali"])
@pytest.mark.parametrize("t", [[0.3, 0.0], [0.0, 0.3], [0.0, 0.17, 0.3]])
def test_min_step_does_not_refuse_the_last_step(gradient, t):
    """Where the last step is shorter than min_step, or longer by rounding, it is taken all the same."""
    options = {"min_step": 0.05, "land_on_t": True}
    solution = solve(
        lambda t, y: 30 * torch.sin(40 * t) * y, ONE.clone().requires_grad_(), t, gradient=gradient, options=options,
        max_evals=2000,
    )  # fmt: skip
    solution.ys.sum().backward()
    assert solution.stats.n_f_evals < 200


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint", "mali"])
def test_nan_at_the_smallest_step_is_an_error_at_once(gradient):
    with pytest.raises(NonFiniteError) as caught:
        solve(lambda t, y: torch.sqrt(0.5 - t) * y, ONE, [0.0, 1.0], gradient=gradient, options={"min_step": 0.01})
    assert caught.value.n_f_evals < 500


BAD = {
    "safety": (0.0, -0.5, 1.5, math.nan, "0.9", None, True, torch.ones(2)),
    "ifactor": (0.5, -10.0, math.nan),
    "dfactor": (0.0, -0.2, 1.5, math.nan),
    "beta": (-0.1, 2.0, math.nan),
    "min_step": (-1e-3, math.nan, math.inf, [0.1]),
    "max_step": (0.0, -1.0, math.nan, 1j),
    "max_num_steps": (0, -5, 2.5, math.nan, "many"),
    "first_step": (0.0, -0.1, math.nan),
    "step_size": (0.0, -0.1, math.nan, torch.tensor(1j)),
    "step_t": ([math.nan], [math.inf], "x", [None]),
    "jump_t": ([math.nan], 1j, [[0.1]]),
    "grid": ([0.0, 0.6, 0.3, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, math.nan, 1.0], 3j),
    "land_on_t": ("yes", 2.0),
    "perturb": (0.1,),
    "check_finite": ("no",),
    "norm": ("rms", 2),
    "interp": ("quartic", 3),
}


@pytest.mark.parametrize("name,value", [(name, value) for name, values in BAD.items() for value in values])
@pytest.mark.parametrize("where", ["solve", "block", "adjoint"])
def test_values_without_sense_are_named(name, value, where):
    """Also None, which means that the option is not given: only there nothing happens."""
    options = {name: value}
    calls = {
        "solve": lambda: solve(decay, ONE, [0.0, 1.0], options=options),
        "block": lambda: ODEBlock(decay, options=options),
        "adjoint": lambda: solve(decay, ONE, [0.0, 1.0], gradient="adjoint", adjoint={"options": options}),
    }
    if value is None:
        calls[where]()
        return
    with pytest.raises((ValueError, TypeError), match=rf"{name}\b.* must .*got ") as caught:
        calls[where]()
    assert "\n" not in str(caught.value)


CONTROL = {
    **{"safety": 0.9, "ifactor": 5.0, "dfactor": 0.5, "beta": 0.1, "min_step": 0.1, "max_step": 0.2},
    "norm": torch.linalg.vector_norm,
}


@pytest.mark.parametrize("name", CONTROL)
@pytest.mark.parametrize("keywords", [
    {"method": "RK4", "h": 0.1}, {"method": "explicit_adams", "h": 0.1}, {"options": {"step_size": 0.1}},
    {"options": {"grid": [0.0, 1.0]}}, {"gradient": "adjoint", "adjoint": {"method": "RK4", "h": 0.1}},
])  # fmt: skip
def test_what_steers_adaptive_steps_is_no_option_of_fixed_ones(name, keywords):
    """Of the backward solve: only what was asked of it; it does not inherit what it has no use for."""
    forward = {name: CONTROL[name]}
    if "adjoint" in keywords:
        solve(decay, ONE, [0.0, 1.0], options=forward, **keywords)
        keywords = keywords | {"adjoint": {**keywords["adjoint"], "options": forward}}
        message = "norm of the adjoint is for adaptive steps" if name == "norm" else f"{name}: for adaptive steps"
    else:
        keywords = keywords | {"options": {**keywords.get("options", {}), **forward}}
        message = f"{name}: for adaptive steps, and those of .* are fixed here"
    with pytest.raises(ValueError, match=message):
        solve(decay, ONE, [0.0, 1.0], **keywords)


@pytest.mark.parametrize("name,value", [("check_finite", False), ("perturb", True)])
def test_what_is_of_fixed_steps_is_no_option_of_adaptive_ones(name, value):
    with pytest.raises(ValueError, match=f"{name}.* is for fixed steps"):
        solve(decay, ONE, [0.0, 1.0], options={name: value})
    adjoint = {"method": "Dopri5"}  # which does not inherit it
    solve(decay, ONE, [0.0, 1.0], method="RK4", h=0.1, options={name: value}, gradient="adjoint", adjoint=adjoint)
    solve(decay, ONE, [0.0, 1.0], options={name: not value})  # which holds anyway


@pytest.mark.parametrize("keywords,message", [
    ({"h": -0.1}, "h must be a number above 0 .t gives the direction., got -0.1"),
    ({"h": math.nan}, "h must be a number above 0"),
    ({"h": "0.1"}, "h must be a number above 0"),
    ({"max_evals": 0}, "max_evals must be a whole number of at least 1, got 0"),
    ({"max_evals": math.nan}, "max_evals must be a whole number"),
    ({"max_evals": -1}, "max_evals must be a whole number"),
    ({"options": {"min_step": 1.0, "max_step": 0.1}}, "min_step must not exceed max_step, got 1 > 0.1"),
    ({"options": [("min_step", 0.1)]}, "options must be a dict"),
    ({"callbacks": print}, "callbacks must be Callbacks.step=..., accept=..., reject=...., got <built-in"),
    ({"adjoint": {"callbacks": print}, "gradient": "adjoint"}, "callbacks must be Callbacks"),
    ({"adjoint": {"options": {"norm": "rms"}}, "gradient": "adjoint"}, "norm of the adjoint must be 'seminorm', a fu"),
    ({"adjoint": {"options": 3}, "gradient": "adjoint"}, "options of the adjoint must be a dict"),
    ({"adjoint": 3, "gradient": "adjoint"}, "adjoint must be a dict"),
    ({"rtol": "1e-3"}, "rtol must be a number, or numbers and tensors nested like y0 .* got '1e-3' for shape"),
    ({"rtol": None}, "rtol must be a number, or numbers"),
    ({"rtol": True}, "rtol must be a number, or numbers"),
    ({"atol": torch.ones(3)}, r"atol must be a number, or numbers and tensors .* for shape \(2,\)"),
    ({"atol": [1e-3, 1e-3, 1e-3]}, r"atol must be a number, or numbers and tensors .* for shape \(2,\)"),
    ({"atol": {"a": 1e-3}}, "atol must be a number, or numbers"),
    ({"atol": {1e-3}}, "atol must be a number, or numbers"),
    ({"atol": torch.tensor([1e-3, -1e-3])}, "atol must be finite and not negative"),
    ({"atol": torch.tensor(1e-3j)}, "atol must be"),
    ({"atol": math.inf}, "atol must be finite"),
    ({"rtol": torch.tensor([1e-3, 0.0]), "atol": torch.tensor([1e-3, 0.0])}, "must not both be 0"),
    ({"params": torch.nn.Linear(1, 1)}, "params must be a sequence of tensors, such as .*, got Linear"),
    ({"options": {"norm": lambda y: y}}, r"norm must return one number, or a tensor of one, got tensor\(\["),
    ({"options": {"norm": lambda y: None}}, "norm must return one number, or a tensor of one, got None: it gets the"),
    ({"options": {"norm": lambda y: -y.norm()}}, r"norm must return a number of at least 0, got tensor\(-"),
    ({"options": {"norm": lambda y, z: y}}, r"norm is called as norm\(state\), which function does not take: missing"),
    ({"method": "Rodas5P", "jac": lambda y: y}, r"jac is called as jac\(t, y\), which function does not take"),
])  # fmt: skip
def test_arguments_without_sense_are_named(keywords, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        solve(decay, ONE, [0.0, 1.0], **keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gradient", ["aca", "naive", "adjoint"])
def test_an_error_inside_a_norm_says_what_the_norm_gets(gradient):
    options, gets = {"norm": lambda y: y["position"]}, "norm gets the state, or errors of it, nested like y0"
    if gradient == "adjoint":
        keywords, gets = {"adjoint": {"options": options}}, r"norm gets a tuple: a 0-d zero, the leaves of the state"
    else:
        keywords = {"options": options}
    with pytest.raises((IndexError, TypeError)) as caught:
        solve(decay, ONE.clone().requires_grad_(), [0.0, 1.0], gradient=gradient, **keywords).ys.sum().backward()
    if sys.version_info >= (3, 11):  # which has notes
        assert any(note.startswith(gets) for note in caught.value.__notes__)


def test_a_decorated_function_is_taken_for_what_it_is_called_as():
    """`functools.wraps` gives it the signature of another function."""
    times = []

    @functools.wraps(decay)
    def noted(t, y, h):
        times.append(t)

    solve(decay, ONE, [0.0, 1.0], callbacks=Callbacks(accept=noted))
    assert times[0] == 0.0


@pytest.mark.parametrize("call,message", [
    (lambda: solve(decay, ONE, "01"), "t must be a tensor, array or sequence of times, .*got '01'"),
    (lambda: odeint(decay, ONE, torch.tensor(0.0), event_fn=decay), r"t must be 1-D with at least one time, got shape"),
    (lambda: odeint(decay, ONE, [0.0, 1.0], options="x"), "options must be a dict, got 'x'"),
    (lambda: solve(decay, ONE[0], [0.0, 1.0], per_sample=True), "per_sample needs a first axis of the same length"),
    (lambda: solve_event(decay, ONE, 0.0, None), r"event_fn must be callable as event_fn\(t, y\), got NoneType"),
    (lambda: solve_event(decay, ONE, 0.0, lambda y: y), r"event_fn is called as event_fn\(t, y\), which function does"),
    (lambda: solve_event(decay, ONE, None, lambda t, y: y - 0.5), "t0 must be a number or a 0-d tensor, got None"),
    (lambda: solve_event(decay, ONE, [0, 1], lambda t, y: y - 0.5), r"t0 must be a number or a 0-d tensor, got \[0, 1"),
    (lambda: Callbacks(accept=3), r"accept must be callable as accept\(t, y, h\), got int"),
    (lambda: Callbacks(step=lambda t: t), r"step is called as step\(t, y, h\), which function does not take: too many"),
    (lambda: ODEBlock(None), r"func must be callable as func\(t, y\), got NoneType"),
    (lambda: ODEBlock(decay, t1=None), "t1 must be a number or a tensor, got None"),
    (lambda: ODEBlock(decay, t0=1.0, t1=1.0), "t0 and t1 must be finite and differ, got 1.0 and 1.0"),
    (lambda: ODEBlock(torch.nn.Linear), r"func must be a module, got the class Linear"),
    (lambda: solve(decay, ONE, {0.0, 1.0}), "t must be a tensor, array or sequence of times"),
    (lambda: solve(decay, ONE, ["0", "1"]), "t must be a tensor, array or sequence of times"),
    (lambda: solve(decay, ONE, [0.0, 1.0, 1.0]), r"strictly decreasing, but t\[2\] = 1 does not lie beyond t\[1\] = 1"),
    (lambda: solve(decay, ONE, [0.0, 1.0], dense="False"), "dense must be True or False, got 'False'"),
    (lambda: solve(decay, ONE, [0.0, 1.0], step_size=0.1), r"no keyword step_size: give it as options=\{'step_size'"),
    (lambda: solve(decay, ONE, [0.0, 1.0], rtoll=0.1), r"takes no keyword rtoll \(is 'rtol' meant\?\)"),
    (lambda: solve(decay, ONE, [0.0, 1.0], options={"safty": 0.9}), r"unknown option safty \(is 'safety' meant\?\)"),
    (lambda: solve(decay, ONE, [0.0, 1.0], method="Dopri7"), r"unknown method 'Dopri7' \(is '.opri.' meant\?\)"),
    (lambda: solve(decay, ONE, [0.0, 1.0], method="BDF"), "method BDF is scipy's: give method='scipy_solver' with"),
    (lambda: solve(decay, ONE, [0.0, 1.0], dense=True).dense("0.5"), "a time must be a number, or a tensor"),
    (lambda: solve(decay, ONE, [0.0, 1.0], dense=True).dense(torch.tensor(0.5j)), "a time must be real"),
])  # fmt: skip
def test_what_else_cannot_be_used_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have no notes before Python 3.11")
def test_how_func_is_called_is_said_where_its_first_call_fails():
    with pytest.raises(RuntimeError) as failed:
        solve(lambda y, t: y @ torch.ones(3, 3), torch.ones(3), [0.0, 1.0])
    assert failed.value.__notes__ == ["func is called as func(t, y), with t of shape [] and y of shape [3]."]


@pytest.mark.parametrize("keywords", [
    {"h": torch.tensor(0.1, requires_grad=True)},
    *({"options": {name: torch.tensor(0.1, requires_grad=True)}} for name in ("first_step", "step_size", "max_step")),
    *({"options": {name: torch.tensor([0.5], requires_grad=True)}} for name in ("step_t", "jump_t")),
    {"options": {"jump_t": [torch.tensor(0.5, requires_grad=True)]}},
    {"options": {"grid": torch.tensor([0.0, 0.5, 1.0], requires_grad=True)}},
    {"rtol": torch.tensor(1e-3, requires_grad=True)}, {"atol": [torch.ones(2, requires_grad=True)]},
])  # fmt: skip
def test_what_gets_no_gradient_must_not_require_one(keywords):
    with pytest.raises(ValueError, match="must not require grad: nothing is differentiated in it"):
        solve(decay, ONE, [0.0, 1.0], **keywords)


def test_values_of_other_kinds_that_mean_the_same():
    plain = solve(decay, ONE, [0.0, 1.0], options={"max_step": 0.25, "jump_t": [0.5], "max_num_steps": 100}, rtol=1e-3)
    for number in (np.float32, torch.tensor, np.array):
        options = {"max_step": number(0.25), "jump_t": number([0.5]), "max_num_steps": number(100), "beta": None}
        assert torch.equal(solve(decay, ONE, [0.0, 1.0], options=options, rtol=number(1e-3)).ys.round(decimals=6),
                           plain.ys.round(decimals=6))  # fmt: skip
    assert torch.equal(solve(decay, ONE, [0.0, 1.0], options={"jump_t": 0.5, "max_step": 0.25}, rtol=1e-3).ys, plain.ys)


def test_tolerances_of_a_dict_are_matched_by_key():
    y0 = {"a": torch.ones(2), "b": torch.ones(2)}
    func = lambda t, y: {"a": -y["a"], "b": torch.cos(20 * t) * y["b"]}  # noqa: E731
    counts = [
        solve(func, y0, [0.0, 1.0], rtol=tolerance, atol=tolerance).stats.n_accepted
        for tolerance in ({"a": 1e-1, "b": 1e-9}, {"b": 1e-9, "a": 1e-1}, {"a": 1e-9, "b": 1e-1})
    ]
    assert counts[0] == counts[1] > counts[2]
    with pytest.raises(ValueError, match="rtol must be a number or nested like y0"):
        solve(func, y0, [0.0, 1.0], rtol={"a": 1e-3, "c": 1e-3})


@pytest.mark.parametrize("method", ["Dopri5", "RK12"])
@pytest.mark.parametrize(("compile", "functions"), [
    ("step", {"start", "step"}), pytest.param("loop", {"begin", "outputs"}, marks=pytest.mark.loops),
])  # fmt: skip
def test_an_interpolant_by_name_is_compiled_once(method, compile, functions, made):
    numbers = []
    for _ in range(3):
        solve(decay, ONE, [0.0, 0.4, 1.0], method=method, options={"interp": "linear"}, compile=compile)
        numbers.append(len(made))
    assert set(made) == functions and len(set(numbers)) == 1


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("func", [lambda t, y: y * (math.nan if t > 0 else 1), lambda t, y: y * math.nan])
def test_a_failure_in_the_first_step_is_returned(gradient, dense, func):
    if dense and gradient not in ("aca", "direct"):
        pytest.skip("no dense output")
    y0 = torch.ones(2, requires_grad=True)
    solution = solve(lambda t, y: (func(t, y[0]),), (y0,), [0, 1, 2], gradient=gradient, dense=dense,
                     on_failure="return")  # fmt: skip
    assert isinstance(solution.error, NonFiniteError) and not solution.success
    assert solution.ts.tolist() == [0.0] and torch.equal(solution.ys[0], y0[None])
    assert solution.stats.n_f_evals == solution.error.n_f_evals > 0 and solution.stats.n_accepted == 0
    (g,) = torch.autograd.grad(solution.ys[0].sum(), y0)
    assert torch.equal(g, torch.ones(2))
    with pytest.raises(ValueError, match="NaN at t = 0|y0 holds"):
        solution(0.0)


def test_solutions_can_be_pickled():
    y0 = {"a": torch.ones(2, requires_grad=True), "b": torch.ones(3, 2)}
    solution = solve(lambda t, y: {"b": -2 * y["b"], "a": -y["a"]}, y0, [0.0, 1.0, 2.0], dense=True)
    again = pickle.loads(pickle.dumps(solution))
    assert isinstance(again, Solution) and again.stats == solution.stats
    for time in (0.3, torch.linspace(0, 2, 5)):
        assert all(torch.equal(again(time)[name], solution(time)[name]) for name in y0)
    failed = solve(lambda t, y: y**2, torch.ones(1), [0.0, 0.5, 2.0], on_failure="return", max_evals=1000)
    again = pickle.loads(pickle.dumps(failed))
    assert type(again.error) is type(failed.error) and again.status == failed.status
    assert (again.error.t, again.error.n_f_evals) == (failed.error.t, failed.error.n_f_evals)
    assert isinstance(again.error, SolverError)
