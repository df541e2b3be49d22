"""What func depends on: every tensor once, whoever made it, wherever it is held and whenever it is first used."""

import concurrent.futures
import time
import unittest.mock

import pytest
import torch
from torch import nn

from tests.torch_ACA.programs import (
    EXACT,
    KINDS,
    OPAQUE,
    PROGRAMS,
    H,
    assert_close,
    gradients,
    in_generator,
    in_two_threads,
    keywords_of,
    late,
    leaf,
    plain,
    square,
    tolerance_of,
)
from torch_ACA import ODEBlock, odeint_adjoint, odesolve, odesolve_adjoint, odesolve_endtime, solve
from torch_ACA.errors import CaptureError, ReplayError, SecondDerivativeError
from torch_ACA.gradients.storage import Budget

FIRST_ORDER = [kind for kind in KINDS if kind not in ("two states", "1MiB")]
SECOND_ORDER = ["aca", "two states", "direct", "naive"]  # a budget of bytes and an unlimited one do what these do


def ours(kind, **more):
    return lambda f, y0, t=(0.0, 1.0): solve(f, y0, t, **keywords_of(kind) | more).ys


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_those_of_plain_autograd(name, kind):
    if (name, kind) == ("solve_inside_func", "adjoint"):
        pytest.skip("takes seconds: a tight solve in every evaluation of another")
    expected = gradients(PROGRAMS[name], plain(kind))
    assert_close(gradients(PROGRAMS[name], ours(kind)), expected, tolerance_of(kind, name))


@pytest.mark.parametrize("kind", SECOND_ORDER)
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in OPAQUE])
def test_second_derivatives_are_those_of_plain_autograd(name, kind):
    expected = gradients(PROGRAMS[name], plain(kind), order=2)
    assert_close(gradients(PROGRAMS[name], ours(kind), order=2), expected, 10 * tolerance_of(kind))  # more operations


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("name", OPAQUE)
def test_second_derivatives_of_what_cannot_be_looked_into_are_right_or_refused(name, kind):
    expected = gradients(PROGRAMS[name], plain(kind), order=2)
    try:
        found = gradients(PROGRAMS[name], ours(kind), order=2)
    except SecondDerivativeError:
        assert kind != "naive"
        return
    assert_close(found, expected, 10 * tolerance_of(kind))


ENTRIES = {
    "block": lambda f, y0: ODEBlock(f, method="RK4", h=H)(y0),
    "odesolve": lambda f, y0: odesolve(f, y0, {"method": "RK4", "h": H}),
    "odesolve_endtime": lambda f, y0: odesolve_endtime(f, y0, {"method": "RK4", "h": H}),
    "odesolve_adjoint": lambda f, y0: odesolve_adjoint(f, y0, {"method": "RK4", "h": H}),
    "dense": lambda f, y0: solve(f, y0, [0.0, 1.0], method="RK4", h=H, dense=True)(1.0),
}
EVERYDAY = [
    "antisymmetric weight", "conditional", "weight_prepared_once_for_two_solves", "late unbind in_list",
    "captured_tensor_is_the_initial_state", "functional_call_of_a_hypernetwork",
]  # fmt: skip


def to_the_end(entry):
    """An ``integrate`` from 0 to 1 by way of another entry; the time is turned round for another interval."""

    def integrate(f, y0, t=(0.0, 1.0)):
        a, b = map(float, t)
        return entry(lambda s, y: (b - a) * f(a + (b - a) * s, y), y0)[None]

    return integrate


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", EVERYDAY)
def test_other_entries(name, entry, order):
    expected = gradients(PROGRAMS[name], to_the_end(lambda f, y0: plain("aca")(f, y0)[-1]), order)
    assert_close(gradients(PROGRAMS[name], to_the_end(ENTRIES[entry]), order), expected, 1e-11)


