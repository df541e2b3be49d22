"""Solves of a few fixed steps: ordinary operations, with the values and gradients of the way that remembers steps."""

import pytest
import torch

from torch_ACA import Callbacks, NonFiniteError, methods, odeint, solve, solve_endtime
from torch_ACA.few_steps import MOST_EVALUATIONS, few_steps
from torch_ACA.solver_options import SolverOptions
from torch_ACA.tableau import Tableau

TABLEAUS = [name for name, method in methods.items() if isinstance(method, Tableau)]
ROUNDING = 1e-14  # of sums of a few numbers near 1, in another order


class Field(torch.nn.Module):
    def __init__(self, *layers, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        layers = layers or (torch.nn.Tanh(),)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 5), *layers, torch.nn.Linear(5, 3)).to(dtype)
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return self.net(y) * torch.cos(t)


def start(dtype=torch.float64):
    return torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3)


def is_few(func, y0, t, **keywords):
    return few_steps(func, y0, t, SolverOptions(**keywords)) is not None


def both_ways(field, y0, t, **keywords):
    """Outputs and gradients, as ordinary operations and (with a record) by remembered steps."""
    assert is_few(field, y0, t, **keywords)
    found = []
    for record in (False, True):
        leaf = y0.clone().requires_grad_()
        ys = solve(field, leaf, t, record=record, **keywords).ys
        found.append([ys, *torch.autograd.grad((ys**2).sum(), [leaf, *field.parameters()])])
    return found


@pytest.mark.parametrize("name", TABLEAUS)
@pytest.mark.parametrize("times", [(0.0, 0.4), (0.4, 0.0)])
def test_values_and_gradients_of_every_tableau(name, times):
    method = methods[name]
    own = method.stages - method.fsal
    if own > MOST_EVALUATIONS - method.fsal:
        pytest.skip("one step of it is no short solve")
    steps = (MOST_EVALUATIONS - method.fsal) // own
    for one, other in zip(*both_ways(Field(), start(), times, method=name, options={"step_size": 0.4 / steps + 1e-3})):
        torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("options", [{"step_size": 1.0, "land_on_t": True}, {"grid": [0.0, 0.1, 0.25, 0.3, 0.7]}])
def test_outputs_where_steps_end(gradient, options):
    found = both_ways(Field(), start(), [0.0, 0.1, 0.3, 0.7], method="Euler", options=options, gradient=gradient)
    for one, other in zip(*found):
        assert torch.equal(one, other) or torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING)
    assert len(found[0][0]) == 4


def test_callbacks():
    calls = []

    def noted(kind):
        return lambda t, y, h: calls.append((kind, t, y.tolist(), h))

    for record in (False, True):
        callbacks = Callbacks(step=noted("step"), accept=noted("accept"), reject=noted("reject"))
        solve(Field(), start(), [0.0, 0.3], method="Heun2", h=0.2, callbacks=callbacks, record=record)
    assert len(calls) == 8 and calls[:3] == calls[4:7]
    assert calls[3][2] == pytest.approx(calls[7][2], rel=ROUNDING)


def test_what_is_no_short_solve():
    y0, t = start(), [0.0, 0.4]
    assert is_few(Field(), y0, t, method="Euler", h=0.05) and not is_few(Field(), y0, t, method="Euler", h=0.04)
    assert not is_few(Field(), y0, [0.0, 0.1, 0.4], method="Euler", h=0.2)  # an output inside of a step
    assert not is_few(Field(), y0, torch.tensor(t, requires_grad=True), method="Euler", h=0.2)
    assert not is_few(Field(), y0, t, method="Dopri5", h=0.2) and not is_few(Field(), y0, t)
    assert not is_few(lambda t, y: y, torch.ones(2**13 + 1), t, method="Euler", h=0.2)
    assert not is_few(Field(), y0, t, method="Euler", h=0.2, max_evals=1)


