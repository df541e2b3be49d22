"""`aca` and `direct` against ordinary autograd through the same accepted steps, against finite differences, and their
cost.
"""

import pytest
import torch

from torch_ACA import Callbacks, solve, solve_endtime
from torch_ACA.tableaus import TABLEAUS

UNIQUE = sorted({id(t): name for name, t in TABLEAUS.items()}.values())
# what is left between two orders of the same float64 operations
ROUNDING = 1e-12


def unrolled(func, y0, times, tableau, sizes):
    """A solve as anybody would write it: steps of given sizes, the last one ending on times[-1], Hermite-free outputs.

    Interior sizes are constants; the interpolant is evaluated from the tableau's polynomials.
    """
    a = [[float(x) for x in row] for row in tableau.a]
    b, c = [float(x) for x in tableau.b], [float(x) for x in tableau.c]
    t, y, outputs = times[0], y0, {0: y0}
    sign = 1 if times[-1] > times[0] else -1
    for n, size in enumerate(sizes):
        h = times[-1] - t if n == len(sizes) - 1 else size
        k = []
        for i in range(len(b)):
            k.append(func(t + c[i] * h, y + h * sum(w * s for w, s in zip(a[i], k))))
        y1 = y + h * sum(w * s for w, s in zip(b, k))
        rows = tableau.interpolant.rows
        if len(rows) > len(k):
            k.append(func(t + h, y1))
        for i in range(1, len(times) - 1):
            if sign * float(t.detach()) < sign * float(times[i].detach()) <= sign * float((t + h).detach()):
                theta = (times[i] - t) / h
                weights = [sum(float(q) * theta ** (p + 1) for p, q in enumerate(row)) for row in rows]
                outputs[i] = y + h * sum(w * s for w, s in zip(weights, k))
        t, y = t + h, y1
    outputs[len(times) - 1] = y
    return torch.stack([outputs[i] for i in range(len(times))])


def accepted_sizes(func, y0, times, **keywords):
    sizes = []
    with torch.no_grad():
        solve(func, y0, times, callbacks=Callbacks(accept=lambda t, y, h: sizes.append(h)), **keywords)
    return sizes


