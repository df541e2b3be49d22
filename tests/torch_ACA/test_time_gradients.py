"""Times: their gradients at jumps and in low precision, of first and second order, and where fixed steps end."""

import math
import warnings

import numpy as np
import pytest
import torch

from tests.torch_ACA.programs import EXACT, assert_close
from torch_ACA import ODEBlock, SecondDerivativeError, odeint, solve

METHODS = [
    {"method": "Dopri5"}, {"method": "RK4", "h": 0.2}, {"method": "RK23", "h": 0.3}, {"method": "Euler", "h": 0.1},
]  # fmt: skip
WITH_JUMPS = [*EXACT, "adjoint"]


def kind_of(name):
    return EXACT.get(name, {"gradient": "adjoint"})


def switched(w, at=0.5, before=lambda w: w, behind=lambda w: w**2):
    """y' is one constant before a time and another behind it: every method is exact if it stops there."""
    return lambda t, y: (before(w) if t < at else behind(w)) * torch.ones_like(y)


@pytest.mark.parametrize("where", ["jump_t", "step_t"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["method"])
@pytest.mark.parametrize("kind", WITH_JUMPS)
def test_gradients_of_the_ends_around_a_jump(kind, method, where):
    w = torch.tensor(3.0, requires_grad=True)
    t = torch.tensor([0.0, 1.0], requires_grad=True)
    if where == "step_t" and (method["method"] != "Euler" or kind == "adjoint"):
        pytest.skip("a stage at the end of a step stands behind a jump that is not named")
    options = {where: [0.5]}
    y = solve(switched(w), torch.zeros(1), t, options=options, **kind_of(kind), **method).ys[-1]
    found = torch.autograd.grad(y.sum(), [t, w], create_graph=kind in EXACT)
    # y = w (.5 - t0) + w^2 (t1 - .5); rounding, and the backward solve's tolerance
    assert_close([y.detach(), *(g.detach() for g in found)], [
        torch.tensor([6.0]), torch.tensor([-3.0, 9.0]), torch.tensor(3.5)
    ], 1e-12 if kind in EXACT else 1e-4)  # fmt: skip
    if kind in EXACT:
        second = torch.autograd.grad(found[0][0] + 10 * found[0][1] + 100 * found[1], [t, w])
        assert_close(second, [torch.tensor([-100.0, 600.0]), torch.tensor(-1 + 60 + 100.0)], 1e-10)


@pytest.mark.parametrize("at", [0.5, 0.0, 1.0])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["method"])
@pytest.mark.parametrize("kind", WITH_JUMPS)
def test_a_jump_at_an_output_time(kind, method, at):
    """Moving the output of a state's past does not move its end."""
    w = torch.tensor(3.0, requires_grad=True)
    t = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    f = lambda t, y: (w if t <= at else w**2) * torch.ones_like(y)  # noqa: E731
    ys = solve(f, torch.zeros(1), t, options={"jump_t": [at]}, **kind_of(kind), **method).ys
    (found,) = torch.autograd.grad(ys[-1].sum(), t, create_graph=kind in EXACT)
    # just behind the jump at the start, just before the one at the end
    first, last = (9.0 if at == 0.0 else 3.0), (3.0 if at == 1.0 else 9.0)
    assert_close([found.detach()], [torch.tensor([-first, 0.0, last])], 1e-12 if kind in EXACT else 1e-4)
    value = {0.5: 6.0, 0.0: 9.0, 1.0: 3.0}[at]
    assert float(ys[-1].detach()) == pytest.approx(value, rel=1e-13)
    middle = solve(f, torch.zeros(1), t, options={"jump_t": [at]}, **kind_of(kind), **method).ys[1]
    (found,) = torch.autograd.grad(middle.sum(), t)
    expected = torch.tensor([-first, 9.0 if at == 0.0 else 3.0, 0.0])
    assert_close([found], [expected], 1e-12 if kind in EXACT else 1e-4)


