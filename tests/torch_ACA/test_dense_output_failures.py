"""Dense output that is infinite or NaN, where the states at the ends of the steps are not: it takes the slope at the
end of a step, which no stage of that step has seen."""

import pytest
import torch

from tests.torch_ACA.programs import slow
from torch_ACA import NonFiniteError, solve, solve_event

END = 2.0
TIMES = [0.0, 0.5, END - 1e-3, END]  # the third in the last step of every solve below
CUBIC = {"interp": "cubic"}
FIXED = [
    ("Euler", CUBIC), ("RK2", CUBIC), ("RK4", CUBIC), ("heun2", CUBIC), ("heun3", {}), ("rk4", {}), ("Dopri5", {}),
    ("dopri8", {}), ("explicit_adams", {}), ("implicit_adams", {}),
]  # fmt: skip
SAME = 1e-12  # the same float64 operations on the same steps, perhaps in another order; all numbers are of size 1


def fixed(method, options):
    return {"method": method, "options": {"step_size": 0.1} | options}


ADAPTIVE = {"method": "fehlberg2", "rtol": 1e-4, "atol": 1e-4, "options": CUBIC}


class Swing(torch.nn.Module):
    """y' = rate y cos(t), but NaN at the ``end``, in the states (one or none a row) that are ``spoiled``."""

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.9))
        self.end, self.spoiled = END, torch.tensor(torch.inf)

    def forward(self, t, y):
        there = (t == self.end) & ((y - self.spoiled).abs() < 1e-9)  # no stage is so near to the state at the end
        return self.rate * y * torch.cos(t) + torch.where(there, torch.nan, 0.0)


def y0_of(rows=1):
    return torch.linspace(1.0, 1.5, rows)[:, None].requires_grad_()


def good_and_spoiled(y0, times=TIMES, spoiled_rows=slice(None), **keywords):
    """A solution, a function for another one, of a func that is NaN in the states where the first ends, and what to
    differentiate them by."""
    func = Swing()
    t = torch.tensor(times, requires_grad=True)
    good = solve(func, y0, t, **keywords)
    func.spoiled = torch.full_like(good.ys[-1], torch.inf)
    func.spoiled[spoiled_rows] = good.ys[-1].detach()[spoiled_rows]
    return good, lambda **more: solve(func, y0, t, **keywords, **more), (y0, t, func.rate)


def assert_same_gradients(one, other, inputs):
    for a, b in zip(*(torch.autograd.grad(x, inputs, retain_graph=True) for x in (one, other))):
        torch.testing.assert_close(a, b, rtol=0.0, atol=SAME)


@pytest.mark.parametrize("keywords", [
    *({**fixed(*case), "gradient": "aca"} for case in FIXED),
    *({**fixed("heun3", {}), "gradient": gradient} for gradient in ("direct", "naive", "adjoint")),
    {**fixed("explicit_adams", {}), "gradient": "naive"}, {**fixed("Dopri5", {}), "gradient": "naive"},
    *({**ADAPTIVE, "gradient": gradient} for gradient in ("aca", "direct", "naive", "adjoint")),
    {**ADAPTIVE, "method": "dopri8", "gradient": "naive"}, slow({**ADAPTIVE, "compile": "step"}),
], ids=lambda x: "-".join(str(x.get(k, "")) for k in ("method", "gradient") if k in x))  # fmt: skip
def test_an_output_that_is_nan_is_a_failure(keywords, request):
    if "compile" in keywords:
        request.getfixturevalue("ungenerated")
    good, spoiled, inputs = good_and_spoiled(y0_of(), **keywords)
    with pytest.raises(NonFiniteError, match="dense output needs became infinite or NaN at t = 2 with") as caught:
        spoiled()
    assert caught.value.t == END and caught.value.n_steps == good.stats.n_accepted
    found = spoiled(on_failure="return")
    assert str(found.error) == str(caught.value) and found.ts.tolist() == TIMES[:2]
    assert torch.equal(found.ys, good.ys[:2])
    if keywords.get("gradient") == "adjoint":  # a backward solve from the last good output; the other has another start
        t = torch.tensor(TIMES[:2], requires_grad=True)
        good = solve(Swing(), inputs[0], t, **keywords)
        found, good, inputs = found.ys[1:], good.ys[1:], inputs[:1]
        (a,), (b,) = (torch.autograd.grad(x.sum(), inputs) for x in (found, good))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=0.0)  # the tolerance of both backward solves
        return
    assert_same_gradients(found.ys.square().sum(), good.ys[:2].square().sum(), inputs)


