"""Rows whose data come through args: those that have come to their ends are left out."""

import gc
import weakref

import pytest
import torch

from torch_ACA import ODEBlock, odeint, solve, solve_event

ROUNDING = 1e-12  # of the same float64 operations in another order, relative to the largest entry
ROWS = 8
METHODS = ["Dopri5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("RK23", "fehlberg2", "Rodas5P"))]


class Field(torch.nn.Module):
    """Of states [b, 2] with speeds [b, 1]; ``sizes``: the numbers of rows that it was called with."""

    def __init__(self, fails=False):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        self.fails, self.sizes = fails, []

    def forward(self, t, y, speed):
        self.sizes.append(len(y))
        slope = speed * (self.net(torch.cat([y, t], 1)) - 0.2 * y) + torch.where(t < 0.6, 1.0, -1.0)
        return torch.where((y.abs() < 1.5) | (speed < 5), slope, torch.nan) if self.fails else slope


def results(field, given, **keywords):
    """States, gradients and second derivatives in all that there is, and the counts."""
    torch.manual_seed(0)
    data = torch.logspace(-1, 1, ROWS)[:, None].requires_grad_()
    y0 = torch.randn(ROWS, 2, requires_grad=True)
    t = torch.cat([0.3 * torch.rand(ROWS, 1), 0.1 + 0.6 * torch.rand(ROWS, 3)], 1).cumsum(1)
    t[1, 2:] = torch.nan
    t.requires_grad_()
    speed = data.exp().log()  # with a history
    if given:
        func, keywords = field, keywords | {"args": (speed,)}
    else:
        def func(t, y):
            return field(t, y, speed)
    solution = solve(func, y0, t, per_sample=True, rtol=1e-4, atol=1e-4, on_failure="return", **keywords)
    weights = torch.randn_like(solution.ys)
    loss = torch.where(solution.ys.isnan(), 0.0, solution.ys * weights).sum()
    inputs = [y0, data, t, *field.parameters()]
    found = torch.autograd.grad(loss, inputs, retain_graph=True)
    counts = solution.stats.n_accepted, solution.stats.n_backward_f_evals
    (first,) = torch.autograd.grad(loss, data, create_graph=True)
    return (solution.ys.nan_to_num(), *found, *torch.autograd.grad(first.sum(), inputs)), counts


def assert_close(found, expected, tolerance=ROUNDING):
    scale = max(1e-300, float(expected.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory", [None, 3])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "options", [{"jump_t": [0.6]}, pytest.param({"jump_t": [0.6], "land_on_t": True}, marks=pytest.mark.slow)], ids=str
)
def test_results_are_those_of_all_rows_together(method, memory, fails, options):
    field, keywords = Field(fails), {"method": method, "options": options}
    expected, counts = results(field, False, **keywords)
    assert set(field.sizes) == {ROWS}
    found, own_counts = results(field, True, memory=memory, **keywords)
    for one, other in zip(found, expected):
        assert_close(one, other, 10 * ROUNDING)  # second derivatives: sums of far more terms
    assert torch.equal(own_counts[0], counts[0]) and (memory or own_counts[1] == counts[1])
    assert min(field.sizes) < 3


def test_rows_are_left_out_of_the_backward_pass():
    """Where n rows have a k-th last step, func is called with at most 8/7 n."""
    field, y0 = Field(), torch.randn(ROWS, 2, requires_grad=True)
    speed = torch.logspace(-1, 1, ROWS)[:, None]
    solution = solve(field, y0, [0.0, 2.0], args=(speed,), per_sample=True, memory="states")
    field.sizes.clear()
    solution.ys[-1].sum().backward()
    accepted = solution.stats.n_accepted
    assert len(field.sizes) == 6 * int(accepted.max())
    assert 6 * int(accepted.sum()) <= sum(field.sizes) <= 8 / 7 * 6 * int(accepted.sum())
    assert sum(field.sizes) < ROWS * len(field.sizes)


@pytest.mark.parametrize("method", ["Dopri5", "Rodas5P"])
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_is_evaluated_to_look_at_func_does_not_count(method, grad):
    """A limit on evaluations ends a solve where it ends one without args, with and without gradients."""
    y0, one = torch.rand(3, 2), torch.ones(3, 1)

    def stats(max_evals=500_000, **keywords):
        with grad():
            return solve(
                lambda t, y, *speed: -y, y0, [0.0, 1.0], per_sample=True, method=method, max_evals=max_evals,
                on_failure="return", **keywords,
            ).stats  # fmt: skip

    with torch.enable_grad():
        plain = solve(lambda t, y: -y, y0, [0.0, 1.0], per_sample=True, method=method).stats
    assert plain.n_f_evals == stats().n_f_evals == stats(args=(one,)).n_f_evals
    for limit in range(plain.n_f_evals - 8, plain.n_f_evals + 1):
        assert torch.equal(stats(limit).n_accepted, stats(limit, args=(one,)).n_accepted)


def test_a_row_without_a_step_does_not_spoil_gradients_of_what_all_share():
    speed = torch.tensor([[1.0], [torch.nan], [3.0]])
    shared, y0 = torch.tensor(0.5, requires_grad=True), torch.ones(3, 1, requires_grad=True)

    def func(t, y, speed):
        return -shared * speed * y

    ys = solve(func, y0, [0.0, 1.0], args=(speed,), per_sample=True, on_failure="return", rtol=1e-8, atol=1e-8).ys
    bars = torch.autograd.grad(ys[-1].nansum(), [shared, y0])
    assert_close(bars[0], -(speed * torch.exp(-0.5 * speed)).nansum(), 1e-6)
    assert_close(bars[1], torch.exp(-0.5 * speed).nan_to_num(0.0), 1e-6)


def test_other_functions_and_settings():
    speed, y0 = torch.tensor([[0.5], [1.0], [4.0]]), torch.ones(3, 1, requires_grad=True)

    def func(t, y, speed):
        return -speed * y

    settings = {"per_sample": True, "args": (speed,), "rtol": 1e-8, "atol": 1e-8}
    t, _ = solve_event(func, y0, 0.0, lambda t, y: y - 0.5, **settings)
    assert_close(t, torch.log(torch.tensor(2.0)) / speed[:, 0], 1e-6)
    assert_close(torch.autograd.grad(t.sum(), y0)[0], 1 / speed, 1e-6)
    exact = torch.exp(-speed)
    assert_close(odeint(func, y0, torch.tensor([0.0, 1.0]), **settings)[1], exact, 1e-6)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert_close(solve(func, y0, [0.0, 1.0], **settings).ys[1], exact, 1e-6)
    seen = []

    def jac(t, y, speed):
        seen.append(len(y))
        return -speed[:, :, None]

    solution = solve(func, y0, torch.tensor([[0, 0.1], [0, 1.0], [0, 9.0]]), method="Rodas5P", jac=jac, **settings)
    assert_close(solution.ys[1, :2], torch.exp(-speed[:2] * torch.tensor([[0.1], [1.0]])), 1e-6)
    bars = torch.autograd.grad(solution.ys[1].sum(), y0)[0]
    assert_close(bars, solution.ys[1], 1e-6)
    assert min(seen) == 1


def test_a_layer_takes_them_with_each_batch():
    field = Field()
    block = ODEBlock(field, t1=2.0, per_sample=True, method="Dopri5", rtol=1e-5, atol=1e-5)
    for count in (8, 3):
        y0, speed = torch.randn(count, 2, requires_grad=True), torch.logspace(-1, 1, count)[:, None].requires_grad_()
        field.sizes.clear()
        found = block(y0, args=(speed,))
        assert min(field.sizes) < count and block.stats.n_accepted.shape == (count,)
        wanted = [y0, speed, *field.parameters()]
        expected = solve(lambda t, y: field(t, y, speed), y0, [0.0, 2.0], method="Dopri5", per_sample=True,
                         rtol=1e-5, atol=1e-5).ys[-1]  # fmt: skip
        assert_close(found, expected)
        pairs = zip(torch.autograd.grad(found.sum(), wanted), torch.autograd.grad(expected.sum(), wanted))
        for one, other in pairs:
            assert_close(one, other, 10 * ROUNDING)
    with pytest.raises(TypeError, match=r"called as func\(t, y\), which Field does not take"):
        block(y0)
    with pytest.raises(ValueError, match="args are for per_sample=True"):
        ODEBlock(field)(y0, args=(speed,))
    with pytest.raises(ValueError, match=r"first axis of b = 3 rows as in y0, got shape \(2, 1\)"):
        block(y0, args=(speed[:2],))


LATE_BOUND = {  # how the k-th solve of a loop gets its number; of each, func and jac
    "closure": """
def solves(numbers, solved):
    for k in numbers:
        yield solved(lambda t, y, a: -k * a * y**2, lambda t, y, a: -2 * (k * a * y)[:, None])
""",
    "function in a closure": """
def solves(numbers, solved):
    rate, slope = lambda y: k * y, lambda t, y, a: -a * y * rate(y)
    for k in numbers:
        yield solved(slope, lambda t, y, a: -2 * (a * rate(y))[:, None])
""",
    "global": """
def solves(numbers, solved):
    global k
    for k in numbers:
        yield solved(lambda t, y, a: -k * a * y**2, lambda t, y, a: -2 * (k * a * y)[:, None])
    del k
""",
}


@pytest.mark.parametrize("how", LATE_BOUND)
@pytest.mark.parametrize("keywords", [
    {}, {"memory": "states"}, {"memory": 2}, {"method": "Rodas5P"}, {"method": "Rodas5P", "jac": True},
], ids=str)  # fmt: skip
def test_names_that_a_loop_gives_other_values_mean_what_they_meant(how, keywords):
    """One backward pass behind the loop, or one behind each solve: the same gradients."""
    namespace, data = {}, torch.logspace(-0.5, 0.5, ROWS, dtype=torch.float64)[:, None]
    exec(LATE_BOUND[how], namespace)

    def solved(func, jac):
        options = keywords | ({"jac": jac} if "jac" in keywords else {})
        return solve(func, 1 / data, [0.0, 1.0], args=(data,), per_sample=True, **options).ys.square().sum()

    def gradients(together):
        numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 1.0, 2.0)]
        losses = namespace["solves"](numbers, solved)
        if together:
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward()
        return torch.stack([number.grad for number in numbers])

    assert_close(gradients(True), gradients(False))


