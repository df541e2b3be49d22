"""Rows that take their own steps, with the loop over their tries compiled: as without, and a way out that is told."""

import math
import warnings

import pytest
import torch

from tests.torch_ACA.test_compiled_loop import slow
from torch_ACA import ReplayError, SolverError, methods, solve, solve_event
from torch_ACA.compilation import generate, loops, row_loops
from torch_ACA.compilation.func_graph import FuncGraph

pytestmark = [
    pytest.mark.loops, pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated"),
]  # fmt: skip
METHOD = {"method": "RK23", "rtol": 1e-4, "atol": 1e-6, "per_sample": True, "memory": "states"}
NAN = math.nan
TIMES = [[0.0, 0.4, 0.41, 3.0], [0.5, 0.6, NAN, NAN], [2.0, 1.9, 1.0, 0.5], [0.7, 0.7, NAN, NAN]]


@pytest.fixture
def looped(monkeypatch):
    """The compiled loops that were run."""
    calls = []
    for kind, name in ((row_loops.RowLoops, "run"), (loops.Loops, "backward")):
        method = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *a, f=method, n=name: (calls.append(n), f(*a))[1])
    return calls


class Oscillators(torch.nn.Module):
    """Rows of different speeds, driven, with a parameter for each row and one for all. y [b, 2]."""

    def __init__(self, *speeds):
        super().__init__()
        self.speeds = torch.nn.Parameter(torch.tensor(speeds, dtype=torch.float64)[:, None])
        self.damping = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t, y):
        return self.speeds * torch.cat([y[:, 1:], -torch.sin(y[:, :1])], 1) - self.damping * y + torch.cos(3 * t)


def start(b):
    return torch.linspace(-1, 2, 2 * b, dtype=torch.float64).reshape(b, 2).requires_grad_()


def results(func, y0, times, **keywords):
    solution = solve(func, y0, times, **METHOD | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel(), dtype=torch.float64).reshape(solution.ys.shape)
    wanted = [y0, *func.parameters()] + ([times] if getattr(times, "requires_grad", False) else [])
    return [solution.ys.detach(), *torch.autograd.grad((weights * solution.ys).nansum(), wanted)], solution.stats


def assert_as_eager(*arguments, **keywords):
    (eager, counts), (found, compiled_counts) = (results(*arguments, **keywords, compile=c) for c in (False, True))
    for a, b in zip(eager, found, strict=True):
        atol = 1e-12 * max(1.0, float(a.nan_to_num().abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)
    for name in ("n_accepted", "n_rejected"):
        assert getattr(counts, name).tolist() == getattr(compiled_counts, name).tolist()
    return counts, compiled_counts


@pytest.mark.parametrize("times", [
    [0.0, 2.0],
    torch.tensor([[0.0, 0.1, 0.2, 0.7, 3.0], [0.5, 0.6, 1.0, NAN, NAN], [2.0, 1.9, 1.0, 0.5, 0.0]]),
    slow(torch.tensor([[0.0, 1.0], [1.0, -1.0], [0.0, 0.0]])),
], ids=["end", "outputs of their own", "directions"])  # fmt: skip
def test_agrees_with_rows_as_they_are(times, looped):
    """Rows of 0.3 to 20 turns a unit; buffers that fill up on the way; rows that wait for others."""
    counts, compiled_counts = assert_as_eager(Oscillators(0.3, 3.0, 20.0), start(3), times)
    assert {"run", "backward"} == set(looped)
    assert counts.n_accepted.max() > 2 * counts.n_accepted.min() and counts.n_rejected.sum() > 0
    assert counts.n_backward_f_evals == compiled_counts.n_backward_f_evals


def test_buffers_that_are_too_small_are_followed_by_others(monkeypatch, looped):
    monkeypatch.setattr(loops, "MOST", 5)
    times = torch.tensor([[0.0, 0.3, 0.31, 0.32, 1.0], [0.0, 0.9, 0.95, 0.99, 3.0]])
    assert_as_eager(Oscillators(0.3, 20.0), start(2), times)
    assert looped.count("backward") > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in methods if type(methods.get(name)).__name__ == "Tableau"
                                  and methods.get(name).adaptive])  # fmt: skip
def test_every_adaptive_explicit_method(name, looped):
    assert_as_eager(Oscillators(0.3, 5.0), start(2), [0.0, 0.2, 1.0, 1.5], method=name)
    assert "backward" in looped


@pytest.mark.parametrize("method", ["HeunEuler", slow("fehlberg2"), slow("Dopri5")])
def test_outputs_inside_the_last_step(method, looped):
    """With methods that give dense output without the slope at the end, and with it."""
    assert_as_eager(Oscillators(0.3, 2.0), start(2), [0.0, 0.5, 0.9999, 1.0], method=method)
    assert "backward" in looped


