"""func as a graph: found again as long as func is what it was."""

import collections
import contextlib
import functools
import math
import types

import pytest
import torch
from torch import nn

from torch_ACA.compilation.func_graph import Differentiable, NotCompilable, Tracer
from torch_ACA.state import StateLayout

BY_STATE, BY_BOTH, NOT = Differentiable(True, False), Differentiable(True, True), Differentiable(False, False)


def changing_classes():
    class Base(nn.Module):
        factor = 1.0

        @property
        def double(self):
            return 2 * self.factor

        def slope(self, y):
            return -y.sin()

        def forward(self, t, y):
            return self.slope(y) * self.double

    class Derived(Base):
        pass

    return Base, Derived


def doubled(self, y):
    return -2.0 * y


@pytest.mark.parametrize("change", [
    lambda base, derived: setattr(base, "slope", doubled),
    lambda base, derived: setattr(derived, "slope", doubled),
    lambda base, derived: setattr(base, "factor", 3.0),
    lambda base, derived: setattr(derived, "factor", 3.0),
    lambda base, derived: setattr(base, "forward", lambda self, t, y: -y),
    lambda base, derived: setattr(base, "double", property(lambda self: 5.0)),
], ids=["method", "of a subclass", "attribute", "attribute of a subclass", "forward", "property"])  # fmt: skip
@pytest.mark.parametrize("how", ["module", "closure"])
def test_replaced_members_of_classes_are_noticed(change, how):
    """Dynamo has no guards for most of them."""
    base, derived = changing_classes()
    func, t, y = derived(), torch.tensor(0.5), torch.tensor([0.3, 0.7])
    given = func if how == "module" else lambda t, y: func(t, y)
    tracer = Tracer(StateLayout(y), None)

    def traced():
        graph, inputs = tracer(given, t, y, differentiable=BY_STATE)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), func(t, y))
        return graph

    first = traced()
    base.other, derived.another = 1.0, doubled  # of which func knows nothing
    assert traced() is first
    change(base, derived)
    second = traced()
    assert second is not first and traced() is second
    del first, second
    base.slope = lambda self, y: 3.0 * y  # where one that was freed may have lain
    traced()


class Table:
    def __getitem__(self, place):
        return 1.0

    def __len__(self):
        return 1


@pytest.mark.parametrize(("slope", "name", "other"), [
    (lambda table, y: table[0] * y, "__getitem__", lambda self, place: 2.0),
    (lambda table, y: len(table) * y, "__len__", lambda self: 2),
], ids=["getitem", "len"])  # fmt: skip
def test_replaced_operators_are_noticed(slope, name, other, monkeypatch):
    t, y, table = torch.tensor(0.5), torch.tensor([0.3, 0.7]), Table()
    tracer = Tracer(StateLayout(y), None)
    for expected in (y, 2 * y):
        graph, inputs = tracer(lambda t, y: slope(table, y), t, y, differentiable=BY_STATE)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), expected)
        monkeypatch.setattr(Table, name, other)


@pytest.mark.parametrize("name", ["forward", "slope", "double"])
def test_replaced_code_of_methods_is_noticed(name):
    """As by IPython's autoreload, which lets the methods stay what they are."""
    base, derived = changing_classes()
    func, t, y = derived(), torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer = Tracer(StateLayout(y), None)
    for replace in (False, True):
        if replace:
            member = vars(base)[name]
            function = member.fget if isinstance(member, property) else member
            count = function.__code__.co_argcount
            other = [None, lambda self: 5.0, lambda self, y: 3.0 * y, lambda self, t, y: -4.0 * y][count]
            function.__code__ = other.__code__
        expected = func(t, y)
        graph, inputs = tracer(func, t, y, differentiable=BY_STATE)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), expected)


def test_deleted_members_of_classes_are_noticed():
    base, derived = changing_classes()
    derived.slope = doubled
    func, t, y = derived(), torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer = Tracer(StateLayout(y), None)
    for _ in range(2):
        graph, inputs = tracer(func, t, y, differentiable=BY_STATE)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), func(t, y))
        if "slope" in vars(derived):
            del derived.slope


