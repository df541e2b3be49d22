"""Bad arguments and failing solves: one clear error each, and never a solve that ends short."""

import pytest
import torch

from torch_ACA import (
    NonFiniteError,
    ODEBlock,
    SolverError,
    StepSizeUnderflowError,
    TooManyEvaluationsError,
    solve,
    solve_endtime,
)

ONE = torch.ones(2, dtype=torch.float64)


def decay(t, y):
    return -y


@pytest.mark.parametrize(
    "keywords,message",
    [
        ({"method": "RK99"}, "unknown method 'RK99'; accepted: Euler"),
        ({"gradient": "magic"}, "unknown gradient 'magic'; accepted: aca"),
        ({"method": "Euler"}, "Euler takes fixed steps: give the step size h"),
        ({"rtol": -1.0}, "rtol must be finite and not negative"),
        ({"rtol": 0.0, "atol": 0}, "must not both be 0"),
        ({"atol": float("nan")}, "atol must be finite"),
        ({"h": 0.0}, "h must be a number above 0"),
        ({"options": {"stepsize": 1}}, "unknown option stepsize .is 'step_size' meant..; accepted: safety"),
        ({"h": 0.1, "options": {"step_size": 0.1}}, "give one of h, first_step, step_size and grid"),
        ({"method": "Dopri5", "gradient": "mali"}, "go together"),
        ({"method": "ALF"}, "go together"),
        ({"on_failure": "ignore"}, "on_failure must be"),
        ({"dense": True, "gradient": "adjoint"}, "dense=True needs"),
        ({"adjoint": {"rtol": 1e-3}}, "settings of the adjoint"),
        ({"adjoint": {"tol": 1e-3}, "gradient": "adjoint"}, "unknown setting of the adjoint tol; accepted: rtol"),
        ({"options": {"grid": [0.1, 1.0]}, "method": "RK4"}, "grid must go from"),
        ({"rtol": torch.ones(2, requires_grad=True)}, "must not require grad"),
    ],
)
@pytest.mark.defect("bad-arguments")
def test_bad_settings(keywords, message):
    with pytest.raises(ValueError, match=message):
        solve(decay, ONE, [0.0, 1.0], **keywords)


@pytest.mark.parametrize("t", [[0.0], [0.0, 1.0, 0.5], [0.0, 0.0], [0.0, float("nan")], torch.zeros(2, 2)])
@pytest.mark.defect("bad-arguments")
def test_bad_times(t):
    with pytest.raises(ValueError, match="^t must be"):
        solve(decay, ONE, t)


@pytest.mark.parametrize(
    "y0,error,message",
    [
        (torch.ones(2, dtype=torch.int64), TypeError, "^y0 must be floating point or complex, .* got torch.int64"),
        ((ONE, torch.tensor([[1, 0]])), TypeError, r"^y0\[1\] must be floating .* torch.int64; convert .* close over"),
        ({"a": ONE, "b": [ONE, ONE > 0]}, TypeError, r"^y0\['b'\]\[1\] must be floating .* torch.bool"),
        ([1.0, 2.0], TypeError, r"must hold tensors only, got float for y0\[0\]"),
        ((), ValueError, "holds no tensor"),
        (torch.ones(2).to(torch.float8_e4m3fn), TypeError, r"of at least 16 bits, got torch.float8_e4m3fn; .*\.float"),
        (torch.eye(2).to_sparse(), TypeError, "^y0 must be a dense tensor .* torch.sparse_coo; func may close over"),
        ((ONE, torch.ones(2, device="meta")), TypeError, r"^y0\[1\] must be a dense tensor .* on the meta device"),
        (torch.ones(2, device="meta"), TypeError, "^y0 must be a dense tensor .* on the meta device"),
    ],
)
def test_bad_state(y0, error, message):
    with pytest.raises(error, match=message):
        solve(decay, y0, [0.0, 1.0])


def test_func_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"func returned shape \(1,\), but the state has \(2,\)"):
        solve(lambda t, y: y[:1], ONE, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"func returned shape \(1,\) for y0\['b'\], but the state has \(2,\)"):
        solve(lambda t, y: {"a": y["a"], "b": y["b"][:1]}, {"a": ONE, "b": ONE}, [0.0, 1.0])
    with pytest.raises(TypeError, match=r"func must return tensors, got float for y0\[1\]"):
        solve(lambda t, y: (y[0], 0.0), (ONE, ONE), [0.0, 1.0])
    with pytest.raises(TypeError, match="callable"):
        solve(3, ONE, [0.0, 1.0])


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
def test_blow_up_is_reported(gradient):
    """y' = y^2 from 1 has no solution at t = 1: no step size helps."""
    y0 = torch.ones(1, requires_grad=True)
    with pytest.raises(SolverError) as caught:
        solve(lambda t, y: y**2, y0, [0.0, 2.0], gradient=gradient, rtol=1e-2, atol=1e-2, max_evals=20_000)
    error = caught.value
    assert 0.8 < error.t < 1.1 and error.n_steps > 0 and error.n_f_evals > 0
    assert "at t =" in str(error) and "step size" in str(error) and "accepted steps" in str(error)


@pytest.mark.defect("nan")
def test_non_finite_derivative():
    with pytest.raises(NonFiniteError, match="y0 holds infinity or NaN, or func returned"):
        solve(lambda t, y: y * float("nan"), ONE, [0.0, 1.0])
    with pytest.raises(NonFiniteError) as caught:
        solve(lambda t, y: torch.sqrt(0.5 - t) * y, ONE, [0.0, 1.0])
    assert caught.value.t == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(NonFiniteError) as caught:
        solve(lambda t, y: torch.sqrt(0.5 - t) * y, ONE, [0.0, 1.0], method="RK4", h=0.1)
    assert 0.3 < caught.value.t < 0.51