def test_second_derivatives_and_counts():
    field, y0 = Field(), start().requires_grad_()
    y, stats = solve_endtime(field, y0, 0.0, 0.3, method="RK4", h=0.2)
    assert (stats.n_f_evals, stats.n_accepted, field.calls) == (8, 2, 8)

    def end(y0, *parameters):
        return solve_endtime(field, y0, 0.0, 0.3, method="RK4", h=0.2)[0]

    assert torch.autograd.gradgradcheck(end, (y0, *field.parameters()))
    y.sum().backward()
    assert stats.n_backward_f_evals == 0


@pytest.mark.parametrize("make", [
    lambda y: {"b": (y, y[0].float()), "a": y.cfloat()},
    lambda y: y.half(),
    lambda y: y.reshape(1, 3, 2, 2).to(memory_format=torch.channels_last),
    lambda y: y.reshape(3, 4).T,
])  # fmt: skip
def test_states_of_all_kinds(make):
    def func(t, state):
        return torch.utils._pytree.tree_map(lambda leaf: -leaf * (1 + t), state)

    def found(**keywords):
        y0 = start().requires_grad_()
        ys = solve(func, make(y0), [0.0, 0.3], method="Heun2", h=0.2, **keywords).ys
        leaves = torch.utils._pytree.tree_leaves(ys)
        (bar,) = torch.autograd.grad(sum(leaf.abs().square().sum().double() for leaf in leaves), y0)
        return [*leaves, bar]

    for one, other in zip(found(), found(record=True)):
        assert one.shape == other.shape and one.dtype == other.dtype and one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=2e-3 if one.dtype == torch.half else 1e-6, atol=1e-6)


def test_random_numbers_are_the_same_at_every_evaluation_and_the_stream_moves_on():
    field = Field(torch.nn.Dropout())
    (torch.manual_seed(1), both := both_ways(field, start(), [0.0, 0.3], method="RK4", h=0.2))
    torch.manual_seed(1)
    masks = [solve(field, start(), [0.0, 0.3], method="RK4", h=0.2).ys for _ in range(2)]
    assert not torch.equal(*masks) and len(both) == 2
    torch.manual_seed(1)
    of_record = [solve(field, start(), [0.0, 0.3], method="RK4", h=0.2, record=True).ys for _ in range(2)]
    torch.testing.assert_close(masks, of_record, rtol=ROUNDING, atol=ROUNDING)


def test_random_numbers_that_are_drawn_late():
    def func(t, y):
        return y * torch.rand_like(y) if t > 0.1 else y

    ends = []
    for record in (False, True):
        torch.manual_seed(3)
        ends += [solve(func, start(), [0.0, 0.8], method="Euler", h=0.1, record=record).ys, torch.rand(1)]
    torch.testing.assert_close(ends[:2], ends[2:], rtol=ROUNDING, atol=ROUNDING)