@pytest.mark.parametrize("kind", ["tensor", "dict"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("outputs", [2, 11])
@pytest.mark.parametrize("method", UNIQUE)
@pytest.mark.defect("fixed-step-adjoint", "reverse-time", "float64-outputs")
def test_equal_to_autograd_on_the_same_steps(field, method, outputs, backward, kind):
    tableau = TABLEAUS[method]
    keywords = {"method": method}
    keywords |= {"rtol": 1e-3, "atol": 1e-3} if tableau.adaptive else {"h": 0.23}
    ts = torch.linspace(0.1, 1.2, outputs)
    ts = ts.flip(0) if backward else ts
    start = torch.randn(2, 3)
    weights = torch.randn(outputs, 2, 3)

    def nested(t, state):
        return {"a": field(t, state["a"]), "b": -state["b"]}

    def gradients(result):
        y0, times = start.clone().requires_grad_(), ts.clone().requires_grad_()
        loss = (weights * result(y0, times) ** 2).sum()
        return torch.autograd.grad(loss, [y0, times, *field.parameters()])

    if kind == "tensor":
        sizes = accepted_sizes(field, start, ts, **keywords)
        expected = gradients(lambda y0, times: unrolled(field, y0, times, tableau, sizes))
    found = {}
    for gradient in ("aca", "direct"):
        if kind == "tensor":
            found[gradient] = gradients(lambda y0, times: solve(field, y0, times, gradient=gradient, **keywords).ys)
        else:
            found[gradient] = gradients(
                lambda y0, times: solve(
                    nested, {"a": y0, "b": y0[0]}, times, gradient=gradient, **keywords
                ).ys["a"]
            )
    for one, other in zip(found["aca"], found["direct"]):
        assert float((one - other).abs().max()) <= ROUNDING
    if kind == "tensor":
        for one, other in zip(found["aca"], expected):
            assert float((one - other).abs().max()) <= ROUNDING * (1 + float(other.abs().max()))


@pytest.mark.parametrize("method,rejections", [("Dopri5", False), ("Dopri5", True), ("HeunEuler", True)])
@pytest.mark.parametrize("gradient", ["aca", "direct"])
@pytest.mark.defect("checkpointed-adjoint-raises", "last-step-unchecked")
def test_number_of_evaluations(method, rejections, gradient):
    calls = [0]

    def f(t, y):
        calls[0] += 1
        return torch.exp(-50 * (t - 0.9) ** 2) * y - 0.1 * y

    y0 = torch.ones(3, requires_grad=True)
    options = {"first_step": 0.5} if rejections else None
    solution = solve(f, y0, [0.0, 2.0], method=method, rtol=1e-4, atol=1e-4, gradient=gradient, options=options)
    stats = solution.stats
    forward = calls[0]
    solution.ys[-1].sum().backward()
    assert stats.n_f_evals == forward and stats.n_backward_f_evals == calls[0] - forward
    assert stats.n_accepted > 3 and (stats.n_rejected > 0) >= rejections
    if method == "Dopri5":
        assert forward <= 6 * (stats.n_accepted + stats.n_rejected) + 2
        assert stats.n_backward_f_evals <= (6 * stats.n_accepted + 1 if gradient == "aca" else 0)
    else:
        assert forward <= 2 * stats.n_accepted + stats.n_rejected + 2
        assert stats.n_backward_f_evals <= (2 * stats.n_accepted if gradient == "aca" else 0)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("method", ["Dopri5", "RK12", "RK23", "RK4"])
@pytest.mark.parametrize("times", [[0.0, 1.0], [0.0, 0.4, 1.0]])
@pytest.mark.filterwarnings("ignore:func stores tensors")
def test_the_start_is_evaluated_once(gradient, method, times):
    """The slope that chooses the first step is the first stage: no gradient method pays for it twice."""
    seen = []

    def f(t, y):
        seen.append(t)  # and not its value: naive looks whether it is hidden where func takes it as a number
        return -(1 + t) * y

    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    solve(f, y0, times, method=method, rtol=1e-3, h=0.1 if method == "RK4" else None, gradient=gradient)
    assert [t.item() for t in seen].count(0.0) == 1 and len(seen) > 3


@pytest.mark.parametrize("method,extra", [("Dopri5", 0), ("RK23", 0), ("HeunEuler", 0), ("heun3", 1), ("rk4", 1)])
def test_outputs_cost_no_evaluations(field, method, extra):
    """With FSAL none, otherwise at most one per solve; the backward pass may need the last slope once more."""
    y0 = torch.randn(2, 3, requires_grad=True)
    keywords = {"method": method, "h": 0.13}
    few = solve(field, y0, [0.0, 1.0], **keywords)
    many = solve(field, y0, torch.linspace(0, 1, 50), **keywords)
    assert many.stats.n_f_evals <= few.stats.n_f_evals + extra
    few.ys[-1].sum().backward()
    many.ys.sum().backward()
    assert many.stats.n_backward_f_evals <= few.stats.n_backward_f_evals + 1


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("steps", ["fixed", "adaptive"])
@pytest.mark.defect("time-gradients")
def test_gradcheck(gradient, backward, steps):
    """In y0, times and parameters. Sizes 0.23 do not divide the interval: finite differences of the times would
    otherwise change the number of steps. The adjoint solves to 1e-9 where steps adapt; where fixed, h is small enough.
    """
    if steps == "adaptive":
        keywords = {"rtol": 1e-9, "atol": 1e-9} if gradient != "mali" else {"rtol": 1e-7, "atol": 1e-7}
        if gradient == "mali":
            pytest.skip("ALF needs thousands of steps at tolerances that finite differences call for")
    else:
        keywords = {"options": {"step_size": 0.046 if gradient == "adjoint" else 0.23}}
    ts = torch.tensor([0.0, 0.37, 0.81, 1.0])
    ts = (ts.flip(0) if backward else ts).requires_grad_()

    def outputs(y0, t, weight, bias):
        func = lambda time, y: torch.tanh(y @ weight.T + bias) * torch.cos(time)  # noqa: E731
        return solve(func, y0, t, gradient=gradient, **keywords).ys

    inputs = [torch.randn(1, 2), ts, torch.randn(2, 2), torch.randn(2)]
    assert torch.autograd.gradcheck(outputs, [x.detach().requires_grad_() for x in inputs], atol=1e-6)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.parametrize("steps", ["fixed", "adaptive", "dense"])
@pytest.mark.defect("no-second-derivatives")
def test_gradgradcheck(gradient, steps):
    if steps == "dense" and gradient == "naive":
        pytest.skip("dense output belongs to aca and direct")
    keywords = {"rtol": 1e-9, "atol": 1e-9} if steps == "adaptive" else {"options": {"step_size": 0.23}}

    def outputs(y0, t, weight):
        func = lambda time, y: torch.tanh(y @ weight.T) * torch.cos(time)  # noqa: E731
        solution = solve(func, y0, t, gradient=gradient, dense=steps == "dense", **keywords)
        return solution([0.11, 0.5, 0.9]) if steps == "dense" else solution.ys

    end = 0.5 if steps == "adaptive" else 1.0  # a dozen steps are enough
    inputs = [torch.randn(1, 2), end * torch.tensor([0.0, 0.37, 1.0]), torch.randn(2, 2)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(outputs, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(outputs, inputs, atol=1e-6)


@pytest.mark.parametrize("gradient", ["aca", "direct"])
@pytest.mark.parametrize("option", ["jump_t", "step_t", "land_on_t", "grid"])
def test_stops_keep_the_gradient_exact(field, gradient, option):
    """Against finite differences through fixed steps, and aca against direct through everything."""
    value = {"jump_t": [0.3, 0.6], "step_t": [0.3, 0.6], "land_on_t": True, "grid": [0.0, 0.2, 0.5, 1.0]}[option]
    options = {option: value} | ({} if option == "grid" else {"step_size": 0.17})

    def outputs(y0, t):
        return solve(field, y0, t, gradient=gradient, method="RK23", options=options).ys

    t = torch.tensor([0.0, 0.45, 1.0])
    if option == "grid":  # its ends are those of t, so t[0] and t[-1] stay
        assert torch.autograd.gradcheck(lambda y0: outputs(y0, t), [torch.randn(2, 3, requires_grad=True)])
        return
    assert torch.autograd.gradcheck(outputs, [torch.randn(2, 3, requires_grad=True), t.requires_grad_()], atol=1e-6)


def test_analytic_gradients_as_the_tolerance_falls():
    """dz/dt = k z, L = z(T)^2: dL/dz0 = 2 z0 e^(2kT), dL/dk = 2 T z0^2 e^(2kT)."""
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        z0, k = torch.tensor([1.3], requires_grad=True), torch.tensor(0.4, requires_grad=True)
        z = solve(lambda t, z: k * z, z0, [0.0, 3.0], rtol=tolerance, atol=tolerance).ys[-1]
        found = torch.autograd.grad((z**2).sum(), [z0, k])
        e = torch.exp(torch.tensor(2.4))
        exact = 2 * 1.3 * e, 2 * 3 * 1.3**2 * e
        errors.append(max(float((f - x).abs() / x) for f, x in zip(found, exact)))
    assert all(b < 0.1 * a for a, b in zip(errors, errors[1:])) and errors[-1] < 1e-9, errors


def test_replay_is_bit_for_bit(field):
    """Every replayed step ends on the next stored state."""
    y0 = torch.randn(2, 3, requires_grad=True)
    record = solve(field, y0, [0.0, 2.0], rtol=1e-4, atol=1e-4, record=True).record
    assert torch.equal(record.replayed(), record.states)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "mali"])
def test_result_may_be_changed_in_place(field, gradient):
    """As by an activation with inplace=True behind the solve."""
    y0 = torch.randn(2, 3, requires_grad=True)
    there, _ = solve_endtime(field, y0, 0.0, 1.0, gradient=gradient)
    expected = torch.autograd.grad(torch.tanh(there).sum(), y0)[0]
    there, _ = solve_endtime(field, y0, 0.0, 1.0, gradient=gradient)
    found = torch.autograd.grad(there.tanh_().sum(), y0)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint", "mali"])
def test_second_backward_through_a_retained_graph(field, gradient):
    y0 = torch.randn(2, 3, requires_grad=True)
    loss = (solve(field, y0, [0.0, 0.6, 1.0], gradient=gradient, rtol=1e-3, atol=1e-3).ys ** 2).sum()
    first = torch.autograd.grad(loss, y0, retain_graph=True)[0]
    second = torch.autograd.grad(loss, y0)[0]
    assert float((first - second).abs().max()) <= ROUNDING
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, y0)


@pytest.mark.defect("no-second-derivatives")
def test_gradient_penalty_of_the_readme(field):
    """loss.backward(create_graph=True), then a function of the gradients is differentiated."""

    def penalty(func):
        y0 = torch.ones(2, 3, requires_grad=True)
        loss = (func(y0) ** 2).sum()
        grads = torch.autograd.grad(loss, list(field.parameters()), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in grads), list(field.parameters()))

    sizes = accepted_sizes(field, torch.ones(2, 3), [0.0, 1.0], rtol=1e-5, atol=1e-6)
    ts = torch.tensor([0.0, 1.0])
    expected = penalty(lambda y0: unrolled(field, y0, ts, TABLEAUS["Dopri5"], sizes)[-1])
    for gradient in ("aca", "direct"):
        found = penalty(lambda y0: solve(field, y0, ts, gradient=gradient).ys[-1])
        assert all(float((f - e).abs().max()) <= 1e-10 * float(e.abs().max()) for f, e in zip(found, expected))


