"""The backward pass evaluates func again: it is the func of the forward pass, or an error says so; no trace stays."""

import functools
import math
import random
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tests.torch_ACA.programs import EXACT, KINDS, assert_close, keywords_of, leaf, plain, square, tolerance_of
from torch_ACA import compare_gradients, solve
from torch_ACA.errors import CaptureError, ReplayError, SideOutputError

NOTICED = (ReplayError, CaptureError)
KEEPS_GRAPHS = ("direct", "naive", "unlimited", "1MiB")
FIRST_ORDER = [kind for kind in KINDS if kind != "1MiB"]


class Rate(nn.Module):
    """y' = c w y + b sin(t) with much that may change: a number, buffers, a parameter, the mode, a branch in time."""

    def __init__(self, late=False):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor([0.5, -0.3])), nn.Parameter(torch.tensor([0.2, 0.1]))
        self.register_buffer("scale", torch.ones(2))
        self.c, self.late, self.space = 1.0, late, {"c": 1.0}
        self.norm = nn.Identity()

    def forward(self, t, y):
        c, scale = self.c * self.space["c"], self.scale
        if self.late and t <= 0.5:
            c, scale = 1.0, torch.ones(2)
        if self.training is False:
            c = 0.7 * c
        return c * scale * self.w * y + self.b * torch.sin(t)


def number(f):
    f.c = 1.7


def slightly(f):
    f.c = 1.001


def deep_number(f):
    f.space["c"] = 1.7


def buffer_rebound(f):
    f.scale = torch.tensor([1.0, 2.0])


def buffer_in_place(f):
    with torch.no_grad():
        f.scale[1] = 2.0


def buffer_data(f):
    f.scale.data = torch.tensor([1.0, 2.0])


def parameter_replaced(f):
    f.w = nn.Parameter(torch.tensor([0.9, -0.3]))


def mode(f):
    f.eval()


PUT_BACK = [number, slightly, deep_number, buffer_rebound, mode]
CHANGES = [*PUT_BACK, buffer_in_place, buffer_data, parameter_replaced]


