"""Nothing stays alive after a solve that nobody holds: no reference cycles, seen with the garbage collector off."""

import collections
import dataclasses
import functools
import gc
import types
import weakref

import pytest
import torch
from torch import nn

from tests.torch_ACA.programs import KINDS, keywords_of
from torch_ACA import ODEBlock, odeint, odesolve, solve
from torch_ACA.errors import SolverError


@pytest.fixture(autouse=True, scope="module")
def only_new_objects():
    """What is there already is neither searched nor counted, which takes a while."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tensors():
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.solution = None

    def forward(self, t, y):
        return torch.tanh(self.linear(y))


def slopes():
    net = Net()
    return {
        "module": net,
        "method": net.forward,
        "closure": lambda t, y: net(t, y),
        "plain": lambda t, y: -y,
    }


@pytest.mark.parametrize("what", ["forward", "backward", "second", "no_grad"])
@pytest.mark.parametrize("name", slopes())
@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_stays(kind, name, what):
    if what == "second" and kind in ("adjoint", "mali"):
        pytest.skip("no second derivatives")

    def work():
        f = slopes()[name]
        y0 = torch.ones(2, 3, requires_grad=True)
        with torch.set_grad_enabled(what != "no_grad"):
            loss = (solve(f, y0, [0.0, 0.5, 1.0], **keywords_of(kind)).ys ** 2).sum()
        if what == "backward":
            loss.backward()
        elif what == "second":
            (g,) = torch.autograd.grad(loss, y0, create_graph=True)
            (g**2).sum().backward()

    work()
    before = tensors()
    for _ in range(3):
        work()
    assert tensors() == before


@pytest.mark.parametrize("kind", KINDS)
def test_func_goes_with_the_solve(kind):
    """Kept alive by its solution and graph at most."""
    net = Net()
    there = weakref.ref(net)
    ys = solve(net, torch.ones(2, 3), [0.0, 1.0], **keywords_of(kind)).ys
    ys.sum().backward()
    del net, ys
    assert there() is None


class Plain:
    """A func that is an object and no module."""

    def __init__(self, net):
        self.net, self.last = net, None

    def __call__(self, t, y):
        return self.net(t, y)


def closure(net):
    return lambda t, y: net(t, y)


def nested(net):
    inner = lambda t, y: net(t, y)  # noqa: E731
    return lambda t, y: inner(t, y)


WAYS = {kind: keywords_of(kind) for kind in ("aca", "naive", "adjoint", "mali")} | {"rows": {"per_sample": True}}
FORMS = {
    "module": lambda net: net,
    "closure": closure,
    "nested": nested,
    "object": Plain,
    "method": lambda net: Plain(net).__call__,
    "around an object": lambda net: closure(Plain(net)),
    "partial": lambda net: functools.partial(lambda f, t, y, scale: f(t, y) * scale, net, scale=1.0),
    "partial keyword": lambda net: functools.partial(lambda t, y, f: f(t, y), f=net),
    "default": lambda net: lambda t, y, f=net: f(t, y),
    "keyword": lambda net: lambda t, y, *, f=net: f(t, y),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "naive"])
def test_the_backward_pass_goes_without_the_module_that_made_it(way, form):
    """func was made for one solve, as in a factory; its parameters are held by the graph."""
    torch.manual_seed(0)
    net = Net()
    parameters = list(net.parameters())
    func = FORMS[form](net)
    there = weakref.ref(net)
    y = solve(func, torch.ones(2, 3), [0.0, 1.0], **WAYS[way]).ys[-1]
    expected = torch.autograd.grad(y.sum(), parameters, retain_graph=True)
    del net, func
    assert there() is None
    found = torch.autograd.grad(y.sum(), parameters)
    for f, e in zip(found, expected):
        assert torch.allclose(f, e, rtol=1e-12, atol=1e-12)


@dataclasses.dataclass
class Held:
    it: object


PLACES = {
    "attribute": lambda solution: solution.ys,
    "list": lambda solution: [solution.ys],
    "tuple": lambda solution: (solution.ys, 1.0),
    "dict": lambda solution: {"states": solution.ys},
    "deque": lambda solution: collections.deque([solution.ys], maxlen=3),
    "dataclass": lambda solution: Held([solution.ys]),
    "namespace": lambda solution: types.SimpleNamespace(it=(solution.ys,)),
    "solution": lambda solution: solution,
}


def given_last(net, last):
    return lambda t, y: net(t, y) * (1.0 if last is None else 1)


@pytest.mark.parametrize(
    ("form", "place"), [*(("module", place) for place in PLACES), ("object", "list"), ("closure", "list")]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_solution_does_not_hold_the_one_before(way, form, place):
    """Where func's module, or what func closes over, holds the last one."""
    net, last, states = Net(), None, []
    func = Plain(net) if form == "object" else net
    for _ in range(4):
        if form == "closure":
            func = given_last(net, last)
        solution = solve(func, torch.ones(2, 3), [0.0, 1.0], **WAYS[way])
        last = PLACES[place](solution)
        if form != "closure":
            func.solution = last
        states.append(weakref.ref(solution.ys))
        solution.ys.sum().backward()
    del solution
    if form == "closure":
        func = None  # it holds the last but one
    assert [there() is not None for there in states] == [False, False, False, True]
    last, there = None, weakref.ref(net)
    del net, func
    assert there() is None and states[-1]() is None


