"""Compiled steps: the numbers of eager ones, few compilations, and a way out where func cannot be compiled."""

import copy
import dataclasses
import warnings

import pytest
import torch
from torch import nn

from torch_ACA import ODEBlock, ReplayError, solve
from torch_ACA.compilation import code, generate

OUTPUTS = {"end": [0.0, 1.0], "inside": [0.0, 0.2, 0.5, 0.7, 1.3], "reverse": [1.0, 0.3, 0.0]}
pytestmark = pytest.mark.usefixtures("ungenerated")


def looped(*values, marks=()):
    return pytest.param(*values, marks=[pytest.mark.loops, *marks])


def states_and_gradients(func, times=OUTPUTS["inside"], captured=None, **keywords):
    """States, gradients in y0, the times and what func captures, and the counts of the solve."""
    captured = list(func.parameters()) if captured is None else captured
    device = captured[0].device
    start = torch.linspace(-1, 1, 6, device=device).reshape(2, 3).requires_grad_()
    y0 = torch.tanh(start)  # with a history, as in a network
    times = torch.tensor(times, requires_grad=True)
    solution = solve(func, y0, times, **{"rtol": 1e-6, "atol": 1e-6} | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel(), device=device).reshape(solution.ys.shape)
    gradients = torch.autograd.grad((weights * solution.ys).sum(), [start, times, *captured])
    return [solution.ys.detach(), *gradients], solution.stats


def assert_as_eager(func, compile="step", **keywords):
    """States and gradients agree to the rounding of float64, and the same evaluations are counted, but that the first
    one is not kept for the backward pass. For methods without FSAL a rejected try has its first stage evaluated again
    where no step before has left it, and a compiled loop evaluates the slope behind its last step."""
    eager, counts = states_and_gradients(func, **{"memory": "states"} | keywords)
    found, compiled_counts = states_and_gradients(func, **{"memory": "states"} | keywords, compile=compile)
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    again = counts.n_rejected + (compile != "step") if keywords.get("method") == "RK12" else 0
    assert compiled_counts == dataclasses.replace(
        counts, n_f_evals=counts.n_f_evals + again, n_backward_f_evals=counts.n_backward_f_evals + 1
    )


