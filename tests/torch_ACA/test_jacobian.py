"""The Jacobian that Rodas5P and auto solve with: the user's own, and blocks where func acts row by row."""

import pytest
import torch

from benchmarks.stiff_fields import ROBERTSON_START, robertson
from torch_ACA import JacobianError, solve, solve_event
from torch_ACA.errors import SecondDerivativeError

ROUNDING = 1e-12  # between two orders of the same float64 operations, relative to the largest entry
METHOD = {"method": "Rodas5P", "rtol": 1e-4, "atol": 1e-6}
ROWS = METHOD | {"jac_structure": "rows"}


def assert_same(found, expected, tolerance=ROUNDING):
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).detach().abs().max()) <= tolerance * max(1.0, float(other.detach().abs().max()))


# the user's own


def robertson_jacobian(t, y):
    y = y.tolist()  # without a graph
    return torch.tensor([
        [-0.04, 1e4 * y[2], 1e4 * y[1]],
        [0.04, -6e7 * y[1] - 1e4 * y[2], -1e4 * y[1]],
        [0.0, 6e7 * y[1], 0.0],
    ])  # fmt: skip


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("method", ["Rodas5P", "auto"])
def test_gradient_needs_nothing_from_it(gradient, method):
    """A Jacobian without a graph, of a func whose Jacobian depends on state and parameters."""
    found = []
    for jac in (None, robertson_jacobian):
        p, y0 = torch.ones(3, requires_grad=True), torch.tensor(ROBERTSON_START, requires_grad=True)
        solution = solve(
            lambda t, y, p=p: robertson(torch, y, p), y0, [0.0, 1.0, 100.0], method=method, gradient=gradient, jac=jac,
            rtol=1e-4, atol=1e-8,
        )  # fmt: skip
        loss = (solution.ys[1:] * torch.tensor([1.0, 1e5, 1.0])).pow(2).sum()
        found.append([solution.ys, *torch.autograd.grad(loss, [p, y0])])
    # naive takes the Jacobian of func all the same
    assert_same(*found, tolerance=1e-8)  # rates of 3e7 magnify what the two Jacobians differ by


def test_equal_to_autograd_through_the_same_steps():
    w = torch.randn(3, 3, requires_grad=True)
    y0, ts = torch.randn(3, requires_grad=True), torch.tensor([0.0, 0.33, 0.7, 1.0], requires_grad=True)

    def func(t, y):
        return torch.tanh(w @ y) * torch.cos(t) - 30 * (y - torch.sin(t))

    def jac(t, y):
        return (1 - torch.tanh(w @ y) ** 2)[:, None] * w * torch.cos(t) - 30 * torch.eye(3)

    solution = solve(func, y0, ts, jac=jac, **METHOD)
    loss = (solution.ys**2).sum()
    by_hand = torch.autograd.grad(loss, [y0, w, ts], retain_graph=True)
    assert_same(by_hand, torch.autograd.grad(loss, [y0, w, ts], create_graph=True))
    assert_same(by_hand, torch.autograd.grad((solve(func, y0, ts, **METHOD).ys ** 2).sum(), [y0, w, ts]))
    assert solution.stats.n_jacobians == solution.stats.n_accepted


def test_shapes():
    y0 = torch.randn(2, 3)
    func = lambda t, y: -20 * y + torch.sin(y.flip(0)) * t  # noqa: E731
    expected = solve(func, y0, [0.0, 1.0], **METHOD).ys
    as_jacrev = torch.func.jacrev(func, argnums=1)
    as_matrix = lambda t, y: as_jacrev(t, y).reshape(6, 6)  # noqa: E731
    assert_same([solve(func, y0, [0.0, 1.0], jac=jac, **METHOD).ys for jac in (as_jacrev, as_matrix)], [expected] * 2)