def grads_with_change(integrate, change, late=False):
    torch.manual_seed(0)
    f = Rate(late)
    wanted = [f.w, f.b]
    loss = square(integrate(f, torch.ones(2)))
    if change is not None:
        change(f)
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("late", [False, True], ids=["all along", "late"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_between_the_passes_is_noticed_or_without_effect(kind, change, late):
    expected = grads_with_change(plain(kind), None, late)
    integrate = lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys  # noqa: E731
    try:
        found = grads_with_change(integrate, change, late)
    except NOTICED:
        assert kind not in KEEPS_GRAPHS
        return
    except RuntimeError as error:  # as plain autograd for what graphs have saved
        assert kind in KEEPS_GRAPHS and change in (buffer_in_place, buffer_data) and "inplace" in str(error)
        return
    assert_close(found, expected, 1e-2 if kind == "adjoint" and late else tolerance_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2])
def test_one_backward_pass_for_two_solves_with_another_number(kind, order):
    if order == 2 and kind not in EXACT:
        pytest.skip("no second derivatives")

    def grads(integrate):
        f, total = Rate(), 0.0
        for c in (1.0, 2.0):
            f.c = c
            total = total + square(integrate(f, torch.ones(2)))
        (g,) = torch.autograd.grad(total, f.w, create_graph=order == 2)
        return [g] if order == 1 else [torch.autograd.grad((g**2).sum(), f.w)[0]]

    expected = grads(plain(kind))
    try:
        found = grads(lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys)
    except NOTICED as error:
        assert order == 2 or kind not in KEEPS_GRAPHS
        assert "direct" in str(error) or isinstance(error, CaptureError)  # what to do
        return
    assert_close(found, expected, tolerance_of(kind))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_the_second_backward_pass_is_verified_too(kind):
    f = Rate()
    loss = square(solve(f, torch.ones(2), [0.0, 1.0], **keywords_of(kind)).ys)
    (first,) = torch.autograd.grad(loss, f.w, retain_graph=True)
    f.c = 1.7
    try:
        (second,) = torch.autograd.grad(loss, f.w)
    except NOTICED:
        return
    assert_close([second], [first], 1e-12)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("gradient", ["aca", "direct"])
def test_a_change_matters_to_dense_output_too(gradient, dense):
    f = Rate()
    solution = solve(f, torch.ones(2), [0.0, 0.4, 1.0], gradient=gradient, dense=dense)
    value = (solution(0.9) if dense else solution.ys[1]).sum()
    f.c = 1.7
    expected = Rate()
    again = solve(expected, torch.ones(2), [0.0, 0.4, 1.0], gradient=gradient, dense=dense)
    want = torch.autograd.grad((again(0.9) if dense else again.ys[1]).sum(), expected.w)
    try:
        found = torch.autograd.grad(value, f.w)
    except NOTICED:
        assert gradient == "aca"
        return
    assert_close(found, want, 1e-12)


@pytest.mark.parametrize("keep", [{"gradient": "direct"}, {"memory": "unlimited"}, {}], ids=str)
@pytest.mark.parametrize("keywords", [
    {"method": "Dopri5", "options": {"jump_t": [0.5]}}, {"method": "dopri8", "options": {"jump_t": [0.5]}},
    {"method": "explicit_adams", "h": 0.1}, {"method": "implicit_adams", "h": 0.1},
    {"method": "explicit_adams", "h": 0.1, "options": {"jump_t": [0.5]}}, {"method": "heun3", "h": 0.1},
], ids=str)  # fmt: skip
def test_kept_graphs_are_not_mixed_with_what_func_has_become(keywords, keep):
    """The slope at the end of a step, which dense output uses, belongs to them where no step behind begins with it."""

    def value(f):
        times = [0.0, 0.43, 0.97, 1.0]
        ys = solve(lambda t, y: f(t, y) + (t > 0.5), torch.ones(2), times, **keywords, **keep).ys
        return ys[1:].sum()

    expected, f = Rate(), Rate()
    want = torch.autograd.grad(value(expected), [expected.w, expected.b])
    found = value(f)
    f.c = 5.0
    try:
        bars = torch.autograd.grad(found, [f.w, f.b])
    except ReplayError:
        return
    assert_close(bars, want, 1e-12)


@pytest.mark.parametrize("how", [{"create_graph": True}, {"is_grads_batched": True}], ids=str)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("keywords", [
    {}, {"memory": "states"}, {"memory": 4}, {"method": "Rodas5P"}, {"options": {"jump_t": [0.4], "land_on_t": True}},
], ids=str)  # fmt: skip
def test_a_change_is_put_back_or_noticed_by_a_graph_of_the_gradient(keywords, change, how):
    """Of rows, the second of which ends before the first, and jointly."""
    y0 = torch.tensor([[1.0, 0.5], [0.7, -1.0]])
    rows = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.6, math.nan]])
    for t, per_sample in ((rows[0], False), (rows, True)):
        f = Rate()
        w, ys = f.w, solve(f, y0, t, per_sample=per_sample, **keywords).ys.nan_to_num()
        bar = torch.ones_like(ys)[(None,) * ("is_grads_batched" in how)]
        first = torch.autograd.grad(ys, w, bar, retain_graph=True, **how)
        change(f)
        if change in PUT_BACK:
            assert_close(torch.autograd.grad(ys, w, bar, **how), first, 1e-12)
        else:
            with pytest.raises(NOTICED):
                torch.autograd.grad(ys, w, bar, **how)


@pytest.mark.parametrize("end", [0.3, 0.6])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("keywords", [
    {}, {"gradient": "direct"}, {"memory": "states"}, {"memory": 3}, {"method": "Rodas5P", "memory": "states"},
    {"dense": True}, {"method": "heun3", "h": 0.05}, {"per_sample": True}, {"per_sample": True, "memory": "states"},
], ids=str)  # fmt: skip
def test_a_change_is_noticed_behind_a_failure_that_was_returned(keywords, create_graph, end):
    """The steps behind the last output are forgotten, and the last of the others is compared as any last one."""

    def gradient(f, change):
        def func(t, y):
            return f(t, y) * torch.where(t < 0.62, 1.0, math.nan)

        times = [0.0, end / 2, end, 1.0]
        ys = solve(func, torch.ones(1, 2), times, on_failure="return", rtol=1e-3, atol=1e-3, **keywords).ys
        loss = ys.nan_to_num().square().sum()
        if change:
            f.c = 2.0
        return torch.autograd.grad(loss, f.w, create_graph=create_graph)

    want = gradient(Rate(), change=False)
    try:
        found = gradient(Rate(), change=True)
    except ReplayError:
        return
    assert_close(found, want, 1e-6)


