"""Rows of a batch that take steps of their own."""

import itertools
import math

import pytest
import torch

from torch_ACA import (
    METHODS,
    Callbacks,
    NonFiniteError,
    ODEBlock,
    SolverOptions,
    StepSizeUnderflowError,
    TooManyEvaluationsError,
    TransformError,
    methods,
    odeint,
    solve,
    solve_endtime,
    solve_event,
)
from torch_ACA.private_torch import pytree
from torch_ACA.rows.problem import problem_of_rows
from torch_ACA.rows.solve import RowSolve
from torch_ACA.steppers.dense_output import combine
from torch_ACA.tableaus import Tableau

ADAPTIVE = {methods[n]: n for n in METHODS if isinstance(methods[n], Tableau) and methods[n].adaptive}
EXPLICIT = list(ADAPTIVE.values())  # each method by one of its names
ROUNDING = 1e-12  # of the same float64 operations in another order, relative to the largest entry
ROWS = 6
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}


def van_der_pol(mu):
    """Row-wise, and but for its last term entry by entry in operations that are rounded correctly."""

    def func(t, y):
        x, v = y[:, :1], y[:, 1:]
        return torch.cat([v, mu * (1 - x * x) * v - x + 0.1 * t], 1)

    return func


def batch():
    """Stiffness [b, 1], starts [b, 2] and times [b, 5], a row each."""
    mu = torch.logspace(-1, 1, ROWS)[:, None]
    y0 = torch.tensor([2.0, 0.0]) + 0.1 * torch.randn(ROWS, 2)
    t = torch.cat([torch.rand(ROWS, 1), 0.1 + torch.rand(ROWS, 4)], 1).cumsum(1)
    return mu, y0, t