def test_of_rows():
    w, y0 = torch.randn(3, 3, requires_grad=True), torch.randn(5, 3)
    func = lambda t, y: torch.tanh(y @ w.T) * t - 20 * y  # noqa: E731
    jac = lambda t, y: (1 - torch.tanh(y @ w.T) ** 2)[..., None] * w * t - 20 * torch.eye(3)  # noqa: E731
    found = []
    for keywords in (METHOD, ROWS, ROWS | {"jac": jac}):
        ys = solve(func, y0, [0.0, 0.4, 1.0], **keywords).ys
        found.append([ys, *torch.autograd.grad((ys**2).sum(), w)])
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_wrong_one_is_refused():
    func, wrong = lambda t, y: -20 * y + y**2, lambda t, y: torch.diag(2 * y - torch.tensor([20, 21, 20]))
    with pytest.raises(JacobianError, match=r"jac\(t, y\) is not df/dy .* at t = 0: column 1,"):
        solve(func, torch.ones(3), [0.0, 1.0], jac=wrong, **METHOD)


def test_one_that_is_right_at_the_start_alone_is_refused():
    """Where a Jacobian is wrong in what vanishes at the start, as products of concentrations do."""

    def jac(t, y):
        return robertson_jacobian(t, y) * torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, 1]])

    with pytest.raises(JacobianError, match="column 1, the derivative by"):
        solve(
            lambda t, y: robertson(torch, y, torch.ones(3)), torch.tensor(ROBERTSON_START), [0.0, 1e5], jac=jac,
            **METHOD,
        )


def test_side_effects_of_it_are_undone():
    norm = torch.nn.BatchNorm1d(2)
    func = lambda t, y: -5 * norm(y)  # noqa: E731
    y0, counts = torch.randn(4, 2, requires_grad=True), []
    for jac in (None, lambda t, y: torch.autograd.functional.jacobian(lambda y: func(t, y), y)):
        before = int(norm.num_batches_tracked)
        solution = solve(func, y0, [0.0, 1.0], rtol=1e-3, method="Rodas5P", jac=jac and with_gradients(jac))
        counts.append((int(norm.num_batches_tracked) - before, solution.stats.n_f_evals))
    assert counts[0] == counts[1]


def with_gradients(function):
    return torch.enable_grad()(function)


# rows


@pytest.mark.parametrize("width", [2, 9])  # fewer numbers than stages, and more
@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("autonomous", [False, True])
def test_rows_are_the_dense_jacobian(width, gradient, autonomous):
    w, y0 = torch.randn(width, width, requires_grad=True), torch.randn(5, width, requires_grad=True)
    rates = torch.logspace(0, 2, 5)[:, None]

    def func(t, y):
        t = 0.7 if autonomous else t
        return torch.tanh(y @ w.T) * torch.cos(torch.as_tensor(t)) - rates * (y - t)

    ts, found = torch.tensor([0.0, 0.31, 1.0], requires_grad=True), []
    for keywords in (METHOD, ROWS):
        solution = solve(func, y0, ts, gradient=gradient, options={"first_step": 0.01}, **keywords)
        wanted = [y0, w, ts]
        found.append([solution.ys, *torch.autograd.grad((solution.ys**2).sum(), wanted)])
        stats = solution.stats
        assert stats.n_jacobians == stats.n_accepted
        assert stats.n_factorizations == stats.n_accepted + stats.n_rejected
    assert_same(*found, tolerance=1e-10)  # naive: through the step-size search, which magnifies rounding


VARIANTS = {
    "interpolated": {},
    "backward": {},
    "jump": {"options": {"jump_t": [0.4]}},
    "fixed": {"options": {"step_size": 0.13}},
    "memory": {"memory": 3},
    "dense": {"dense": True},
    "auto": {"method": "auto"},
}


SLOW = ("memory", "jump", "backward")


