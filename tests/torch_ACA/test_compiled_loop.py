"""Loops compiled as a whole: the steps of eager ones through every end they can come to, and a way out that is told."""

import concurrent.futures
import contextlib
import gc
import itertools
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.torch_ACA.programs import slow
from torch_ACA import (
    Callbacks,
    NonFiniteError,
    ODEBlock,
    ReplayError,
    StepSizeUnderflowError,
    TooManyEvaluationsError,
    methods,
    solve,
)
from torch_ACA.compilation import code, generate, loops
from torch_ACA.tableau import Tableau

pytestmark = [
    pytest.mark.loops, pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated"),
]  # fmt: skip


FAST = {"method": "RK23", "rtol": 1e-4, "atol": 1e-4}  # few stages to trace


def results(func, y0, times=(0.0, 1.0), wanted=(), **keywords):
    solution = solve(func, y0, times, **FAST | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel()).reshape(solution.ys.shape)
    return [solution.ys.detach(), *torch.autograd.grad((weights * solution.ys).sum(), wanted)], solution.stats


def assert_as_eager(*arguments, **keywords):
    (eager, counts), (found, compiled_counts) = (results(*arguments, **keywords, compile=c) for c in (False, True))
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (counts.n_accepted, counts.n_rejected) == (compiled_counts.n_accepted, compiled_counts.n_rejected)


def stiff(t, y):
    return 40 * torch.cos(30 * t) - 30 * y


def test_buffers_that_are_too_small_are_followed_by_others(field, monkeypatch, looped):
    """Three steps a buffer, in either direction, with outputs inside steps, landing times and time gradients."""
    monkeypatch.setattr(loops, "MOST", 3)
    y0 = torch.ones(3, requires_grad=True)
    for times in ([0.0, 0.3, 0.31, 0.32, 2.0], [2.0, 0.0]):
        times = torch.tensor(times, requires_grad=True)
        keywords = {"options": {"step_t": [0.5], "land_on_t": len(times) > 2}, "rtol": 1e-5, "atol": 1e-5}
        assert_as_eager(field, y0, times, [y0, times, *field.parameters()], **keywords)
    assert looped.count("forward") == looped.count("backward") > 6


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"beta": 0.04}, {"safety": 0.7, "ifactor": 3.0, "dfactor": 0.5}, {"max_step": 0.05}, {"first_step": 2.0},
    {"min_step": 0.2}, {"interp": "linear"}, {"interp": "cubic"},
], ids=lambda options: next(iter(options)))  # fmt: skip
@pytest.mark.parametrize("method", ["Dopri5", "RK12"])
def test_controllers_and_interpolants(method, options, looped):
    """A stiff field, whose tries are rejected."""
    if "interp" in options:
        options = options | {"max_step": 0.05}
    y0 = torch.ones(2, requires_grad=True)
    tolerance = 1e-6 if method == "Dopri5" else 1e-3
    tolerances = {"rtol": tolerance, "atol": tolerance}
    assert_as_eager(stiff, y0, [0.0, 0.37, 0.4, 1.0], [y0], method=method, options=options, **tolerances)
    assert set(looped) == {"forward", "backward"}


def test_tolerances_of_each_component(field, looped):
    """One, or both; what they are is no reason for other code."""
    y0 = torch.tensor([1.0, -0.5, 0.01], requires_grad=True)
    for rtol, atol in ((1e-5, [1e-3, 1e-6, 1e-9]), ([1e-3, 1e-5, 1e-4], [1e-6, 1e-3, 1e-5])):
        keywords = {"rtol": rtol if isinstance(rtol, float) else torch.tensor(rtol), "atol": torch.tensor(atol)}
        assert_as_eager(field, y0, [0.0, 0.4, 2.0], [y0, *field.parameters()], **keywords)
    assert looped == ["forward", "backward"] * 2


