"""torch.func, forward-mode AD and vectorised Jacobians: right, or one typed error that names what works."""

import pytest
import torch
import torch.autograd.forward_ad as fw
from torch import nn

from tests.torch_ACA.programs import assert_close, plain
from torch_ACA import ODEBlock, odeint, odesolve_adjoint, solve, solve_event
from torch_ACA.errors import TransformError

GOOD = ["aca", "direct", "naive"]
FIXED = {"method": "RK4", "h": 0.25}


def ours(f, y0, gradient, t=(0.0, 1.0), **more):
    return solve(f, y0, list(t), gradient=gradient, **FIXED | more).ys[-1]


def reference(f, y0):
    return plain("aca")(f, y0)[-1]


def slope(w):
    return lambda t, y: torch.sin(w @ y) + t * y


W = torch.tensor([[0.5, -1.0], [0.3, 0.8]], dtype=torch.float64)
Y0 = torch.tensor([1.0, -0.5], dtype=torch.float64)
V = torch.tensor([0.7, 0.2], dtype=torch.float64)


def of_y0(end):
    return lambda y0: end(slope(W), y0)


def of_w(end):
    return lambda w: end(slope(w), Y0)


TRANSFORMS = {
    "grad": lambda g, x: torch.func.grad(lambda x: (g(x) ** 2).sum())(x),
    "grad_and_value": lambda g, x: torch.func.grad_and_value(lambda x: (g(x) ** 2).sum())(x)[0],
    "vjp": lambda g, x: torch.func.vjp(g, x)[1](V)[0],
    "jacrev": lambda g, x: torch.func.jacrev(g, chunk_size=1)(x),
    "jacrev at once": lambda g, x: torch.func.jacrev(g)(x),
    "jvp": lambda g, x: torch.func.jvp(g, (x,), (torch.ones_like(x),))[1],
    "grad of grad": lambda g, x: torch.func.grad(
        lambda x: (torch.func.grad(lambda x: (g(x) ** 2).sum())(x) ** 2).sum()
    )(x),
    "jvp of grad": lambda g, x: torch.func.jvp(
        torch.func.grad(lambda x: (g(x) ** 2).sum()), (x,), (torch.ones_like(x),)
    )[1],
    "vjp of vjp": lambda g, x: torch.func.vjp(lambda x: torch.func.vjp(g, x)[1](V)[0], x)[1](torch.ones_like(x))[0],
    "linearize": lambda g, x: torch.func.linearize(g, x)[1](torch.ones_like(x)),
    "jacobian": lambda g, x: torch.autograd.functional.jacobian(g, x),
    "jacobian, vectorised": lambda g, x: torch.autograd.functional.jacobian(g, x, vectorize=True),
    "jacobian, forward": lambda g, x: torch.autograd.functional.jacobian(
        g, x, vectorize=True, strategy="forward-mode"
    ),
    "hessian": lambda g, x: torch.autograd.functional.hessian(lambda x: (g(x) ** 2).sum(), x),
    "hessian, vectorised": lambda g, x: torch.autograd.functional.hessian(
        lambda x: (g(x) ** 2).sum(), x, vectorize=True
    ),
    "func.hessian": lambda g, x: torch.func.hessian(lambda x: (g(x) ** 2).sum())(x),
    "jacfwd": lambda g, x: torch.func.jacfwd(g)(x),
    "vmap": lambda g, x: torch.func.vmap(g)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda g, x: torch.func.vmap(torch.func.grad(lambda x: (g(x) ** 2).sum()))(torch.stack([x, 2 * x])),
}


def _expected(name, g, x):
    """Of the reference, whose times are numbers, which linearize does not trace."""
    return TRANSFORMS["jvp" if name == "linearize" else name](g, x)


MAY_BE_REFUSED = ("jacfwd", "vmap", "vmap of grad", "func.hessian", "jacobian, forward", "linearize")


