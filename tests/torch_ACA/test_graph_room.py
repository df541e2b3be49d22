"""The room that all solves share for the graphs of their steps: who takes, who gives back, and what that changes."""

import functools
import gc
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from torch_ACA import solve
from torch_ACA.errors import ReplayError
from torch_ACA.evaluation import Evaluation
from torch_ACA.gradients.graph_room import SHARED_GRAPHS, GraphRoom
from torch_ACA.gradients.storage import SMALL_GRAPHS, Budget

ROWS, WIDTH = 32, 16
ROOM_FOR_SOME = 1_200_000  # bytes; a solve below takes 15 steps, the graph of one 220 to 350 KB
A_STEP = 6  # evaluations, of the last step, which is made again


@pytest.fixture
def field():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, 64), torch.nn.Tanh(), torch.nn.Linear(64, WIDTH)).double()


def solution(field, memory, **keywords):
    y0 = torch.linspace(-1, 1, ROWS * WIDTH, dtype=torch.float64).reshape(ROWS, WIDTH).requires_grad_()
    found = solve(
        lambda t, y: field(y), y0, [0.0, 3.0], method="Dopri5", rtol=1e-9, atol=1e-9, memory=memory, **keywords
    )
    return found, lambda: torch.autograd.grad(found.ys.square().sum(), [y0, *field.parameters()])


def with_room(n_bytes):
    return Budget(n_bytes=0, spare=1, room=GraphRoom(n_bytes))


@pytest.mark.parametrize("keywords", [{}, {"per_sample": True}], ids=["joint", "rows"])
@pytest.mark.parametrize("n_bytes", [0, ROOM_FOR_SOME, 10**9])
def test_the_gradient_is_that_without_graphs(field, keywords, n_bytes):
    """In all graphs, in some, and in none; to the last bit, but for the sums over rows of kept tries."""
    expected = solution(field, "states", **keywords)[1]()
    memory = with_room(n_bytes)
    found, backward = solution(field, memory, **keywords)
    gradient = backward()
    for one, other in zip(gradient, expected):
        if keywords:
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
        else:
            assert torch.equal(one, other)
    again, most = found.stats.n_backward_f_evals, evaluations_without_graphs(field, keywords)
    expected = {0: again == most, ROOM_FOR_SOME: A_STEP < again < most, 10**9: 0 < again <= A_STEP}
    assert expected[n_bytes], (again, most)
    assert memory.room.free == n_bytes


def evaluations_without_graphs(field, keywords):
    found, backward = solution(field, "states", **keywords)
    backward()
    return found.stats.n_backward_f_evals


@pytest.mark.parametrize("keywords", [{}, {"per_sample": True}], ids=["joint", "rows"])
def test_solves_that_wait_share_and_give_back(field, keywords):
    memory = with_room(10**9)
    solves = [solution(field, memory, **keywords)]
    alone = memory.room.n_bytes - memory.room.free
    assert alone > 0
    memory = Budget(n_bytes=0, spare=1, room=GraphRoom(int(1.5 * alone)))
    solves = [solution(field, memory, **keywords) for _ in range(4)]
    assert memory.room.free < 0.1 * alone  # less than the graph of a step of 15
    for _, backward in solves:
        backward()
    counts = [found.stats.n_backward_f_evals for found, _ in solves]
    assert counts[0] <= A_STEP < counts[1] < counts[2] == counts[3], counts
    assert memory.room.free == memory.room.n_bytes


def test_a_solve_that_is_forgotten_gives_back(field):
    memory = with_room(10**9)
    kept = solution(field, memory)
    assert memory.room.free < 10**9
    del kept
    gc.collect()
    assert memory.room.free == 10**9


@pytest.mark.parametrize("keywords", [{}, {"per_sample": True}], ids=["joint", "rows"])
@pytest.mark.parametrize("back", [False, True])
def test_others_take_the_room_in_the_middle_of_a_solve(field, keywords, back):
    """As another thread may, or a solve inside of func; and give it back, which brings no graphs behind the gap."""
    memory, calls = with_room(10**9), []
    others = memory.room.share()

    def func(y):
        calls.append(1)
        if len(calls) == 40:
            others.take(memory.room.free)
        if len(calls) == 70 and back:
            others.end()
        return field(y)

    expected = solution(field, "states", **keywords)[1]()
    found, backward = solution(func, memory, **keywords)
    gradient = torch.autograd.grad(found.ys.square().sum(), list(field.parameters()))
    again = found.stats.n_backward_f_evals
    assert len(calls) > 80 and A_STEP < again < evaluations_without_graphs(field, keywords)
    for one, other in zip(gradient, expected[1:]):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_nothing_is_taken_without_gradients(field):
    memory = with_room(10**9)
    with torch.no_grad():
        solution(field, memory)
    assert memory.room.free == 10**9


def test_the_default_has_it():
    assert SMALL_GRAPHS.room is SHARED_GRAPHS and Budget.of(None) is SMALL_GRAPHS
    assert Budget.of("states").room is None and Budget.of("unlimited").room is None


def test_threads_do_not_take_more_than_there_is():
    room, shares = GraphRoom(1000), []

    def take():
        share = room.share()
        shares.append((share, sum(share.take(1) for _ in range(400))))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken for _, taken in shares) == 1000 and room.free == 0
    for share, _ in shares:
        share.end()
        share.end()  # has nothing left to give
    assert room.free == 1000