@pytest.mark.parametrize("n", [100, 50_000])
@pytest.mark.parametrize("kind", ["aca", "two states", "adjoint", "mali"])
def test_a_change_of_a_single_entry_is_noticed(kind, n):
    """A large state too, of which not every entry can be looked at one by one."""
    space = types.SimpleNamespace(c=torch.ones(n))
    w = torch.tensor(0.5, requires_grad=True)
    loss = solve(lambda t, y: w * space.c * y, torch.ones(n), [0.0, 1.0], **keywords_of(kind)).ys[-1, 1]
    space.c.data[1] = 2.0
    with pytest.raises(NOTICED):
        torch.autograd.grad(loss, w)


NOISE = {
    "numpy": lambda g: np.random.randn(),
    "random": lambda g: random.random(),
    "generator": lambda g: float(torch.randn((), generator=g)),
    "numpy generator": lambda g: _numbers.normal(),
}
_numbers = np.random.default_rng(0)


@pytest.mark.parametrize("late", [False, True], ids=["all along", "late"])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("kind", ["aca", "two states", "adjoint", "mali"])
def test_noise_from_elsewhere_is_noticed(kind, noise, late):
    generator, w = torch.Generator(torch.get_default_device()).manual_seed(0), torch.tensor(0.5, requires_grad=True)

    def f(t, y):
        return w * y * (1 + NOISE[noise](generator) if t > 0.5 or not late else 1.0)

    keywords = keywords_of(kind)
    if kind == "adjoint":
        keywords |= {"method": "RK4", "options": {"step_size": 0.25}}
    loss = solve(f, torch.ones(1), [0.0, 1.0], **keywords).ys[-1].sum()
    with pytest.raises(ReplayError, match="numbers drawn from elsewhere"):
        torch.autograd.grad(loss, w)


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_functional_call_with_the_backward_pass_outside(kind):
    module, names = Rate(), ("w", "b")
    own = {name: (2 * p.detach()).requires_grad_() for name, p in module.named_parameters()}

    class Whole(nn.Module):
        def __init__(self, integrate):
            super().__init__()
            self.f, self.integrate = module, integrate

        def forward(self, y0):
            return self.integrate(self.f, y0)

    def grads(integrate):
        parts = {f"f.{name}": own[name] for name in names}
        ys = torch.func.functional_call(Whole(integrate), parts, (torch.ones(2),))
        return torch.autograd.grad(square(ys), [own[name] for name in names])

    expected = grads(plain(kind))
    try:
        found = grads(lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys)
    except NOTICED:
        assert kind not in KEEPS_GRAPHS
        return
    assert_close(found, expected, tolerance_of(kind))


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_spectral_norm_in_training(kind):
    """It iterates on buffers at every evaluation: a func that is never the same twice. Right, or refused."""

    def grads(integrate):
        torch.manual_seed(0)
        net = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        loss = square(integrate(lambda t, y: torch.tanh(net(y)), torch.ones(2, 3)))
        return torch.autograd.grad(loss, list(net.parameters()))

    expected = grads(plain(kind))
    try:
        found = grads(lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys)
    except NOTICED:
        assert kind not in KEEPS_GRAPHS
        return
    if kind in EXACT:  # the adjoint takes other steps, and mali another number of evaluations
        assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex128])
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_alarm(kind, dtype):
    """Contracting, expanding, resting and huge entries, in every precision, with the solver's own choice of steps."""
    y0 = torch.tensor([1.0, 1.0, 0.0, 1e8, 1e-8]).to(dtype)
    rates = torch.tensor([-3.0, 2.0, 0.0, -1.0, 1.0]).to(dtype).requires_grad_()
    keywords = KINDS[kind] | {"rtol": 1e-3, "atol": 1e-3}
    ys = solve(lambda t, y: rates * y + 0.1 * torch.sin(3 * t).to(y.dtype), y0, [0.0, 0.3, 2.0], **keywords).ys
    ys[-1].abs().sum().backward()
    assert bool(torch.isfinite(torch.view_as_real(rates.grad) if dtype.is_complex else rates.grad).all())


