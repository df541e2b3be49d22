"""Compiled loops of a func that jumps: the steps, states and gradients of eager ones, and the same evaluations."""

import pytest
import torch

from tests.torch_ACA.programs import slow
from torch_ACA import ReplayError, solve

pytestmark = [
    pytest.mark.loops, pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated"),
]  # fmt: skip

FAST = {"method": "RK23", "rtol": 1e-4, "atol": 1e-4}  # few stages to trace
WITH_END_SLOPE = {"method": "RK12", "rtol": 1e-3, "atol": 1e-3}  # dense output takes it, and no stage has it


def results(times, jump, dtype=torch.float64, **keywords):
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[0.2, -1.0], [1.0, -0.3]], dtype=dtype, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=dtype, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)

    def func(t, y):
        return torch.where(t < jump, y @ matrix, torch.sin(3 * t) - 2 * rate.to(y) * y)

    solution = solve(func, y0, t, **FAST | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel()).reshape(solution.ys.shape)
    bars = torch.autograd.grad((weights * solution.ys).sum(), [y0, matrix, rate, t])
    return solution, bars


@pytest.mark.parametrize(("times", "jump", "keywords", "segments"), [
    ([0.0, 1.0], 0.5, {}, 2),
    ([0.0, 0.2, 0.49, 0.499, 0.51, 1.0], 0.5, {}, 2),
    ([0.0, 0.2, 0.49, 0.5, 0.51, 0.79, 1.0], 0.5, WITH_END_SLOPE | {"options": {"jump_t": [0.5, 0.8]}}, 3),
    slow([1.0, 0.8, 0.51, 0.3, 0.0], 0.5, {}, 2),
    slow([0.5, 0.8, 1.0], 0.5, {}, 1),
    slow([0.0, 0.3, 0.499, 0.5], 0.5, {}, 1),
    slow([0.5, 0.3, 0.0], 0.5, {}, 1),
    slow([0.0, 0.2, 0.49, 1.0], 0.5, {"options": {"jump_t": [0.5], "step_t": [0.3, 0.7]}}, 4),
    slow([0.0, 0.2, 0.49, 0.5, 1.0], 0.5, WITH_END_SLOPE | {"options": {"jump_t": [0.5], "interp": "cubic"}}, 2),
    slow([0.0, 0.2, 0.29, 1.0], 0.3, {"dtype": torch.float32}, 2),  # where 0.3 is another number
    slow([0.0, 0.2, 0.49, 1.0], 0.5, {"method": "Dopri5"}, 2),
    slow([0.0, 0.2, 0.49, 1.0], 0.5, {"method": "Rodas5P"}, 2),
], ids=lambda value: str(value) if isinstance(value, list) else "")  # fmt: skip
def test_loops_end_before_a_jump_and_go_on_behind_it(times, jump, keywords, segments, looped):
    keywords = {"options": {"jump_t": [jump]}} | keywords
    (eager, bars), (found, found_bars) = (results(times, jump, **keywords, compile=c) for c in (False, True))
    rounding = 1e-12 if eager.ys.dtype == torch.float64 else 1e-6
    for a, b in zip((eager.ys, *bars), (found.ys, *found_bars), strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
    assert (eager.stats.n_accepted, eager.stats.n_rejected) == (found.stats.n_accepted, found.stats.n_rejected)
    assert looped == segments * ["forward"] + segments * ["backward"]


def test_a_wrong_side_of_the_jump_would_be_seen():
    """A stage on the other side of the jump has another sign, and moves the end by a part of the step."""

    def func(t, y):
        return torch.where(t < 0.5, torch.ones_like(y), -torch.ones_like(y))

    y0 = torch.zeros(1, dtype=torch.float64)
    for times, end in (([0.0, 1.0], 0.0), ([1.0, 0.0], 0.0), ([0.0, 0.5], 0.5), ([0.5, 1.0], -0.5)):
        solution = solve(func, y0, times, **FAST, compile=True, options={"jump_t": [0.5]})
        torch.testing.assert_close(solution.ys[-1], torch.full_like(y0, end), rtol=0, atol=1e-15)


def test_second_derivatives_and_what_has_changed_take_the_steps_as_they_were(looped):
    y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def func(t, y):
        return torch.where(t < 0.5, -rate * y, rate * y * y)

    def second(compile):
        ys = solve(func, y0, [0.0, 0.3, 1.0], **FAST, options={"jump_t": [0.5]}, compile=compile).ys
        bars = torch.autograd.grad(ys.square().sum(), [y0, rate], create_graph=True)
        return torch.autograd.grad(sum(bar.sum() for bar in bars), [y0, rate])

    for a, b in zip(second(False), second(True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert looped.count("forward") == 2

    ys = solve(func, y0, [0.0, 1.0], **FAST, options={"jump_t": [0.5]}, compile=True).ys
    rate.data.add_(0.1)
    with pytest.raises(ReplayError, match="func is not what it was"):
        ys.sum().backward()
