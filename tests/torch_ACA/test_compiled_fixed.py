"""Compiled loops over steps of given sizes: the steps, states, gradients and errors of those that are not compiled."""

import warnings

import pytest
import torch

from tests.torch_ACA.programs import slow
from torch_ACA import NonFiniteError, ReplayError, TooManyEvaluationsError, methods, solve
from torch_ACA.compat.torchdiffeq import odeint
from torch_ACA.compilation import loops
from torch_ACA.rosenbrock_tableaus import RosenbrockTableau
from torch_ACA.tableau import Tableau

pytestmark = [
    pytest.mark.loops, pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated"),
]  # fmt: skip

GRID = {"h": None, "options": {"grid": [0.0, 0.1, 0.13, 0.4, 0.5, 0.9, 1.0]}}
LANDING = {"options": {"land_on_t": True}}


def results(times, jump=None, dtype=torch.float64, order=1, **keywords):
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[0.2, -1.0], [1.0, -0.3]], dtype=dtype, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=dtype, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)

    def func(t, y):
        slope = torch.sin(3 * t) - 2 * rate.to(y) * torch.tanh(y @ matrix)
        return slope if jump is None else torch.where(t < jump, y @ matrix, slope)

    solution = solve(func, y0, t, **{"method": "Euler", "h": 0.1} | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel()).reshape(solution.ys.shape)
    inputs = [y0, matrix, rate, t]
    found = torch.autograd.grad((weights * solution.ys).sum(), inputs, create_graph=order == 2)
    if order == 2:
        found += torch.autograd.grad(sum((bar**2).sum() for bar in found), inputs)
    return [solution.ys, *found], solution.stats


def assert_as_eager(times, jump=None, **keywords):
    (eager, counts), (found, found_counts) = (results(times, jump, **keywords, compile=c) for c in (False, True))
    rounding = 1e-12 if eager[0].dtype == torch.float64 else 1e-6
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
    assert (counts.n_accepted, counts.n_rejected) == (found_counts.n_accepted, found_counts.n_rejected)
    return counts, found_counts


@pytest.mark.parametrize(("times", "keywords", "calls"), [
    ([0.0, 1.0], {}, 1),
    ([0.0, 0.2, 0.33, 0.339, 1.0], {"method": "RK4"}, 1),  # outputs inside steps: dense output takes the slope at ends
    ([0.0, 0.13, 0.5, 1.0], GRID | {"method": "RK23"}, 1),
    ([0.0, 0.13, 0.5, 0.66, 1.0], {"jump": 0.5, "method": "RK2", "options": {"jump_t": [0.5], "land_on_t": True}}, 2),
    slow([1.0, 0.5, 0.48, 0.0], {}, 1),
    slow([1.0, 0.5, 0.48, 0.0], LANDING, 1),
    slow([0.0, 0.13, 0.5, 1.0], GRID, 1),
    slow([0.0, 0.2, 0.25, 1.0], GRID | {"method": "RK4"}, 1),  # some on the grid, some between
    slow([0.0, 0.2, 0.49, 1.0], {"jump": 0.5, "method": "RK4", "options": {"jump_t": [0.5], "step_t": [0.3, 0.7]}}, 2),
    slow([0.5, 0.8, 1.0], {"jump": 0.5, "options": {"jump_t": [0.5]}}, 1),
    slow([0.0, 0.3, 0.499, 0.5], {"jump": 0.5, "options": {"jump_t": [0.5]}}, 1),
    slow([0.0, 0.35, 1.0], {"dtype": torch.float32, "method": "RK4"}, 1),
    slow([0.0, 0.35, 1.0], {"method": "RK4", "options": {"interp": "linear"}}, 1),
    slow([0.0, 0.35, 1.0], {"memory": 8}, 2),
    slow([0.0, 0.35, 1.0], {"order": 2, "method": "RK4"}, 1),
    slow([0.0, 1e3], {"h": 2.0}, 2),  # more steps than a buffer has
], ids=str)  # fmt: skip
def test_loops_take_the_same_steps(times, keywords, calls, looped):
    assert_as_eager(times, **keywords)
    assert looped.count("forward") >= calls and looped[:calls] == calls * ["forward"]