@pytest.mark.parametrize("gradient", ["adjoint", "mali"])
def test_no_silent_second_derivatives(field, gradient):
    from torch_ACA import SecondDerivativeError

    y0 = torch.ones(2, 3, requires_grad=True)
    loss = (solve(field, y0, [0.0, 1.0], gradient=gradient, rtol=1e-3, atol=1e-3).ys[-1] ** 2).sum()
    (g,) = torch.autograd.grad(loss, y0, create_graph=True)
    with pytest.raises(SecondDerivativeError, match=gradient):
        g.sum().backward()


def test_naive_keeps_the_step_size_in_its_graph():
    """Its gradient differs from the discrete one by the derivative through the sizes, vanishing with the tolerance;
    rejected tries and a vanishing error give finite numbers."""

    def f(t, y):
        return torch.exp(-50 * (t - 0.9) ** 2) * y**2

    differences = []
    for tolerance in (1e-3, 1e-5, 1e-8):
        grads = {}
        for gradient in ("aca", "naive"):
            y0 = torch.ones(1, requires_grad=True)
            solution = solve(f, y0, [0.0, 2.0], gradient=gradient, rtol=tolerance, atol=tolerance, h=0.5)
            grads[gradient] = torch.autograd.grad(solution.ys[-1].sum(), y0)[0]
        assert solution.stats.n_rejected > 0 or tolerance > 1e-4
        differences.append(float((grads["aca"] - grads["naive"]).abs()))
    assert differences[0] > 1e-7 and differences[-1] < 1e-6 and differences[-1] < differences[0]
    y0 = torch.ones(1, requires_grad=True)
    still = solve(lambda t, y: 0 * y, y0, [0.0, 1.0], gradient="naive").ys[-1]
    assert torch.autograd.grad(still.sum(), y0)[0] == 1.0