@pytest.mark.parametrize("times", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize(("compile", "method"), [
    ("step", "Dopri5"), ("step", "RK12"), ("step", "RK23"), looped("loop", "RK12"), looped("loop", "RK23"),
    looped("loop", "Dopri5", marks=[pytest.mark.slow]),
])  # fmt: skip
@pytest.mark.filterwarnings("error:compile=True")
def test_agrees_with_eager_steps(field, compile, method, times):
    loose = {"rtol": 1e-3, "atol": 1e-3} if method != "Dopri5" else {}
    assert_as_eager(field, compile, times=times, method=method, **loose)


@pytest.mark.parametrize("keywords", [
    {"options": {"jump_t": [0.45, 0.9]}}, {"memory": 3}, {"method": "Euler", "h": 0.13},
    {"method": "RK4", "h": 0.13, "options": {"jump_t": [0.45, 0.9]}},
], ids=lambda keywords: next(iter(keywords)))  # fmt: skip
def test_agrees_with_other_settings(field, keywords):
    assert_as_eager(field, **keywords)


@pytest.mark.parametrize("method", ["Dopri5", "RK12"])  # with and without a first stage from the step before
@pytest.mark.parametrize("compile", [True, "step"])
@pytest.mark.parametrize(("options", "branches"), [
    ({}, False), ({"jump_t": [0.6]}, False), ({"jump_t": [0.6]}, True),
], ids=["", "a step to a jump", "a step to a jump, not compiled"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:compile=True")
def test_rejected_tries_and_batch_norm_leave_the_statistics_of_eager_steps(method, compile, options, branches):
    """The tries that meet a bump of func are rejected, behind steps that left no slope."""

    def statistics(**keywords):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        y0, factors = torch.randn(6, 4, requires_grad=True), torch.ones(2)

        def func(t, y):
            slope = 9 * net(y) * (1 + 3 * torch.exp(-300 * (t - 0.5) ** 2))
            return slope * factors.unbind()[int(t > 2)] if branches else slope  # found out where code is made

        settings = {"method": method, "h": 0.7, "rtol": 1e-3, "atol": 1e-3, "options": options}
        solution = solve(func, y0, [0.0, 1.0], **settings, **keywords)
        solution.ys.sum().backward()
        return solution.stats.n_rejected, net[1].running_mean, net[1].num_batches_tracked

    (rejected, mean, tracked), (_, compiled_mean, compiled_tracked) = statistics(), statistics(compile=compile)
    assert rejected > 0
    torch.testing.assert_close(compiled_mean, mean, rtol=1e-12, atol=1e-12)
    assert compiled_tracked == tracked


def test_nested_states():
    layer = nn.Linear(3, 3)
    y0 = {"a": torch.ones(2, 3, requires_grad=True), "b": torch.zeros(2)}

    def func(t, y):
        return {"a": torch.tanh(layer(y["a"])), "b": y["a"].sum(1)}

    ends = []
    for compile in (False, True):
        end = solve(func, y0, [0.0, 1.0], method="RK23", rtol=1e-4, compile=compile).ys
        ends.append([*end.values(), *torch.autograd.grad(end["b"].sum(), [y0["a"], layer.weight])])
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_autocast_around_the_solve_reaches_func():
    """The same to the rounding of bfloat16, 2^-8, which decides by the last bits of the state; and not without it."""
    torch.manual_seed(0)
    layer, y0 = nn.Linear(16, 16).float(), torch.randn(8, 16, dtype=torch.float32)

    def end(enabled, **keywords):
        with torch.no_grad(), torch.autocast(y0.device.type, torch.bfloat16, enabled=enabled):
            return solve(lambda t, y: torch.tanh(layer(y)), y0, [0.0, 1.0], h=0.5, method="RK4", **keywords).ys[-1]

    eager, found, exact = end(True), end(True, compile=True), end(False, compile=True)
    assert (found - eager).abs().max() < 2**-8 * eager.abs().max()
    assert 1e-5 < (found - exact).abs().max() < 2**-4


@pytest.mark.parametrize(("compile", "functions"), [
    ("step", ["step", "vjp"]), looped("loop", ["forward", "backward"]),
])  # fmt: skip
def test_compiles_once_for_all_tolerances_times_and_steps(field, made, compile, functions):
    for end, tolerance in ((1.0, 1e-3), (2.0, 1e-3), (-1.0, 1e-4), (0.5, 1e-5)):
        keywords = {"times": [0.0, end], "rtol": tolerance, "atol": tolerance, "compile": compile, "method": "RK23"}
        states_and_gradients(field, **keywords)
        states_and_gradients(lambda t, y: field(t, y), captured=list(field.parameters()), **keywords)
    assert made == 2 * functions  # for the module, and for the lambda that is made again for every solve


def branching(layer):
    def func(t, y):
        return layer(y) if float(y.detach().sum()) > 1e9 else torch.tanh(layer(y))

    return func


def indexing(layer):
    """PyTorch's tracing ends in an error of Python's."""
    column = torch.tensor(2)
    return lambda t, y: torch.tanh(layer(y)) * y[..., int(column)][..., None]


@pytest.mark.parametrize("make", [branching, indexing])
def test_what_cannot_be_compiled_runs_as_it_is_with_one_warning(make):
    layer = nn.Linear(3, 3)
    func, captured = make(layer), list(layer.parameters())
    with pytest.warns(UserWarning, match="compile=True: .* cannot be compiled and runs as it is"):
        assert_as_eager(func, captured=captured)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        states_and_gradients(func, captured=captured, compile=True)
        rows = [states_and_gradients(func, captured=captured, per_sample=True, compile=c)[0] for c in (False, True)]
    torch.testing.assert_close(*rows, rtol=1e-12, atol=1e-12)


def test_an_error_of_func_is_its_own():
    with warnings.catch_warnings(), pytest.raises(IndexError, match="index 7 is out of bounds"):
        warnings.simplefilter("ignore")
        solve(lambda t, y: y[7:, 7], torch.ones(2, 3), [0.0, 1.0], compile=True)


def test_random_fields_run_as_they_are():
    """Every evaluation of a solve draws the same numbers, which a compiled step could not."""
    func = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    ends = []
    for keywords in ({}, {"compile": True}):
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ends.append(solve(lambda t, y: func(y), torch.ones(2, 4), [0.0, 1.0], **keywords).ys)
    assert torch.equal(*ends)
    assert "draws random numbers" in str(caught[0].message)


def test_fields_that_count_their_calls_run_as_they_are(field):
    """A count is a constant of compiled code, which would be compiled again for every call."""

    class Counting(nn.Module):
        n_calls = 0

        def forward(self, t, y):
            self.n_calls += 1
            return field(t, y)

    with pytest.warns(UserWarning, match="Counting cannot be compiled and runs as it is .*count of its calls"):
        assert_as_eager(Counting(), captured=list(field.parameters()))


@pytest.mark.parametrize(("func", "y0", "reason"), [
    (lambda t, y: -y * float(t), torch.ones(3), "it takes a tensor as a number"),
    (lambda t, y: -y if y.sum() > 0 else y, torch.ones(3), "it branches on the values"),
    (lambda t, y: -1j * y, torch.ones(3, dtype=torch.complex64), "its state is complex"),
])  # fmt: skip
def test_the_reason_is_said_in_plain_words(func, y0, reason, monkeypatch):
    monkeypatch.setattr(generate, "BACKEND", "inductor")
    with pytest.warns(UserWarning, match=f"cannot be compiled and runs as it is .{reason}"):
        found = solve(func, y0, [0.0, 1.0], compile=True).ys
    torch.testing.assert_close(found, solve(func, y0, [0.0, 1.0]).ys, rtol=0, atol=0)


@pytest.mark.parametrize("gradient", ["direct", "naive", "adjoint", "mali"])
def test_other_gradient_methods_refuse(field, gradient):
    with pytest.raises(ValueError, match="compile=True needs gradient='aca'"):
        solve(field, torch.ones(2, 3), [0.0, 1.0], gradient=gradient, compile=True)


def test_a_block_in_a_model_that_is_compiled_as_a_whole(field):
    def value_and_gradients(compile_model):
        torch.manual_seed(0)
        block = ODEBlock(field, method="RK23", rtol=1e-4, atol=1e-4)
        model = nn.Sequential(nn.Linear(5, 3), block, nn.Linear(3, 1))
        called = torch.compile(model, backend="aot_eager") if compile_model else model
        loss = called(torch.ones(4, 5)).square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    for a, b in zip(value_and_gradients(False), value_and_gradients(True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keywords", [
    {}, {"memory": "states"}, {"per_sample": True, "memory": "states"}, {"gradient": "adjoint"},
    {"gradient": "mali", "method": "ALF"},
], ids=str)  # fmt: skip
def test_the_backward_pass_is_left_alone_where_a_whole_step_is_compiled(keywords):
    """Dynamo would compile the code of the solver, and func with it, call by call."""
    net, traced = nn.Linear(2, 2), []

    def func(t, y):
        traced.append(torch.compiler.is_dynamo_compiling())
        return torch.tanh(net(y))

    def step(y0):
        loss = solve(func, y0, [0.0, 1.0], **keywords).ys[-1].square().sum()
        loss.backward()
        return loss

    y0 = torch.ones(3, 2)
    step(y0)
    expected, net.weight.grad = net.weight.grad, None
    torch.compile(step, backend="eager")(y0)
    assert torch.equal(net.weight.grad, expected) and not any(traced)


def test_results_that_the_next_call_would_overwrite_are_copied(field, monkeypatch):
    """As CUDA graphs do it: each compiled function gives its results in the same memory at every call."""

    generated = code.generated

    def overwriting(*arguments, **keywords):
        function, memory = generated(*arguments, **keywords), None

        def call(given):
            nonlocal memory
            results = function(given)
            memory = memory or [result.clone() for result in results]
            for kept, result in zip(memory, results):
                kept.copy_(result)
            return memory

        return call

    monkeypatch.setattr(code, "generated", overwriting)
    with pytest.raises(ReplayError, match="ends in another state"):  # the test can fail
        assert_as_eager(field)
    assert_as_eager(field, compile="reduce-overhead")


@pytest.mark.parametrize(("compile", "message"), [
    (1, "must be True, False, 'loop', 'step', a mode of torch.compile or a dict of options, got 1"),
    ("", "unknown compile mode ''; accepted: loop, step, .*reduce-overhead"),
    ({"wrapper": True, 1: 2}, "unknown compile option 1, wrapper"),
])  # fmt: skip
def test_refuses_what_torch_compile_does_not_know(field, compile, message):
    for use in (lambda: ODEBlock(field, compile=compile), lambda: solve(field, torch.ones(3), [0, 1], compile=compile)):
        with pytest.raises(ValueError, match=message):
            use()


def test_single_steps_of_rows_are_refused(field):
    with pytest.raises(ValueError, match="per_sample cannot be combined with compile='step'"):
        solve(field, torch.ones(2, 3), [0.0, 1.0], compile="step", per_sample=True)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [True, "reduce-overhead", {"cpp_wrapper": True}])
def test_generated_code(field, monkeypatch, compile):
    monkeypatch.setattr(generate, "BACKEND", "inductor")
    assert_as_eager(field, compile=compile)


@pytest.mark.gpu
@pytest.mark.filterwarnings("error:compile=True")
def test_cuda_graphs(field, monkeypatch):
    """Twice: graphs are captured in the second call of a function and replayed from then on."""
    monkeypatch.setattr(generate, "BACKEND", "inductor")
    field = copy.deepcopy(field).cuda()
    for _ in range(2):
        assert_as_eager(field, compile="reduce-overhead")


def clips_its_gradient(t, y):
    slope = -y * y
    if slope.requires_grad:
        slope.register_hook(lambda bar: bar.clamp(-0.1, 0.1))
    return slope


def is_another_without_gradients(t, y):
    return -y if torch.is_grad_enabled() else -2 * y


def asks_its_state(t, y):
    return -y * y if y.requires_grad else -2 * y


@pytest.mark.filterwarnings("ignore:compile=True")
@pytest.mark.parametrize("keywords", [
    {"method": "RK23"}, {"method": "RK23", "per_sample": True}, {"method": "RK4", "h": 0.25},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("func", [clips_its_gradient, is_another_without_gradients, asks_its_state])
def test_func_may_ask_whether_there_are_gradients(keywords, func):
    results = []
    for enabled in (False, True) if func is clips_its_gradient else (False,):
        for compile in (False, True):
            y0 = torch.ones(2, 3, requires_grad=True)
            with torch.set_grad_enabled(enabled):
                ys = solve(func, y0, [0.0, 1.0], compile=compile, **keywords).ys
            results.append([ys.detach(), *(torch.autograd.grad(ys.sum(), y0) if enabled else [])])
    for found, expected in zip(results[::2], results[1::2]):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
