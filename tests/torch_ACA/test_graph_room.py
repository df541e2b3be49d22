"""The room that all solves share for the graphs of their steps: who takes, who gives back, and what that changes."""

import gc
import threading

import pytest
import torch

from torch_ACA import solve
from torch_ACA.gradients.graph_room import SHARED_GRAPHS, GraphRoom
from torch_ACA.gradients.storage import SMALL_GRAPHS, Budget

ROWS, WIDTH = 32, 16
ROOM_FOR_ONE = 400_000  # bytes; the graph of a step of a solve below takes 143 KB


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
@pytest.mark.parametrize("n_bytes", [0, ROOM_FOR_ONE, 10**9])
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
    assert {0: again == most, ROOM_FOR_ONE: 0 < again < most, 10**9: again == 0}[n_bytes], (again, most)
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
    assert memory.room.free < 0.2 * alone  # less than a step's graph
    for _, backward in solves:
        backward()
    counts = [found.stats.n_backward_f_evals for found, _ in solves]
    assert counts[0] == 0 < counts[1] < counts[2] == counts[3], counts
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
    assert len(calls) > 80 and 0 < again < evaluations_without_graphs(field, keywords)
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