@pytest.mark.parametrize("asks", [{"record": True}, {"dense": True}, {"on_failure": "return"}], ids=str)
def test_a_module_keeps_its_last_solution_with_all_that_was_asked_for(asks):
    net, states, gradients = Net(), [], []
    for _ in range(4):
        solution = solve(net, torch.ones(2, 3), [0.0, 1.0], **asks)
        net.solution = [solution]
        states.append(weakref.ref(solution.ys))
        gradients += torch.autograd.grad(solution.ys.sum(), net.linear.weight)
    del solution
    assert [there() is not None for there in states] == [False, False, False, True]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


class Remembering(Net):
    """Its slope depends on the end of the solve before."""

    def __init__(self):
        super().__init__()
        self.history = [torch.ones(2, 3)]

    def forward(self, t, y):
        return super().forward(t, y) + self.history[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_solution_that_func_uses_is_held(kind):
    """The gradient goes on into it, also where the module is gone."""

    def found(there):
        torch.manual_seed(0)
        net = Remembering()
        parameters = list(net.parameters())
        net.history.append(solve(net, torch.ones(2, 3), [0.0, 0.5], **keywords_of(kind)).ys[-1])
        y = solve(net, torch.ones(2, 3), [0.0, 0.5], **keywords_of(kind)).ys[-1]
        if not there:
            net.history = [y]
            net = None
        return torch.autograd.grad(y.sum(), parameters)

    for f, e in zip(found(there=False), found(there=True)):
        assert torch.allclose(f, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("store", ["solution", "ys", "dense", "loss"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_stores_its_own_solution_is_freed(kind, store):
    if store == "dense" and kind in ("naive", "adjoint", "mali"):
        pytest.skip("no dense output")
    net = Net()
    there = weakref.ref(net)
    for _ in range(2):  # the second solve sees what the first has left
        solution = solve(net, torch.ones(2, 3), [0.0, 1.0], dense=store == "dense", **keywords_of(kind))
        loss = solution.ys[-1].sum()
        net.solution = {"solution": solution, "ys": solution.ys, "dense": solution.dense, "loss": loss}[store]
        loss.backward()
    del net, solution, loss
    assert there() is None


class Stateful(nn.Module):
    """A model that keeps its last trajectory, as for plots."""

    def __init__(self, kind):
        super().__init__()
        self.f, self.kind = Net(), kind

    def forward(self, y0):
        self.trajectory = solve(lambda t, y: self.f(t, y) + 0 * t, y0, [0.0, 1.0], **keywords_of(self.kind)).ys
        return self.trajectory[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_keeps_its_trajectory_is_freed(kind):
    model = Stateful(kind)
    there = weakref.ref(model)
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
    del model
    assert there() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_loop_keeps_nothing(kind):
    model = Stateful(kind)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        optimiser.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimiser.step()

    step()
    step()
    before = tensors()
    for _ in range(4):
        step()
    assert tensors() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_solve_keeps_nothing(kind):
    def work():
        net = Net()
        with pytest.raises(SolverError):
            solve(lambda t, y: net(t, y) / (t < 0.5), torch.ones(2, 3), [0.0, 1.0], **keywords_of(kind))

    work()
    gc.collect()  # pytest's own record of the exception is a cycle
    before = tensors()
    for _ in range(3):
        work()
    gc.collect()
    assert tensors() == before


@pytest.mark.parametrize("entry", [
    lambda f, y0: ODEBlock(f)(y0),
    lambda f, y0: odeint(f, y0, torch.tensor([0.0, 1.0])),
    lambda f, y0: odesolve(f, y0, {"method": "RK4", "h": 0.25}),
    lambda f, y0: solve(f, y0, [0.0, 1.0], dense=True)(0.3),
    lambda f, y0: solve(f, y0, [0.0, 1.0], record=True).ys,
    lambda f, y0: solve(f, y0, [0.0, 0.5, 1.0], per_sample=True).ys,
], ids=["block", "odeint", "odesolve", "dense", "record", "rows"])  # fmt: skip
def test_other_entries_keep_nothing(entry):
    def work():
        net = Net()
        entry(net, torch.ones(2, 3)).sum().backward()
        return weakref.ref(net)

    work()
    before = tensors()
    assert work()() is None
    assert tensors() == before


@pytest.mark.parametrize("kind", KINDS)
def test_context_and_prepared_weights_go(kind):
    """What func captures with a history of its own, and a func that caches."""

    def work():
        net = Net()
        net.ctx = torch.tanh(net.linear.weight)
        ys = solve(lambda t, y: y @ net.ctx + net(t, y), torch.ones(2, 3), [0.0, 1.0], **keywords_of(kind)).ys
        ys.sum().backward()
        return weakref.ref(net), weakref.ref(net.ctx)

    work()
    before = tensors()
    assert [there() for there in work()] == [None, None]
    assert tensors() == before
