"""Compiled solves of one call: bit for bit what the loop with all its machinery gives, which takes over from them."""

import gc
import math
import types

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.torch_ACA.programs import slow
from torch_ACA import ReplayError, TooManyEvaluationsError, solve, solve_endtime
from torch_ACA.compilation import loops, one_call
from torch_ACA.compilation.fingerprint import fingerprint
from torch_ACA.compilation.loop_solve import LoopSolve
from torch_ACA.problem import Problem

pytestmark = [
    pytest.mark.loops, pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated"),
]  # fmt: skip

FAST = {"method": "RK23", "rtol": 1e-4, "atol": 1e-4, "compile": True}  # few stages to trace


@pytest.fixture
def problems(monkeypatch):
    """How many problems were set up: none, for a solve of one call."""
    made, init = [], Problem.__init__
    monkeypatch.setattr(Problem, "__init__", lambda self, *a, **k: (made.append(self), init(self, *a, **k))[1])
    return made


def results(func, y0, times, **keywords):
    y0 = y0.detach().requires_grad_()
    solution = solve(func, y0, times, **FAST | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel(), dtype=y0.dtype).reshape(solution.ys.shape)
    gradients = torch.autograd.grad((weights * solution.ys).sum(), [y0, *func.parameters()])
    return [solution.ts, solution.ys.detach(), *gradients], solution.stats


TIMES = [[0.0, 1.0], [1.0, 0.0], [0.0, 0.4, 0.41, 0.99, 1.0], torch.linspace(2, 0, 4)]


@pytest.mark.parametrize("times", TIMES, ids=str)
@pytest.mark.parametrize("method", ["RK23", slow("HeunEuler"), slow("Dopri5")])
def test_bits_and_counts_are_those_of_the_loop(field, method, times, problems, monkeypatch):
    keywords = {"method": method, "options": {"beta": 0.04, "max_num_steps": 200}}
    found, stats = results(field, torch.ones(2, 3), times, **keywords)
    assert not problems
    monkeypatch.setattr(one_call, "one_call", lambda *given, **keywords: None)
    expected, expected_stats = results(field, torch.ones(2, 3), times, **keywords)
    assert len(problems) == 1 and stats == expected_stats and stats.n_backward_f_evals
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_end_alone_and_single_precision(field, problems):
    field.float()
    y0 = torch.ones(3, dtype=torch.float32, requires_grad=True)
    end, stats = solve_endtime(field, y0, 0.0, 1.0, **FAST)
    solution = solve(field, y0, [0.0, 1.0], **FAST)
    assert torch.equal(end, solution.ys[-1]) and stats == solution.stats and not problems
    assert torch.equal(*(torch.autograd.grad(y.sum(), y0)[0] for y in (end, solution.ys[-1])))