def test_the_order_of_an_ordered_dict_is_noticed():
    """Dynamo looks at the order of the dict it is built on, which `move_to_end` leaves as it is."""

    def func_of(steps):
        def func(t, y):
            for step in steps.values():
                y = step * y.tanh()
            return y

        return func

    t, y = torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer, graphs = Tracer(StateLayout(y), None), set()
    steps, others = ({"a": torch.tensor(2.0), "b": torch.tensor(3.0)} for _ in range(2))
    steps, others = collections.OrderedDict(steps), collections.OrderedDict(others)
    others.move_to_end("a")
    for _ in range(2):
        for func in (func_of(steps), func_of(others), func_of(dict(steps)), lambda t, y: -y):
            graph, inputs = tracer(func, t, y, differentiable=BY_STATE)
            torch.testing.assert_close(graph(t, y, graph.others(inputs)), func(t, y))
            graphs.add(graph)
        steps.move_to_end("a")
    assert len(graphs) <= 6


def side_of(number, y):
    return y * math.atan2(number.imag if isinstance(number, complex) else number, -1.0)


def with_default(number):
    return lambda t, y, k=number: side_of(k, y)


def of_a_module(number):
    module = nn.Module()
    module.number, module.forward = number, lambda t, y: side_of(module.number, y)
    return module


@pytest.mark.parametrize("make", [
    lambda number: lambda t, y: side_of(number, y), with_default, of_a_module,
    lambda number: functools.partial(lambda k, t, y: side_of(k, y), number),
    lambda number: lambda t, y: side_of([1.0, (number,)][1][0], y),
    lambda number: lambda t, y: side_of({"k": number}["k"], y),
    lambda number: lambda t, y: side_of(complex(-1.0, number), y),
], ids=["closure", "default", "module", "partial", "list", "dict", "complex"])  # fmt: skip
def test_the_sign_of_a_zero_is_noticed(make):
    """Dynamo compares numbers by ==."""
    t, y, graphs = torch.tensor(0.5), torch.tensor([0.3, 0.7]), set()
    tracer = Tracer(StateLayout(y), None)
    for number in (0.0, -0.0, 0.0, -0.0, math.nan, math.nan):
        func = make(number)
        graph, inputs = tracer(func, t, y, differentiable=BY_STATE)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), func(t, y), equal_nan=True)
        graphs.add(graph)
    assert len(graphs) == 3


a_module = types.ModuleType("a_module")


class Substituting:
    """Whatever it does not have is 1."""

    def __getattr__(self, name):
        return 1.0


@pytest.mark.parametrize("how", ["before __getattr__", "builtin", "in a module", "other parents"])
def test_what_comes_where_it_was_missing_is_noticed(how, monkeypatch):
    """Dynamo has no guards for what is missing."""
    t, y = torch.tensor(0.5), torch.tensor([0.3, 0.7])
    held, parent = Substituting(), type("Parent", (), {"of_parents": 1.0, "__module__": __name__})
    child = type("Child", (parent,), {"__module__": __name__})()
    func, change = {
        "before __getattr__": (lambda t, y: held.late * y, lambda: setattr(held, "late", 2.0)),
        "builtin": (lambda t, y: abs(y), lambda: monkeypatch.setitem(globals(), "abs", lambda y: 2 * y)),
        "in a module": (
            lambda t, y: getattr(a_module, "late", 1.0) * y,
            lambda: monkeypatch.setattr(a_module, "late", 2.0, raising=False),
        ),
        "other parents": (
            lambda t, y: child.of_parents * y,
            lambda: setattr(type(child), "__bases__", (type("Other", (parent,), {"of_parents": 2.0}),)),
        ),
    }[how]
    tracer, graphs = Tracer(StateLayout(y), None), []
    for expected in (y, y, 2 * y, 2 * y):
        if len(graphs) == 2:
            change()
        graph, inputs = tracer(func, t, y, differentiable=BY_STATE)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), expected)
        graphs.append(graph)
    assert graphs[0] is graphs[1] is not graphs[2] is graphs[3]