@pytest.mark.parametrize("variant", [pytest.param(v, marks=[pytest.mark.slow] * (v in SLOW)) for v in VARIANTS])
def test_equal_to_autograd_through_the_same_steps_by_rows(variant):
    """Nested, complex, in y0, a parameter and all times."""
    w = torch.randn(3, 3, requires_grad=True)
    a = torch.randn(3, 3, requires_grad=True)
    b = torch.randn(3, 2, 1, dtype=torch.complex128, requires_grad=True)
    ts = torch.tensor([0.0, 0.33, 0.7, 1.0])
    ts = (ts.flip(0) if variant == "backward" else ts).requires_grad_()
    rate = 30.0 if variant == "backward" else -30.0

    def func(t, state):
        a, b = state
        jump = torch.sign(t - 0.4) * (variant == "jump")
        size = (b.abs() ** 2).sum((1, 2))[:, None]
        slope = torch.tanh(a @ w.T + size) * torch.cos(t) + rate * (a - torch.sin(t)) + jump * torch.sin(a)
        return slope, (rate + 1j) * b * (1 + torch.sin(a[:, :1, None]) ** 2)

    solution = solve(func, (a, b), ts, **ROWS | VARIANTS[variant])
    dense = solve(func, (a, b), ts, **METHOD | VARIANTS[variant])
    assert solution.stats.n_accepted == dense.stats.n_accepted
    losses = []
    for s in (solution, dense):
        ys = s.ys if variant != "dense" else s(ts * 0.9 + 0.03)
        losses.append((ys[0] ** 2).sum() + (ys[1].abs() ** 2).sum())
    loss, of_dense = losses
    by_hand = torch.autograd.grad(loss, [a, b, w, ts], retain_graph=True)
    assert_same(by_hand, torch.autograd.grad(loss, [a, b, w, ts], create_graph=True))
    assert_same(by_hand, torch.autograd.grad(of_dense, [a, b, w, ts]), 1e-10)


@pytest.mark.slow
def test_gradgradcheck_by_rows():
    def outputs(y0, t, w):
        func = lambda t, y: torch.tanh(y @ w.T) * torch.cos(t) - 5 * (y - torch.sin(t))  # noqa: E731
        return solve(func, y0, t, options={"step_size": 0.23}, **ROWS).ys

    inputs = [x.requires_grad_() for x in (torch.randn(2, 2), torch.tensor([0.0, 0.37, 1.0]), torch.randn(2, 2))]
    assert torch.autograd.gradcheck(outputs, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(outputs, inputs, atol=1e-6)


def test_transforms_by_rows():
    y0, w = torch.randn(3, 2), torch.randn(2, 2)
    func = lambda t, y: torch.tanh(y @ w.T) * torch.cos(t) - 50 * y  # noqa: E731
    end = lambda y0: solve(func, y0, [0.0, 1.0], options={"step_size": 0.13}, **ROWS).ys[-1]  # noqa: E731
    expected = torch.autograd.functional.jacobian(end, y0)
    assert_same([torch.func.jacrev(end)(y0)], [expected])
    assert_same([torch.func.jvp(end, (y0,), (torch.ones(3, 2),))[1]], [expected.sum((2, 3))])


def test_event_by_rows():
    times = []
    for keywords in (METHOD, ROWS):
        y0 = torch.linspace(1, 2, 4)[:, None].requires_grad_()
        t, _ = solve_event(lambda t, y: -30 * (y - torch.cos(t)), y0, 0.0, lambda t, y: y.sum() - 2, **keywords)
        times.append([t.detach(), *torch.autograd.grad(t, y0)])
    assert_same(*times)


def test_channels_last_and_float32():
    y0 = torch.randn(2, 3, 4, 4, dtype=torch.float32).to(memory_format=torch.channels_last)
    func = lambda t, y: torch.cos(y.flip(1)) * t - 30 * y  # noqa: E731
    assert_same([solve(func, y0, [0.0, 1.0], **ROWS).ys], [solve(func, y0, [0.0, 1.0], **METHOD).ys], 1e-5)


def test_many_rows_take_the_memory_of_their_blocks():
    """A dense Jacobian of these 20,000 numbers would take 3 GB."""
    y0 = torch.rand(10_000, 2, requires_grad=True)
    solution = solve(lambda t, y: -50 * (y - torch.cos(t)) * y, y0, [0.0, 0.1], **ROWS)
    solution.ys[-1].sum().backward()
    assert solution.stats.n_jacobians == solution.stats.n_accepted


def test_one_row_and_none():
    func = lambda t, y: -30 * (y - torch.cos(t))  # noqa: E731
    one, other = (solve(func, torch.ones(1, 2), [0.0, 1.0], **keywords).ys for keywords in (ROWS, METHOD))
    assert_same([one], [other])
    assert solve(func, torch.ones(2, 0), [0.0, 1.0], **ROWS).ys.shape == (2, 2, 0)


COUPLED = {
    "all": lambda y: y.mean(0),
    "neighbours": lambda y: y.roll(1, 0),
    "one": lambda y: torch.cat([y[:-1], y[-1:] + y[3]]),
    "far": lambda y: torch.cat([y[:1] * y[8:9], y[1:]]),
}


@pytest.mark.parametrize("coupling", COUPLED)
@pytest.mark.parametrize("later", [False, True])
def test_rows_that_are_not_independent_are_refused(coupling, later):
    """Whichever two rows it is, and where they part company later on."""
    other = COUPLED[coupling]
    func = lambda t, y: -20 * y + (0.1 * other(y) * torch.relu(t - 0.2 if later else 1 + t))  # noqa: E731
    with pytest.raises(JacobianError, match="jac_structure='rows', but at t = .* func couples rows"):
        solve(func, torch.ones(9, 2), [0.0, 3.0], **ROWS)


@pytest.mark.parametrize("gradient", ["naive", "jvp"])
def test_rows_that_are_not_independent_are_refused_out_of_place(gradient):
    end = lambda y: solve(  # noqa: E731
        lambda t, y: -20 * y + y.roll(1, 0), y, [0.0, 1.0], gradient="aca" if gradient == "jvp" else gradient, **ROWS
    ).ys[-1]
    y0 = torch.ones(9, 2, requires_grad=True)
    with pytest.raises(JacobianError, match="func couples rows"):
        torch.func.jvp(end, (y0,), (y0,)) if gradient == "jvp" else end(y0)


class InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, y):
        return torch.cos(t) * y

    @staticmethod
    def backward(ctx, bar):
        return bar.sum() * 0 + float(bar.detach().cpu().numpy().sum()), bar


