"""Adams methods: weights, order, gradients and options, against exact fractions, torchdiffeq and plain autograd."""

import copy
import math
import warnings
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import torch_ACA
from torch_ACA import odeint, odeint_adjoint, solve, solve_event
from torch_ACA.adams_weights import weights_of

NAMES = ("explicit_adams", "implicit_adams")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}  # of the corrections; as many as it takes with ENOUGH
ENOUGH = {"implicit_adams": {"max_iters": 50}, "explicit_adams": {}}  # which makes no corrections
UNEQUAL = [0.0, 0.11, 0.2, 0.32, 0.39, 0.5, 0.58, 0.71, 0.8]
THREE_EIGHTHS = (
    ([], 0.0), ([1 / 3], 1 / 3), ([-1 / 3, 1], 2 / 3), ([1, -1, 1], 1.0), ([1 / 8, 3 / 8, 3 / 8, 1 / 8], None)
)  # fmt: skip


class Field(torch.nn.Module):
    """A small field whose parameters, state and time all matter."""

    def __init__(self, size=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(size, 5), torch.nn.Tanh(), torch.nn.Linear(5, size)).double()

    def forward(self, t, y):
        return self.net(y) * torch.cos(2 * t) - 0.3 * y


def integrals(nodes, low, high):
    """Integrals from low to high of the Lagrange polynomials of the nodes: through the monomials, whatever number type
    is used. Not how the package does it."""
    weights = []
    for j, own in enumerate(nodes):
        coefficients = [nodes[0] * 0 + 1]
        for m, other in enumerate(nodes):
            if m != j:
                scale = 1 / (own - other)
                shifted = [0 * scale, *(c * scale for c in coefficients)]
                coefficients = [a - b * other * scale for a, b in zip(shifted, [*coefficients, 0])]
        weights.append(sum(c * (high ** (i + 1) - low ** (i + 1)) / (i + 1) for i, c in enumerate(coefficients)))
    return weights


def by_hand(func, y, t, implicit, max_order=12, tolerance=1e-9):
    """States [m, n] of Adams steps from time to time [m], by plain operations of PyTorch."""
    ys, slopes, times = [y], [], []
    for t0, t1 in zip(t[:-1], t[1:]):
        h = t1 - t0
        slopes, times = [func(t0, y), *slopes][: max_order - 1], [t0, *times][: max_order - 1]
        if len(slopes) < 3:
            stages = []
            for a, c in THREE_EIGHTHS:
                stage = y + h * sum(w * k for w, k in zip(a, stages))
                if c is not None:
                    stages.append(slopes[0] if c == 0 else func(t1 if c == 1 else t0 + c * h, stage))
            y = stage
        else:
            # from 0 on, as powers of large times would lose digits
            change = sum(w * k for w, k in zip(integrals([s - t0 for s in times], 0 * h, h), slopes))
            if implicit:
                of_end, *weights = integrals([h, *(s - t0 for s in times)], 0 * h, h)
                before = change + 1
                while bool(((change - before).abs() > tolerance * (1 + torch.maximum(change, before).abs())).any()):
                    before = change
                    change = of_end * func(t1, y + change) + sum(w * k for w, k in zip(weights, slopes))
            y = y + change
        ys.append(y)
    return torch.stack(ys)