def assert_close(found, expected, tolerance=ROUNDING):
    scale = max(1e-300, float(expected.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("method", [*EXPLICIT, "Rodas5P"])
def test_a_row_does_not_feel_its_batch_mates(method):
    """To the last bit: func's arithmetic is the same for an entry wherever it stands."""
    mu, y0, t = batch()
    settings = {"method": method, "per_sample": True} | TOLERANCES
    ys = solve(van_der_pol(mu), y0, t, **settings).ys
    for keep in ([3], [4, 1], [5, 2, 0, 1, 4, 3], [0, 0, 3, 3, 3, 1, 2, 5, 4]):
        others = solve(van_der_pol(mu[keep]), y0[keep], t[keep], **settings).ys
        assert torch.equal(others, ys[:, keep]), keep


@pytest.mark.parametrize(("direction", "method"), [*((1, method) for method in EXPLICIT), (-1, "dopri5")])
def test_gradient_of_a_row_is_that_of_its_own_accepted_steps(method, direction):
    """Against autograd over the row's steps, written out here; the steps are those that the row takes alone, which are
    the same to the last bit."""
    mu, y0, t = batch()
    t, weights = direction * t, torch.randn(5, ROWS, 2)
    shared = torch.tensor(0.7, requires_grad=True)
    mu.requires_grad_()
    y0, t = y0.requires_grad_(), t.requires_grad_()

    def func_of(mu):
        return lambda time, y: van_der_pol(mu)(time, y) * shared

    solution = solve(func_of(mu), y0, t, method=method, per_sample=True, **TOLERANCES)
    found = torch.autograd.grad((solution.ys * weights).sum(), [y0, mu, t, shared])
    shared_bar, bars_of_rows = torch.zeros(()), []
    for row in range(ROWS):
        inputs = [x[row : row + 1].detach().requires_grad_() for x in (y0, mu, t)]
        ys = written_out(methods[method], func_of(inputs[1]), inputs[0], inputs[2][0])
        assert_close(ys, solution.ys[:, row])
        *bars, bar = torch.autograd.grad((ys * weights[:, row]).sum(), [*inputs, shared])
        bars_of_rows.append(bars)
        shared_bar += bar
    for one, bars in zip(found, zip(*bars_of_rows)):
        assert_close(one, torch.cat(bars))
    assert_close(found[3], shared_bar)


def written_out(tableau, func, y, t):
    """Outputs [m, n] of one row on the steps that it takes alone, times [m] on any graph."""
    sizes = sizes_alone(func, y.detach(), t.detach(), tableau)
    outputs, now = {0: y[0]}, t[0]
    for i, size in enumerate(sizes):
        h = t[-1] - now if i == len(sizes) - 1 else torch.tensor(size)
        slopes = []
        for a, c in zip(tableau.a, tableau.c):
            slopes.append(func((now + float(c) * h).reshape(1, 1), y + h * combine(a, slopes)))
        end = y + h * combine(tableau.b, slopes)
        if tableau.interpolant.slopes > len(slopes):
            slopes.append(func((now + h).reshape(1, 1), end))
        for o in range(1, len(t) - 1):
            theta = ((t[o] - now) / h).reshape(())
            if o not in outputs and float(theta.detach()) <= 1:
                outputs[o] = (y + h * combine(tableau.interpolant.traced_weights(theta), slopes))[0]
        y, now = end, now + h
    outputs[len(t) - 1] = y[0]
    return torch.stack([outputs[o] for o in range(len(t))])


def sizes_alone(func, y, t, tableau):
    """Sizes of the steps that a row takes alone."""
    asked = SolverOptions(method=tableau, per_sample=True, **TOLERANCES)
    with torch.no_grad():
        run = RowSolve(problem_of_rows(func, y, t, asked)[0])
        run.forward()
    return run.packed.steps["h"].tolist()


def test_a_row_is_as_solved_alone_with_joint_steps():
    mu, y0, t = batch()
    ys = solve(van_der_pol(mu), y0, t, per_sample=True, rtol=1e-6, atol=1e-6)
    for row in range(ROWS):
        alone = solve(van_der_pol(mu[row]), y0[row : row + 1], t[row], rtol=1e-6, atol=1e-6)
        # rounding of the step sizes, times what the steps before make of it
        assert_close(ys.ys[:, row], alone.ys[:, 0], 1e-10)
        assert int(ys.stats.n_accepted[row]) == alone.stats.n_accepted


def test_the_hardest_row_sets_the_number_of_evaluations():
    """Waves of different speeds: the slow ones take few steps, and cost no evaluation beyond those of the fastest."""
    speeds = torch.logspace(-1, 1, 8)[:, None]
    y0 = torch.ones(8, 1, requires_grad=True)
    solution = solve(lambda t, y: speeds * torch.cos(speeds * t), y0, [0.0, 10.0], per_sample=True, memory="states")
    alone = solve(lambda t, y: speeds[-1:] * torch.cos(speeds[-1:] * t), y0[-1:], [0.0, 10.0])
    accepted = solution.stats.n_accepted
    assert int(accepted[0]) * 10 < int(accepted[-1]) == int(accepted.max())
    assert solution.stats.n_f_evals <= alone.stats.n_f_evals + 13  # two tries of others at most, and one look at rows
    solution.ys[-1].sum().backward()
    assert solution.stats.n_backward_f_evals == 6 * int(accepted.max())
    assert_close(solution.ys[-1], 1 + torch.sin(10 * speeds), 1e-3)  # rtol 1e-5 over a hundred steps


def test_nested_states_and_shared_times_and_second_derivatives():
    rates = torch.tensor([0.3, 1.0, 3.0], requires_grad=True)
    y0 = (torch.ones(3, 2, requires_grad=True), torch.zeros(3, requires_grad=True))
    t = torch.tensor([0.0, 0.4, 1.0], requires_grad=True)

    def func(t, state):
        assert t.shape == (3, 1)
        return -rates[:, None] * state[0], state[0].sum(1) + 2 * t[:, 0]

    ys, integral = solve(func, y0, t, per_sample=True, rtol=1e-9, atol=1e-9).ys
    exact = torch.exp(-rates * t[:, None])
    assert_close(ys, exact[..., None].expand(3, 3, 2), 1e-7)
    assert_close(integral, 2 * (1 - exact) / rates + t[:, None] ** 2, 1e-7)
    (first,) = torch.autograd.grad(integral[-1].sum(), rates, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), rates, retain_graph=True)
    (expected,) = torch.autograd.grad((2 * (1 - exact) / rates)[-1].sum(), rates, create_graph=True)
    assert_close(first, expected, 1e-6)
    assert_close(second, torch.autograd.grad(expected.sum(), rates, retain_graph=True)[0], 1e-6)
    (t_bar,) = torch.autograd.grad(integral[1].sum(), t)
    assert_close(t_bar[1], (2 * exact[1]).sum() + 6 * t[1], 1e-6)


def test_gradients_of_tensors_with_a_history():
    mu, y0, t = batch()
    leaf = mu.clone().requires_grad_()
    ys = solve(van_der_pol(leaf.exp().log()), y0, t, per_sample=True).ys
    direct = mu.clone().requires_grad_()
    (expected,) = torch.autograd.grad(solve(van_der_pol(direct), y0, t, per_sample=True).ys.sum(), direct)
    assert_close(torch.autograd.grad(ys.sum(), leaf)[0], expected, 1e-8)  # exp(log) moves mu by rounding


def test_other_functions_take_it():
    y0, t1 = torch.ones(3, 1), torch.tensor([0.5, 1.0, 2.0])
    y1, stats = solve_endtime(lambda t, y: -y, y0, 0.0, t1, per_sample=True, rtol=1e-8, atol=1e-8)
    assert_close(y1[:, 0], torch.exp(-t1), 1e-6)
    assert stats.n_accepted.shape == stats.n_rejected.shape == (3,)
    block = ODEBlock(lambda t, y: -y, per_sample=True, rtol=1e-6, atol=1e-6)
    assert_close(block(y0), torch.exp(-y0), 1e-5)
    assert_close(odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), per_sample=True)[1], torch.exp(-y0), 1e-5)