def test_it_fails_at_an_output_in_the_middle():
    """As a user would meet it: func is NaN from t = 1 on, and no stage but that of later steps is there."""

    def func(t, y):
        return -y + torch.where(t < 1.0, 0.0, torch.nan)

    y0 = torch.ones(1, requires_grad=True)
    times = [0.0, 0.55, 0.97, 1.0, 2.0]
    for keywords in ({}, {"gradient": "naive"}):
        solution = solve(func, y0, times, on_failure="return", **fixed("heun3", {}), **keywords)
        assert solution.error.t == 1.0 and solution.ts.tolist() == times[:2]
        one = 1.0 - 0.1 + 0.1**2 / 2 - 0.1**3 / 6  # a step of heun3
        inside = torch.tensor([one**5, one**6])  # the cubic through both ends and their slopes, in the middle
        expected = float(inside.mean() - 0.1 / 8 * (inside[0] - inside[1]))
        (gradient,) = torch.autograd.grad(solution.ys[1].sum(), y0)
        assert float(solution.ys[1].detach()) == pytest.approx(expected, abs=SAME)
        assert float(gradient) == pytest.approx(expected, abs=SAME)


@pytest.mark.parametrize("case", [*FIXED, None], ids=str)
def test_dense_output_ends_before(case):
    keywords = ADAPTIVE if case is None else fixed(*case)
    good, spoiled, inputs = good_and_spoiled(y0_of(), times=[0.0, END], dense=True, **keywords)
    with pytest.raises(NonFiniteError, match="dense output needs"):
        spoiled()
    found = spoiled(on_failure="return")
    assert not found.success and len(found.ys) == 1
    nodes = found.dense.trajectory.times
    assert len(nodes) == good.stats.n_accepted  # but for the last step
    points = torch.tensor([0.33, float(nodes[-1]) - 1e-3, float(nodes[-1])])
    torch.testing.assert_close(found(points), good(points), rtol=0.0, atol=SAME)
    with pytest.raises(ValueError, match="dense output covers"):
        found(END)
    assert_same_gradients(found(points).square().sum(), good(points).square().sum(), inputs)


def test_without_a_good_step_there_is_no_dense_output():
    def func(t, y):
        return -y + torch.where(t < 0.1, 0.0, torch.nan)

    solution = solve(func, torch.ones(1), [0.0, 1.0], dense=True, on_failure="return", **fixed("heun3", {}))
    assert isinstance(solution.error, NonFiniteError) and solution.ys.tolist() == [[1.0]]
    with pytest.raises(ValueError, match="dense output needs became infinite"):
        solution(0.05)


@pytest.mark.parametrize("gradient", ["aca", "naive"])
def test_what_is_asked_for_is_carried_on(gradient):
    """check_finite=False."""
    keywords = fixed("heun3", {"check_finite": False}) | {"gradient": gradient}
    good, spoiled, _ = good_and_spoiled(y0_of(), **keywords)
    found = spoiled()
    assert found.success and found.ys.isnan().flatten().tolist() == [False, False, True, False]
    assert torch.equal(found.ys[[0, 1, 3]], good.ys[[0, 1, 3]])


@pytest.mark.parametrize("gradient", ["aca", "naive"])
def test_an_error_norm_may_not_pass_over_what_is_nan(gradient):
    def func(t, y):
        return -y + torch.stack([torch.zeros(()), torch.where(t < 1.0, 0.0, torch.nan)])

    options = {"norm": lambda x: x[:1].abs().max()}
    solution = solve(
        func, torch.ones(2), [0.0, 0.5, 0.97, 1.03, 1.5, 2.0], method="Dopri5", rtol=1e-4, atol=1e-4, gradient=gradient,
        options=options, on_failure="return",
    )  # fmt: skip
    assert isinstance(solution.error, NonFiniteError) and abs(solution.error.t - 1.0) < 1e-6
    assert len(solution.ys) == 3 and bool(solution.ys.isfinite().all())


