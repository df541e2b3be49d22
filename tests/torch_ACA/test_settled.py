"""func is what it was in each of several solves, where one backward pass comes after them."""

import collections
import gc
import types
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from torch_ACA import ReplayError, solve

RUNS = [
    {"memory": "states"}, {"memory": 2}, {"gradient": "direct"}, {"gradient": "adjoint"},
    {"gradient": "mali", "method": "ALF"}, {"method": "Rodas5P", "memory": "states"},
]  # fmt: skip
OF_HISTORIES = [{}, *RUNS, {"gradient": "naive"}, {"per_sample": True}, {"per_sample": True, "memory": "states"}]
T = [0.0, 0.7, 2.0]
FLAG = 3.0


@dataclass
class Config:
    u: float = 0.0


@dataclass(slots=True)
class Slotted:
    u: float = 0.0


class Unreferenced(Slotted):
    """No slot for weak references here either; a name of its own class; one slot empty."""

    __slots__ = ("__own", "empty")

    def __init__(self):
        super().__init__()
        self.__own = 0.0

    def set(self, u):
        self.__own = u

    def get(self):
        return self.__own


class Control(nn.Module):
    """A term that a gate of zero hides from the values: its control ``u`` is in the gradient alone."""

    shared = 0.0

    def __init__(self):
        super().__init__()
        self.config, self.settings, self.listed, self.u = Config(), {"u": 0.0}, [0.0], 0.0
        self.space, self.slotted, self.unreferenced = types.SimpleNamespace(u=0.0), Slotted(), Unreferenced()
        self.register_buffer("buffered", torch.zeros((), dtype=torch.float64))

    def forward(self, y):
        own = self.u + self.config.u + self.settings["u"] + self.listed[0] + self.space.u + self.buffered + self.shared
        slotted = self.slotted.u + self.unreferenced.get() + getattr(self.unreferenced, "empty", 0.0)
        return (own + slotted + FLAG + getattr(self, "late", 0.0)) * y


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.control, self.gate = Control(), nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return torch.sin(y) * torch.cos(t) + self.gate * self.control(y)


def attribute(func, u):
    func.control.u = u


def of_numpy(func, u):
    func.control.u = np.float64(u)


def tensor(func, u):
    func.control.u = torch.tensor(u, dtype=torch.float64)


def of_object(func, u):
    func.control.config.u = u


def of_slot(func, u):
    func.control.slotted.u = u


def of_own_slot(func, u):
    func.control.unreferenced.set(u)


def of_empty_slot(func, u):
    func.control.unreferenced.empty = u


def of_namespace(func, u):
    func.control.space.u = u


def entry(func, u):
    func.control.settings["u"] = u


def listed(func, u):
    func.control.listed[0] = u


def buffer(func, u):
    func.control.buffered = torch.tensor(u, dtype=torch.float64)


def of_class(func, u):
    Control.shared = u


def of_module(func, u):
    globals()["FLAG"] = u


def added(func, u):
    if u > 0:
        func.control.late = u
    elif hasattr(func.control, "late"):
        del func.control.late