@pytest.mark.parametrize("options", [
    {"beta": 0.04, "max_step": 0.2}, slow({"min_step": 0.05}), slow({"first_step": 3.0}), slow({"interp": "cubic"}),
], ids=lambda options: next(iter(options)))  # fmt: skip
def test_controllers_and_interpolants(options, looped):
    if "interp" in options:
        options = options | {"max_step": 0.05}
    assert_as_eager(Oscillators(1.0, 20.0), start(2), [0.0, 0.3, 1.0], options=options)
    assert "backward" in looped


@pytest.mark.parametrize("time_grad", [True, slow(False)])
@pytest.mark.parametrize("method", ["RK23", slow("HeunEuler"), slow("Dopri5")])
def test_outputs_at_the_start_of_a_row_whose_first_tries_are_rejected(method, time_grad, looped, monkeypatch):
    """They lie in its first step, not in a try before that; in buffers that hold rejected tries alone, too."""
    monkeypatch.setattr(loops, "MOST", 2)
    times = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, NAN]], dtype=torch.float64)
    counts, _ = assert_as_eager(
        Oscillators(20.0, 3.0, 9.0), start(3), times.requires_grad_(time_grad), method=method,
        options={"first_step": 0.9},
    )  # fmt: skip
    assert counts.n_rejected.min() > 1 and "backward" in looped


@pytest.mark.parametrize("times", [
    [[0.0, 0.4, 0.41, 3.0], [0.5, 0.6, NAN, NAN], [2.0, 1.9, 1.0, 0.5], [0.7, NAN, NAN, NAN]],
    slow([0.0, 0.3, 0.9999, 1.0]), slow([[0.0, 1.0], [1.0, -1.0], [0.5, 0.5], [0.0, 3.0]]),
], ids=["outputs of their own", "one for all", "ends"])  # fmt: skip
@pytest.mark.parametrize("method", ["RK23", slow("HeunEuler"), slow("fehlberg2"), slow("Dopri5"), slow("dopri8")])
def test_gradients_in_times(method, times, looped, monkeypatch):
    """In several buffers."""
    monkeypatch.setattr(loops, "MOST", 5)
    times = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    assert_as_eager(Oscillators(0.3, 3.0, 8.0, 1.0), start(4), times, method=method)
    assert looped.count("backward") > 1


def test_rows_do_not_feel_their_batch_mates():
    """To rounding: generated code may compute entries that are alone in another way than many."""
    y0, speeds, times = start(3), (0.3, 3.0, 20.0), [0.0, 0.4, 2.0]
    together = solve(Oscillators(*speeds), y0, times, compile=True, **METHOD)
    for row, speed in enumerate(speeds):
        alone = solve(Oscillators(speed), y0[row : row + 1], times, compile=True, **METHOD)
        torch.testing.assert_close(together.ys[:, row], alone.ys[:, 0], rtol=1e-12, atol=1e-12)
        assert together.stats.n_accepted[row] == alone.stats.n_accepted[0]


class Exploding(Oscillators):
    def forward(self, t, y):
        return self.speeds * y * y - 1e-3 * self.damping * y


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"max_num_steps": 60}, {}], ids=["steps", "size"])
def test_rows_that_fail_are_told_as_by_rows_as_they_are(options):
    """Row 1 goes to infinity at t = 1."""
    y0, errors = torch.tensor([[0.1, 0.2], [1.0, 1.0]], dtype=torch.float64, requires_grad=True), []
    for compile in (False, True):
        with pytest.raises(SolverError, match="row 1") as caught:
            solve(Exploding(1.0, 1.0), y0, [0.0, 2.0], compile=compile, options=options, **METHOD)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
    assert_as_eager(Exploding(1.0, 1.0), y0, [0.0, 0.5, 2.0], on_failure="return", options=options)