@pytest.mark.parametrize("of", [of_y0, of_w], ids=["of y0", "of a captured tensor"])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("gradient", GOOD)
def test_transforms_are_right_or_refused(gradient, name, of):
    x = Y0 if of is of_y0 else W
    expected = _expected(name, of(reference), x)
    try:
        found = TRANSFORMS[name](of(lambda f, y0: ours(f, y0, gradient)), x)
    except TransformError as error:
        assert name in MAY_BE_REFUSED, error
        assert "torch.vmap" in str(error) or "aca" in str(error)  # what works
        return
    assert_close([found.detach()], [expected.detach()], 1e-11)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("gradient", ["adjoint", "mali"])
def test_methods_without_transforms_say_so(gradient, name):
    end = lambda f, y0: solve(f, y0, [0.0, 1.0], gradient=gradient, rtol=1e-9, atol=1e-9).ys[-1]  # noqa: E731
    if gradient == "mali":
        end = lambda f, y0: solve(f, y0, [0.0, 1.0], gradient="mali", options={"step_size": 0.01}).ys[-1]  # noqa: E731
    expected = _expected(name, of_y0(reference), Y0)
    try:
        found = TRANSFORMS[name](of_y0(end), Y0)
    except (TransformError, RuntimeError) as error:
        assert isinstance(error, TransformError) or "second derivatives" in str(error), error
        assert "aca" in str(error) or "torch.vmap" in str(error)
        return
    assert_close([found.detach()], [expected.detach()], 1e-2)  # of coarse RK4 steps, and of ALF


ENTRIES = {
    "block": lambda f, y0: ODEBlock(f, method="RK4", h=0.25)(y0),
    "odeint": lambda f, y0: odeint(f, y0, torch.tensor([0.0, 1.0]), method="RK4", options={"step_size": 0.25})[-1],
    "odesolve_adjoint": lambda f, y0: odesolve_adjoint(f, y0, {"method": "RK4", "h": 0.25}),
    "two states": lambda f, y0: ours(f, y0, "aca", memory=2),
    "1MiB": lambda f, y0: ours(f, y0, "aca", memory="1MiB"),
    "dense": lambda f, y0: solve(f, y0, [0.0, 1.0], **FIXED, dense=True)(1.0),
    "in a row": lambda f, y0: ours(lambda t, y: f(t + 0.5, y), ours(f, y0, "aca", (0.0, 0.5)), "aca", (0.0, 0.5)),
    "compiled": lambda f, y0: ours(f, y0, "aca", compile=True),
}