@pytest.mark.parametrize("mode", ["BatchNorm", "mean", "time"])
def test_a_func_that_mixes_rows_is_refused(mode):
    norm = torch.nn.BatchNorm1d(2)
    func = {
        "BatchNorm": lambda t, y: norm(y),
        "mean": lambda t, y: y - y.mean(0),
        "time": lambda t, y: y * t.mean(),
    }[mode]
    reason = "func holds BatchNorm1d, which" if mode == "BatchNorm" else "means over it tie rows together"
    said = f"rows do not depend on each other, but .*{reason}"
    with pytest.raises(ValueError, match=said):
        solve(func, torch.randn(5, 2), [0.0, 1.0], per_sample=True)
    with torch.no_grad(), pytest.raises(ValueError, match=said):
        solve(func, torch.randn(5, 2), [0.0, 1.0], per_sample=True)
    if mode == "time":
        return
    with torch.inference_mode(), pytest.raises(ValueError, match=said):
        solve(func, torch.randn(5, 2), [0.0, 1.0], per_sample=True)
    norm.eval()
    if mode == "BatchNorm":
        solve(func, torch.randn(5, 2), [0.0, 1.0], per_sample=True)
        norm.running_mean = norm.running_var = None
        with pytest.raises(ValueError, match=said):
            solve(func, torch.randn(5, 2), [0.0, 1.0], per_sample=True)


def test_normalisation_within_a_row_is_no_mixing():
    for norm in (torch.nn.GroupNorm(1, 2), torch.nn.LayerNorm(2), torch.nn.InstanceNorm1d(2)):
        y0 = torch.randn(3, 2, 4) if isinstance(norm, torch.nn.InstanceNorm1d) else torch.randn(3, 2)
        assert solve(lambda t, y, norm=norm: norm(y) - y, y0, [0.0, 1.0], per_sample=True).success