@pytest.mark.parametrize("limit", [{"max_evals": 100}, {"options": {"max_num_steps": 20}}], ids=["evals", "steps"])
def test_limits_are_those_of_rows_as_they_are(limit):
    errors = []
    for compile in (False, True):
        with pytest.raises(SolverError) as caught:
            solve(Oscillators(0.3, 20.0), start(2), [0.0, 5.0], compile=compile, **METHOD | limit)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_second_derivatives_take_the_accepted_steps_again():
    func, y0, found = Oscillators(0.3, 5.0), start(2), []
    for compile in (False, True):
        ys = solve(func, y0, [0.0, 0.4, 1.0], compile=compile, **METHOD).ys
        (first,) = torch.autograd.grad(ys[1:].square().sum(), y0, create_graph=True)
        found.append([first.detach(), *torch.autograd.grad(first.sum(), (y0, *func.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", ["RK23", slow("Rodas5P")])
def test_data_of_rows_as_arguments(method, looped, monkeypatch):
    """Tensors with a history, new ones for every solve, as in a recurrent model: one graph of func serves them all."""
    graphs, init = [], FuncGraph.__init__
    monkeypatch.setattr(FuncGraph, "__init__", lambda self, *a: (graphs.append(self), init(self, *a))[1])
    encoder, field = (torch.nn.Linear(2, 2, dtype=torch.float64) for _ in range(2))
    inputs, found = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(3, 3, 2), []
    times = torch.tensor([[0.0, 0.2, 1.0], [0.0, 1.0, NAN], [0.5, 0.0, -1.0]], dtype=torch.float64)
    for compile in (False, True):
        y, all_ys = start(3), []
        for given in inputs:
            context = encoder(given)
            solution = solve(
                lambda t, y, c: torch.tanh(field(y)) * c - t * y, y, times, args=(context,), compile=compile,
                **METHOD | {"method": method},
            )  # fmt: skip
            y = solution.ys[1] + context
            all_ys.append(solution.ys)
        loss = torch.stack(all_ys).square().nansum()
        found.append([loss.detach(), *torch.autograd.grad(loss, [*encoder.parameters(), *field.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert len(graphs) == 1 and looped.count("run") == 3 == looped.count("backward")


def test_what_changes_between_forward_and_backward_is_noticed():
    func, y0 = Oscillators(0.3, 5.0), start(2)
    ys = solve(func, y0, [0.0, 1.0], compile=True, **METHOD).ys
    func.speeds.data.mul_(1.1)
    with pytest.raises(ReplayError, match="func is not what it was"):
        ys.sum().backward()


def test_events_of_rows(looped):
    func, y0, found = Oscillators(1.0, 2.0), start(2), []
    for compile in (False, True):
        keywords = METHOD | {"event_fn": lambda t, y: t[:, 0] - 0.3 - 0.1 * y[:, 0], "compile": compile}
        times, states = solve_event(func, y0, 0.0, **keywords)[:2]
        gradients = torch.autograd.grad(times.sum() + states.sum(), (y0, *func.parameters()))
        found.append([times.detach(), states.detach(), *gradients])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


class Pushed(Oscillators):
    """Pushed from 0.55 to 1.5, and from 1.95 on."""

    def forward(self, t, y):
        on = (t >= 0.55) & (t < 1.5) | (t >= 1.95)
        return super().forward(t, y) + torch.where(on, 2.0 * torch.sin(t) * self.damping, 0.0)


LANDINGS = {
    "outputs": {"land_on_t": True}, "others": {"step_t": [0.45, 0.9, 1.0]},
    "both": {"step_t": [0.5], "land_on_t": True},
    "jumps": {"jump_t": [0.55, 1.5, 1.95]}, "jumps and others": {"jump_t": [0.55, 1.5, 1.95], "step_t": [0.3, 0.5]},
    "jumps and outputs": {"jump_t": [0.55, 1.5, 1.95], "land_on_t": True},
}  # fmt: skip


@pytest.mark.parametrize(("method", "landings"), [
    (method, landings) if method == "RK23" and landings in ("both", "jumps and outputs") else slow(method, landings)
    for method in ("RK23", "HeunEuler", "fehlberg2", "Dopri5", "dopri8", "Rodas5P") for landings in LANDINGS
])  # fmt: skip
def test_times_to_land_on(method, landings, looped, monkeypatch):
    """Each row has stops of its own, also on its way back in time; in several buffers, with gradients in times."""
    monkeypatch.setattr(loops, "MOST", 7)
    times, options = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True), LANDINGS[landings]
    func = (Pushed if "jump_t" in options else Oscillators)(0.3, 3.0, 8.0, 1.0)
    counts, compiled_counts = assert_as_eager(func, start(4), times, method=method, options=options)
    assert looped.count("backward") > 1
    # the loop evaluates first slopes behind every try where a method does not end on them, and lets rows wait at jumps
    if method in ("RK23", "Dopri5") and "jump_t" not in options:
        assert counts.n_f_evals == compiled_counts.n_f_evals


@pytest.mark.parametrize("times", [[0.55, 0.8, 1.5], slow([1.5, 1.0, 0.55])], ids=["onwards", "back"])
@pytest.mark.parametrize("method", [slow("RK23"), "Dopri5", slow("Rodas5P")])
def test_jumps_at_both_ends(method, times, looped):
    options = {"jump_t": [0.55, 1.5], "first_step": 0.2}
    times = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    assert_as_eager(Pushed(0.3, 3.0), start(2), times, method=method, options=options)
    assert "backward" in looped


@pytest.mark.parametrize("method", [slow("RK23"), "Dopri5"])
def test_outputs_inside_a_step_that_ends_on_a_jump(method, looped):
    """They weigh the slope on this side of the jump, which is no slope of the next step."""
    options, times = {"jump_t": [0.55, 1.5, 1.95], "first_step": 0.1}, [0.0, 0.549, 0.5499, 1.0, 1.499, 2.0]
    times = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    assert_as_eager(Pushed(0.3, 3.0), start(2), times, method=method, options=options)
    assert "backward" in looped


@pytest.mark.slow
def test_jumps_in_single_precision(looped):
    """The next time beside a jump is one of the state's own precision."""
    func, y0, found = Pushed(0.3, 3.0).float(), start(2).detach().float().requires_grad_(), []
    for compile in (False, True):
        keywords = METHOD | {"options": {"jump_t": [0.55, 1.5, 1.95]}, "compile": compile}
        solution = solve(func, y0, [0.0, 1.0, 2.0], **keywords)
        bars = torch.autograd.grad(solution.ys.square().sum(), (y0, *func.parameters()))
        found.append([solution.ys.detach(), solution.stats.n_accepted, *bars])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)  # of some 100 steps
    assert "backward" in looped


@pytest.mark.parametrize(("memory", "is_looped"), [("1GiB", True), (60, True), ("20kB", True), (6, False)])
@pytest.mark.filterwarnings("default:compile=True")
def test_memory(memory, is_looped, looped):
    """Rows go back as they are where not all states are held, which is told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_as_eager(Oscillators(0.3, 3.0), start(2), [0.0, 0.4, 1.0], memory=memory)
    assert ("backward" in looped) == is_looped and "run" in looped
    told = [str(warning.message) for warning in caught if "rows go back as they are" in str(warning.message)]
    assert len(told) == (not is_looped) and all("memory has no room" in text for text in told)


@pytest.mark.filterwarnings("default:compile=True")
def test_what_cannot_be_compiled_runs_as_it_is():
    func, y0 = Oscillators(0.3, 1.0), start(2)

    def jac(t, y):
        whole = torch.autograd.functional.jacobian(lambda x: func(t, x), y)
        return torch.stack([whole[row, :, row] for row in range(2)])

    keywords = {"method": "Rodas5P", "jac": jac}
    with pytest.warns(UserWarning, match="for Oscillators rows are solved as they are .jac was given"):
        found = [solve(func, y0, [0.0, 1.0], compile=compile, **METHOD | keywords).ys for compile in (False, True)]
    assert torch.equal(*found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(func, y0, [0.0, 1.0], compile=True, **METHOD | keywords)


@pytest.mark.slow
def test_generated_loops(monkeypatch, looped):
    monkeypatch.setattr(generate, "BACKEND", "inductor")
    y0 = start(3)
    times = torch.tensor([0.0, 0.4, 2.0], requires_grad=True)
    assert_as_eager(Oscillators(0.3, 3.0, 20.0), y0, times, method="Dopri5")
    assert "backward" in looped


class Nested(Oscillators):
    """The same with a second part of the state, of two axes, and a third of none."""

    def forward(self, t, state):
        y, (matrix, z) = state["y"], state["more"]
        slope = super().forward(t, y)
        third = y[:, 0] - self.speeds[:, 0] * self.damping * z + torch.sin(t[:, 0])
        return {"y": slope, "more": (torch.cos(t)[..., None] * matrix.mT - slope[:, None], third)}


@pytest.mark.parametrize("method", ["RK23", slow("Dopri5"), slow("HeunEuler"), slow("Rodas5P")])
def test_nested_states(method, looped):
    def grads(compile):
        func, b, times = Nested(0.3, 3.0, 8.0), 3, torch.tensor([[0.0, 0.4, 2.0]] * 3, dtype=torch.float64)
        parts = [torch.linspace(-1, 1, b * n, dtype=torch.float64) for n in (2, 4, 1)]
        y0 = {"y": parts[0].view(b, 2), "more": (parts[1].view(b, 2, 2), parts[2])}
        leaves = [leaf.requires_grad_() for leaf in (y0["y"], *y0["more"], times)]
        solution = solve(func, y0, times, compile=compile, **METHOD | {"method": method})
        ys = [solution.ys["y"], *solution.ys["more"]]
        loss = sum((y * torch.linspace(1, 2, y.numel(), dtype=torch.float64).view_as(y)).sum() for y in ys)
        bars = torch.autograd.grad(loss, [*leaves, *func.parameters()])
        return [*ys, *bars], solution.stats

    (eager, counts), (found, compiled_counts) = grads(False), grads(True)
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, float(a.detach().abs().max())))
    assert counts.n_accepted.tolist() == compiled_counts.n_accepted.tolist()
    assert "backward" in looped