WAYS = [
    attribute, of_numpy, tensor, of_object, of_slot, of_own_slot, of_empty_slot, of_namespace, entry, listed, buffer,
    of_class, of_module, added,
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_before():
    yield
    Control.shared, globals()["FLAG"] = 0.0, 3.0


def gradient(change, **keywords):
    """Of solves with other controls, in a loop; and what is there after the backward pass."""
    torch.manual_seed(0)
    func, y, loss = Gated(), torch.randn(40, dtype=torch.float64), 0
    for weight, u in ((1, 3.0), (2, -1.0), (3, 2.0)):
        change(func, u)
        loss = loss + weight * solve(func, y, T, rtol=1e-5, atol=1e-5, **keywords).ys[-1].square().mean()
    change(func, 7.0)
    func.calls = 0  # as programs count the evaluations of a backward pass
    state = {name: str(vars(part)) for name, part in func.named_modules()}
    loss.backward()
    counted = func.calls
    func.calls = 0
    assert {name: str(vars(part)) for name, part in func.named_modules()} == state
    return func.gate.grad.item(), counted


@pytest.mark.parametrize(("change", "keywords"), [
    *((change, RUNS[0]) for change in WAYS), *((attribute, keywords) for keywords in RUNS[1:]), (tensor, RUNS[3]),
], ids=lambda value: getattr(value, "__name__", str(value)))  # fmt: skip
def test_each_solve_has_its_own(change, keywords):
    exact, _ = gradient(change, gradient="direct", method=keywords.get("method", "Dopri5").replace("ALF", "Dopri5"))
    found, counted = gradient(change, **keywords)
    # the adjoint and other methods have errors of 1e-5; the controls make up more than half of the gradient
    assert found == pytest.approx(exact, rel=1e-3)
    assert counted > 0 or keywords.get("gradient") == "direct"


def test_what_func_changes_itself_stays_as_it_is_by_then():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.calls = nn.Parameter(torch.ones((), dtype=torch.float64)), 0

        def forward(self, t, y):
            self.calls += 1
            return -self.w * y

    func = Counting()
    end = solve(func, torch.ones(3, dtype=torch.float64), T, memory="states").ys[-1]
    func.calls = 1000
    end.sum().backward()
    assert func.calls > 1000


def test_a_flag_that_changes_the_derivative_alone():
    class Stopped(nn.Module):
        stop = True

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, t, y):
            z = self.w * y
            return torch.sin(z.detach() if self.stop else z) - z

    def gradient(stop):
        func, y = Stopped(), torch.linspace(-1, 1, 40, dtype=torch.float64)
        end = solve(func, y, T, memory="states").ys[-1]
        func.stop = stop
        end.square().mean().backward()
        assert func.stop is stop
        return func.w.grad

    assert torch.equal(gradient(True), gradient(False))


def test_a_backward_pass_that_fails_puts_all_back():
    func = Gated()
    func.control.u = 1.0
    end = solve(func, torch.ones(3, dtype=torch.float64), T, memory="states").ys[-1]
    func.control.u = 2.0
    func.gate.data.fill_(1.0)
    with pytest.raises(RuntimeError):
        end.sum().backward()
    assert func.control.u == 2.0


def test_a_module_that_holds_its_solution_is_freed():
    func = Gated()
    func.control.u = 1.0
    func.settings = {"solution": solve(func, torch.ones(3, dtype=torch.float64), T, memory="states")}
    alive = weakref.ref(func)
    del func
    gc.collect()
    assert alive() is None


class Owner:
    """An object, but no module."""


WHERE = {  # what func closes over, and where the history is in it
    "itself": lambda history: (history, lambda place: place),
    "module": lambda history: (with_attribute(nn.Module(), history), lambda place: place.history),
    "object": lambda history: (with_attribute(Owner(), history), lambda place: place.history),
    "deep": lambda history: (with_attribute(nn.Module(), {"of": [history]}), lambda place: place.history["of"][0]),
}


def with_attribute(owner, history):
    owner.history = history
    return owner


def delayed(history, how, n_solves, where="itself"):
    """Solves by the method of steps: func reads the last state that was kept. The gradient."""
    torch.manual_seed(0)
    net, y = nn.Linear(2, 2).double(), torch.randn(3, 2, dtype=torch.float64)
    kept = history([y])
    place, kept_in = WHERE[where](kept)

    def func(t, y):
        found = kept_in(place)
        return torch.tanh(net(y)) - (found[max(found)] if isinstance(found, dict) else found[-1])

    tolerance = 1e-6 if "mali" in how.values() else 1e-9  # of second order: thousands of steps
    for _ in range(n_solves):
        y = solve(func, y, [0.0, 0.4], rtol=tolerance, atol=tolerance, **how).ys[-1]
        if isinstance(kept, dict):
            kept[len(kept)] = y
        else:
            kept.append(y)
    y.square().sum().backward()
    assert len(kept) == n_solves + 1 and kept[n_solves] is y
    return net.weight.grad


def numbered(entries):
    return dict(enumerate(entries))