def test_the_graph_does_not_hold_a_module_that_stores_its_solution():
    field = Field()
    y0, speed = torch.randn(ROWS, 2, requires_grad=True), torch.ones(ROWS, 1)
    field.solution = solve(field, y0, [0.0, 0.1], args=(speed,), per_sample=True)
    alive = weakref.ref(field)
    del field
    gc.collect()
    assert alive() is None


def test_what_is_refused():
    y0, speed = torch.ones(4, 1), torch.ones(4, 1)

    def func(t, y, speed):
        return -speed * y

    def ask(func=func, args=(speed,), **keywords):
        return solve(func, y0, [0.0, 1.0], args=args, **{"per_sample": True} | keywords)

    for error, said, keywords in (
        (ValueError, "args are for per_sample=True", {"per_sample": False}),
        (TypeError, "args must be a tuple of tensors, got Tensor", {"args": speed}),
        (TypeError, "args must be tensors, got float", {"args": (1.0,)}),
        (ValueError, r"first axis of b = 4 rows as in y0, got shape \(3, 1\)", {"args": (speed[:3],)}),
        (ValueError, "on some of the rows it fails: .*Data of rows must come through args",
         {"func": lambda t, y, _: -speed * y}),
        (ValueError, "on some of the rows it has other values", {"func": lambda t, y, _: -len(y) * y}),
        (TypeError, "callable as func", {"func": 3.0}),
        (TypeError, r"called as func\(t, y, \*args\), which function does not take", {"args": (speed, speed)}),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            ask(**keywords)
    dropout = torch.nn.Dropout()
    with pytest.raises(ValueError, match="random numbers do not go with it"):
        ask(func=lambda t, y, speed: dropout(speed * torch.cat([y] * 50, 1)).sum(1, keepdim=True))
    with pytest.raises(TypeError, match="takes no keyword args"):
        ODEBlock(func, args=(speed,))