@pytest.mark.parametrize("name", [*EVERYDAY, "chain_of_three", "inside_a_custom_function"])
@pytest.mark.filterwarnings("ignore:compile=True")  # what cannot be compiled is evaluated as it is
@pytest.mark.parametrize("compile", ["step", "loop"])
def test_compiled_steps(name, compile, ungenerated):
    expected = gradients(PROGRAMS[name], plain("aca"))
    assert_close(gradients(PROGRAMS[name], ours("aca", compile=compile)), expected, 1e-12)


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_inside_a_compiled_inner_function(kind):
    inner = torch.compile(lambda y, a: torch.tanh(y * a) + a, backend="aot_eager")

    def program(integrate):
        w = leaf(3)
        a = torch.sin(w)
        return square(integrate(lambda t, y: inner(y, a), torch.ones(3))), [w]

    assert_close(gradients(program, ours(kind)), gradients(program, plain(kind)), tolerance_of(kind))


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_late_tensor_that_no_search_finds_is_right_or_refused(kind, history):
    program = late(in_generator, history=history)
    expected = gradients(program, plain(kind))
    try:
        found = gradients(program, ours(kind))
    except CaptureError as error:
        assert "params" in str(error)  # what to do
        return
    assert_close(found, expected, 2e-2 if kind == "adjoint" else 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_late_tensor_that_is_named_is_found(kind):
    def program(integrate):
        parts = [leaf(2) for _ in range(3)]
        pick = in_generator(parts)
        f = lambda t, y: pick(min(2, int(t * 2))) - y  # noqa: E731
        return square(integrate(f, torch.ones(2), params=parts)), parts

    expected = gradients(program, lambda f, y0, params: plain(kind)(f, y0))
    found = gradients(program, lambda f, y0, params: ours(kind, params=params)(f, y0))
    assert_close(found, expected, 2e-2 if kind == "adjoint" else 1e-12)


# A long history behind a captured tensor


def test_the_history_of_a_captured_tensor_is_walked_once():
    """A func that looks at it, against one whose context is a leaf: 20,000 operations must not be walked per stage."""

    def seconds(context):
        f = lambda t, y: context * y  # noqa: E731
        loss = solve(f, torch.ones(2), [0.0, 1.0], method="RK4", h=1 / 64).ys[-1].sum()
        start = time.perf_counter()
        torch.autograd.grad(loss, context)
        return time.perf_counter() - start

    long = torch.tensor([0.5, 0.2], requires_grad=True)
    for _ in range(20_000):
        long = long * 1.0
    short = torch.tensor([0.5, 0.2], requires_grad=True)
    seconds(short)
    assert min(seconds(long) for _ in range(3)) < 5 * min(seconds(short) for _ in range(3)) + 0.02  # was 100 times


def test_solves_in_a_row_do_not_double_the_time():
    """2^n evaluations under create_graph would be 4,096 times those of one solve."""
    w, y, calls = torch.tensor(0.3, requires_grad=True), torch.ones(1), []

    def f(t, y):
        calls.append(1)
        return w * y

    for i in range(12):
        y = solve(f, y, [float(i), i + 1.0], method="RK4", h=0.5).ys[-1]
    forward = len(calls)
    (g,) = torch.autograd.grad(y.sum(), w, create_graph=True)
    assert len(calls) < 4 * forward
    (second,) = torch.autograd.grad(g, w)
    step = 1 + 0.5 * 0.3 + 0.125 * 0.09 + 0.125 / 6 * 0.027 + 0.0625 / 24 * 0.0081
    rate = 0.5 + 0.25 * 0.3 + 0.0625 * 0.09 + 0.0625 / 6 * 0.027
    assert float(g) == pytest.approx(24 * step**23 * rate, rel=1e-12)  # of RK4's polynomial, to rounding
    curve = 0.25 + 0.125 * 0.3 + 0.0625 / 2 * 0.09
    expected = 24 * 23 * step**22 * rate**2 + 24 * step**23 * curve
    assert float(second) == pytest.approx(expected, rel=1e-12)


# Named parameters


def with_params(kind, name):
    """dW of a func that uses a slice of W, a further leaf b and a prepared weight, for some ways of naming tensors."""
    torch.manual_seed(0)
    flat, b = leaf(6), leaf(2)
    w, a = flat[:4].view(2, 2), torch.sin(flat[4:])
    params = {
        "leaf": [flat], "single": flat, "both": [flat, b], "other": [b], "empty": [], "none": None,
        "non-leaf": [w], "generator": (p for p in [flat, b]), "tuple": (b, flat),
    }[name]  # fmt: skip
    return flat, b, w, a, params


@pytest.mark.parametrize("name", ["leaf", "single", "both", "other", "empty", "none", "non-leaf", "generator", "tuple"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_tensors_get_gradients(kind, name):
    flat, b, w, a, params = with_params(kind, name)
    y0 = torch.ones(3, 2, requires_grad=True)
    f = lambda t, y: torch.tanh(y @ w) * a + b  # noqa: E731
    keywords = keywords_of(kind)
    found = torch.autograd.grad(
        square(solve(f, y0, [0.0, 1.0], params=params, **keywords).ys), [y0, flat, b], allow_unused=True
    )
    flat, b, w, a, _ = with_params(kind, name)
    if name in ("other", "empty", "non-leaf"):
        a = a.detach()
        w = w if name == "non-leaf" else w.detach()
    b_used = b.detach() if name in ("leaf", "single", "empty", "non-leaf") else b
    y0 = torch.ones(3, 2, requires_grad=True)
    g = lambda t, y: torch.tanh(y @ w) * a + b_used  # noqa: E731
    expected = torch.autograd.grad(square(plain(kind)(g, y0)), [y0, flat, b], allow_unused=True)
    for f_, e in zip(found, expected):
        if e is None:
            assert f_ is None or float(f_.abs().max()) == 0
        else:
            assert f_ is not None
            assert float((f_ - e).abs().max()) <= tolerance_of(kind) * max(1.0, float(e.abs().max()))


@pytest.mark.parametrize("kind", EXACT)
def test_second_derivatives_of_named_tensors(kind):
    def program(integrate, others):
        flat, b = leaf(6), leaf(2)
        w, a, b = flat[:4].view(2, 2), torch.sin(flat[4:]), others(b)
        return square(integrate(lambda t, y: torch.tanh(y @ w) * a + b, torch.ones(3, 2), flat)), [flat]

    found = gradients(lambda i: program(i, lambda b: b), lambda f, y0, flat: ours(kind, params=[flat])(f, y0), 2)
    expected = gradients(lambda i: program(i, torch.detach), lambda f, y0, flat: plain(kind)(f, y0), 2)
    assert_close(found, expected, 1e-11)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_named_tensors_may_depend_on_each_other(kind, hooked):
    """As a spline's coefficients do, and its knots: what func uses is made of both. Hooks are called once."""

    def program(integrate, name):
        torch.manual_seed(0)
        knots, calls = leaf(3), []
        coefficients = torch.cumsum(knots**2, 0)
        further = coefficients.exp() * knots
        coefficients.retain_grad()
        for tensor in (knots, coefficients, further) if hooked else ():
            tensor.register_hook(lambda bar: calls.append(1) or 3 * bar)
        of_all, of_two = torch.sin(further) * coefficients, torch.cos(coefficients) + knots
        params = {"all": (knots, coefficients, further), "two": [coefficients, knots], "none": None}[name]
        ys = integrate(lambda t, y: of_all * y - of_two * y * y + 0.1 * coefficients + 0.1 * further, params)
        square(ys).backward()
        return knots.grad, coefficients.grad, len(calls)

    *expected, n_calls = program(lambda f, params: plain(kind)(f, torch.ones(3)), "none")
    for name in ("all", "two", "none"):
        *found, n_found = program(lambda f, params: ours(kind, params=params)(f, torch.ones(3)), name)
        assert_close(found, expected, tolerance_of(kind))
        assert n_found == n_calls == 3 * hooked


@pytest.mark.parametrize("kind", EXACT)
def test_second_derivatives_of_named_tensors_that_depend_on_each_other(kind):
    def program(integrate):
        knots = leaf(3)
        coefficients = torch.cumsum(knots**2, 0)
        of_both = torch.sin(coefficients) * knots
        f = lambda t, y: of_both * y - 0.1 * y * y  # noqa: E731
        return square(integrate(f, torch.ones(3), [coefficients, knots])), [knots]

    found = gradients(program, lambda f, y0, params: ours(kind, params=params)(f, y0), 2)
    assert_close(found, gradients(program, lambda f, y0, params: plain(kind)(f, y0), 2), 1e-11)


def test_a_mock_of_a_module_is_no_module():
    func = unittest.mock.MagicMock(spec=nn.Linear(1, 1))
    func.return_value = torch.ones(2)
    assert torch.equal(solve(func, torch.zeros(2), [0.0, 1.0], method="Euler", h=1.0).ys[-1], torch.ones(2))


def test_adjoint_params_may_be_slices_of_what_they_name():
    flat = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    w = flat.view(2, 2)
    y0, t = torch.ones(2), torch.tensor([0.0, 1.0])
    for named in ((flat,), flat, [flat]):
        (found,) = torch.autograd.grad(odeint_adjoint(lambda t, y: y @ w, y0, t, adjoint_params=named)[-1].sum(), flat)
        expected = torch.autograd.grad((y0 @ torch.matrix_exp(flat.view(2, 2))).sum(), flat)[0]
        assert torch.allclose(found, expected, atol=1e-6)  # tolerances of 1e-7


def test_params_of_a_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="params"):
        solve(lambda t, y: y, torch.ones(1), [0.0, 1.0], params=[1.0])


# Hooks


def hooked(register, *, history, after):
    """A program whose func captures a tensor with a hook; calls: list of the gradients it was called with."""
    calls = []

    def program(integrate):
        calls.clear()
        w = leaf(3)
        a = torch.sin(w) if history else w
        hook = register(calls)
        if not after:
            a.register_hook(hook)
        loss = square(integrate(lambda t, y: a * torch.cos(y), torch.ones(3)))
        if after:
            a.register_hook(hook)
        return loss, [w]

    return program, calls


def doubled(calls):
    return lambda g: calls.append(g.clone()) or 2 * g


def clipped(calls):
    return lambda g: calls.append(g.clone()) or g.clamp(-0.1, 0.1)


def watched(calls):
    return lambda g: calls.append(g.clone())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before the solve", "after it"])
@pytest.mark.parametrize("history", [False, True], ids=["leaf", "non-leaf"])
@pytest.mark.parametrize("register", [doubled, clipped, watched])
@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_hooks_run_once_on_the_whole_gradient(kind, register, history, after, order):
    if order == 2 and kind not in EXACT:
        pytest.skip("no second derivatives")
    program, calls = hooked(register, history=history, after=after)
    expected = gradients(program, plain(kind), order)
    n, last = len(calls), calls[0]
    found = gradients(program, ours(kind), order)
    assert len(calls) == n
    assert_close([calls[0]], [last], tolerance_of(kind))
    assert_close(found, expected, 10 * tolerance_of(kind))


@pytest.mark.parametrize("history", [False, True], ids=["leaf", "non-leaf"])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_under_backward(kind, history):
    """As above, through .backward() and into .grad; twice with the graph kept."""

    def found(integrate):
        torch.manual_seed(0)
        w, calls = leaf(3), []
        a = torch.sin(w) if history else w
        a.register_hook(lambda g: calls.append(g.clone()) or g / 2)
        loss = square(integrate(lambda t, y: a * torch.cos(y), torch.ones(3)))
        loss.backward(retain_graph=True)
        first = w.grad.clone()
        loss.backward()
        return [first, w.grad, *calls]

    assert_close(found(ours(kind)), found(plain(kind)), tolerance_of(kind))


@pytest.mark.parametrize("use", ["none", "shape", "detached"])
@pytest.mark.parametrize("history", [False, True], ids=["leaf", "non-leaf"])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_tensors_without_a_gradient_are_not_called(kind, history, use):
    """Neither of what func does not use, nor of what it asks for its shape or value alone."""
    module, calls = nn.Module(), []
    module.w, spare = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    module.spare = torch.sin(spare) if history else spare
    module.spare.register_hook(calls.append)

    def f(t, y):
        factor = {"none": lambda: 1.0, "shape": lambda: len(module.spare), "detached": module.spare.detach}[use]()
        return factor * module.w * y

    square(solve(f, torch.ones(3), [0.0, 1.0], **keywords_of(kind)).ys).backward()
    assert not calls and spare.grad is None and module.w.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_retained_gradients_count_once(kind):
    def found(integrate):
        torch.manual_seed(0)
        w = leaf(3)
        a = torch.sin(w)
        a.retain_grad()
        y0 = torch.cos(w)
        y0.retain_grad()
        square(integrate(lambda t, y: a * torch.cos(y), y0)).backward()
        return [w.grad, a.grad, y0.grad]

    assert_close(found(ours(kind)), found(plain(kind)), tolerance_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_after_accumulation_run_once(kind):
    net, calls = nn.Linear(3, 3), []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.clone()))
    loss = square(solve(lambda t, y: torch.tanh(net(y)), torch.ones(2, 3), [0.0, 1.0], **keywords_of(kind)).ys)
    loss.backward()
    assert len(calls) == 2
    assert {tuple(c.shape) for c in calls} == {(3, 3), (3,)}
    for c in calls:
        assert any(torch.equal(c, p.grad) for p in net.parameters() if p.shape == c.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_raises_leaves_the_hooks_in_place(kind):
    w, calls = leaf(3), []

    def hook(g):
        calls.append(1)
        raise KeyboardInterrupt

    handle = w.register_hook(hook)
    f = lambda t, y: w * y  # noqa: E731
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            square(solve(f, torch.ones(3), [0.0, 1.0], **keywords_of(kind)).ys).backward()
    handle.remove()
    assert len(calls) == 2
    square(solve(f, torch.ones(3), [0.0, 1.0], **keywords_of(kind)).ys).backward()
    assert w.grad is not None


# Freezing, threads


@pytest.mark.parametrize("kind", KINDS)
def test_freezing_between_the_passes(kind):
    """As plain autograd has it: the graph stands, and so does the gradient of what is still to be trained."""
    enc, net = nn.Linear(3, 3), nn.Linear(3, 3)

    def grads(integrate, freeze):
        enc.zero_grad()
        net.requires_grad_(True)
        loss = square(integrate(lambda t, y: torch.tanh(net(y)), enc(torch.ones(2, 3))))
        net.requires_grad_(not freeze)
        loss.backward()
        net.requires_grad_(True)
        return [p.grad.clone() for p in enc.parameters()]

    assert_close(grads(ours(kind), True), grads(plain(kind), False), tolerance_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_thawing_between_the_passes_changes_nothing(kind):
    enc, net = nn.Linear(3, 3), nn.Linear(3, 3)
    net.bias.requires_grad_(False)

    def grads(integrate, thaw):
        enc.zero_grad()
        net.zero_grad()
        loss = square(integrate(lambda t, y: torch.tanh(net(y)), enc(torch.ones(2, 3))))
        net.bias.requires_grad_(thaw)
        loss.backward()
        net.bias.requires_grad_(False)
        assert net.bias.grad is None
        return [p.grad.clone() for p in [*enc.parameters(), net.weight]]

    assert_close(grads(ours(kind), True), grads(plain(kind), False), tolerance_of(kind))


@pytest.mark.parametrize("kind", EXACT)
def test_create_graph_with_unused_parameters_alone(kind):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2))

        def forward(self, t, y):
            return torch.ones_like(y)

    module, w = Constant(), leaf(2)
    y = solve(module, w, [0.0, 1.0], **keywords_of(kind)).ys[-1]
    g, none = torch.autograd.grad((y**2).sum(), [w, module.spare], create_graph=True, allow_unused=True)
    assert none is None
    (second,) = torch.autograd.grad(g.sum(), w)
    assert torch.allclose(second, torch.full((2,), 2.0))
    y = solve(module, torch.ones(2), [0.0, 1.0], **keywords_of(kind)).ys[-1]
    if y.requires_grad:
        found = torch.autograd.grad(y.sum(), module.spare, create_graph=True, allow_unused=True)[0]
        assert found is None or not found.any()


@pytest.mark.parametrize("kind", KINDS)
def test_func_that_works_in_a_thread_pool(kind):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def program(integrate):
            net, w = nn.Linear(3, 3), leaf(3)
            a = torch.sin(w)

            def inner(y):
                with torch.enable_grad():  # a new thread has gradients on whatever its parent has
                    return torch.tanh(net(y)) * a

            f = lambda t, y: pool.submit(inner, y).result()  # noqa: E731
            return square(integrate(f, torch.ones(2, 3))), [w, *net.parameters()]

        assert_close(gradients(program, ours(kind)), gradients(program, plain(kind)), tolerance_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_attribute_does_not_disturb(kind):
    """A tensor whose history is freed after the solve, beside what func uses."""
    module = nn.Linear(3, 3)
    module.A = torch.sin(module.bias)
    module.loss = (module.weight.exp() ** 2).sum()
    loss = square(solve(lambda t, y: module(y) * module.A, torch.ones(2, 3), [0.0, 1.0], **keywords_of(kind)).ys)
    torch.autograd.grad(module.loss, module.weight)
    found = torch.autograd.grad(loss, list(module.parameters()))
    a = torch.sin(module.bias)
    expected = torch.autograd.grad(
        square(plain(kind)(lambda t, y: module(y) * a, torch.ones(2, 3))), list(module.parameters())
    )
    assert_close(found, expected, tolerance_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_second_backward_with_the_graph_kept(kind):
    torch.manual_seed(0)
    program = PROGRAMS["conditional"]
    loss, wanted = program(ours(kind))
    one = torch.autograd.grad(loss, wanted, retain_graph=True)
    two = torch.autograd.grad(loss, wanted)
    assert_close(two, one, 1e-12)
    assert_close(one, gradients(program, plain(kind))[1:], tolerance_of(kind))


@pytest.mark.parametrize("use", [
    lambda a: a.detach(), lambda a: a.shape[0], lambda a: float(a.detach()[0]),
], ids=["detached", "shape", "number"])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_with_a_freed_history_of_which_no_gradient_is_wanted(kind, use):
    def program(integrate):
        w = leaf(3)
        stale = torch.sin(w)
        stale.sum().backward()
        return square(integrate(lambda t, y: use(stale) * w * y, torch.ones(3))), [w]

    assert_close(gradients(program, ours(kind)), gradients(program, plain(kind)), tolerance_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_of_the_gradient_that_comes_between_the_passes(kind):
    """The same values, but another gradient: as it was, or refused."""

    def program(integrate, stop):
        w, b, space = leaf(3), leaf(3), {"stop": False}
        loss = square(integrate(lambda t, y: (w.detach() if space["stop"] else w) * y + b, torch.ones(3)))
        space["stop"] = stop
        return loss, [w, b]

    expected = gradients(lambda i: program(i, False), plain(kind))
    try:
        found = gradients(lambda i: program(i, True), ours(kind))
    except (CaptureError, ReplayError):
        return
    assert_close(found, expected, tolerance_of(kind))


@pytest.mark.parametrize("room", [1, 3])
def test_a_stop_of_the_gradient_with_room_for_some_of_the_graphs(room):
    """The first steps' graphs are those of the forward pass, and the others do as they did then."""
    w, space, y0 = leaf(3), {"stop": False}, torch.ones(3, dtype=torch.float64)

    def func(t, y):
        return (w.detach() if space["stop"] else w) * y

    def loss(memory):
        return square(solve(func, y0, [0.0, 1.0], method="Euler", h=0.05, memory=memory).ys)

    found = loss(Budget(n_bytes=0, spare=room * 100))
    expected = torch.autograd.grad(loss("unlimited"), w)
    space["stop"] = True
    assert_close(torch.autograd.grad(found, w), expected, 1e-13)


def test_graphs_that_are_kept_of_steps_that_alone_use_a_tensor():
    w, early, y0 = leaf(3), leaf(3), torch.ones(3, dtype=torch.float64)

    def func(t, y):
        return w * y + (early if t < 0.12 else 0)

    losses = [
        square(solve(func, y0, [0.0, 1.0], method="Euler", h=0.05, memory=memory).ys)
        for memory in (None, Budget(n_bytes=0, spare=500), "unlimited")
    ]
    found = [torch.autograd.grad(loss, [w, early]) for loss in losses]
    for one in found[:2]:
        assert_close(one, found[2], 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_for_the_first_of_two_backward_passes(kind):
    w, y0 = leaf(3), leaf(3)
    loss = square(solve(lambda t, y: w * y, y0, [0.0, 1.0], **keywords_of(kind)).ys)
    (expected,) = torch.autograd.grad(square(plain(kind)(lambda t, y: w * y, y0)), w)
    w.requires_grad_(False)
    torch.autograd.grad(loss, y0, retain_graph=True)
    w.requires_grad_(True)
    assert_close(torch.autograd.grad(loss, [w]), [expected], tolerance_of(kind))


class OwnLeaves(nn.Module):
    """Makes leaves in its forward pass, as FFJORD does, and Hamiltonian networks: nobody can want their gradients."""

    def __init__(self, of):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.of = nn.Linear(2, 2).double(), of

    def forward(self, t, y):
        with torch.enable_grad():
            if self.of == "a constant":
                return torch.tanh(self.net(torch.ones((), dtype=y.dtype, requires_grad=True) * y))
            if self.of == "the time":
                return torch.tanh(self.net(y)) * torch.cos(t.clone().detach().requires_grad_(True))
            z = y.detach().requires_grad_(True)
            energy = self.net(z).square().sum()
            return torch.autograd.grad(energy, z, create_graph=True)[0] + 0 * y


@pytest.mark.parametrize("of", ["a constant", "the time", "the state"])
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_that_func_makes_for_itself(kind, of):
    func, y0 = OwnLeaves(of), torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    wanted = [y0, *func.parameters()]
    found = torch.autograd.grad(square(ours(kind)(func, y0)), wanted, allow_unused=True)
    expected = torch.autograd.grad(square(plain(kind)(func, y0)), wanted, allow_unused=True)
    zeros = torch.zeros_like
    found, expected = ([zeros(w) if g is None else g for g, w in zip(each, wanted)] for each in (found, expected))
    assert_close(found, expected, tolerance_of(kind))


@pytest.mark.parametrize("of", ["a constant", "the time", "the state"])
@pytest.mark.parametrize("memory", ["states", None, "unlimited"])
def test_leaves_that_func_makes_for_itself_row_by_row(memory, of):
    func, y0 = OwnLeaves(of), torch.tensor([[0.5, 1.0], [2.0, -1.0]], dtype=torch.float64)
    keywords = {"rtol": 1e-10, "atol": 1e-10, "memory": memory, "per_sample": True}
    found = torch.autograd.grad(square(solve(func, y0, [0.0, 1.0], **keywords).ys), list(func.parameters()))
    alone = [square(solve(func, row[None], [0.0, 1.0], **keywords).ys) for row in y0]
    assert_close(found, torch.autograd.grad(sum(alone), list(func.parameters())), 1e-12)


@pytest.mark.parametrize("keywords", [
    *({"gradient": gradient} for gradient in ("aca", "direct", "naive", "adjoint")),
    {"gradient": "mali", "method": "ALF"}, {"method": "Rodas5P"},
    {"memory": "states"}, {"per_sample": True}, {"per_sample": True, "memory": "states"},
], ids=str)  # fmt: skip
def test_a_leaf_that_func_makes_may_be_a_part_of_its_slope(keywords):
    """As in PointFlow, for what does not change; with gradients in the times, of which the values are kept."""
    k, end = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.5, 0.8))
    y0 = [torch.full((3, 1), value, dtype=torch.float64, requires_grad=True) for value in (1.0, 1.5)]

    def func(t, state):
        y, c = state
        return -k * y * c, torch.zeros_like(c).requires_grad_(True)

    ys, _ = solve(func, y0, torch.stack([torch.zeros_like(end), end]), rtol=1e-7, atol=1e-7, **keywords).ys
    found = torch.autograd.grad(ys[-1].sum(), [k, end, y0[1]])
    exact = y0[0] * torch.exp(-k * y0[1] * end)
    # what the tolerance leaves of the error of the solution
    assert_close(found, torch.autograd.grad(exact.sum(), [k, end, y0[1]]), 1e-5)


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) * t


@pytest.mark.parametrize("wrapped", [lambda m: m, torch.jit.script, lambda m: torch.compile(m, backend="eager")],
                         ids=["module", "scripted", "compiled"])  # fmt: skip
@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_func_itself_is_scripted_or_compiled(kind, wrapped):
    def program(integrate, wrapped):
        module = Slope()
        return square(integrate(wrapped(module), torch.ones(2, 3))), list(module.parameters())

    expected = gradients(lambda i: program(i, lambda m: m), plain(kind))
    found = gradients(lambda i: program(i, wrapped), lambda f, y0: ours(kind)(f, y0, torch.tensor([0.0, 1.0])))
    assert_close(found, expected, tolerance_of(kind))


@pytest.mark.parametrize("kind", ["aca", "direct", "adjoint", "mali"])
def test_hooks_of_a_module_that_two_threads_use(kind):
    """Each backward pass calls the hook once, whatever the other one is doing."""
    w, found = torch.tensor([0.5, 0.3], requires_grad=True), []
    w.register_hook(lambda g: 2 * g)
    keywords = KINDS[kind] | ({"options": {"step_size": H}} if kind == "mali" else {"method": "RK4", "h": H})

    def solved():
        return solve(lambda t, y: w * y, torch.ones(2), [0.0, 1.0], **keywords).ys[-1].sum()

    (expected,) = torch.autograd.grad(solved(), w)
    # solved beforehand: PyTorch may lock up where two threads make graphs of one leaf, one of them in a custom Function
    losses = [solved() for _ in range(50)]
    in_two_threads(lambda: found.extend(torch.autograd.grad(losses.pop(), w)[0] for _ in range(25)))
    assert len(found) == 50 and all(torch.equal(g, expected) for g in found)
    assert len(w._backward_hooks) == 1


@pytest.mark.parametrize("inner", ["aca", "adjoint"])
@pytest.mark.parametrize("outer", ["aca", "adjoint"])
def test_a_solve_inside_func_closes_over_the_end_of_the_solve_before(outer, inner):
    """What stands for that end in the outer solve is a leaf to the inner one."""

    def gradient(outer, inner):
        torch.manual_seed(0)
        net, y = nn.Linear(2, 2).double(), torch.ones(3, 2, dtype=torch.float64)

        def slope_after(before):
            def of_inner(s, x):
                return torch.tanh(net(x)) - before * 0.5

            def of_outer(t, y):
                return solve(of_inner, y, [0.0, 0.2], method="RK4", h=0.1, gradient=inner).ys[-1] - y

            return of_outer

        for _ in range(2):
            y = solve(slope_after(y), y, [0.0, 0.4], method="RK4", h=0.1, gradient=outer).ys[-1]
        return torch.autograd.grad(y.square().sum(), net.weight)[0]

    # the adjoint's own error, of order h^4
    tolerance = 1e-6 if "adjoint" in (outer, inner) else 1e-12
    assert torch.allclose(gradient(outer, inner), gradient("naive", "naive"), rtol=tolerance, atol=tolerance)