@pytest.mark.parametrize("how", OF_HISTORIES, ids=str)
@pytest.mark.parametrize(
    ("history", "n_solves", "where"),
    [(list, 1, "itself"), (list, 3, "itself"), (numbered, 1, "itself"), (numbered, 2, "itself")]
    + [(collections.deque, 1, "itself"), (collections.deque, 3, "module")]
    + [(list, 1, "module"), (list, 3, "module"), (list, 3, "object"), (list, 1, "deep"), (list, 2, "deep")],
)
def test_a_solution_appended_to_what_func_reads_is_not_there_in_the_backward_pass(history, n_solves, where, how):
    """Else func would read the solution of the solve itself, and its backward pass would never end."""
    found = delayed(history, how, n_solves, where)
    rtol = 1e-4 if "mali" in how.values() else 1e-7  # errors of some steps add up
    assert torch.allclose(found, delayed(history, {"gradient": "direct"}, n_solves), rtol=rtol, atol=1e-8)


class History(list):
    """A list that is not known to be like any other."""


@pytest.mark.parametrize("how", [how for how in RUNS if how.get("gradient") != "direct"], ids=str)
@pytest.mark.parametrize("n_solves", [1, 2])
def test_a_backward_pass_that_would_never_end_is_refused(n_solves, how):
    with pytest.raises(ReplayError, match="func is not what it was"):
        delayed(History, how, n_solves)


@pytest.mark.parametrize("held", [lambda y: [y], lambda y: {"y": y}], ids=["list", "dict"])
def test_a_module_that_holds_its_last_solution_does_not_hold_those_before(held):
    func, solutions = nn.Module(), []
    func.part, func.forward = nn.Linear(3, 3), lambda t, y: torch.tanh(func.part(y))
    for _ in range(4):
        y = solve(func, torch.ones(2, 3), T, memory="states").ys
        solutions.append(weakref.ref(y))
        func.part.last = held(y)
        y.sum().backward()
    del y
    gc.collect()
    assert sum(solution() is not None for solution in solutions) == 1


@pytest.mark.parametrize("how", [{"memory": "states"}, {"memory": 2}, {"per_sample": True}], ids=str)
def test_a_constant_that_acts_on_early_steps_alone_must_not_be_written_to(how):
    net, pulse = nn.Linear(2, 2).double(), torch.full((2,), 5.0, dtype=torch.float64)
    y0 = torch.ones(5, 2, dtype=torch.float64)

    def func(t, y):
        return torch.tanh(net(y)) + pulse * torch.relu(0.3 - t) ** 2 * y

    for tolerance in (1e-3, 1e-4, 1e-5):  # with other steps
        end = solve(func, y0, [0.0, 1.0], rtol=tolerance, atol=tolerance, **how).ys[-1]
        pulse.mul_(5)
        with pytest.raises(ReplayError, match="ends in another state"):
            end.sum().backward()
        pulse.div_(5)


def test_what_func_appends_in_the_backward_pass_comes_behind_what_the_program_has_appended():
    times, w = [], nn.Parameter(torch.ones((), dtype=torch.float64))

    def func(t, y):
        times.append(float(t))
        return -w * y

    end = solve(func, torch.ones(3, dtype=torch.float64), T, memory="states").ys[-1]
    before = list(times)
    times.append("of the program")
    end.sum().backward()
    assert times[: len(before) + 1] == [*before, "of the program"] and len(times) > len(before) + 1


def test_what_came_into_a_dict_keeps_its_order():
    """A set of keys would come back in another one."""
    gains, w = {"first": 0.5}, nn.Parameter(torch.ones((), dtype=torch.float64))
    end = solve(lambda t, y: -w * gains["first"] * y, torch.ones(3, dtype=torch.float64), T, memory="states").ys[-1]
    names = [f"later {i}" for i in range(20)]
    gains.update(dict.fromkeys(names, 1.0))
    end.sum().backward()
    assert list(gains) == ["first", *names]


class Log(list):
    """It lets nothing go."""

    def __delitem__(self, index):
        raise TypeError("append only")


class Register(dict):
    """It lets nothing go."""

    def __delitem__(self, key):
        raise TypeError("add only")


@pytest.mark.parametrize("kind", [Log, lambda entries: Register(enumerate(entries))], ids=["list", "dict"])
def test_what_lets_nothing_go_stays_as_it_is(kind):
    log, w = kind([0.5]), nn.Parameter(torch.ones((), dtype=torch.float64))
    end = solve(lambda t, y: -w * log[0] * y, torch.ones(3, dtype=torch.float64), T, memory="states").ys[-1]
    log.append(1.0) if isinstance(log, list) else log.update({1: 1.0})
    end.sum().backward()
    assert log == kind([0.5, 1.0]) and w.grad is not None