def test_adjoint_agrees_as_the_tolerance_falls(field):
    y0 = torch.randn(2, 3)

    def gradients(gradient, tolerance, **keywords):
        start, t = y0.clone().requires_grad_(), torch.tensor([0.0, 0.4, 1.0], requires_grad=True)
        ys = solve(field, start, t, gradient=gradient, rtol=tolerance, atol=tolerance, **keywords).ys
        return torch.autograd.grad((ys**3).sum(), [start, t, *field.parameters()])

    reference = gradients("aca", 1e-12)
    for seminorm in (None, {"options": {"norm": "seminorm"}}):
        errors = []
        for tolerance in (1e-5, 1e-7, 1e-9):
            keywords = {"adjoint": seminorm} if seminorm else {}
            found = gradients("adjoint", tolerance, **keywords)
            errors.append(max(float((f - r).abs().max()) for f, r in zip(found, reference)))
        assert errors[-1] < 1e-7 and errors[-1] < 1e-2 * errors[0], errors


def test_adjoint_has_tolerances_of_its_own(field):
    y0 = torch.randn(2, 3, requires_grad=True)
    evaluations = []
    for adjoint in (None, {"rtol": 1e-10, "atol": 1e-10}):
        solution = solve(field, y0, [0.0, 1.0], gradient="adjoint", rtol=1e-3, atol=1e-3, adjoint=adjoint)
        solution.ys[-1].sum().backward()
        evaluations.append(solution.stats.n_backward_f_evals)
    assert evaluations[1] > 2 * evaluations[0]