def attribute_or_one(held):
    with contextlib.suppress(AttributeError):
        return held.late
    return 1.0


def entry_or_one(held):
    try:
        return vars(held)["late"]
    except KeyError:
        return 1.0


def global_or_one(held):
    try:
        return late
    except NameError:
        return 1.0


@pytest.mark.parametrize("look_up", [attribute_or_one, entry_or_one, global_or_one])
@pytest.mark.parametrize("kind", [types.SimpleNamespace, nn.Module])
def test_a_func_that_catches_failed_lookups_is_not_compiled(look_up, kind):
    """What it looks for may come, and Dynamo would not notice; nor would we, as its name may be computed."""
    held, t, y = kind(), torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer = Tracer(StateLayout(y), None)
    for _ in range(2):
        with pytest.raises(NotCompilable):  # or PyTorch itself refuses, as 2.11 does
            tracer(lambda t, y: look_up(held) * y, t, y, differentiable=BY_STATE)
    found, inputs = tracer(lambda t, y: getattr(held, "late", 1.0) * y, t, y, differentiable=BY_STATE)
    torch.testing.assert_close(found(t, y, found.others(inputs)), y)


def test_the_default_dtype_is_noticed():
    """Graphs of Dynamo's that are alike are taken for the same, with what was made around them."""
    t, y, functions = torch.tensor(0.5), torch.tensor([0.3, 0.7]), []
    tracer, before = Tracer(StateLayout(y), None), torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            graph, inputs = tracer(lambda t, y: torch.tensor(0.1).double() * y, t, y, differentiable=BY_STATE)
            torch.testing.assert_close(
                graph(t, y, graph.others(inputs)), torch.tensor(0.1, dtype=dtype).double() * y, rtol=0, atol=0
            )
            functions.append(graph.functions)
    finally:
        torch.set_default_dtype(before)
    assert functions[0] is functions[2] is not functions[1]


def by_keyword(k):
    def func(t, y, *, k=k):
        return k * y

    return func


def held(function):
    return lambda t, y: function(y)


def in_a_module(function):
    module = nn.Module()
    module.function, module.forward = function, lambda t, y: module.function(y)
    return module


def as_a_method(k):
    def func(self, t, y, k=k):
        return k * y

    return types.MethodType(func, object())


@pytest.mark.parametrize("make", [
    lambda k: lambda t, y, k=k: k * y, by_keyword, lambda k: held(lambda y, k=k: k * y),
    lambda k: held([lambda y, k=k: k * y][0]), lambda k: lambda t, y, f=lambda y, k=k: k * y: f(y),
    lambda k: functools.partial(lambda a, t, y, k=k: k * y, 1), lambda k: in_a_module(lambda y, k=k: k * y),
    as_a_method, lambda k: held(functools.partial(lambda y, k: k * y, k=torch.tensor(k))),
])  # fmt: skip
def test_defaults_of_functions_are_noticed(make):
    """Which Dynamo of PyTorch 2.11 does not look at."""
    t, y = torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer = Tracer(StateLayout(y), None)
    for k in (0.5, 2.0, 0.5):
        graph, inputs = tracer(make(k), t, y, differentiable=BY_STATE)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), k * y)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, t, y):
        return self.b(torch.tanh(self.a(y)))


def tie(f):
    f.b.weight = f.a.weight


def untie(f):
    f.b.weight = nn.Parameter(f.a.weight.detach().clone())


def share(f):
    f.b = f.a


def freeze(f):
    f.a.weight.requires_grad_(False)


def thaw(f):
    f.a.weight.requires_grad_(True)