@pytest.mark.parametrize("name", ["grad", "jacrev", "jvp", "grad of grad", "jacobian, vectorised"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_other_entries(entry, name):
    expected = TRANSFORMS[name](of_w(reference), W)
    if entry == "compiled" and name == "jacobian, vectorised":
        pytest.skip("compiles steps, which takes long")
    assert_close([TRANSFORMS[name](of_w(ENTRIES[entry]), W).detach()], [expected.detach()], 1e-11)


@pytest.mark.parametrize("gradient", GOOD)
def test_functional_call_under_grad(gradient):
    class Whole(nn.Module):
        def __init__(self, end):
            super().__init__()
            self.net, self.end = nn.Linear(2, 2), end

        def forward(self, y0):
            return (self.end(lambda t, y: torch.tanh(self.net(y)), y0) ** 2).sum()

    def grads(end):
        torch.manual_seed(0)
        module = Whole(end)
        params = {name: p.detach() for name, p in module.named_parameters()}
        found = torch.func.grad(lambda p: torch.func.functional_call(module, p, (Y0,)))(params)
        return list(found.values())

    assert_close(grads(lambda f, y0: ours(f, y0, gradient)), grads(reference), 1e-12)


@pytest.mark.parametrize("gradient", GOOD)
def test_times_under_transforms(gradient):
    def end(t1):
        return solve(slope(W), Y0, torch.stack([t1 * 0, t1]), gradient=gradient, rtol=1e-9, atol=1e-9).ys[-1].sum()

    t1 = torch.tensor(1.0)
    y1 = solve(slope(W), Y0, [0.0, 1.0], rtol=1e-9, atol=1e-9).ys[-1]
    expected = float(slope(W)(t1, y1).sum())
    assert float(torch.func.grad(end)(t1)) == pytest.approx(expected, rel=1e-6)
    assert float(torch.func.jvp(end, (t1,), (torch.ones(()),))[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", [
    "RK4", "explicit_adams",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("Dopri5", "heun3", "implicit_adams", "Rodas5P")),
])  # fmt: skip
def test_fixed_steps_come_to_the_times_of_the_forward_pass(method):
    """To the last bit: 25 * 0.02 is 0.5, 25 times 0.02 added up is not, and func, which jumps there and does not say
    so, tells them apart, by 1e-3."""
    options = {"step_size": 0.02} | ({"max_order": 4} if "adams" in method else {})

    def end(y):
        jumping = lambda t, y: torch.where(t > 0.5, 1.0, 0.0) - y  # noqa: E731
        return solve(jumping, y, [0.0, 1.0], method=method, options=options).ys[-1].sum()

    y0, tangent = torch.ones(1, requires_grad=True), torch.ones(1)
    value = end(y0)
    (gradient,) = torch.autograd.grad(value, y0)
    (again,) = torch.autograd.grad(end(y0), y0, create_graph=True)
    y0 = y0.detach()
    found = [again.detach(), *torch.func.grad_and_value(end)(y0), *torch.func.jvp(end, (y0,), (tangent,))]
    expected = [gradient, gradient, value, value, gradient.sum()]
    assert_close(found, [x.detach() for x in expected], 1e-13)  # rounding of 50 steps


def test_derivatives_in_the_times_of_fixed_steps():
    """Of ten steps that start on each other's ends, the first on a given time, as of plain operations."""

    def end(t, gradient="aca"):
        return solve(slope(W), Y0, t, gradient=gradient, method="RK4", options={"step_size": 0.1}).ys[-1].sum()

    t = torch.tensor([0.05, 1.03], requires_grad=True)
    (expected,) = torch.autograd.grad(end(t), t)
    (graph,), (plainly,) = (torch.autograd.grad(end(t, name), t, create_graph=True) for name in ("aca", "naive"))
    second, second_plainly = (torch.autograd.grad(g[0], t)[0] for g in (graph, plainly))
    t = t.detach()
    found = [graph.detach(), torch.func.grad(end)(t), *(torch.func.jvp(end, (t,), (v,))[1] for v in torch.eye(2))]
    assert_close(found, [expected, expected, *expected], 1e-13)
    assert_close([second], [second_plainly], 1e-12)


# Forward-mode AD


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("gradient", GOOD)
def test_tangents_of_a_dual_state_and_parameter(gradient, adaptive):
    keywords = {"rtol": 1e-9, "atol": 1e-9} if adaptive else {"method": "Euler", "options": {"step_size": 0.5}}
    with fw.dual_level():
        y0 = fw.make_dual(torch.ones(1), torch.ones(1))
        w = fw.make_dual(torch.tensor(-1.0), torch.tensor(2.0))
        y = solve(lambda t, y: w * y, y0, [0.0, 1.0], gradient=gradient, **keywords).ys[-1]
        value, tangent = fw.unpack_dual(y)
    e = torch.exp(torch.tensor(-1.0))
    # two Euler steps: (1 + w/2)^2
    assert float(value) == pytest.approx(float(e) if adaptive else 0.25, rel=1e-7)
    assert float(tangent) == pytest.approx(float(e + 2 * e) if adaptive else 0.25 + 2 * 0.5, rel=1e-7)


@pytest.mark.parametrize("gradient", ["adjoint", "mali"])
def test_tangents_elsewhere_are_refused(gradient):
    with fw.dual_level(), pytest.raises(TransformError, match="aca"):
        solve(lambda t, y: -y, fw.make_dual(torch.ones(1), torch.ones(1)), [0.0, 1.0], gradient=gradient)


@pytest.mark.parametrize("gradient", GOOD)
def test_a_captured_dual_with_a_plain_state(gradient):
    with fw.dual_level():
        w = fw.make_dual(torch.tensor(0.5), torch.tensor(1.0))
        y = ours(lambda t, y: w * y, torch.ones(1), gradient)
        tangent = fw.unpack_dual(y).tangent
    w = torch.tensor(0.5, requires_grad=True)
    (expected,) = torch.autograd.grad(reference(lambda t, y: w * y, torch.ones(1)).sum(), w)
    assert float(tangent) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("gradient", GOOD)
def test_reverse_over_a_dual_level(gradient):
    """A backward pass inside a dual level: Hessian times vector, and no leftover afterwards."""
    w = torch.tensor([0.5, 0.3], requires_grad=True)
    f = lambda t, y: torch.sin(w * y)  # noqa: E731

    def product(end):
        with fw.dual_level():
            y0 = fw.make_dual(torch.ones(2), torch.tensor([1.0, 2.0]))
            tangent = fw.unpack_dual(end(f, y0)).tangent
            return torch.autograd.grad(tangent.sum(), w)

    assert_close(product(lambda f, y0: ours(f, y0, gradient)), product(reference), 1e-12)
    (g,) = torch.autograd.grad(ours(f, torch.ones(2), gradient).sum(), w)
    assert_close([g], torch.autograd.grad(reference(f, torch.ones(2)).sum(), w), 1e-12)


# Batches of cotangents


@pytest.mark.parametrize("gradient", GOOD)
def test_batched_cotangents(gradient):
    def jacobian(end):
        y0 = Y0.clone().requires_grad_()
        w = W.clone().requires_grad_()
        y = end(slope(w), y0)
        return torch.autograd.grad(y, [y0, w], torch.eye(2), is_grads_batched=True)

    assert_close(jacobian(lambda f, y0: ours(f, y0, gradient)), jacobian(reference), 1e-12)


@pytest.mark.parametrize("gradient", ["adjoint", "mali"])
def test_batched_cotangents_elsewhere_are_right_or_refused(gradient):
    keywords = {"rtol": 1e-9, "atol": 1e-9} if gradient == "adjoint" else {"options": {"step_size": 0.25}}

    def jacobian(end):
        y0 = Y0.clone().requires_grad_()
        return torch.autograd.grad(end(slope(W), y0), y0, torch.eye(2), is_grads_batched=True)

    try:
        found = jacobian(lambda f, y0: solve(f, y0, [0.0, 1.0], gradient=gradient, **keywords).ys[-1])
    except TransformError as error:
        assert "aca" in str(error)
        return
    assert_close(found, jacobian(lambda f, y0: plain(gradient)(f, y0)[-1]), 1e-6)


@pytest.mark.parametrize("gradient", ["aca", "naive"])
def test_reverse_over_forward_of_linear_solves(gradient):
    """As forward over reverse. Steps of a given size: what is differentiated is the same."""
    y0, w = torch.tensor([0.3, -0.2]), torch.tensor([[0.5, -1.0], [0.7, 0.2]])
    v = torch.tensor([[1.0, 0.5], [-0.3, 0.8]])

    def loss(y, w):
        def func(t, y):
            return torch.tanh(w @ y) - 5 * y * torch.cos(t)

        ys = solve(func, y, [0.0, 1.0], method="Rodas5P", options={"step_size": 0.25}, gradient=gradient).ys
        return ys[-1].square().sum()

    over_forward = torch.func.grad(lambda y: torch.func.jvp(lambda w: loss(y, w), (w,), (v,))[1])(y0)
    over_reverse = torch.func.jvp(lambda w: torch.func.grad(lambda y: loss(y, w))(y0), (w,), (v,))[1]
    assert_close([over_forward], [over_reverse], 1e-10)


# Programs that are recorded


class Recorded(torch.nn.Module):
    def __init__(self, keywords):
        super().__init__()
        self.net, self.keywords = torch.nn.Linear(3, 3), keywords

    def forward(self, y):
        return solve(lambda t, y: torch.tanh(self.net(y)), y, [0.0, 1.0], **self.keywords).ys[-1]


@pytest.mark.filterwarnings("ignore")  # PyTorch's of numbers that become constants, and that tracing is deprecated
@pytest.mark.parametrize(("keywords", "enabled"), [
    ({"method": "RK4", "h": 0.5}, True), ({"method": "RK4", "h": 0.1, "gradient": "naive"}, True),
    ({"gradient": "naive"}, True), ({"method": "RK4", "h": 0.1}, False), ({}, False), ({"gradient": "adjoint"}, False),
])  # fmt: skip
def test_traced_solves(keywords, enabled):
    model, other = Recorded(keywords), torch.randn(2, 3)
    with torch.set_grad_enabled(enabled):
        traced = torch.jit.trace(model, (torch.ones(2, 3),), check_trace=False)
        assert_close([traced(other)], [model(other)], 1e-4)  # adaptive steps are those of another state
    if enabled:
        found, expected = (torch.autograd.grad(m(other).sum(), model.net.weight) for m in (traced, model))
        assert_close(found, expected, 1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("keywords", "words"), [
    ({}, "gradient='aca': trace under torch.no_grad.*check_trace=False"), ({"gradient": "adjoint"}, "torch.no_grad"),
    ({"method": "RK4", "h": 0.1}, "gradient='naive'"), ({"method": "Rodas5P"}, "torch.no_grad"),
    ({"compile": True}, "torch.no_grad"), ({"per_sample": True}, "per_sample=True: trace a joint solve"),
])  # fmt: skip
def test_what_cannot_be_traced_is_refused(keywords, words):
    with pytest.raises(TransformError, match=words):
        torch.jit.trace(Recorded(keywords), (torch.ones(2, 3),))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keywords", [{}, {"method": "RK4", "h": 0.5}, {"compile": True}])
def test_exports_are_refused(keywords):
    with pytest.raises(TransformError, match="torch.export cannot record a solve"):
        torch.export.export(Recorded(keywords), (torch.ones(2, 3),))


@pytest.mark.parametrize("gradient", ["aca", "naive"])
@pytest.mark.parametrize("transform", [
    torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,)), torch.func.hessian,
], ids=["grad", "jvp", "hessian"])  # fmt: skip
def test_events_are_refused(gradient, transform):
    def event_time(y):
        return solve_event(lambda t, x: -x, y, 0.0, lambda t, x: x[0] - 0.5, gradient=gradient)[0]

    with pytest.raises(TransformError, match="solve_event does not go through torch.func"):
        transform(event_time)(torch.ones(2))