def test_float32_and_nested_states(looped):
    """To the rounding of float32, 6e-8, grown over the steps by less than a hundred."""
    layer = nn.Linear(3, 3).float()
    y0 = {"a": torch.ones(2, 3, dtype=torch.float32, requires_grad=True), "z": [torch.ones(2, dtype=torch.float32)]}

    def func(t, y):
        return {"a": torch.tanh(layer(y["a"])), "z": [t * y["z"][0]]}

    ends = []
    for compile in (False, True):
        ys = solve(func, y0, [0.0, 1.0], **FAST, compile=compile).ys
        ends.append([ys["a"], *ys["z"], *torch.autograd.grad(ys["a"].sum(), [y0["a"], layer.weight])])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=6e-6, atol=6e-6)
    assert looped == ["forward", "backward"]


def test_what_is_captured(field, looped):
    """Tensors with a history, shared, frozen and unused ones, and a choice among them."""
    base, y0, unused = (torch.linspace(a, 1, 3, requires_grad=True) for a in (0.5, 0.6, 0.7))
    layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    layers[1].weight.requires_grad_(False)
    wanted = [y0, base, *layers[0].parameters(), layers[1].bias]
    for choice_of_tensors in ({}, {"params": [base]}):
        found = []
        for compile in (False, True):
            context = base.exp()

            def func(t, y):
                return torch.tanh(layers[1](layers[0](layers[0](y)))) * context + 0 * unused.detach()

            ys = solve(func, y0, [0.0, 1.0], compile=compile, **FAST, **choice_of_tensors).ys
            found.append([ys.detach(), *torch.autograd.grad(ys.sum(), wanted, allow_unused=True)])
        for a, b in zip(*found, strict=True):
            assert (a is None) == (b is None)
            torch.testing.assert_close(0 if a is None else a, 0 if b is None else b, rtol=1e-12, atol=1e-12)
    assert looped == 2 * ["forward", "backward"]


def test_second_derivatives_take_the_accepted_steps_again(field):
    y0 = torch.ones(3, requires_grad=True)
    found = []
    for compile in (False, True):
        ys = solve(field, y0, [0.0, 0.4, 1.0], **FAST, compile=compile).ys
        (first,) = torch.autograd.grad(ys.square().sum(), y0, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [y0, *field.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("func", "keywords", "error"), [
    (lambda t, y: torch.where(t > 0.5, torch.nan, 1.0) * y, {}, NonFiniteError),
    (stiff, {"max_evals": 60}, TooManyEvaluationsError),
    slow(lambda t, y: y**2, {"times": [0.0, 2.0]}, (StepSizeUnderflowError, NonFiniteError)),
    slow(lambda t, y: torch.where(t > 0.5, torch.nan, 1.0) * y, {"options": {"min_step": 0.1}}, NonFiniteError),
    slow(lambda t, y: y / 0, {}, NonFiniteError),
    slow(stiff, {"options": {"max_num_steps": 5}}, TooManyEvaluationsError),
], ids=itertools.count())  # fmt: skip
def test_errors_are_those_of_eager_steps(func, keywords, error):
    messages = []
    for compile in (False, True):
        with pytest.raises(error) as caught:
            results(func, torch.ones(2), **keywords, compile=compile)
        messages.append((type(caught.value), str(caught.value).split(" at ")[0]))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("method", ["fehlberg2", slow("dopri8")])
def test_an_output_that_is_nan_is_an_error(method, looped):
    """Of a func that is NaN at the end of a step, where none of its stages is."""
    y0 = torch.ones(2, requires_grad=True)
    keywords = {"method": method, "times": [0.0, 0.5, 0.999, 1.0], "options": {"interp": "cubic"}, "wanted": [y0]}
    end = results(stiff, y0, **keywords)[0][0][-1]

    def spoiled(t, y):
        return stiff(t, y) + torch.where((t == 1.0) & ((y - end).abs() < 1e-9), torch.nan, 0.0)

    messages = []
    for more in ({"gradient": "naive"}, {"compile": True}):  # "aca" as it is makes NaN of 0 * NaN in the error estimate
        with pytest.raises(NonFiniteError, match="dense output needs became infinite or NaN at t = 1 with") as caught:
            results(spoiled, y0, **keywords, **more)
        messages.append(str(caught.value).split(" and ")[0])  # up to the steps
    assert looped and messages[0] == messages[1]


@pytest.mark.slow
def test_a_func_that_changes_is_noticed(looped):
    """Mode, attributes, parameters, what a closure holds: before the next solve, each of them."""

    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.factor = nn.Linear(2, 2), 1.0

        def forward(self, t, y):
            return self.layer(y) * self.factor if self.training else y

    func, y0 = Changing(), torch.ones(2, requires_grad=True)
    scale = torch.ones(2)
    changes = [
        lambda: None, func.eval, func.train, lambda: setattr(func, "factor", 2.0),
        lambda: setattr(func, "layer", nn.Linear(2, 2)), lambda: func.layer.weight.data.mul_(0.5),
        lambda: scale.mul_(2), lambda: func.layer.weight.requires_grad_(False),
    ]  # fmt: skip
    for change in changes:
        change()
        assert_as_eager(lambda t, y: func(t, y) * scale, y0, wanted=[y0])
    assert len(looped) == 2 * len(changes)


@pytest.mark.slow
def test_code_of_what_is_gone_is_not_used():
    """Parts in the place of others that were freed, perhaps where those lay; and Dynamo told to forget all."""
    y0, part = torch.ones(3, requires_grad=True), [None]

    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, y):
            return self.factor * y

    for factor in (0.5, 1.0, 1.5):
        part[0] = Scaled(factor)
        gc.collect()
        for _ in range(2):
            assert_as_eager(lambda t, y: part[0](y), y0, wanted=[y0])
        if factor == 1.0:
            torch._dynamo.reset()