@pytest.mark.parametrize("changes", [[tie, untie, tie], [freeze, thaw, freeze], [tie, freeze, untie, thaw], [share]])
def test_what_becomes_of_parameters_is_noticed(changes):
    t, y, func = torch.tensor(0.5), torch.tensor([0.3, 0.7]), Layers()
    tracer = Tracer(StateLayout(y), None)
    for change in (lambda f: None, *changes):
        change(func)
        graph, inputs = tracer(func, t, y, differentiable=BY_STATE)
        others = graph.others(inputs)
        wanted = {id(others[i]) for i in graph.wanted}
        assert wanted == {id(p) for p in func.parameters() if p.requires_grad} and len(wanted) == len(graph.wanted)
        torch.testing.assert_close(graph(t, y, others), func(t, y))


def halves_its_gradient(t, y):
    z = y.sin()
    if z.requires_grad:
        z.register_hook(lambda bar: 0.5 * bar)
    return z


def test_a_func_may_ask_whether_its_state_requires_grad():
    t, y = torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer = Tracer(StateLayout(y), None)
    with pytest.raises(NotCompilable, match="hooks"):
        tracer(halves_its_gradient, t, y, differentiable=BY_STATE)
    graph, inputs = tracer(halves_its_gradient, t, y, differentiable=NOT)
    torch.testing.assert_close(graph(t, y, graph.others(inputs)), y.sin())


def test_a_func_may_ask_whether_its_time_requires_grad():
    t, y = torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer = Tracer(StateLayout(y), None)
    for differentiable in (BY_STATE, BY_BOTH, NOT):
        graph, inputs = tracer(lambda t, y: y if t.requires_grad else -y, t, y, differentiable=differentiable)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), y if differentiable is BY_BOTH else -y)


def test_a_func_may_ask_whether_gradients_are_on():
    t, y = torch.tensor(0.5), torch.tensor([0.3, 0.7])
    tracer = Tracer(StateLayout(y), None)
    for by in (BY_STATE, NOT, BY_STATE):
        graph, inputs = tracer(lambda t, y: y if torch.is_grad_enabled() else -y, t, y, differentiable=by)
        torch.testing.assert_close(graph(t, y, graph.others(inputs)), y if by.by_state else -y)


def test_code_is_made_once_for_gradients_on_and_off():
    t, y, k = torch.tensor(0.5), torch.tensor([0.3, 0.7]), torch.tensor(2.0, requires_grad=True)
    tracer = Tracer(StateLayout(y), None)
    on, off = (tracer(lambda t, y: -k * y + t, t, y, differentiable=is_on)[0] for is_on in (BY_STATE, NOT))
    assert on is not off and on.functions is off.functions and on.wanted == off.wanted
    k.requires_grad_(False)
    assert tracer(lambda t, y: -k * y + t, t, y, differentiable=BY_STATE)[0].functions is not on.functions


def written_to(t, y):
    weights = torch.tensor([1.0, 2.0])
    weights[0] = y[1]
    return -weights.mul_(2) * y


@pytest.mark.parametrize("func", [
    lambda t, y: -torch.tensor(9.81) * y, lambda t, y: torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) @ y, written_to,
    lambda t, y: -torch.as_tensor([1.0, 2.0]) * y, lambda t, y: -torch.asarray([1.0, 2.0]) * y,
    lambda t, y: -torch.FloatTensor([1.0, 2.0]) * y, lambda t, y: y[torch.LongTensor([1, 0])],
    lambda t, y: torch.where(torch.tensor([True, False]), y, -y), lambda t, y: torch.tensor([1.0, 2.0]),
    lambda t, y: torch.tensor(1.0) * torch.tensor(2) * y,
])  # fmt: skip
def test_constants_are_inputs_of_the_graph(func):
    """Inductor takes none in loops; and one that func writes to is a new one in every evaluation."""
    y, t = torch.tensor([0.3, 0.7]), torch.tensor(0.5)
    graph, inputs = Tracer(StateLayout(y), None)(func, t, y, differentiable=BY_STATE)
    others = graph.others(inputs)
    assert others and not graph.changed
    for _ in range(2):
        torch.testing.assert_close(graph(t, y, others), func(t, y))