def test_derivative_by_time_that_autograd_does_not_have_is_refused():
    with torch.no_grad(), pytest.raises(SecondDerivativeError, match="df/dt could not be found"):
        solve(lambda t, y: -20 * y + InNumpy.apply(t, y), torch.ones(3, 2), [0.0, 1.0], **ROWS)


@pytest.mark.parametrize(
    "keywords,error,message",
    [
        ({"jac": robertson_jacobian, "method": "Dopri5"}, ValueError, "for methods that solve with the Jacobian, got"),
        ({"jac_structure": "rows", "method": "Dopri5"}, ValueError, "for methods that solve with the Jacobian, got"),
        ({"jac_structure": "rows", "method": None, "per_sample": True}, ValueError, "with the Jacobian, got"),
        ({"jac_structure": "banded"}, ValueError, "'dense' or 'rows', got 'banded'"),
        ({"jac": 3.0}, TypeError, "jac must be callable"),
        ({"jac": lambda t, y: 1.0}, TypeError, "jac must return a real tensor, got float"),
        ({"jac": lambda t, y: torch.ones(3, 2)}, ValueError, r"jac must return shape \(6, 6\), got \(3, 2\)"),
        (
            {"jac": lambda t, y: torch.ones(6, 6), "jac_structure": "rows"}, ValueError,
            r"jac must return shape \(3, 2, 2\), got \(6, 6\)",
        ),
        ({"y0": (torch.ones(3, 2), torch.ones(2)), "jac_structure": "rows"}, ValueError, "needs a first axis of"),
        ({"y0": torch.ones(()), "jac_structure": "rows"}, ValueError, "needs a first axis"),
        ({"y0": torch.ones(2, dtype=torch.complex128), "jac": robertson_jacobian}, ValueError, "one real tensor"),
    ],
)  # fmt: skip
def test_what_is_refused(keywords, error, message):
    keywords = METHOD | {"y0": torch.ones(3, 2)} | keywords
    with pytest.raises(error, match=message):
        solve(lambda t, y: -y, t=[0.0, 1.0], **keywords)