@pytest.mark.parametrize("gradient", ["aca", "naive"])
def test_a_last_output_that_overflows(gradient):
    """Where the tolerance is infinite, as the state is, no error is too large."""

    def solved(on_failure):
        y0 = torch.full((2,), 3e38, dtype=torch.float32, requires_grad=True)
        func = lambda t, y: torch.full_like(y, 6e37)  # noqa: E731
        times, keywords = [0.0, 0.5, 1.0], {"gradient": gradient, "on_failure": on_failure, "max_evals": 1000}
        return y0, solve(func, y0, times, **keywords)

    with pytest.raises(NonFiniteError, match="the state became infinite"):
        solved("raise")
    y0, solution = solved("return")
    assert isinstance(solution.error, NonFiniteError) and len(solution.ys) == 2
    assert bool(solution.ys.isfinite().all())
    assert torch.equal(torch.autograd.grad(solution.ys[-1].sum(), y0)[0], torch.ones_like(y0))


@pytest.mark.parametrize("method", ["fehlberg2", "dopri8"])
@pytest.mark.parametrize("more", [{}, slow({"memory": 2}), slow({"compile": True})], ids=str)
def test_rows_fail_alone(method, more, ungenerated):
    """Row 1 of three; the last output is that of the end of its last step, which is behind one that is not there."""
    keywords = ADAPTIVE | {"method": method, "per_sample": True} | more
    good, spoiled, inputs = good_and_spoiled(y0_of(3), spoiled_rows=[1], **keywords)
    with pytest.raises(NonFiniteError, match="^row 1: the derivative that dense output needs .* at t = 2 with"):
        spoiled()
    found = spoiled(on_failure="return")
    assert [error is None for error in found.row_errors] == [True, False, True] and found.row_errors[1].t == END
    nan = torch.zeros(len(TIMES), 3, 1, dtype=torch.bool)
    nan[2:, 1] = True
    assert torch.equal(found.ys.isnan(), nan)
    torch.testing.assert_close(found.ys[~nan], good.ys[~nan], rtol=0.0, atol=SAME)
    for graph in (False, True):
        a = torch.autograd.grad(found.ys.square().nansum(), inputs, retain_graph=True, create_graph=graph)
        b = torch.autograd.grad(good.ys[~nan].square().sum(), inputs, retain_graph=True)
        for one, other in zip(a, b):
            torch.testing.assert_close(one, other, rtol=0.0, atol=SAME)


def test_rows_that_all_fail_in_their_first_steps():
    """Outputs inside it alone: nothing is left but the initial states."""
    y0 = y0_of(2)
    settings = ADAPTIVE | {"rtol": 1.0, "atol": 1.0, "per_sample": True, "on_failure": "return", "h": END}
    _, spoiled, inputs = good_and_spoiled(y0, times=[0.0, 1.0, END], **settings)
    found = spoiled()
    assert found.stats.n_accepted.tolist() == [1, 1] and all(found.row_errors)
    assert torch.equal(found.ys[0], y0) and bool(found.ys[1:].isnan().all())
    gradients = torch.autograd.grad(found.ys.nansum(), inputs, allow_unused=True)
    assert torch.equal(gradients[0], torch.ones_like(y0))
    assert all(g is None or float(g.abs().max()) == 0.0 for g in gradients[1:])


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_event_is_not_looked_for_in_what_is_nan(per_sample):
    """Not even where the event function has a value: y > 1.9 is False of NaN."""
    func, seen = Swing(), []

    def event(t, y):
        seen.append((float(t), y.detach().clone()))
        return y > 1.9

    solve_event(func, torch.ones(1, 1), 0.0, event, per_sample=per_sample, **ADAPTIVE)
    func.end, func.spoiled = next((t, y) for t, y in seen if y > 1.9)  # the end of the step with the event
    with pytest.raises(NonFiniteError, match="dense output needs became infinite or NaN") as caught:
        solve_event(func, torch.ones(1, 1), 0.0, event, per_sample=per_sample, **ADAPTIVE)
    assert caught.value.t == func.end