@pytest.mark.parametrize("kind", WITH_JUMPS)
def test_a_jump_at_an_output_time_backwards(kind):
    t = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
    w = torch.tensor(3.0, requires_grad=True)
    f = lambda t, y: (w if t < 0.5 else w**2) * torch.ones_like(y)  # noqa: E731
    ys = solve(f, torch.zeros(1), t, options={"jump_t": [0.5]}, **kind_of(kind)).ys
    found = torch.autograd.grad(ys[-1].sum(), [t, w], create_graph=kind in EXACT)
    tolerance = 1e-12 if kind in EXACT else 1e-4
    assert_close([g.detach() for g in found], [torch.tensor([-9.0, 0.0, 3.0]), torch.tensor(-3.5)], tolerance)


@pytest.mark.parametrize("kind", WITH_JUMPS)
def test_the_jump_at_an_output_time_with_feedback(kind):
    """y' = -a y before, b y behind: the continuous solution, at tight tolerances."""
    a, b = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    f = lambda t, y: (-a if t <= 0.5 else b) * y  # noqa: E731
    tight = {"rtol": 1e-9, "atol": 1e-9, "options": {"jump_t": [0.5]}}
    ys = solve(f, torch.ones(1), [0.0, 0.5, 1.0], **tight, **kind_of(kind)).ys
    found = torch.autograd.grad(ys[1].sum() + ys[2].sum(), [a, b])
    middle, end = math.exp(-0.5), math.exp(0.5)
    expected = [torch.tensor(-0.5 * (middle + end)), torch.tensor(0.5 * end)]
    assert_close(found, expected, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0.0, 1e5])
@pytest.mark.parametrize("kind", EXACT)
def test_second_derivatives_in_times_of_another_precision(kind, start, dtype):
    """float32 times with a float64 state: the solver's own arithmetic of times stays in float64."""
    w = torch.tensor(0.5, requires_grad=True)
    t = torch.tensor([start, start + 1.0], dtype=dtype, requires_grad=True)
    f = lambda t, y: w * torch.sin(t - start) * y  # noqa: E731
    y = solve(f, torch.ones(1), t, rtol=1e-10, atol=1e-10, **EXACT[kind]).ys[-1]
    first = torch.autograd.grad(y.sum(), [t, w], create_graph=True)
    end = math.exp(0.5 * (1 - math.cos(1)))
    assert_close([first[0].detach().double()], [torch.tensor([0.0, 0.5 * math.sin(1) * end])], 1e-6)
    # dy/dw = (1 - cos) y, and what of it moves with t1
    second = torch.autograd.grad(first[1], [t, w])
    of_t1 = math.sin(1) * end + (1 - math.cos(1)) * 0.5 * math.sin(1) * end
    expected = [torch.tensor([0.0, of_t1]), torch.tensor((1 - math.cos(1)) ** 2 * end)]
    assert_close([g.double() for g in second], expected, 1e-6)  # float32 of the result


@pytest.mark.parametrize("kind", EXACT)
def test_first_and_second_pass_agree_on_first_derivatives(kind):
    """With and without create_graph, with interpolated outputs and jumps inside."""

    def grads(create_graph):
        w = torch.tensor([0.5, -1.0], requires_grad=True)
        t = torch.tensor([0.1, 0.33, 0.7, 1.3], requires_grad=True)
        y0 = torch.ones(2, requires_grad=True)
        f = lambda t, y: w * torch.cos(3 * t) * y + (0 if t < 0.6 else t) + w  # noqa: E731
        ys = solve(f, y0, t, options={"jump_t": [0.6], "step_t": [0.45]}, rtol=1e-6, atol=1e-6, **EXACT[kind]).ys
        loss = (ys * torch.linspace(1, 2, 8).view(4, 2)).sum()
        return [g.detach() for g in torch.autograd.grad(loss, [w, t, y0], create_graph=create_graph)]

    assert_close(grads(True), grads(False), 1e-11)


def test_all_exact_kinds_agree_on_a_jump_at_an_output_time():
    def grads(kind):
        w = torch.tensor([0.5, -1.0], requires_grad=True)
        t = torch.tensor([0.1, 0.6, 0.7, 1.3], requires_grad=True)
        f = lambda t, y: w * torch.cos(3 * t) * y + (0 if t <= 0.6 else t)  # noqa: E731
        # naive differentiates through its choice of steps, so the steps are fixed
        options = {"jump_t": [0.6], "step_size": 0.125}
        ys = solve(f, torch.ones(2), t, method="Dopri5", options=options, **EXACT[kind]).ys
        return torch.autograd.grad((ys * torch.linspace(1, 2, 8).view(4, 2)).sum(), [w, t])

    expected = grads("naive")
    for kind in EXACT:
        assert_close(grads(kind), expected, 1e-11)