class Solved(nn.Module):
    """A module that solves with parts of its own; ``inside``: it lets func put other parameters in."""

    def __init__(self, **keywords):
        super().__init__()
        self.net, self.keywords = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double(), keywords

    def forward(self, x):
        return solve(lambda t, y: self.net(y), x, [0.0, 1.0], rtol=1e-6, atol=1e-6, **self.keywords).ys[-1]

    def adapted(self, parts, x, inside):
        if not inside:
            return torch.func.functional_call(self, parts, (x,))
        own = {name.removeprefix("net."): part for name, part in parts.items()}
        func = lambda t, y: torch.func.functional_call(self.net, own, (y,))  # noqa: E731
        return solve(func, x, [0.0, 1.0], rtol=1e-6, atol=1e-6, **self.keywords).ys[-1]


def learned_to_learn(inside, create_graph, **keywords):
    """Gradient of a loss behind two steps of an inner loop (MAML)."""
    torch.manual_seed(0)
    model, x = Solved(**keywords), torch.rand(3, 2, dtype=torch.float64)
    parts = dict(model.named_parameters())
    for _ in range(2):
        loss = model.adapted(parts, x, inside).square().mean()
        gradients = torch.autograd.grad(loss, list(parts.values()), create_graph=create_graph)
        parts = {name: part - 0.5 * gradient for (name, part), gradient in zip(parts.items(), gradients)}
    model.adapted(parts, x, inside).square().mean().backward()
    return torch.cat([part.grad.flatten() for part in model.parameters()])