@pytest.mark.parametrize("keywords", [{}, {"per_sample": True}], ids=["joint", "rows"])
@pytest.mark.parametrize("n_bytes", [10**6, 10**9])
def test_a_checkpoint_around_the_solve_finds_the_same_again(field, keywords, n_bytes):
    """It makes the solve again while the first one still is there, and wants as many tensors to be saved."""
    memory = with_room(n_bytes)

    def block(y):
        return solve(
            lambda t, y: field(y), y, [0.0, 3.0], method="Dopri5", rtol=1e-9, atol=1e-9, memory=memory, **keywords
        ).ys[-1]

    y0 = torch.linspace(-1, 1, ROWS * WIDTH, dtype=torch.float64).reshape(ROWS, WIDTH).requires_grad_()
    expected = torch.autograd.grad(block(block(y0)).sum(), y0)
    segments = checkpoint(block, checkpoint(block, y0, use_reentrant=False), use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(segments.sum(), y0), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("keywords", [{}, {"per_sample": True}], ids=["joint", "rows"])
@pytest.mark.parametrize("n_bytes", [ROOM_FOR_SOME, 10**9])
def test_weights_that_change_behind_autograd_are_noticed(field, keywords, n_bytes):
    """`.data` is not watched by autograd; the step that is made again tells."""
    found, backward = solution(field, with_room(n_bytes), **keywords)
    field[0].weight.data.mul_(1.1)
    with pytest.raises(ReplayError):
        backward()


class Broken(torch.autograd.Function):
    """The identity, whose backward pass is broken off at the tenth evaluation."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, bar):
        Broken.calls += 1
        if Broken.calls == 10:
            raise KeyboardInterrupt
        return bar


@pytest.mark.parametrize("keywords", [{}, {"per_sample": True}], ids=["joint", "rows"])
def test_a_backward_pass_that_is_broken_off_gives_back(field, keywords):
    """The graphs go too, though the solution stays."""
    memory = with_room(10**9)
    field[0].register_forward_hook(lambda module, inputs, output: Broken.apply(output))
    found, backward = solution(field, memory, **keywords)
    Broken.calls = 0
    assert memory.room.free < 10**9 and live_evaluations() > 20
    with pytest.raises(KeyboardInterrupt):
        backward()
    assert memory.room.free == 10**9 and live_evaluations() == 0


def test_rows_that_fail_give_back(field):
    memory, fails = with_room(10**9), torch.arange(ROWS)[:, None] == 3
    y0 = torch.linspace(-1, 1, ROWS * WIDTH, dtype=torch.float64).reshape(ROWS, WIDTH).requires_grad_()

    def func(t, y):
        return torch.where(fails & (t > 1.5), torch.nan, field(y))

    found = solve(func, y0, [0.0, 1.0, 3.0], per_sample=True, on_failure="return", memory=memory, rtol=1e-7, atol=1e-7)
    assert memory.room.free == 10**9 and live_evaluations() == 0
    assert torch.isfinite(torch.autograd.grad(found.ys[1].sum(), y0)[0]).all()


@pytest.mark.parametrize("keywords", [
    {}, {"memory": "states"}, {"memory": "unlimited"}, {"gradient": "direct"}, {"per_sample": True},
    {"gradient": "adjoint"}, {"method": "Rodas5P"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("selective", [False, True])
def test_a_checkpoint_runs_a_solve_again_once(keywords, selective):
    """Each graph that is made within it would make it run once more."""
    if selective and "method" in keywords:
        pytest.skip("Rodas5P differentiates func in the forward pass, which a selective checkpoint does not allow")
    calls, net = [], torch.nn.Linear(2, 2)

    def func(t, y):
        calls.append(1)
        return torch.tanh(net(y))

    def solved(y0):
        return solve(func, y0, [0.0, 1.0], **{"options": {"max_step": 0.1}} | keywords).ys

    y0 = torch.ones(3, 2, requires_grad=True)
    expected = torch.autograd.grad(solved(y0).sum(), [y0, *net.parameters()])
    policy = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    calls.clear()
    ys = checkpoint(solved, y0, use_reentrant=False, **({"context_fn": policy} if selective else {}))
    n_forward = len(calls)
    found = torch.autograd.grad(ys.sum(), [y0, *net.parameters()])
    assert len(calls) <= (4 if keywords.get("gradient") == "adjoint" else 3) * n_forward
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def live_evaluations():
    gc.collect()
    return sum(isinstance(thing, Evaluation) for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_what_is_counted_is_what_graphs_take():
    """Of 2,000 steps of a small func, in a process of its own: nodes and objects count, not numbers alone."""
    done = subprocess.run([sys.executable, "-c", RESIDENT], check=True, capture_output=True, text=True)
    resident, counted = map(float, done.stdout.split())
    assert 0.6 < counted / resident < 1.6


RESIDENT = """
import torch
from torch_ACA import solve
from torch_ACA.gradients.graph_room import GraphRoom
from torch_ACA.gradients.storage import Budget

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

w = torch.tensor(0.5, requires_grad=True)
func = lambda t, y: torch.stack([y[1], -torch.sin(y[0]) - w * y[1] * 0.01])
y0, room = torch.tensor([1.0, 0.0], requires_grad=True), GraphRoom(10**9)
run = lambda n, memory: solve(func, y0, [0.0, 10.0], method="RK4", h=10 / n, memory=memory, max_evals=10**6)
run(10, "unlimited")
states = resident()
with_states = run(2000, "states")
states = resident() - states
graphs = resident()
with_graphs = run(2000, Budget(n_bytes=0, spare=1, room=room))
print(resident() - graphs - states, room.n_bytes - room.free)
"""