def half_hidden(t):
    return 0.5 * t + 0.5 * t.detach()


def in_torchscript(hide):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that TorchScript will go
        return torch.jit.script(hide)


def half_a_number(t):
    return 0.5 * t + (2 * t).item() / 4


def half_without_gradients(t):
    with torch.no_grad():
        half = 0.5 * t
    return 0.5 * t + half


def half_copied(t):
    return 0.5 * t + 0.5 * t.new_tensor(float(t))


def half_in_a_new_tensor(t):
    return 0.5 * t + 0.5 * torch.linspace(0.0, t, 2, dtype=t.dtype)[1]


HIDDEN_PARTS = [half_hidden, half_a_number, half_without_gradients, half_copied, half_in_a_new_tensor]


@pytest.mark.parametrize("hide", [float, torch.Tensor.detach, *HIDDEN_PARTS])
def test_naive_takes_sizes_as_constants_where_func_hides_its_time(hide):
    """The end of a step moves with its size, and func with its time: without that derivative the rest is wrong."""

    def grad(gradient, of_time):
        w = torch.tensor(1.0, requires_grad=True)
        f = lambda t, y: w * (5 * torch.sin(5 * torch.as_tensor(of_time(t))) - y)  # noqa: E731
        y = solve(f, torch.tensor([0.5, -0.3]), [0.0, 2.0], rtol=1e-7, atol=1e-7, gradient=gradient).ys[-1]
        return torch.autograd.grad(y.sum(), w)

    with pytest.warns(UserWarning, match="sizes of its steps as constants"):
        found = grad("naive", hide)
    assert_close(found, grad("direct", hide), 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(grad("naive", lambda t: t), found, 1e-5)  # both are within the tolerance of the solution's own


def rounded_straight_through(y):
    return y + ((64 * y).round() / 64 - y).detach()


def one_component_hidden(y):
    return torch.cat([y[:1], y[1:].detach()])


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("hide", [
    torch.Tensor.detach, half_hidden, rounded_straight_through, in_torchscript(half_hidden), one_component_hidden,
])  # fmt: skip
def test_naive_takes_sizes_as_constants_where_func_hides_its_state(hide, transformed):
    """The state at the end of a step moves with its size, too: what was a half of the gradient is missing else."""

    def grad(gradient):
        def loss(w):
            f = lambda t, y: torch.stack([w * y[1], -torch.sin(hide(y)[0]) * y[1] - hide(y)[1]])  # noqa: E731
            return solve(f, torch.tensor([1.0, 0.5]), [0.0, 1.5], rtol=1e-5, atol=1e-5, gradient=gradient).ys[-1].sum()

        w = torch.tensor(1.2)
        return torch.func.grad(loss)(w) if transformed else torch.autograd.grad(loss(w.requires_grad_()), w)[0]

    with pytest.warns(UserWarning, match="changes with its state.*sizes of its steps as constants"):
        found = grad("naive")
    assert_close([found], [grad("direct")], 1e-12)


def test_a_state_that_is_looked_at_but_not_hidden():
    """A branch, a mask, a largest entry that cancels, a kink: naive differentiates its sizes."""

    def func(t, y):
        largest = y.detach().max()
        shares = torch.exp(y - largest) / torch.exp(y - largest).sum()
        return torch.where(y > 0, -y, shares) + (y > 0.5).to(y) * (0.5 - y) + (0.1 if float(y[0]) > 0.0 else 0.2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y0 = torch.tensor([1.0, -0.7, 0.3], requires_grad=True)
        solve(func, y0, [0.0, 1.0], gradient="naive", rtol=1e-6, atol=1e-6)


def masked(t, y):
    return (y > 0).to(y) * torch.sin(y) - y


def wary(t, y):
    assert bool((y.abs() < 3 + t).all())
    return masked(t, y)


def normalised(t, y):
    return y.sort().values - torch.softmax(y.detach() - y.detach() + y, 0) + torch.zeros(3).to(y) * float(y[0])


@pytest.mark.parametrize("func", [masked, wary, normalised])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_false_alarm(func, dtype):
    """Whatever the default dtype is, in half precision, and in a func that is not made for all states."""
    y0 = torch.tensor([1.0, -0.7, 0.3], dtype=dtype, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Converting a tensor")
        solve(func, y0, [0.0, 1.0], gradient="naive", rtol=1e-3, atol=1e-3)


def test_a_state_in_a_nested_list_is_hidden():
    y0 = torch.ones(2, 2, requires_grad=True)
    with pytest.warns(UserWarning, match="changes with its state"):
        solve(lambda t, y: -y - torch.tensor(y.tolist()) ** 2, y0, [0.0, 1.0], gradient="naive")


def test_naive_builds_no_graph_where_nothing_requires_grad():
    func = lambda t, y: -y * float(np.sin(t.cpu().numpy()))  # noqa: E731
    assert not solve(func, torch.ones(2), [0.0, 1.0], gradient="naive").ys.requires_grad


def time_in_vmap(t):
    return torch.func.vmap(half_hidden)(t.expand(2))


def test_second_derivatives_in_a_hidden_time_are_refused():
    """d2y/dt2 = f_t + f_y f. One derivative in the time and one in the state is there."""
    t, y0 = torch.tensor([0.0, 1.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    y = solve(lambda t, y: -(1 + t.detach()) * y, y0, t, rtol=1e-8, atol=1e-8).ys[-1]
    (by_time,) = torch.autograd.grad(y, t, create_graph=True)
    assert_close(torch.autograd.grad(by_time[1], y0, retain_graph=True), [torch.tensor(-2 * math.exp(-1.5))], 1e-6)
    with pytest.raises(SecondDerivativeError, match="func hides its time"):
        torch.autograd.grad(by_time[1], t)


TRANSFORMS = {
    "backward": lambda f, t: torch.autograd.grad(f(t.requires_grad_()), t)[0],
    "grad": lambda f, t: torch.func.grad(f)(t),
    "jvp": lambda f, t: torch.stack([torch.func.jvp(f, (t,), (unit,))[1] for unit in torch.eye(len(t)).to(t)]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("hide", [float, torch.Tensor.detach, half_hidden, time_in_vmap, in_torchscript(half_hidden)])
def test_hidden_times_under_transforms(hide, gradient, transform):
    def loss(t, of_time=hide):
        f = lambda t, y: torch.cos(3 * torch.as_tensor(of_time(t))) * y  # noqa: E731
        return solve(f, torch.tensor([0.5, -0.3]), t, rtol=1e-9, atol=1e-9, gradient=gradient).ys[-1] @ torch.ones(2)

    t = torch.tensor([0.0, 0.4, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # naive says that it takes sizes as constants
        found = TRANSFORMS[transform](loss, t)
    # y(T) = y0 exp((sin 3T - sin 3t0) / 3); the solution is good to about its tolerance
    assert_close([found], [0.2 * math.exp(math.sin(3.0) / 3) * torch.tensor([-1.0, 0.0, math.cos(3.0)])], 1e-7)


def test_a_time_that_is_looked_at_but_not_hidden():
    """Kinks on its way, a look at its value, a straight line as it is: no reason to take sizes as constants."""
    knots = torch.rand(41, generator=torch.Generator().manual_seed(0))

    def func(t, y):
        place = min(int(20 * t), 39)
        return knots[place] + (20 * t - place) * (knots[place + 1] - knots[place]) - y

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(func, torch.ones(2, requires_grad=True), [0.0, 2.0], gradient="naive", rtol=1e-4, atol=1e-4)


def ramp(t):
    return torch.sin(t) + 5 * (t.detach() - 0.2).clamp(0.0, 0.4)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "mali"])
@pytest.mark.parametrize(("func", "y0", "dtype"), [
    (lambda t, y: torch.sin(t) - 3 * y * t.detach(), [0.0], torch.float64),
    (lambda t, y: 1 - 3 * y * float(t), [0.0], torch.float64),
    (lambda t, y: torch.stack([torch.sin(t), 0.09 * torch.sin(t.detach())]) + 0 * y, [0.0, 0.0], torch.float64),
    (lambda t, y: torch.sin(t - 40) * 0.5 + torch.sin(t.detach() - 40) * 0.5 + 0 * y, [0.0], torch.float32),
    (lambda t, y: ramp(t) + 0 * y, [0.0], torch.float64),
], ids=["at rest", "all of it, at rest", "a small component", "float32", "a ramp"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:func changes with its time", "ignore:Converting a tensor")
def test_hidden_parts_that_are_hard_to_see(func, y0, dtype, gradient):
    """A hidden derivative that the state multiplies, beside larger ones, in low precision, between two corners."""
    y0 = torch.tensor(y0, dtype=dtype)
    start, end = (40.0, 41.0) if dtype == torch.float32 else (0.0, 1.0)
    tolerance = 1e-4 if dtype == torch.float32 or gradient == "mali" else 1e-8
    t = torch.tensor([start, end], dtype=torch.float64, requires_grad=True)
    keywords = {"method": "ALF"} if gradient == "mali" else {}
    y = solve(func, y0, t, gradient=gradient, rtol=tolerance, atol=tolerance, **keywords).ys[-1, -1]
    (found,) = torch.autograd.grad(y, t)
    with torch.no_grad():
        moved = [
            solve(func, y0, [start + a, end + b], rtol=1e-11, atol=1e-11).ys[-1, -1].item() if dtype == torch.float64
            else math.cos(a) - math.cos(1 + b)
            for a, b in ((1e-4, 0), (-1e-4, 0), (0, 1e-4), (0, -1e-4))
        ]  # fmt: skip
    exact = [(moved[0] - moved[1]) / 2e-4, (moved[2] - moved[3]) / 2e-4]
    assert found.tolist() == pytest.approx(exact, abs=3e-3 if tolerance == 1e-4 else 1e-4)  # differences over corners


def test_rows_refuse_a_time_that_is_hidden_in_a_part():
    t, func = torch.tensor([0.0, 1.0], requires_grad=True), lambda t, y: torch.cos(half_hidden(t)) * y
    with pytest.raises(ValueError, match="hides its time"):
        solve(func, torch.ones(3, 1), t, per_sample=True)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("sign", [1, -1])
def test_fixed_steps_stand_at_multiples_of_their_size(kind, sign):
    """t0 + i h, not the sum of i sizes, whose rounding grows."""
    seen = []

    def f(t, y):
        seen.append(float(t))
        return 0 * y

    y0 = torch.zeros(1, requires_grad=True)
    solve(f, y0, [0.3, 0.3 + sign * 100.0], method="Euler", h=0.1, **EXACT[kind])
    assert len(seen) == 1000
    assert seen == [0.3 + i * (sign * 0.1) for i in range(1000)]


def test_fixed_steps_of_a_block_end_where_they_should():
    seen = []
    block = ODEBlock(lambda t, y: seen.append(float(t)) or -y, method="Euler", h=0.1, t0=0.0, t1=0.7)
    block(torch.ones(1))
    assert seen == [i * 0.1 for i in range(7)]


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint"])
def test_the_torchdiffeq_interface_at_a_jump(gradient):
    t = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    f = lambda t, y: (1.0 if t <= 0.5 else 3.0) * torch.ones_like(y)  # noqa: E731
    ys = odeint(f, torch.zeros(1), t, gradient=gradient, options={"jump_t": torch.tensor([0.5])})
    (found,) = torch.autograd.grad(ys[-1].sum(), t)
    assert torch.allclose(found, torch.tensor([-1.0, 0.0, 3.0]), atol=1e-8)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.parametrize("hide", [torch.Tensor.detach, lambda t: t, *HIDDEN_PARTS])
@pytest.mark.filterwarnings("ignore:func changes with its time")
def test_a_func_may_detach_its_time(gradient, hide):
    """y = y0 exp(w (sin 3t - sin 3 t0) / 3). To the tolerance, loose as it is: without the time's own
    derivative the last step alone would be off by its length."""
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    ys = solve(lambda s, y: w * y * torch.cos(3 * hide(s)), y0, t, gradient=gradient, rtol=1e-5, atol=1e-5).ys

    def exact(t, w, y0):
        return y0 * torch.exp(w * (torch.sin(3 * t) - torch.sin(3 * t[0])) / 3)

    expected = torch.autograd.grad(exact(t, w, y0).sum(), (t, w, y0))
    found = torch.autograd.grad(ys.sum(), (t, w, y0))
    assert_close([g.detach() for g in found], [g.detach() for g in expected], 2e-3)


@pytest.mark.parametrize("gradient", ["aca", "direct"])
def test_mixed_second_derivatives_with_a_time_that_func_detaches(gradient):
    """d/dw of dy/dt1 = w cos(3 t1) y is cos(3 t1) (y + w dy/dw)."""
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.2, 1.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64)
    y = solve(lambda s, y: w * y * torch.cos(3 * s.detach()), y0, t, gradient=gradient, rtol=1e-9, atol=1e-9).ys[-1]
    (rate,) = torch.autograd.grad(y.sum(), t, create_graph=True)
    (found,) = torch.autograd.grad(rate[1], w)
    grown = (math.sin(3.0) - math.sin(0.6)) / 3
    assert float(found) == pytest.approx(math.cos(3.0) * math.exp(0.7 * grown) * (1 + 0.7 * grown), rel=1e-6)


@pytest.mark.parametrize(
    "keywords",
    [
        {"dense": True}, {"memory": 2}, {"options": {"jump_t": [0.7]}}, {"options": {"land_on_t": True}},
        {"method": "RK4", "h": 0.05}, {"method": "Rodas5P"}, {"gradient": "direct", "record": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:func changes with its time")  # Rodas5P says what that costs
def test_a_detached_time_with_other_options(keywords):
    """The slope at each time, whatever else is asked for; a nested state."""
    t = torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.ones(1, 3, dtype=torch.float64)

    def func(t, y):
        return torch.cos(3 * t.detach()) + 0 * y[0], -y[1] * t.detach()

    ys, _ = solve(func, y0, t, rtol=1e-6, atol=1e-6, **keywords).ys
    (found,) = torch.autograd.grad(ys[1:].sum(), t)
    expected = torch.tensor([-4 * math.cos(0.6), 2 * math.cos(2.1), 2 * math.cos(3.0)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("corners", [
    ([0.0, 2.0, 5.0, 10.0], [1.0, 3.0, 3.0, 0.0]), ([0.0, 4.0, 4.3, 10.0], [1.0, 1.0, 2.0, 2.0]),
    ([0.0, 0.5, 10.0], [2.0, 1.0, 1.0]),
], ids=["plateau", "step of a ramp", "short ramp"])  # fmt: skip
@pytest.mark.parametrize("keywords", [
    {}, {"gradient": "direct"}, {"gradient": "naive"}, {"method": "RK4", "h": 0.25}, {"compile": True},
], ids=str)  # fmt: skip
@pytest.mark.filterwarnings("ignore:func changes with its time")
@pytest.mark.filterwarnings("ignore:compile=True")
def test_an_input_from_a_table_that_is_constant_in_places(corners, keywords):
    """Constant where it is looked at first or last, or but for a short while."""

    def given(t):
        return float(np.interp(float(t.detach()), *corners))

    t = torch.tensor([0.1, 4.7, 9.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64)
    ys = solve(lambda t, y: -0.1 * y + given(t), y0, t, rtol=1e-8, atol=1e-8, **keywords).ys
    (found,) = torch.autograd.grad(ys[1:].sum(), t)
    slopes = [-0.1 * float(y) + given(s) for s, y in zip(t, ys.detach())]
    expected = [-slopes[0] * sum(math.exp(-0.1 * float(s - t[0])) for s in t[1:]), *slopes[1:]]
    rtol = 2e-3 if "h" in keywords else 1e-6  # steps of a given size go over the corners
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


def test_a_func_that_does_not_use_its_time_is_not_evaluated_for_it():
    calls = []

    def func(t, y):
        calls.append(t)
        return -y

    t = torch.tensor([0.0, 1.0], requires_grad=True)
    solve(func, torch.ones(1), t, method="RK4", h=0.5)
    constant = len(calls)
    solve(func, torch.ones(1), t.detach(), method="RK4", h=0.5)
    assert constant <= len(calls) - constant + 1