@pytest.mark.parametrize("times", [[0.0, 0.13, 0.5, 0.66, 1.0], [1.0, 0.51, 0.5, 0.0]])
@pytest.mark.parametrize("keywords", [{"method": "RK4"}, slow(LANDING), slow({"method": "Dopri5"} | LANDING)], ids=str)
def test_buffers_that_are_too_small_are_followed_by_others(times, keywords, monkeypatch, looped):
    monkeypatch.setattr(loops, "MOST", 3)
    assert_as_eager(times, **keywords)
    assert looped.count("forward") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", list(methods))
def test_every_method(name, looped):
    tableau = methods.get(name)
    if not isinstance(tableau, Tableau | RosenbrockTableau):
        pytest.skip("has no compiled loop")
    keywords = {"h": None, "options": {"step_size": 0.09}}
    counts, found = assert_as_eager([0.0, 0.2, 0.25, 1.0], **keywords, method=name)
    assert looped == ["forward", "backward"]
    assert found.n_f_evals - counts.n_f_evals in (0, 1)  # one more where steps do not end on a slope


def test_what_cannot_go_on_is_the_same_error():
    y0 = torch.ones(2, dtype=torch.float64)
    cases = [
        (NonFiniteError, lambda t, y: y / torch.where(t < 0.45, 1.0, 0.0), {}),
        (NonFiniteError, lambda t, y: y / torch.where(t < 0.85, 1.0, 0.0), {}),  # the last step
        (NonFiniteError, lambda t, y: y / 0.0, {}),
        (TooManyEvaluationsError, lambda t, y: -y, {"options": {"max_num_steps": 4}}),
        (TooManyEvaluationsError, lambda t, y: -y, {"max_evals": 5}),
    ]
    for kind, func, keywords in cases:
        messages = []
        for compile in (False, True):
            with pytest.raises(kind) as caught:
                solve(func, y0, [0.0, 1.0], method="Euler", h=0.1, **keywords, compile=compile)
            messages.append(str(caught.value))
        up_to_steps = [message[: message.index("steps and")] for message in messages]
        assert up_to_steps[0] == up_to_steps[1]


def test_infinite_states_are_carried_on_where_that_is_asked_for(looped):
    ends = [
        solve(
            lambda t, y: y / torch.where(t < 0.45, 1.0, 0.0), torch.tensor([1.0, -1.0, 0.0]), [0.0, 0.5, 1.0],
            method="Euler", h=0.1, options={"check_finite": False}, compile=compile,
        ).ys
        for compile in (False, True)
    ]  # fmt: skip
    assert looped
    torch.testing.assert_close(*ends, rtol=0, atol=0, equal_nan=True)


def test_torchdiffeqs_grid_of_output_times(looped):
    """Its fixed-step methods step from output to output: one call goes through all of them."""
    y0, k = torch.ones(3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    times, found = torch.linspace(0, 1, 30, dtype=torch.float64), []
    for compile in (False, True):
        ys = odeint(lambda t, y: -k * y * t, y0, times, method="rk4", compile=compile)
        found.append((ys, *torch.autograd.grad(ys.square().sum(), k)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert looped == ["forward", "backward"]


def test_a_changed_func_is_noticed():
    scale, y0 = torch.ones(3), torch.ones(3, requires_grad=True)
    ys = solve(lambda t, y: -y * scale, y0, [0.0, 1.0], method="RK4", h=0.1, compile=True).ys
    scale.add_(0.1)
    with pytest.raises(ReplayError, match="func is not what it was"):
        ys.sum().backward()


@pytest.mark.filterwarnings("default:compile=True")
def test_perturbed_steps_are_compiled_one_by_one():
    with pytest.warns(UserWarning, match="the loop over them is not .*perturb"):
        found = results([0.0, 1.0], options={"perturb": True}, compile=True)[0]
    for a, b in zip(results([0.0, 1.0], options={"perturb": True})[0], found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_generated_code(monkeypatch, looped):
    from torch_ACA.compilation import generate

    monkeypatch.setattr(generate, "BACKEND", "inductor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for keywords in ({"method": "RK4"}, LANDING, {"options": {"interp": "linear"}, "h": 0.3}):
            assert_as_eager([0.0, 0.13, 0.5, 0.66, 1.0], **keywords)
    assert looped == 3 * ["forward", "backward"]