def test_threads_that_compile_at_once(field):
    """Tracing changes what all threads see: each of them waits for the others, and then finds what they made."""

    def solved(_):
        y0 = torch.ones(3, requires_grad=True)
        return results(field, y0, wanted=[y0], compile=True)[0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(solved, range(8)))  # falling back would be a warning, and so an error
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def forward_hook(module):
    return module.register_forward_hook(lambda module, inputs, output: 2 * output)


def forward_pre_hook(module):
    return module.register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))


def global_hook(module):
    return nn.modules.module.register_module_forward_hook(lambda m, inputs, output: -output if m is module else None)


def backward_hook(module):
    return module.register_full_backward_hook(lambda module, bars, bars_out: (0 * bars[0],))


@pytest.mark.parametrize("add", [forward_hook, slow(forward_pre_hook), global_hook, slow(backward_hook)])
@pytest.mark.parametrize("keywords", [{}, slow({"compile": "step"}), slow({"per_sample": True})], ids=str)
def test_hooks_that_come_and_go_are_noticed(add, keywords):
    layer, y0 = nn.Linear(3, 3), torch.ones(2, 3, requires_grad=True)

    def both():
        def func(t, y):
            return torch.tanh(layer(y))

        given = {"wanted": [y0, layer.weight], "compile": True} | keywords
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there is a backward hook, func runs as it is
            return [results(func, y0, **how)[0] for how in (given | {"compile": False}, given)]

    before = both()
    hook = add(layer)
    with_hook = both()
    hook.remove()
    for expected, found in (before, with_hook, both()):
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[0][-1], with_hook[0][-1])


def test_what_changes_between_forward_and_backward_is_an_error(field):
    for change in (lambda: field.net[0].weight.data.add_(0.1), lambda: scale.add_(0.1)):
        scale, y0 = torch.ones(3), torch.ones(3, requires_grad=True)
        ys = solve(lambda t, y: field(t, y) * scale, y0, [0.0, 1.0], **FAST, compile=True).ys
        change()
        with pytest.raises(ReplayError, match="func is not what it was"):
            ys.sum().backward()


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, bar):
        return -bar


def under_no_grad(w, y):
    with torch.no_grad():
        scale = 1 + y.square().sum()
    return w * y / scale


def under_enable_grad(w, y):
    with torch.enable_grad():
        z = w * y
    return z * torch.cos(y)


def with_a_hook(w, y):
    slope = w * y
    if slope.requires_grad:
        slope.register_hook(lambda bar: 2 * bar)
    return slope