def leaves(field, times, n=3):
    """A state and the times that require grad, and all that is to be differentiated by."""
    y0 = torch.linspace(-1, 1, n, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    return y0, t, [y0, t, *field.parameters()]


def weighed(ys):
    """A loss in which every output counts, differently."""
    return (ys.sin() * torch.arange(1, ys.numel() + 1, dtype=ys.dtype).view(ys.shape)).sum()


def difference(one, other):
    """Largest, relative to what is largest."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other))


@pytest.mark.parametrize("with_end", [False, True])
@pytest.mark.parametrize("count", range(1, 12))
def test_weights_are_integrals_of_lagrange_polynomials(count, with_end):
    nodes = [Fraction(0), *(Fraction(-j) - Fraction(j % 3, 7) for j in range(1, count))]
    exact = integrals([Fraction(1)] * with_end + nodes, Fraction(0), Fraction(1))
    found = weights_of(2.0, 0.5, [2.0 + 0.5 * float(node) for node in nodes[1:]], with_end=with_end)
    largest = max(abs(w) for w in exact)
    # rounding of the times, times what it does to a weight: it grows with the degree
    assert all(abs(w - 0.5 * float(e)) <= 1e-13 * largest for w, e in zip(found, exact))


def test_weights_of_equal_steps_are_the_well_known_ones():
    times = [-1.0, -2.0, -3.0]
    assert weights_of(0.0, 1.0, times) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], abs=1e-14)
    moulton = weights_of(0.0, 1.0, times[:2], with_end=True)
    assert moulton == pytest.approx([9 / 24, 19 / 24, -5 / 24, 1 / 24], abs=1e-14)


@pytest.mark.parametrize("options", [{}, {"max_order": 4}, {"max_order": 7, "max_iters": 2}])
@pytest.mark.parametrize("method", [*NAMES, "fixed_adams"])
def test_equal_to_torchdiffeq_on_equal_steps(method, options):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    field, t = Field(), torch.linspace(0.5, 2.5, 21, dtype=torch.float64)
    y0, _, (_, _, *parameters) = leaves(field, [0.0])
    keywords = {"method": method, "options": options, "rtol": 1e-6, "atol": 1e-8}
    ours, theirs = (module.odeint(field, y0, t, **keywords) for module in (torch_ACA, torchdiffeq))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # rounding times weights of up to some hundred
    grads = [torch.autograd.grad(weighed(ys), (y0, *parameters)) for ys in (ours, theirs)]
    assert difference(*grads) < 1e-12


@pytest.mark.parametrize("reverse", [False, True])
def test_corrections_that_do_not_settle_warn_once_and_are_torchdiffeqs(reverse):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    t, y0 = torch.linspace(0, 1, 9, dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    t, rate = (t.flip(0), 4.0) if reverse else (t, -4.0)

    def field(t, y):
        return rate * y + torch.sin(5 * t)

    keywords = {"method": "implicit_adams", "rtol": 1e-10, "atol": 1e-10}
    with pytest.warns(UserWarning, match="implicit_adams: 4 corrections did not settle in the step from t = ") as seen:
        ours = odeint(field, y0.requires_grad_(), t, **keywords)
        ours.sum().backward()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(ours, torchdiffeq.odeint(field, y0, t, **keywords), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize(
    ("method", "max_order", "order"),
    [("explicit_adams", 4, 3), ("explicit_adams", 5, 4), ("implicit_adams", 4, 4), ("implicit_adams", 5, 5)],
)
def test_order_by_regression(method, max_order, order, unequal):
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    y0, exact = turn[0], torch.tensor([math.sin(2.0), math.cos(2.0)], dtype=torch.float64)
    sizes, errors = [], []
    for count in (40, 80, 160, 320):
        steps = torch.tensor([1.0, 1.6 if unequal else 1.0], dtype=torch.float64).repeat(count // 2)
        grid = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
        grid = 2.0 * grid / grid[-1]
        ys = solve(
            lambda t, y: turn @ y, y0, grid[[0, -1]], method=method, rtol=0.0, atol=1e-15,
            options={"max_order": max_order, "grid": grid, **ENOUGH[method]},
        ).ys  # fmt: skip
        sizes.append(math.log(2.0 / count))
        errors.append(math.log(float((ys[-1] - exact).norm())))
    x, y = torch.tensor(sizes), torch.tensor(errors)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert abs(slope - order) < 0.15, slope  # the next term of the error
    assert replace(torch_ACA.methods[method], max_order=max_order).order == order


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("times", [UNEQUAL, [1.0 - t for t in UNEQUAL]], ids=["ahead", "behind"])
@pytest.mark.parametrize(
    ("method", "max_order"), [("explicit_adams", 12), ("implicit_adams", 12), ("explicit_adams", 4)]
)
def test_gradient_is_that_of_autograd_through_the_same_steps(method, max_order, times, gradient):
    field = Field()
    y0, t, wanted = leaves(field, times)
    options = {"max_order": max_order, "grid": times, "land_on_t": True, **ENOUGH[method]}
    ys = solve(field, y0, t, method=method, gradient=gradient, options=options, **TIGHT).ys
    expected = by_hand(field, y0, t, method == "implicit_adams", max_order)
    torch.testing.assert_close(ys, expected, rtol=0, atol=1e-13)
    found, known = (torch.autograd.grad(weighed(x), wanted) for x in (ys, expected))
    assert difference(found, known) < 1e-12


@pytest.mark.parametrize("method", NAMES)
def test_outputs_inside_steps_and_their_times(method):
    """Steps of 0.2, so that every output but the last lies inside one; two in one of them."""
    field, times = Field(), [0.0, 0.05, 0.3, 0.9, 0.95, 1.3]
    y0, t, wanted = leaves(field, times)
    keywords = {"method": method, "h": 0.2, "options": ENOUGH[method], **TIGHT}
    ys = {gradient: solve(field, y0, t, gradient=gradient, **keywords).ys for gradient in ("aca", "direct", "naive")}
    found = {gradient: torch.autograd.grad(weighed(x), wanted) for gradient, x in ys.items()}
    for gradient in ("direct", "naive"):
        torch.testing.assert_close(ys[gradient], ys["aca"], rtol=0, atol=1e-14)
        assert difference(found[gradient], found["aca"]) < 1e-12
    grid = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.3], dtype=torch.float64)
    nodes = by_hand(field, y0, grid, method == "implicit_adams")
    slopes = [field(time, y) for time, y in zip(grid, nodes)]
    for i, j in ((1, 0), (2, 1), (3, 4), (4, 4)):  # outputs, and the steps they lie in: cubic Hermite by its definition
        h = grid[j + 1] - grid[j]
        x = (t[i] - grid[j]) / h
        ends = (1 + 2 * x) * (1 - x) ** 2 * nodes[j] + x**2 * (3 - 2 * x) * nodes[j + 1]
        inside = ends + h * (x * (1 - x) ** 2 * slopes[j] + x**2 * (x - 1) * slopes[j + 1])
        torch.testing.assert_close(ys["aca"][i], inside, rtol=0, atol=1e-14)


def test_linear_dense_output_is_torchdiffeqs():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    field, t = Field(), torch.linspace(0, 1.5, 8, dtype=torch.float64)
    y0, *_ = leaves(field, [0.0])
    for interp in ("linear", "cubic"):
        options = {"step_size": 0.1, "interp": interp}
        ours, theirs = (module.odeint(field, y0, t, method="explicit_adams", options=options)
                        for module in (torch_ACA, torchdiffeq))  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", NAMES)
def test_gradcheck_and_gradgradcheck(method):
    field = Field(2)
    y0, _, _ = leaves(field, [0.0], 2)
    weight = field.net[0].weight

    def outputs(y0, weight):
        func = lambda t, y: torch.func.functional_call(field, {"net.0.weight": weight}, (t, y))  # noqa: E731
        return solve(func, y0, [0.0, 0.35, 0.6], method=method, h=0.12, options=ENOUGH[method], rtol=0.0, atol=1e-15).ys

    # to rounding, so that one correction more or less makes no difference to numerical derivatives
    assert torch.autograd.gradcheck(outputs, (y0, weight))
    assert torch.autograd.gradgradcheck(outputs, (y0, weight))


@pytest.mark.parametrize("method", NAMES)
def test_second_derivatives_are_those_of_plain_autograd(method):
    field = Field()
    y0, t, wanted = leaves(field, UNEQUAL)
    options = {"grid": UNEQUAL, "land_on_t": True, **ENOUGH[method]}
    results = (
        solve(field, y0, t, method=method, options=options, **TIGHT).ys,
        by_hand(field, y0, t, method == "implicit_adams"),
    )
    second = []
    for ys in results:
        first = torch.autograd.grad(weighed(ys), wanted, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    assert difference(*second) < 1e-11


@pytest.mark.parametrize("memory", [2, 3, 5, "bytes", "unlimited"])
@pytest.mark.parametrize("method", NAMES)
def test_a_budget_of_memory_leaves_the_gradient_as_it_is(method, memory):
    field = Field()
    y0, t, wanted = leaves(field, [0.0, 0.33, 1.0, 1.7])
    found = []
    size = {"explicit_adams": "160kB", "implicit_adams": "1600kB"}[method] if memory == "bytes" else memory
    for keywords in ({"memory": "states"}, {"memory": size}):
        options = {"max_order": 5, **ENOUGH[method]}
        solution = solve(field, y0, t, method=method, h=0.1, options=options, **keywords, **TIGHT)
        found.append((torch.autograd.grad(weighed(solution.ys), wanted), solution.stats.n_backward_f_evals))
    (expected, n_expected), (grads, n_evals) = found
    assert all(torch.equal(a, b) for a, b in zip(grads, expected))
    if memory == "bytes":  # room for all states, and for the graphs of some steps
        assert 0 < n_evals < n_expected
    else:
        assert n_evals == 0 if memory == "unlimited" else n_evals > n_expected


def test_bytes_count_the_slopes_that_are_kept_with_a_state():
    """A step keeps max_order - 1 vectors of 3 numbers: 88 bytes hold no two steps."""
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="memory of 140 bytes is too little: a state takes 72"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], method="explicit_adams", h=0.1, options={"max_order": 4}, memory="140B")


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("method", NAMES)
def test_a_jump_starts_the_history_anew(method, gradient):
    """As two solves, one up to the jump and one from there."""
    field = Field()
    y0, _, wanted = leaves(field, [0.0])
    wanted = [y0, *wanted[2:]]
    keywords = {"method": method, "h": 0.1, "gradient": gradient, **TIGHT}

    def jumping(t, y):
        return field(t, y) + 3.0 * (t > 0.55)

    options = {"jump_t": [0.55], **ENOUGH[method]}
    ys = solve(jumping, y0, [0.0, 0.5, 0.8, 1.4], options=options, **keywords).ys
    before = solve(field, y0, [0.0, 0.5, 0.55], options=ENOUGH[method], **keywords).ys
    behind = solve(lambda t, y: field(t, y) + 3.0, before[-1], [0.55, 0.8, 1.4], options=ENOUGH[method], **keywords).ys
    expected = torch.cat([before[:2], behind[1:]])
    torch.testing.assert_close(ys, expected, rtol=0, atol=1e-14)
    grads = (torch.autograd.grad(weighed(x), wanted) for x in (ys, expected))
    assert difference(*grads) < 1e-12


def test_perturb_starts_anew_in_every_step():
    keywords = {"h": 0.1, "options": {"perturb": True}}
    y0 = torch.ones(2, dtype=torch.float64)
    ours, rk4 = (solve(lambda t, y: -y * t, y0, [0.0, 1.0], method=m, **keywords).ys for m in ("explicit_adams", "rk4"))
    torch.testing.assert_close(ours, rk4, rtol=0, atol=1e-15)


@pytest.mark.parametrize("method", NAMES)
def test_event(method):
    y0 = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    options = {"max_order": 5, **ENOUGH[method]}
    keywords = {"method": method, "h": 0.02, "options": options, "rtol": 1e-13, "atol": 1e-13}
    t, _ = solve_event(lambda t, y: -y, y0, 0.0, lambda t, y: y - 0.5, **keywords)
    assert abs(t.item() - math.log(3)) < 1e-7  # 0.02^4
    (gradient,) = torch.autograd.grad(t, y0)
    assert abs(gradient.item() - 1 / 1.5) < 1e-7


def test_dense_output_and_record():
    field = Field()
    y0, t, wanted = leaves(field, [0.0, 1.0])
    solution = solve(
        field, y0, t, method="implicit_adams", h=0.1, options=ENOUGH["implicit_adams"], dense=True, record=True, **TIGHT
    )
    at = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    ys = solve(field, y0, at, method="implicit_adams", h=0.1, options=ENOUGH["implicit_adams"], **TIGHT).ys
    torch.testing.assert_close(solution.dense(at), ys, rtol=0, atol=1e-14)
    assert difference(*(torch.autograd.grad(weighed(x), [y0, *wanted[2:]]) for x in (solution.dense(at), ys))) < 1e-12
    assert torch.equal(solution.record.replayed(), solution.record.states)
    torch.testing.assert_close(solution.record.graph(y0, t)[-1], solution.ys[-1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["create_graph", "torch.func", "record"])
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_weights_depend_on_the_times_that_steps_land_on(method, kind):
    """Behind a landing the slopes before it count by how far away it is, also where the size of a step is constant."""
    options = {"land_on_t": True, "max_order": 5} | ENOUGH[method]
    keywords = {"method": method, "h": 0.05, "options": options, "record": kind == "record", **TIGHT}
    y0 = torch.tensor([0.4, 1.1], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.43, 1.0, 1.37], dtype=torch.float64, requires_grad=True)

    def solution(times):
        return solve(lambda s, y: torch.sin(3 * s) * y - 0.3 * y**2, y0, times, **keywords)

    def loss(times):
        return solution(times).ys[1:].square().sum()

    expected = torch.autograd.grad(loss(t), t)  # by the VJP of each step
    if kind == "create_graph":
        found = torch.autograd.grad(loss(t), t, create_graph=True)[0].detach()
    elif kind == "torch.func":
        found = torch.func.grad(loss)(t.detach()).detach()
    else:
        found = torch.autograd.grad(solution(t).record.graph(y0, t).square().sum(), t)[0]
    assert difference([found], expected) < 1e-12


def test_the_continuous_adjoint_solves_backwards_by_adams_steps_too():
    """Both gradients tend to that of the exact solution: they differ by the error of the steps."""
    field, differences = Field(), []
    y0, _, wanted = leaves(field, [0.0])
    wanted = [y0, *wanted[2:]]
    for h in (0.1, 0.05):
        method = "implicit_adams"
        keywords = {"method": method, "h": h, "options": {"max_order": 4, **ENOUGH[method]}, **TIGHT}
        grads = [
            torch.autograd.grad(weighed(solve(field, y0, [0.0, 2.0], gradient=name, **keywords).ys), wanted)
            for name in ("aca", "adjoint")
        ]
        differences.append(difference(*grads))
    assert differences[0] < 1e-3 and 10 < differences[0] / differences[1] < 25  # some h^4, and 2^4

    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    ys = odeint_adjoint(field, y0, t, method="fixed_adams", options={"step_size": 0.02}, adjoint_method="dopri5")
    exact = torch.autograd.grad(weighed(odeint(field, y0, t, rtol=1e-10, atol=1e-10)), wanted)
    assert difference(torch.autograd.grad(weighed(ys), wanted), exact) < 1e-5
    vector = torch.full((3,), 1e-9, dtype=torch.float64)  # tolerances of each component, also backwards
    ys = solve(field, y0, t, gradient="adjoint", method="implicit_adams", h=0.02, rtol=1e-9, atol=vector).ys
    assert difference(torch.autograd.grad(weighed(ys), wanted), exact) < 1e-5


def test_function_transforms():
    field = Field()
    y0, *_ = leaves(field, [0.0])

    def loss(y):
        options = ENOUGH["implicit_adams"]
        return weighed(solve(field, y, [0.0, 0.7, 1.0], method="implicit_adams", h=0.1, options=options, **TIGHT).ys)

    (plain,) = torch.autograd.grad(loss(y0), y0)
    torch.testing.assert_close(torch.func.grad(loss)(y0.detach()), plain, rtol=1e-12, atol=1e-12)
    direction = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    _, along = torch.func.jvp(loss, (y0.detach(),), (direction,))
    torch.testing.assert_close(along, plain @ direction, rtol=1e-12, atol=1e-12)


def test_evaluations():
    """The slope where the solve starts is known; a step has one evaluation, and one for each correction."""
    def solved(method, **options):
        y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
        keywords = {"options": options, "rtol": 1e-3, "atol": 1e-3, "memory": "states"}
        solution = solve(lambda t, y: -y, y0, [0.0, 1.0], method=method, h=0.1, **keywords)
        solution.ys.sum().backward()
        return solution.stats.n_f_evals, solution.stats.n_backward_f_evals, solution.stats.n_accepted

    assert solved("explicit_adams") == (2 * 4 + 8, 2 * 4 + 8, 10)
    assert solved("implicit_adams") == (2 * 4 + 8 * 2, 2 * 4 + 8 * 2, 10)  # the first correction is small enough


def test_nested_states_in_single_precision():
    y0 = {"a": torch.ones(2, 2, requires_grad=True), "b": (torch.zeros(3),)}
    func = lambda t, y: {"a": -y["a"], "b": (y["b"][0] + y["a"].sum(),)}  # noqa: E731
    keywords = {"rtol": 1e-6, "atol": 1e-6}
    ys = solve(func, y0, [0.0, 0.5, 1.0], method="implicit_adams", h=0.05, **keywords).ys
    exact = solve(func, y0, [0.0, 0.5, 1.0], **keywords).ys
    for one, other in ((ys["a"], exact["a"]), (ys["b"][0], exact["b"][0])):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    a, b = (torch.autograd.grad(x["b"][0].sum(), y0["a"])[0] for x in (ys, exact))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method, keywords, said", [
    ("explicit_adams", {"options": {"max_order": 3}}, "max_order must be a whole number from 4 to 12, got 3"),
    ("explicit_adams", {"options": {"max_order": 13}}, "max_order must be a whole number from 4 to 12, got 13"),
    ("explicit_adams", {"options": {"max_iters": 4}}, "max_iters is for corrections, and explicit_adams makes none"),
    ("implicit_adams", {"options": {"max_iters": 0}}, "max_iters must be a whole number of at least 1, got 0"),
    ("implicit_adams", {"options": {"max_iters": math.inf}}, "max_iters must be finite, got inf"),
    ("rk4", {"options": {"max_order": 5}}, "max_order: for Adams methods, not for rk4"),
    ("explicit_adams", {"compile": True}, "compile is not available with the method explicit_adams"),
    ("explicit_adams", {"gradient": "mali"}, "gradient='mali' and method='ALF' go together"),
    ("explicit_adams", {"per_sample": True}, "per_sample"),
    ("explicit_adams", {"h": None}, "explicit_adams takes fixed steps: give the step size h"),
])  # fmt: skip
def test_what_is_not_offered_is_refused_in_a_line(method, keywords, said):
    with pytest.raises(ValueError, match=said):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method=method, **{"h": 0.1} | keywords)


def test_options_of_adams_methods_have_no_effect_on_others_in_odeint():
    t, y0 = torch.tensor([0.0, 1.0]), torch.ones(1, requires_grad=True)
    with pytest.warns(UserWarning, match="no effect with method 'euler': max_order"):
        odeint(lambda t, y: -y, y0, t, method="euler", options={"max_order": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"max_order": 5, "step_size": 0.1}
        odeint_adjoint(lambda t, y: -y, y0, t, method="implicit_adams", options=options, adjoint_method="rk4",
                       adjoint_params=())  # fmt: skip
        solve(lambda t, y: -y, y0, t, method="implicit_adams", h=0.1, gradient="adjoint", options={"max_order": 5},
              adjoint={"method": "Dopri5"})  # fmt: skip


def test_high_orders_need_small_steps():
    """What docs/choosing.md warns of."""
    errors = {}
    for max_order in (5, 12):
        options = {"max_order": max_order}
        y0 = torch.ones(1, dtype=torch.float64)
        field = lambda t, y: -torch.cos(t) * y  # noqa: E731
        ys = solve(field, y0, [0.0, 2.0], method="explicit_adams", h=1 / 40, options=options).ys
        errors[max_order] = abs(float(ys[-1]) - math.exp(-math.sin(2.0)))
    assert errors[5] < 1e-6 and errors[12] > 1e-2


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3)], ids=["statistics", "draws"])
def test_side_effects_are_those_of_one_pass_through_the_steps(layer):
    """Each evaluation counts once, also where dense output made it before the step that begins with it."""
    results = []
    for gradient in ("aca", "direct", "naive"):
        torch.manual_seed(1)
        layers = torch.nn.Linear(3, 8, bias=False), copy.deepcopy(layer), torch.nn.Linear(8, 3)
        net = torch.nn.Sequential(*layers).double()
        y0 = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        memory = "states" if gradient == "aca" else None
        keywords = {"method": "implicit_adams", "h": 0.1, "options": ENOUGH["implicit_adams"], "memory": memory}
        solution = solve(lambda t, y: net(y).tanh(), y0, [0.0, 0.33, 1.0], gradient=gradient, **keywords)
        grads = torch.autograd.grad(weighed(solution.ys), [y0, *net.parameters()])
        results.append((solution.ys, grads, [*net.buffers(), torch.rand(1)], solution.stats.n_f_evals))
    (ys, grads, effects, n_evals), *others = results
    if len(effects) > 1:
        assert int(effects[2]) == n_evals
    for other_ys, other_grads, other_effects, _ in others:
        torch.testing.assert_close(other_ys, ys, rtol=0, atol=1e-14)
        assert difference(other_grads, grads) < 1e-12
        torch.testing.assert_close(other_effects, effects, rtol=1e-12, atol=0)