@pytest.mark.parametrize(
    "asked",
    [
        {"gradient": "direct"},
        {"gradient": "naive"},
        {"gradient": "adjoint"},
        {"gradient": "mali"},
        {"method": "auto"},
        {"method": "rk4", "h": 0.1},
        {"compile": "step"},
        {"dense": True},
        {"record": True},
        {"callbacks": Callbacks(step=print)},
        *({"options": {name: value}} for name, value in [
            ("norm", torch.norm), ("step_size", 0.1),
            ("grid", [0.0, 1.0]), ("check_finite", True),
        ]),
    ],
    ids=lambda asked: "-".join([*asked, *asked.get("options", {}), asked.get("gradient", "")]).strip("-"),
)  # fmt: skip
def test_what_does_not_go_together_is_refused(asked):
    with pytest.raises(ValueError, match="per_sample (needs|cannot)"):
        solve(lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0], per_sample=True, **asked)


def test_a_refusal_says_why():
    reasons = ({"compile": "step"}, "compiled as a whole"), ({"options": {"norm": torch.norm}}, "an error of its own")
    for asked, said in reasons:
        with pytest.raises(ValueError, match=said):
            solve(lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0], per_sample=True, **asked)


@pytest.mark.slow
def test_memory_is_the_states_of_all_accepted_steps():
    speeds, width = torch.logspace(-1, 1, 32)[:, None], 256

    def func(t, y):
        return speeds * torch.cat([y[:, width // 2 :], -y[:, : width // 2]], 1)

    y0, accepted = torch.randn(32, width).requires_grad_(), []

    def run(t1):
        solution = solve(func, y0, [0.0, t1], per_sample=True, h=0.01, rtol=1e-4, atol=1e-4, memory="states")
        solution.ys[-1].sum().backward()
        accepted.append(int(solution.stats.n_accepted.sum()))

    one_step, many = peak_bytes(lambda: run(0.01)), peak_bytes(lambda: run(4.0))
    assert many - one_step <= 1.5 * accepted[1] * width * 8


def peak_bytes(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def test_bad_input():
    def func(t, y):
        return -y

    for y0, t, said in (
        (torch.ones(()), [0.0, 1.0], "first axis"),
        ((torch.ones(2, 1), torch.ones(3)), [0.0, 1.0], "first axis"),
        (torch.ones(2, 1), torch.zeros(3, 2), "b = 2 rows"),
        (torch.ones(2, 1), torch.zeros(2, 1), "m >= 2"),
    ):
        with pytest.raises(ValueError, match=said):
            solve(func, y0, t, per_sample=True)
    t = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(ValueError, match="hides its time"):
        solve(lambda t, y: -y * t.detach(), torch.ones(2, 1), t, per_sample=True)
    with pytest.raises(TransformError):
        torch.func.grad(lambda y: solve(func, y, [0.0, 1.0], per_sample=True).ys.sum())(torch.ones(2, 1))


def test_failures_name_their_rows():
    rates = torch.tensor([1.0, -1.0, 1.0])[:, None]
    with pytest.raises((NonFiniteError, StepSizeUnderflowError), match="rows 0, 2: .* at t = 1 "):
        solve(lambda t, y: rates * y * y, torch.ones(3, 1), [0.0, 2.0], per_sample=True)  # 1 / (1 - t)
    with pytest.raises(TooManyEvaluationsError, match="row 1: max_num_steps = 12"):
        solve(
            lambda t, y: torch.cos(t * 10 ** torch.arange(-2.0, 2.0, 2)[:, None]), torch.zeros(2, 1), [0.0, 9.0],
            per_sample=True, options={"max_num_steps": 12},
        )  # fmt: skip
    with pytest.raises(TooManyEvaluationsError, match="rows 0, 1: max_evals = 20"):
        solve(lambda t, y: torch.cos(50 * t), torch.zeros(2, 1), [0.0, 9.0], per_sample=True, max_evals=20)
    with pytest.raises(NonFiniteError, match="row 1: y0 holds .* or func returned"):
        solve(lambda t, y: 1 / y, torch.tensor([[1.0], [0.0]]), [0.0, 1.0], per_sample=True)


def test_float32_and_max_step():
    solution = solve(
        lambda t, y: -y, torch.ones(3, 2, dtype=torch.float32), [0.0, 1.0], per_sample=True, options={"max_step": 0.1}
    )
    assert solution.ys.dtype == torch.float32 and solution.stats.n_accepted.tolist() == [11] * 3
    # ten steps of the largest size, and a first one that is smaller
    assert abs(float(solution.ys[-1, 0, 0]) - math.exp(-1)) < 1e-5


@pytest.mark.parametrize("shape", [(0,), (0, 2), (0, 3, 2), (0, 0)])
@pytest.mark.parametrize("keywords", [
    {}, {"args": (torch.ones(0, 1),)}, {"t": torch.rand(0, 3)}, {"options": {"jump_t": [0.5]}}, {"memory": 3},
    {"memory": "states"}, {"on_failure": "return"}, {"method": "Rodas5P"}, {"compile": True},
], ids=str)  # fmt: skip
def test_a_batch_of_no_rows_has_a_solution_without_rows(shape, keywords):
    """As of a joint state without numbers: gradients are empty, or zero."""
    y0, weight = torch.ones(shape, requires_grad=True), torch.ones((), requires_grad=True)
    t0 = torch.zeros((), requires_grad=True)
    keywords = {"t": [t0, 0.5, 1.0]} | keywords
    solution = solve(lambda t, y, *args: weight * y**2 + t, y0, per_sample=True, **keywords)
    assert solution.ys.shape == (3, *shape) and solution.success and solution.stats.n_accepted.shape == (0,)
    (first,) = torch.autograd.grad(solution.ys.sum(), y0, create_graph=True)
    assert first.shape == shape and torch.autograd.grad(first.sum(), weight)[0] == 0.0
    solution = solve(lambda t, y, *args: weight * y**2 + t, y0, per_sample=True, **keywords)
    solution.ys.sum().backward()
    assert y0.grad.shape == shape and weight.grad == 0.0


def test_no_rows_have_no_events_and_end_where_they_are():
    y0, weight = torch.ones(0, 2, requires_grad=True), torch.ones((), requires_grad=True)
    for t0 in (0.0, torch.rand(0)):
        t, ys = solve_event(lambda t, y: -weight * y, y0, t0, lambda t, y: y - 0.5, per_sample=True)
        assert t.shape == (0,) and t.dtype == torch.float64 and ys.shape == (2, 0, 2)
        assert torch.autograd.grad(ys.sum() + t.sum(), weight)[0] == 0.0
        end, _ = solve_endtime(lambda t, y: -y, y0, t0, torch.rand(0), per_sample=True)
        assert end.shape == (0, 2)


@pytest.mark.parametrize("nested", [False, True])
def test_the_program_may_write_to_the_output(nested):
    """As nn.ReLU(inplace=True) does behind a block."""
    y0, w = torch.tensor([[1.0], [-2.0]]), torch.ones((), requires_grad=True)

    def func(t, y):
        return pytree.tree_map(lambda x: -w * x, y)

    def first(y):
        return y["a"] if nested else y

    grads = []
    for in_place in (False, True):
        end, _ = solve_endtime(func, {"a": y0, "b": y0} if nested else y0, 0.0, 1.0, per_sample=True)
        grads += torch.autograd.grad(torch.relu_(first(end)).sum() if in_place else torch.relu(first(end)).sum(), w)
    assert torch.equal(*grads)