@pytest.mark.parametrize("shape", [slow((3,)), (2, 3)])
def test_states_may_be_written_to(field, shape, problems):
    """What a solve returns is no view, which could not be."""
    y0, found = torch.linspace(0.1, 1.0, math.prod(shape), dtype=torch.float64).view(shape).requires_grad_(), []
    for compile in (True, False):
        ys = solve(field, y0, [0.0, 0.4, 1.0], **FAST | {"compile": compile}).ys
        end = solve_endtime(field, y0, 0.0, 1.0, **FAST | {"compile": compile})[0]
        ys[1:].mul_(2.0)
        found.append([ys, *torch.autograd.grad(ys.sum() + end.mul_(3.0).sum(), (y0, *field.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_without_gradients_nothing_is_remembered(field, problems):
    with torch.no_grad():
        ys = solve(field, torch.ones(3), [0.0, 1.0], **FAST).ys
    assert not ys.requires_grad and not problems
    for parameter in field.parameters():
        parameter.requires_grad_(False)
    assert not solve(field, torch.ones(3), [0.0, 1.0], **FAST).ys.requires_grad and not problems


def with_time_gradients(field, y0):
    return solve(field, y0, torch.tensor([0.0, 1.0], requires_grad=True), **FAST).ys


def with_hook(field, y0):
    handle = field.net[0].bias.register_hook(lambda gradient: 2 * gradient)
    try:
        return solve(field, y0, [0.0, 1.0], **FAST).ys
    finally:
        handle.remove()


def with_history(field, y0):
    scale = field.net[0].bias.mean().exp()
    return solve(lambda t, y: field(t, y) * scale, y0, [0.0, 1.0], **FAST).ys


def within_default_device(field, y0):
    with torch.device("cpu"):
        return solve(field, y0, [0.0, 1.0], **FAST).ys


def under_autocast(field, y0):
    with torch.autocast("cpu"):
        return solve(field, y0, [0.0, 1.0], **FAST).ys


@pytest.mark.parametrize("case", [
    with_time_gradients, with_hook, with_history, within_default_device, under_autocast,
    lambda field, y0: solve(lambda t, y: (field(t, y[0]),), (y0,), [0.0, 1.0], **FAST).ys[0],
    lambda field, y0: solve(field, y0, [0.0, 1.0], params=[field.net[0].bias], **FAST).ys,
    lambda field, y0: solve(field, y0, [0.0, 1.0], options={"jump_t": [0.5]}, **FAST).ys,
    lambda field, y0: solve(field, y0, [0.0, 1.0], options={"first_step": 0.1}, **FAST).ys,
    lambda field, y0: solve(field, y0, [0.0, 1.0], memory=100, **FAST).ys,
    lambda field, y0: torch.func.vjp(lambda y: solve(field, y, [0.0, 1.0], **FAST).ys, y0)[0],
])  # fmt: skip
def test_what_is_out_of_the_ordinary_gets_all_of_the_machinery(field, case, problems):
    case(field, torch.ones(3, requires_grad=True))
    assert len(problems) == 1


def test_more_steps_than_a_buffer_holds(field, monkeypatch, looped, problems):
    """The first such solve begins anew; later ones know."""
    monkeypatch.setattr(loops, "MOST", 3)
    counts = []
    for _ in range(2):
        looped.clear()
        solve(field, torch.ones(3), [0.0, 2.0], **FAST)
        counts.append(len(looped))
    assert counts[0] == counts[1] + 1 > 2 and len(problems) == 2


def test_limits_are_those_of_the_loop(field, problems):
    with pytest.raises(TooManyEvaluationsError, match="max_evals = 7"):
        solve(field, torch.ones(3), [0.0, 1.0], max_evals=7, **FAST)
    with pytest.raises(TooManyEvaluationsError, match="max_num_steps = 2"):
        solve(field, torch.ones(3), [0.0, 1.0], options={"max_num_steps": 2}, **FAST)
    assert len(problems) == 2


@pytest.mark.parametrize("times", [[0.0, 1.0], [0.0, 0.3, 0.9, 1.0]], ids=["end", "outputs"])
def test_second_derivatives_and_many_cotangents(field, times):
    found = []
    for compile in (False, True):
        y0 = torch.ones(3, requires_grad=True)
        ys = solve(field, y0, times, **FAST | {"compile": compile}).ys
        first = torch.autograd.grad(ys.square().sum(), [y0, *field.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [y0, *field.parameters()], retain_graph=True)
        bars = torch.eye(ys.numel()).reshape(-1, *ys.shape)
        found.append([*first, *second, *torch.autograd.grad(ys, y0, bars, is_grads_batched=True)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_graph_may_be_gone_through_twice_and_be_recomputed(field):
    y0 = torch.ones(3, requires_grad=True)
    ys = solve(field, y0, [0.0, 0.5, 1.0], **FAST).ys
    once, again = (torch.autograd.grad(ys.sum(), [y0, *field.parameters()], retain_graph=True) for _ in range(2))
    recomputed = checkpoint(lambda y: solve(field, y, [0.0, 0.5, 1.0], **FAST).ys, y0, use_reentrant=False)
    for a, b, c in zip(once, again, torch.autograd.grad(recomputed.sum(), [y0, *field.parameters()]), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_a_func_that_has_changed_by_the_backward_pass_is_an_error(field):
    ys = solve(field, torch.ones(3), [0.0, 0.5, 1.0], **FAST).ys
    field.net[0].weight.data.add_(0.1)
    with pytest.raises(ReplayError, match="func is not what it was"):
        ys.sum().backward()


def test_a_func_that_is_gone_by_the_backward_pass_is_no_matter(field):
    def solved(create_graph):
        func, y0 = type(field)(), torch.ones(3, requires_grad=True)
        func.load_state_dict(field.state_dict())
        ys = solve(func, y0, [0.0, 1.0], **FAST).ys
        del func
        gc.collect()
        (gradient,) = torch.autograd.grad(ys.sum(), y0, create_graph=create_graph)
        return gradient.detach()

    torch.testing.assert_close(solved(False), solved(True), rtol=1e-12, atol=1e-12)


def test_a_backward_loop_without_code_gives_way(field, monkeypatch):
    """The machinery replays the steps one by one then, and says so."""
    y0 = torch.ones(3, requires_grad=True)
    expected = torch.autograd.grad(solve(field, y0, [0.0, 1.0], **FAST).ys.sum(), y0)
    ys = solve(field, y0, [0.0, 1.0], **FAST).ys

    def refuse(*given, **keywords):
        raise one_call.NotCompilable("no")

    monkeypatch.setattr(loops.Loops, "backward", refuse)
    with pytest.warns(UserWarning, match="the loop over them is not"):
        found = torch.autograd.grad(ys.sum(), y0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", [
    lambda f: f.net[0].weight.data.mul_(1.5), lambda f: setattr(f.net[0], "weight", nn.Parameter(torch.ones(8, 3))),
    lambda f: f.net[2].requires_grad_(False), slow(lambda f: f.net.append(nn.Tanh())),
    lambda f: f.net.insert(2, nn.Sigmoid()),
], ids=["data", "replaced", "frozen", "appended", "inserted"])  # fmt: skip
def test_what_changes_between_solves_is_noticed(field, change, problems):
    results(field, torch.ones(3), [0.0, 1.0])
    change(field)
    y0, ends = torch.ones(3, requires_grad=True), []
    wanted = [y0, *(p for p in field.parameters() if p.requires_grad)]
    for compile in (True, False):
        assert compile is False or not problems
        end = solve(field, y0, [0.0, 1.0], **FAST | {"compile": compile}).ys[-1]
        ends.append([end, *torch.autograd.grad(end.sum(), wanted)])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_is_left_to_the_collector(field):
    def once():
        solve(field, torch.ones(3, requires_grad=True), [0.0, 0.5, 1.0], **FAST).ys.sum().backward()

    once()
    gc.collect()
    gc.disable()
    try:
        once()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = {type(thing) for thing in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kinds & {one_call.OneCall, LoopSolve, torch.Tensor}


@pytest.mark.parametrize("change", [
    lambda x: x.neg_(), lambda x: x.copy_(x.flip(0)), lambda x: x.view(-1)[:2].copy_(x.view(-1)[:2].flip(0)),
    lambda x: x.view(-1)[-1].mul_(2),
], ids=["sign", "order", "two entries", "the last entry"])  # fmt: skip
@pytest.mark.parametrize(("dtype", "count"), [
    (torch.float64, 3), (torch.float32, 70_001), (torch.float64, 2**16), (torch.complex128, 30_000),
    (torch.bfloat16, 5), (torch.bfloat16, 20_000), (torch.complex64, 5), (torch.int64, 7), (torch.int16, 20_000),
], ids=str)  # fmt: skip
def test_the_fingerprint_tells_what_autograd_does_not_see(change, dtype, count):
    tensors = torch.arange(1, count + 1).to(dtype), torch.ones(2)
    code = types.SimpleNamespace(others=[x.clone() for x in tensors])
    before = fingerprint(code)
    assert fingerprint(code) == before
    change(code.others[0].data)
    assert fingerprint(code) != before
    code.others[0].data.copy_(tensors[0])
    assert fingerprint(code) == before
    code.others[1].add_(0.0)  # of which autograd knows
    assert fingerprint(code) != before


@pytest.mark.parametrize("count", [3, 20_000])
def test_the_fingerprint_of_what_is_negative_by_a_bit(count):
    z = torch.arange(1, count + 1) * (1 + 2j)
    code = types.SimpleNamespace(others=[z.conj().imag])
    assert code.others[0].is_neg()
    before = fingerprint(code)
    z.data[-1] = 1j
    assert fingerprint(code) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.float32], ids=str)
def test_the_fingerprint_of_a_view_with_strides(dtype):
    x = torch.ones(8, dtype=dtype)
    code = types.SimpleNamespace(others=[x[::2]])
    before = fingerprint(code)
    x.data[2] = 2
    assert fingerprint(code) != before


def test_a_change_that_leaves_the_norm_is_noticed():
    w = torch.tensor([0.6, -0.8, 0.3], dtype=torch.float64, requires_grad=True)
    end = solve(lambda t, y: torch.tanh(w * y), torch.ones(3, dtype=torch.float64), [0.0, 1.0], **FAST).ys[-1]
    w.data.neg_()
    with pytest.raises(ReplayError):
        torch.autograd.grad(end.sum(), w)