def test_mali_rebuilds_the_states_to_rounding(field):
    """1,000 leapfrog steps forward and back."""
    from torch_ACA.state import StateLayout
    from torch_ACA.steppers.alf import ALF
    from torch_ACA.vector_field import VectorField

    y0 = torch.randn(3)
    vector_field = VectorField(field, StateLayout(y0))
    stepper = ALF.stepper(vector_field)
    slope, _ = vector_field.first_evaluation(0.0, y0, differentiable=False)
    carry = stepper.start(0.0, y0, slope)
    with torch.no_grad():
        for _ in range(1000):
            carry = stepper.step(carry, 1e-3, carry.t + 1e-3).end
        for _ in range(1000):
            carry, _ = stepper.invert(carry, 1e-3)
    assert float((carry.y - y0).abs().max()) < 1e-11 and float((carry.slope - slope).abs().max()) < 1e-8


@pytest.mark.defect("stiff-loop")
def test_mali_on_a_contracting_problem_ends_in_an_error_that_says_so():
    from torch_ACA import TooManyEvaluationsError

    y0 = torch.tensor([2.0, 0.0], requires_grad=True)
    with pytest.raises(TooManyEvaluationsError, match="leapfrog is not made for stiff"):
        solve(
            lambda t, y: torch.stack([y[1], (0.15 - y[0] ** 2) * y[1] - y[0]]), y0, [0.0, 25.0],
            gradient="mali", rtol=1e-3, atol=1e-3, max_evals=5000,
        )  # fmt: skip


@pytest.mark.parametrize("gradient", ["aca", "direct"])
def test_times_of_a_solve_move_its_dense_output(field, gradient):
    """Against central differences at a tolerance far below their error: O(d^2) = 1e-8 of values of order 1."""
    inside, d = torch.tensor([0.31, 0.77, 1.999]), 1e-4
    y0 = torch.linspace(-1, 1, 6).reshape(2, 3)

    def loss(times):
        solution = solve(field, y0, times, gradient=gradient, rtol=1e-10, atol=1e-10, dense=True)
        return (solution(inside) ** 2).sum() + (solution.ys[1:] ** 3).sum()

    times = torch.tensor([0.0, 0.9, 2.0], requires_grad=True)
    (found,) = torch.autograd.grad(loss(times), times)
    shifts = d * torch.eye(3)
    expected = torch.stack([(loss(times.detach() + s) - loss(times.detach() - s)) / (2 * d) for s in shifts])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