@pytest.mark.parametrize("keywords", [
    {"gradient": "direct"}, {"memory": "states"}, {"memory": "unlimited"}, {"gradient": "adjoint"},
    {"memory": "states", "per_sample": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_advice_for_a_functional_call_around_the_solve_is_right(create_graph, keywords):
    """It says what to do instead, and that gives the gradient."""
    expected = learned_to_learn(False, create_graph, gradient="naive")
    try:
        assert_close(learned_to_learn(False, create_graph, **keywords), expected, 1e-4)
        assert not create_graph
    except (ReplayError, CaptureError) as error:
        assert all(words in str(error) for words in ("direct", "unlimited", "naive", "where func itself calls it"))
    instead = {"gradient": "direct"} if not create_graph else {"gradient": "naive"}
    assert_close(learned_to_learn(False, create_graph, **instead), expected, 1e-4)
    if keywords.get("gradient") != "adjoint":  # which has no second derivatives, and says so
        assert_close(learned_to_learn(True, create_graph, **keywords), expected, 1e-4)


def test_the_message_says_what_to_do():
    f = Rate()
    loss = solve(f, torch.ones(2), [0.0, 1.0], memory="states").ys.sum()
    buffer_data(f)
    with pytest.raises(ReplayError, match=r"t = .*(direct|unlimited)"):
        loss.backward()
    assert f.w.grad is None


# Landing


@functools.cache
def awkward_pairs():
    """Times for which t + (stop - t) is not stop."""
    generator = random.Random(0)
    pairs = []
    while len(pairs) < 20:
        t, stop = sorted((generator.uniform(0, 1), generator.uniform(0, 9)))
        if t + (stop - t) != stop:
            pairs.append((t, stop))
    return pairs


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("method", ["RK23", "Dopri5", "RK4", "RK12", "midpoint"])
def test_forward_and_replay_stand_on_the_same_side_of_a_branch(method, gradient):
    """y(t1) is linear in u, so that the gradient times u is y(t1), to rounding."""
    for t0, t1 in awkward_pairs():
        for times in ([t0, t1], [t0, (t0 + t1) / 2, t1], [t1, t0]):
            u = torch.tensor([10.0, -3.0], requires_grad=True)
            f = lambda t, y: u[int(float(t) >= t1)] * torch.ones_like(y)  # noqa: E731
            for memory in (None, "unlimited") if gradient == "aca" else (None,):
                y = solve(
                    f, torch.zeros(1), times, method=method, gradient=gradient, memory=memory,
                    options={"step_size": 3 * abs(t1 - t0)},
                ).ys[-1]  # fmt: skip
                (found,) = torch.autograd.grad(y.sum(), u, create_graph=True)
                assert float(found.detach() @ u.detach()) == pytest.approx(float(y.detach()), rel=1e-13)
                (again,) = torch.autograd.grad(solve(
                    f, torch.zeros(1), times, method=method, gradient=gradient, memory=memory,
                    options={"step_size": 3 * abs(t1 - t0)},
                ).ys[-1].sum(), u)  # fmt: skip
                assert float(again @ u.detach()) == pytest.approx(float(y.detach()), rel=1e-13)


# No trace


class Counting(nn.Module):
    """Changes buffers in ways of its own, and the number of accepted evaluations is known: 16 of RK4, 5 of ALF."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("count", torch.zeros(()))
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, t, y):
        if self.how == "rebinds":
            self.count = self.count + 1
        elif self.how == "in place":
            with torch.no_grad():
                self.count += 1
        elif self.how == "late" and t > 0.3:
            self.count = self.count + 1
        return self.w * y


@pytest.mark.parametrize("how", ["rebinds", "in place", "late"])
@pytest.mark.parametrize("kind", KINDS)
def test_buffers_count_the_forward_pass_alone(kind, how):
    module, reference = Counting(how), Counting(how)
    keywords = keywords_of(kind)
    if kind == "adjoint":
        keywords = KINDS[kind] | {"method": "RK4", "h": 0.25}
    with torch.no_grad():
        plain("mali" if kind == "mali" else "aca")(reference, torch.ones(2))
    loss = square(solve(module, torch.ones(2), [0.0, 1.0], **keywords).ys)
    assert float(module.count) == float(reference.count)
    loss.backward(retain_graph=True)
    loss.backward()
    assert float(module.count) == float(reference.count)


HOLDERS = {
    "closure": lambda net: lambda t, y: torch.tanh(net(y)),
    "dict": lambda net: functools.partial(lambda nets, t, y: torch.tanh(nets["a"](y)), {"a": net}),
    "deep": lambda net: functools.partial(
        lambda space, t, y: torch.tanh(space.deep[0]["a"][1](y)), types.SimpleNamespace(deep=[{"a": (0, net)}])
    ),
    "late": lambda net: lambda t, y: torch.tanh(net(y)) if t > 0.3 else y,
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_anywhere_counts_the_forward_pass_alone(kind, holder):
    keywords = keywords_of(kind)
    if kind == "adjoint":
        keywords = KINDS[kind] | {"method": "RK4", "h": 0.25}
    nets = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    y0 = torch.randn(8, 3)
    with torch.no_grad():
        plain("mali" if kind == "mali" else "aca")(HOLDERS[holder](nets[1]), y0)
    loss = square(solve(HOLDERS[holder](nets[0]), y0, [0.0, 1.0], **keywords).ys)
    for passes in range(2):
        for a, b in zip(nets[0].buffers(), nets[1].buffers()):
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-13), passes  # sums in another order
        if passes == 0:
            loss.backward()


def test_compare_gradients_leaves_no_trace():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.1))
    before = [b.clone() for b in net.buffers()]
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare_gradients(
            lambda t, y: torch.tanh(net(y)), torch.linspace(-1, 1, 12).reshape(4, 3), [0.0, 1.0],
            lambda ys: ys[-1].sum(), rtol=1e-2, atol=1e-2, reference={"rtol": 1e-4, "atol": 1e-4}, show=False,
        )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers()))
    assert torch.equal(stream, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_func_that_works_in_place_does_not_touch_the_initial_state(kind):
    """Without gradients: values as of a func that does not, or a clear error; y0 as it was."""
    y0 = torch.tensor([1.0, 2.0])
    keywords = keywords_of(kind)
    want = solve(lambda t, y: -y, y0, [0.0, 1.0], **keywords).ys.detach()
    with torch.no_grad():
        try:
            found = solve(lambda t, y: y.mul_(-1.0), y0, [0.0, 1.0], **keywords).ys
        except ValueError as error:
            assert "in place" in str(error)
        else:
            assert torch.allclose(found, want, rtol=0, atol=1e-12)
    assert torch.equal(y0, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("keywords", [
    {}, {"method": "RK4", "h": 0.1}, {"method": "Rodas5P"}, {"per_sample": True},
], ids=str)  # fmt: skip
def test_func_that_works_in_place_where_there_is_a_gradient_is_told(keywords):
    for func in (lambda t, y: y.mul_(-1.0), lambda t, y: torch.relu_(y)):
        with pytest.raises(ValueError, match="in place"):
            solve(func, torch.ones(2, 2, requires_grad=True), [0.0, 1.0], **keywords)


def own_buffer(a):
    buffer = torch.zeros(2)

    def f(t, y):
        nonlocal buffer
        buffer = buffer.detach()
        buffer[0] = a * y[1]
        buffer[1] = -a * y[0]
        return buffer

    return f


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_func_that_fills_and_returns_its_own_buffer(kind, order):
    if order == 2 and kind not in EXACT:
        pytest.skip("no second derivatives")

    def grads(f_of, integrate):
        a = torch.tensor(1.0, requires_grad=True)
        y = integrate(f_of(a), torch.tensor([1.0, 0.0]))[-1]
        (g,) = torch.autograd.grad(y.sum(), a, create_graph=order == 2)
        return [y.detach(), g.detach(), *(torch.autograd.grad(g, a) if order == 2 else ())]

    expected = grads(lambda a: lambda t, y: a * torch.stack([y[1], -y[0]]), plain(kind))
    found = grads(own_buffer, lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys)
    assert_close(found, expected, tolerance_of(kind))


# Side outputs


class Regularised(nn.Module):
    """Collects a term for the loss while it is evaluated."""

    def __init__(self, how):
        super().__init__()
        self.w, self.how, self.total, self.terms = nn.Parameter(torch.tensor(0.5)), how, 0.0, []

    def forward(self, t, y):
        slope = self.w * y
        term = (slope**2).sum()
        if self.how == "sum":
            self.total = self.total + term
        elif self.how == "list":
            self.terms.append(term)
        elif self.how == "last":
            self.total = term
        elif self.how == "number":
            self.total = self.total + float(term)
        return slope

    def collected(self):
        return sum(self.terms) if self.how == "list" else self.total


@pytest.mark.parametrize("how", ["sum", "list", "last"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "naive"])
def test_a_loss_on_what_func_stored_is_refused(kind, how):
    module = Regularised(how)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = solve(module, torch.ones(2), [0.0, 1.0], **keywords_of(kind)).ys[-1]
    assert any("belongs into the state" in str(w.message) for w in caught)
    side = module.collected()
    with pytest.raises((SideOutputError, RuntimeError)):
        if not side.requires_grad:
            raise RuntimeError("no history: plain autograd will say so")
        (y.sum() + side).backward()


class Late(nn.Module):
    """Stores a tensor at the end alone, with a history where gradients are on."""

    def __init__(self):
        super().__init__()
        self.w, self.stored = nn.Parameter(torch.tensor([0.5, -0.3])), None

    def forward(self, t, y):
        slope = torch.tanh(self.w * y)
        if t > 0.8:
            self.stored = (slope**2).sum()
        return slope


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "naive"])
def test_what_func_begins_to_store_late_is_told(kind):
    """At the end of the forward pass where graphs were kept, else at that of the backward pass, which makes them."""
    module = Late()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = solve(module, torch.ones(2), [0.0, 1.0], **keywords_of(kind)).ys[-1]
        stored = module.stored
        if stored.requires_grad:
            with pytest.raises(SideOutputError):
                (y.sum() + stored).backward(retain_graph=True)
        else:
            (y.sum() + stored).backward()
    assert any("belongs into the state" in str(w.message) and w.filename == __file__ for w in caught)


def by_windows(hyper):
    """A weight for each quarter of the interval, made when it is first wanted."""
    made = {}

    def f(t, y):
        window = int(t * 4)
        if window not in made:
            made[window] = hyper(torch.tensor([float(window)]))
        return torch.sin(y * made[window])

    return f


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_made_late(kind):
    """Where graphs are kept, so is their history. In an evaluation without gradients they are born without one."""
    hyper, lost = nn.Linear(1, 2), kind in ("aca", "two states", "adjoint", "mali")

    def grad(integrate):
        y0 = torch.ones(3, 2, requires_grad=True)
        return torch.autograd.grad(square(integrate(by_windows(hyper), y0)), [y0, *hyper.parameters()])

    keywords = keywords_of(kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = grad(lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords).ys)
    assert [w.filename for w in caught if "makes a tensor in a later" in str(w.message)] == [__file__] * lost
    if not lost:
        assert_close(found, grad(plain(kind)), 1e-12)


def test_what_is_put_in_the_place_of_something_is_no_weight():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.calls = nn.Parameter(torch.tensor(0.5)), torch.zeros(())

        def forward(self, t, y):
            self.calls = self.calls + 1.0
            return -self.w * y

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(Counting(), torch.ones(2), [0.0, 1.0], memory="states").ys.sum().backward()


def test_a_state_that_func_keeps_is_refused():
    """The gradient that goes back to it would be lost."""

    def anchored():
        kept = []

        def f(t, y):
            kept.append(y) if not kept else None
            return torch.sin(y) - kept[0]

        return f

    def grad(integrate):
        y0 = torch.ones(2, requires_grad=True)
        return torch.autograd.grad(integrate(anchored(), y0)[-1].sum(), y0)

    for kind in KINDS:
        integrate = lambda f, y0, kind=kind: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys  # noqa: E731
        if kind == "naive":
            assert_close(grad(integrate), grad(plain("naive")), 1e-12)
        else:
            with pytest.raises(CaptureError, match="close over y0"):
                grad(integrate)


@pytest.mark.parametrize("how", ["sum", "list"])
def test_naive_keeps_what_func_stored(how):
    def grad(integrate):
        module = Regularised(how)
        y = integrate(module, torch.ones(2))[-1]
        return torch.autograd.grad(y.sum() + module.collected(), module.w)

    found = grad(lambda f, y0: solve(f, y0, [0.0, 1.0], method="RK4", h=0.25, gradient="naive").ys)
    assert_close(found, grad(plain("naive")), 1e-12)


@pytest.mark.parametrize("how", ["sum", "list", "last", "number"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:func stores")
def test_the_solution_itself_is_right_beside_what_func_stored(kind, how):
    def grad(integrate):
        module = Regularised(how)
        return torch.autograd.grad(integrate(module, torch.ones(2))[-1].sum(), module.w)

    found = grad(lambda f, y0: solve(f, y0, [0.0, 1.0], **keywords_of(kind)).ys)
    assert_close(found, grad(plain(kind)), tolerance_of(kind))


def test_no_warning_without_side_outputs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        square(solve(Regularised("none"), torch.ones(2), [0.0, 1.0]).ys).backward()
        square(solve(Regularised("number"), torch.ones(2), [0.0, 1.0]).ys).backward()


# A replay costs nothing that is not needed


def test_no_further_evaluations_to_verify():
    calls = []
    w = leaf(2)
    f = lambda t, y: calls.append(1) or w * y  # noqa: E731
    loss = square(solve(f, torch.ones(2), [0.0, 1.0], method="RK4", h=0.25, memory="states").ys)
    forward = len(calls)
    loss.backward()
    assert forward == 16 and len(calls) == 31  # the first one is kept
    assert math.isfinite(float(loss))


class Redrawn(torch.nn.Module):
    """A weight with a history, and a noise, that are drawn anew before every solve."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor([0.3, -0.8], dtype=torch.float64))

    def draw(self, number):
        self.weight = self.mean * number
        self.noise = torch.full((2,), float(number), dtype=torch.float64)
        return self

    def forward(self, t, y):
        return self.weight * torch.sin(y) + 0.1 * self.noise


@pytest.mark.parametrize("kind", ["naive", *KINDS])
@pytest.mark.parametrize("how", ["module", "bound method", "closure"])
def test_several_draws_and_one_backward_pass(kind, how):
    """Each solve is differentiated with what the module held then; the sum is that of one backward pass per solve."""
    y0 = torch.ones(2, dtype=torch.float64)

    def func_of(module):
        return {"module": module, "bound method": module.forward, "closure": lambda t, y: module(t, y)}[how]

    def loss(module, number):
        return solve(func_of(module.draw(number)), y0, [0.0, 1.0], **keywords_of(kind)).ys[-1].square().sum()

    together, apart = Redrawn(), Redrawn()
    sum(loss(together, number) for number in (1, 2, 3)).backward()
    for number in (1, 2, 3):
        loss(apart, number).backward()
    torch.testing.assert_close(together.mean.grad, apart.mean.grad, rtol=1e-12, atol=0)


LATE_BOUND = {
    "closure": """
def total(solved, weight):
    loss = 0
    for factor in (0.5, 1.5):
        w = weight * factor
        loss = loss + solved(lambda t, y: -w * factor * y)
    return loss
""",
    "function in a closure": """
def total(solved, weight):
    loss = 0
    for factor in (0.5, 1.5):
        w = weight * factor
        rhs = lambda y: -w * factor * y
        loss = loss + solved(lambda t, y: rhs(y))
    del rhs
    return loss
""",
    "global": """
def total(solved, weight):
    global w, rhs, factor
    loss = 0
    for factor in (0.5, 1.5):
        w = weight * factor
        loss = loss + solved(lambda t, y: -w * factor * y)
    del w
    return loss
""",
    "module": """
def total(solved, weight):
    loss = 0
    for factor in (0.5, 1.5):
        w = torch.nn.ParameterList([weight])
        loss = loss + solved(lambda t, y: -w[0] * factor**2 * y)
    return loss
""",
}  # fmt: skip


@pytest.mark.parametrize("how", LATE_BOUND)
@pytest.mark.parametrize("keywords", [
    {"memory": "states"}, {"memory": 2}, {}, {"gradient": "direct"}, {"gradient": "adjoint"}, {"compile": "step"},
], ids=str)  # fmt: skip
def test_names_that_a_loop_gives_other_values_mean_what_they_meant(how, keywords, ungenerated):
    """The backward pass of all solves together, behind the loop; torchdiffeq's odeint_adjoint gets this wrong."""
    namespace = {"torch": torch}
    exec(LATE_BOUND[how], namespace)
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def solved(func):
        y0 = torch.ones(2, dtype=torch.float64)
        return solve(func, y0, [0.0, 1.0], rtol=1e-9, atol=1e-9, **keywords).ys[-1].sum()

    (found,) = torch.autograd.grad(namespace["total"](solved, weight), weight)
    expected = -sum(f**2 * torch.exp(-weight * f**2) for f in (0.5, 1.5))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-7, atol=0)


def test_names_that_func_assigns_to_go_on():
    """Such as a count of its calls."""
    count = 0

    def func(t, y):
        nonlocal count
        count += 1
        return -y

    y0 = torch.ones(2, requires_grad=True)
    loss = solve(func, y0, [0.0, 1.0], memory="states").ys.sum()
    forward = count
    loss.backward()
    assert count > forward


@pytest.mark.parametrize("keywords", [{}, {"memory": "states"}, {"gradient": "adjoint"}], ids=str)
def test_a_constant_that_func_draws_in_its_first_evaluation_is_no_weight(keywords):
    """FFJORD's way to draw its noise once a solve; a warning would be an error here."""
    noise = []

    def func(t, y):
        if not noise:
            noise.append(torch.randn_like(y))
        return -weight * y + noise[0]

    weight = nn.Parameter(torch.ones(3))
    solve(func, torch.ones(3), [0.0, 1.0], **keywords).ys.sum().backward()
    assert weight.grad is not None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes there")
@pytest.mark.parametrize("keywords", [{"memory": "states"}, {"gradient": "adjoint"}], ids=str)
def test_an_error_of_func_in_the_backward_pass_says_where_it_is(keywords):
    func = nn.Module()
    func.layer = nn.Linear(2, 2)
    func.forward = lambda t, y: func.layer(y)
    ys = solve(func, torch.ones(3, 2), [0.0, 1.0], **keywords).ys
    del func.layer
    with pytest.raises(AttributeError, match="layer") as error:
        ys.sum().backward()
    assert "evaluates func again" in error.value.__notes__[-1]