@pytest.mark.parametrize("gradient", GOOD)
@pytest.mark.parametrize("keywords", [FIXED, {"rtol": 1e-4, "atol": 1e-4}], ids=["fixed", "adaptive"])
def test_dropout_has_one_mask_for_a_solve(keywords, gradient):
    y0 = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)

    def loss(w):
        torch.manual_seed(0)
        func = lambda t, y: -w * nn.functional.dropout(y, 0.5)  # noqa: E731
        return solve(func, y0, [0.0, 1.0], gradient=gradient, **keywords).ys[-1].square().sum()

    w = torch.tensor(0.7, dtype=torch.float64)
    found, value = torch.func.grad_and_value(loss)(w)
    expected = loss(w.requires_grad_())
    assert_close([found, value], [*torch.autograd.grad(expected, w), expected.detach()], 1e-12)


@pytest.mark.parametrize("gradient", GOOD)
@pytest.mark.parametrize("keywords", [{"method": "RK4", "h": 0.1}, {"rtol": 1e-6, "atol": 1e-6}], ids=["RK4", "Dopri5"])
def test_func_may_fill_the_same_memory_again(keywords, gradient):
    """Inside a level of forward-mode AD where nothing has a tangent, as a plain solve."""
    kept = torch.empty(2, dtype=torch.float64)

    def func(t, y):
        with torch.no_grad():
            return kept.copy_(-torch.cos(t) * y)

    with fw.dual_level():
        found = solve(func, Y0, [0.0, 1.0], gradient=gradient, **keywords).ys[-1]
    assert_close([found], [Y0 * torch.exp(-torch.sin(torch.tensor(1.0, dtype=torch.float64)))], 1e-5)


def test_params_are_for_backward():
    with pytest.raises(TransformError, match="params= is for backward"):
        torch.func.grad(lambda w: solve(slope(w), Y0, [0.0, 1.0], params=[]).ys.sum())(W)