def test_a_func_that_returns_the_same_memory_again():
    memory = torch.empty(4, 3, dtype=torch.float64)

    def func(t, y):
        return memory.copy_(y.detach() * (1 + t))

    found = [solve(func, start(), [0.0, 0.3], method="RK4", h=0.2, record=record).ys for record in (False, True)]
    torch.testing.assert_close(*found, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_func_that_changes_its_argument(needs_grad):
    y0 = start().requires_grad_(needs_grad)
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    ys = solve(lambda t, y: y.mul_(rate), y0, [0.0, 0.3], method="RK4", h=0.2).ys
    expected = solve(lambda t, y: y * rate, y0, [0.0, 0.3], method="RK4", h=0.2).ys
    assert torch.equal(y0.detach(), start()) and torch.equal(ys, expected)
    one, other = (torch.autograd.grad(found.sum(), rate) for found in (ys, expected))
    torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


def test_a_func_that_differentiates_something_itself():
    def func(t, y):
        (slope,) = torch.autograd.grad((y**3).sum(), y, create_graph=True)
        return -slope

    def with_gradients(t, y):
        with torch.enable_grad():
            return func(t, y if y.requires_grad else y.requires_grad_())

    y0 = start().requires_grad_()
    expected = solve(lambda t, y: -3 * y**2, y0, [0.0, 0.3], method="Heun2", h=0.2).ys
    for field in (func, with_gradients):
        ys = solve(field, y0, [0.0, 0.3], method="Heun2", h=0.2).ys
        torch.testing.assert_close(ys, expected, rtol=ROUNDING, atol=ROUNDING)
        bars = [torch.autograd.grad(found.square().sum(), y0, retain_graph=True) for found in (ys, expected)]
        torch.testing.assert_close(*bars, rtol=ROUNDING, atol=ROUNDING)
    with torch.no_grad():
        ys = solve(with_gradients, start(), [0.0, 0.3], method="Heun2", h=0.2).ys
    torch.testing.assert_close(ys, expected, rtol=ROUNDING, atol=ROUNDING)


def test_statistics_hooks_and_captured_tensors():
    field = Field(torch.nn.BatchNorm1d(5))
    solve(field, start(), [0.0, 0.3], method="RK4", h=0.4)
    assert field.net[1].num_batches_tracked == 4
    weight = torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
    prepared, seen = weight - weight.T.detach() * 0.5, []
    prepared.register_hook(lambda bar: seen.append(bar))
    ys = solve(lambda t, y: y @ prepared, start(), [0.0, 0.3], method="RK4", h=0.2).ys
    expected = solve(lambda t, y: y @ prepared, start(), [0.0, 0.3], method="RK4", h=0.2, record=True).ys
    bars = [torch.autograd.grad(found.square().sum(), weight, retain_graph=True)[0] for found in (ys, expected)]
    torch.testing.assert_close(*bars, rtol=ROUNDING, atol=ROUNDING)
    assert len(seen) == 2  # once in each backward pass, on the whole gradient


def test_inference_mode_and_autocast():
    field, y0 = Field(dtype=torch.float32), start(torch.float32)
    expected = solve(field, y0, [0.0, 0.3], method="RK4", h=0.2, record=True).ys
    with torch.inference_mode():
        torch.testing.assert_close(solve(field, y0, [0.0, 0.3], method="RK4", h=0.2).ys, expected)
    with torch.autocast(y0.device.type, torch.bfloat16):
        found = [solve(field, y0, [0.0, 0.3], method="RK4", h=0.2, record=record).ys for record in (False, True)]
    assert found[0].dtype == torch.float32 and not torch.equal(found[0], expected)
    torch.testing.assert_close(*found, rtol=2**-7, atol=2**-7)  # a last place in float32 may be one in bfloat16


@pytest.mark.parametrize("slope, where", [(float("inf"), "y0 holds"), (3e300, "t = 0.1")])
def test_failures_are_those_of_other_solves(slope, where):
    def func(t, y):
        return torch.full_like(y, slope) * (1e300 if t > 0.05 else 1.0)

    messages = []
    for record in (False, True):
        with pytest.raises(NonFiniteError) as caught:
            solve(func, start(), [0.0, 0.3], method="Euler", h=0.1, record=record)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and where in messages[0]
    ys = odeint(func, start(), torch.tensor([0.0, 0.1, 0.3]), method="euler")  # as torchdiffeq: the caller looks
    assert not torch.isfinite(ys[-1]).any()


@pytest.mark.parametrize("bad, message", [
    ({"y0": [1.0]}, "y0 must hold tensors"), ({"t": [0.0, 0.0]}, "strictly"), ({"t": [0.0, float("nan")]}, "finite"),
    ({"func": lambda t, y: y[:2]}, "func returned shape"), ({"func": lambda t, y: (y, y)}, "nested like y0"),
])  # fmt: skip
def test_mistakes_are_told_as_by_other_solves(bad, message):
    arguments = {"func": Field(), "y0": start(), "t": [0.0, 0.3]} | bad
    with pytest.raises((TypeError, ValueError), match=message):
        solve(**arguments, method="RK4", h=0.2)