@pytest.mark.parametrize("compile", [True, "step"])
@pytest.mark.parametrize("func", [
    lambda w, y: Reversed.apply(w) * y, under_no_grad, under_enable_grad, with_a_hook,
    lambda w, y: torch.func.grad(lambda z: (w * z.cos()).sum())(y) * w,
    lambda w, y: torch.func.jacrev(lambda z: torch.sin(z * w))(y) @ y,
])  # fmt: skip
def test_a_func_that_governs_gradients_itself_has_its_own(func, compile):
    """Where the graph would lose it, func runs as it is."""
    found = []
    for chosen in (False, compile):
        w, y0 = (torch.tensor(values, requires_grad=True) for values in ([0.5, -1.2], [1.0, 2.0]))
        refused = bool(chosen) and func is not under_enable_grad  # which loses nothing
        with pytest.warns(UserWarning, match="governs gradients") if refused else contextlib.nullcontext():
            ys = solve(lambda t, y: func(w, y), y0, [0.0, 1.0], **FAST, compile=chosen).ys
        found.append([ys, *torch.autograd.grad(ys[-1].sum(), [w, y0])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_callbacks_may_change_func():
    gate = [1.0]

    def close(t, y, h):
        gate[0] = 0.5

    ends = []
    for compile in (False, True):
        gate[0] = 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keywords = FAST | {"compile": compile, "callbacks": Callbacks(accept=close)}
            ends.append(solve(lambda t, y: gate[0] * y, torch.ones(2), [0.0, 1.0], **keywords).ys)
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("keywords", "reason"), [
    ({"memory": 3}, "memory is limited"),
    slow({"dense": True}, "dense=True was asked for"), slow({"record": True}, "callbacks or record=True"),
    slow({"options": {"norm": torch.max}}, "the error norm"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
@pytest.mark.filterwarnings("default:compile=True")
def test_what_keeps_a_loop_from_being_compiled_is_told_once(field, keywords, reason):
    y0 = torch.ones(3, requires_grad=True)
    with pytest.warns(UserWarning, match=f"for Field steps are compiled, and the loop over them is not .*{reason}"):
        assert_as_eager(field, y0, wanted=[y0, *field.parameters()], **keywords)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results(field, y0, **keywords, wanted=[y0], compile=True)
        results(field, y0, **keywords, wanted=[y0], compile="step")


@pytest.mark.parametrize("times", [[0.0, 0.3, 0.9], [0.0, 0.3, 0.6, 3.0], slow([0.0, 3.0])], ids=str)
@pytest.mark.parametrize("options", [
    {"max_num_steps": 40}, slow({}), slow({"step_t": [0.2]}),
], ids=["few", "one call", "calls"])  # fmt: skip
def test_a_solve_that_fails_returns_what_it_has(times, options, looped):
    """y' = w y^2 goes to infinity at t = 1."""
    w, found = torch.ones(2, dtype=torch.float64, requires_grad=True), []
    for compile in (False, True):
        keywords = FAST | {"compile": compile, "on_failure": "return", "options": options}
        solution = solve(lambda t, y: w * y * y, torch.ones(2, dtype=torch.float64), times, **keywords)
        gradient = torch.autograd.grad(solution.ys[1:].sum(), w)[0] if len(solution.ys) > 1 else None
        found.append((solution.ts, solution.ys.detach(), gradient, repr(solution.error)))
    for a, b in zip(*found, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=0)
        else:
            assert a == b
    assert ("None" in found[0][3]) == (times[-1] < 1) and ("backward" in looped) == (times[-1] < 1)


def test_a_compiled_model_with_a_compiled_block(field, looped):
    """One break in the model's graph, and nothing compiled again at later calls."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = ODEBlock(field, method="RK23", rtol=1e-4, atol=1e-4, compile=True)
            self.before, self.behind = nn.Linear(5, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.behind(self.block(self.before(x)))

    model = Model()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled, x = torch.compile(model, backend=graphs), torch.ones(4, 5)
    found = []
    for called in (model, compiled, compiled, compiled):
        loss = called(x).square().mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
        if called is compiled:
            assert graphs.frame_count == 2  # before the solve and behind it
    for a, b in zip(found[0], found[-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert looped == 4 * ["forward", "backward"]


@pytest.mark.slow
def test_code_is_kept_for_a_number_of_kinds_of_states(field, monkeypatch):
    monkeypatch.setattr(code, "MOST", 2)
    for size in (1, 2, 3, 1):
        solve(field, torch.ones(size, 3), [0.0, 0.1], **FAST, compile=True)
    assert len(code._KNOWN[field]) == 2


def test_the_time_that_compiling_takes_is_told_once(field, monkeypatch, caplog):
    monkeypatch.setattr(generate, "TOLD_FROM", 0.0)
    for _ in range(2):
        y0 = torch.ones(3, requires_grad=True)
        solve(field, y0, [0.0, 1.0], **FAST, compile=True).ys.sum().backward()
    told = [record.message for record in caplog.records if record.name == "torch_ACA"]
    assert len(told) == 1 and "code for Field took" in told[0] and "torch.compiler" in told[0]


def test_modules_and_tensors_are_let_go(field):
    import gc
    import weakref

    def made():
        func, y0 = type(field)(), torch.ones(3, requires_grad=True)
        solve(func, y0, [0.0, 1.0], **FAST, compile=True).ys.sum().backward()
        return weakref.ref(func), weakref.ref(next(func.parameters()))

    references = made()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("options", [True, {"cpp_wrapper": False}])
def test_generated_loops(field, monkeypatch, looped, options):
    monkeypatch.setattr(generate, "BACKEND", "inductor")
    monkeypatch.setattr(loops, "MOST", 3)
    y0, times = torch.ones(3, requires_grad=True), torch.tensor([0.0, 0.3, 2.0], requires_grad=True)
    wanted = [y0, times, *field.parameters()]
    (eager, counts), (found, again) = (
        results(field, y0, times, wanted, memory="states", compile=c) for c in (False, options)
    )
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    counts.n_backward_f_evals += 1  # eager steps keep the first evaluation
    assert counts == again and looped.count("forward") > 1


@pytest.mark.parametrize("name", ["begin", "forward", "backward"])
@pytest.mark.filterwarnings("default:compile=True")
def test_a_loop_that_cannot_be_generated_gives_way_to_steps(field, monkeypatch, name):
    """Once: a later solve does not try again."""
    generated, tried = code.generated, []

    def failing(function, *arguments, **keywords):
        if function.__name__ == f"_{name}":
            tried.append(name)
            raise RuntimeError("no such kernel")
        return generated(function, *arguments, **keywords)

    monkeypatch.setattr(code, "generated", failing)
    monkeypatch.setattr(loops, "MOST", 3)  # steps in the first call, so that there is a second
    y0 = torch.ones(3, requires_grad=True)
    keywords = {"times": [0.0, 0.5, 1.0], "wanted": [y0, *field.parameters()]}
    with pytest.warns(UserWarning, match="for Field steps are compiled, and the loop .*no such kernel"):
        assert_as_eager(field, y0, **keywords)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_as_eager(field, y0, **keywords)
    assert tried == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in methods if getattr(methods.get(name), "adaptive", False)])
def test_every_adaptive_explicit_method(field, name, looped):
    if not isinstance(methods.get(name), Tableau):
        pytest.skip("not an explicit Runge-Kutta method")
    y0 = torch.ones(3, requires_grad=True)
    times = torch.tensor([0.0, 0.3, 1.0], requires_grad=True)
    loose = {"rtol": 1e-3, "atol": 1e-3}
    assert_as_eager(field, y0, times, [y0, times, *field.parameters()], method=name, **loose)
    assert looped == ["forward", "backward"]


WARM = """
import sys
import torch
from torch._dynamo.utils import counters
from torch_ACA import solve

factor, y0 = float(sys.argv[1]), torch.ones(2, dtype=torch.float64, requires_grad=True)
solve(lambda t, y: factor * t * y, y0, [0.0, 1.0], compile=True).ys[-1].sum().backward()
assert torch.allclose(y0.grad, torch.full_like(y0, factor / 2).exp(), rtol=1e-4)
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
def test_code_is_found_on_disk_by_later_processes(tmp_path):
    """And not for another func, though the loop around it is the same."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    counts = []
    for factor in ("1.0", "1.0", "0.5"):
        run = [sys.executable, "-c", WARM, factor]
        counts.append(subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout.split())
    assert counts == [["0", "2"], ["2", "0"], ["0", "2"]]