def test_a_passing_non_finite_trial_is_only_rejected():
    """The first step of 10 overflows; shorter ones do not."""
    solution = solve(lambda t, y: -torch.exp(y.clamp(max=800.0) ** 2), 0.5 * ONE, [0.0, 1.0], h=1e3)
    assert solution.stats.n_rejected > 0 and bool(torch.isfinite(solution.ys).all())


@pytest.mark.defect("stiff-loop")
def test_step_size_underflow():
    with pytest.raises(StepSizeUnderflowError, match="jump_t"):
        solve(lambda t, y: torch.where(y > 0.5, -1.0, 1e6) + 0 * y, ONE[:1], [0.0, 2.0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["aca", "naive", "mali"])
@pytest.mark.defect("evaluation-limit")
def test_too_many_evaluations(gradient):
    with pytest.raises(TooManyEvaluationsError, match="max_evals = 40 was reached"):
        solve(lambda t, y: torch.cos(30 * t) * y, ONE, [0.0, 10.0], max_evals=40, gradient=gradient)
    with pytest.raises(TooManyEvaluationsError, match="max_num_steps = 3 was reached"):
        solve(lambda t, y: torch.cos(30 * t) * y, ONE, [0.0, 10.0], options={"max_num_steps": 3}, gradient=gradient)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.defect("evaluation-limit")
def test_failure_can_be_returned(gradient):
    ts = torch.linspace(0, 2, 11)
    y0 = torch.ones(1, requires_grad=True)
    solution = solve(
        lambda t, y: y**2, y0, ts, gradient=gradient, on_failure="return", rtol=1e-3, atol=1e-3, max_evals=20_000
    )
    assert not solution.success and isinstance(solution.error, SolverError) and "at t =" in solution.status
    assert 5 <= len(solution.ts) == len(solution.ys) <= 6  # y(1) may exist numerically
    assert float((solution.ys[:5, 0] - 1 / (1 - solution.ts[:5])).abs().max()) < 0.05
    (g,) = torch.autograd.grad(solution.ys[2].sum(), y0)
    assert float(g) == pytest.approx(1 / (1 - 0.4) ** 2, rel=1e-2)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
def test_failure_before_the_first_output_leaves_the_initial_state(gradient):
    y0 = torch.ones(1, requires_grad=True)
    solution = solve(
        lambda t, y: torch.cos(30 * t) * y, y0, [0.0, 10.0], gradient=gradient, on_failure="return", max_evals=10
    )
    assert not solution.success and torch.equal(solution.ys, y0[None]) and solution.ts.tolist() == [0.0]
    (g,) = torch.autograd.grad(solution.ys.sum(), y0)
    assert float(g) == 1.0


@pytest.mark.parametrize("keyword", [{"dense": True}, {"on_failure": "return"}])
def test_end_time_solve_refuses_what_it_cannot_return(keyword):
    with pytest.raises(TypeError, match="solve_endtime.. takes no keyword"):
        solve_endtime(decay, ONE, 0.0, 1.0, **keyword)


def test_block_refuses_bad_settings_and_keeps_the_old_ones():
    block = ODEBlock(decay)
    with pytest.raises(ValueError, match="fixed steps"):
        block.configure(method="Euler")
    with pytest.raises(ValueError, match="unknown setting tolerance"):
        block.configure(tolerance=1)
    assert block.settings["method"] == "RK12"
    assert block.configure(method="Euler", h=0.25) is block
    block(ONE)
    assert block.stats.n_f_evals == 4


@pytest.mark.parametrize("h", [1 / 49, 1 / 98, 1 / 103, 0.3, 0.4, 0.1])
@pytest.mark.defect("fixed-grid-ends-short")
def test_fixed_steps_end_exactly_on_t1(h):
    """Neither a missing last step nor a sliver by rounding (both in the authors' code)."""
    times = []
    solve(lambda t, y: times.append(float(t)) or torch.ones_like(y), ONE, [0.0, 1.0], method="Euler", h=h)
    solution = solve(lambda t, y: torch.ones_like(y), ONE, [0.0, 1.0], method="Euler", h=h)
    assert torch.allclose(solution.ys[-1], 2 * ONE, rtol=0, atol=1e-13)
    assert len(times) == -(-1 // h) or len(times) == round(1 / h)


@pytest.mark.parametrize("method", ["Euler", "RK23", "Dopri5", "HeunEuler", "RK4"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.defect("oversteps-t1")
def test_func_is_never_called_outside_the_interval(method, backward):
    seen = []

    def f(t, y):
        seen.append(float(t))
        return torch.cos(5 * t) * y

    ts = torch.linspace(0.2, 1.7, 7)
    ts = ts.flip(0) if backward else ts
    solve(f, ONE, ts, method=method, h=0.11)
    assert min(seen) >= 0.2 - 1e-15 and max(seen) <= 1.7 + 1e-15


@pytest.mark.parametrize(
    "func", [lambda y: -y, torch.nn.Linear(2, 2), lambda t, y, rate: -rate * y], ids=["one", "module", "three"]
)
@pytest.mark.parametrize("keywords", [{}, {"method": "Euler", "h": 0.5}, {"per_sample": True}], ids=str)
def test_a_func_of_other_arguments_is_named(func, keywords):
    with pytest.raises(TypeError, match=r"func is called as func\(t, y\), which .* does not take: "):
        solve(func, torch.ones(3, 2), [0.0, 1.0], **keywords)


def test_a_type_error_inside_func_stays_as_it_is():
    with pytest.raises(TypeError, match="unsupported operand"):
        solve(lambda t, y: y + "1", torch.ones(2), [0.0, 1.0])
