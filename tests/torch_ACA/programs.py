"""Small programs around a solve, and plain autograd over hand-written fixed steps as their oracle.

A program is called with ``integrate(func, y0, t=(0.0, 1.0))``, which returns the states at t, and gives back a loss
and the leaves to differentiate it by. It makes everything anew, so that it may be run by any number of solvers.
"""

import collections
import functools
import sys
import threading
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

H = 0.25
FINE = 1 / 64  # steps of the oracle for the continuous adjoint

# ways to solve; all but the last two have second derivatives
EXACT = {
    "aca": {"gradient": "aca", "memory": "states"},
    "default": {},
    "two states": {"gradient": "aca", "memory": 2},
    "1MiB": {"gradient": "aca", "memory": "1MiB"},
    "unlimited": {"gradient": "aca", "memory": "unlimited"},
    "direct": {"gradient": "direct"},
    "naive": {"gradient": "naive"},
}
KINDS = EXACT | {"adjoint": {"gradient": "adjoint"}, "mali": {"gradient": "mali"}}


def keywords_of(kind):
    """Of `torch_ACA.solve`, for the same steps as the oracle's."""
    if kind == "mali":
        return KINDS[kind] | {"options": {"step_size": H}}
    if kind == "adjoint":
        return KINDS[kind] | {"method": "Dopri5", "rtol": 1e-9, "atol": 1e-9}
    return KINDS[kind] | {"method": "RK4", "h": H}


def tolerance_of(kind, program=None):
    """Rounding of float64 for the discrete methods; the oracle's error of order h^4 (h at a jump) for the adjoint."""
    if kind != "adjoint":
        return 1e-12
    return 2e-2 if program in JUMPS else 1e-6


def plain(kind):
    """The oracle: an ``integrate`` by the steps of `keywords_of`, differentiated by autograd alone."""
    if kind == "mali":
        return _leapfrog
    return functools.partial(_rk4, h=FINE if kind == "adjoint" else H)


def _combined(y, *terms):
    for factor, slope in terms:
        y = pytree.tree_map(lambda a, b: a + factor * b, y, slope)
    return y


def _stacked(states):
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *states)


def _times(t):
    t = t.double() if isinstance(t, torch.Tensor) else torch.tensor([float(value) for value in t], dtype=torch.float64)
    return t.unbind()


def _rk4(f, y0, t=(0.0, 1.0), h=H):
    states, y, (now, *stops) = [y0], y0, _times(t)
    for stop in stops:
        n = round(abs(float((stop - now).detach())) / h)
        for i in range(n):
            size = stop - now if i == n - 1 else h * (stop - now).detach().sign()
            k1 = f(now, y)
            k2 = f(now + size / 2, _combined(y, (size / 2, k1)))
            k3 = f(now + size / 2, _combined(y, (size / 2, k2)))
            k4 = f(now + size, _combined(y, (size, k3)))
            y = _combined(y, (size / 6, k1), (size / 3, k2), (size / 3, k3), (size / 6, k4))
            now = stop if i == n - 1 else now + size
        states.append(y)
    return _stacked(states)


def _leapfrog(f, y0, t=(0.0, 1.0)):
    states, (now, *stops) = [y0], _times(t)
    y, v = y0, f(now, y0)
    for stop in stops:
        n = round(abs(float((stop - now).detach())) / H)
        for i in range(n):
            size = stop - now if i == n - 1 else H * (stop - now).detach().sign()
            middle = _combined(y, (size / 2, v))
            u = f(now + size / 2, middle)
            v = pytree.tree_map(lambda a, b: 2 * a - b, u, v)
            y = _combined(middle, (size / 2, v))
            now = stop if i == n - 1 else now + size
        states.append(y)
    return _stacked(states)


def gradients(program, integrate, order=1):
    """The loss and its gradients; of order two those of a gradient penalty."""
    torch.manual_seed(0)
    loss, wanted = program(integrate)
    found = torch.autograd.grad(loss, wanted, create_graph=order == 2, allow_unused=True)
    if order == 2:
        loss = loss + sum((g**2).sum() for g in found if g is not None)
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted))]


def assert_close(found, expected, tolerance):
    """Relative to the largest number of each tensor, or to one."""
    assert len(found) == len(expected)
    for i, (f, e) in enumerate(zip(found, expected)):
        off = float((f.double() - e.double()).abs().max())
        size = max(1.0, float(e.abs().max()))
        assert off <= tolerance * size, f"tensor {i} is {off / size:.2g} off: {f.tolist()} for {e.tolist()}"


PROGRAMS, JUMPS = {}, set()


def slow(*values):
    """A set of parameters whose test is marked slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def program(function=None, *, jumps=False):
    """Register a program; jumps: its func has a jump in time."""
    if function is None:
        return functools.partial(program, jumps=jumps)
    PROGRAMS[function.__name__] = function
    if jumps:
        JUMPS.add(function.__name__)
    return function


def leaf(*shape, scale=0.5):
    return (scale * torch.randn(shape)).requires_grad_()


def square(ys):
    return (ys[-1] ** 2).sum()


# What is captured depends on other captured tensors


@program
def negated_leaf_beside_the_leaf(integrate):
    w = leaf()
    a = -w
    return square(integrate(lambda t, y: a * y + 0 * w, torch.ones(1))), [w]


@program
def chain_of_three(integrate):
    w = leaf(3)
    a = torch.tanh(w)
    b = a * a
    return square(integrate(lambda t, y: w * y + a * torch.cos(t) - b * y, torch.ones(3))), [w]


@program
def tensor_and_views_of_it(integrate):
    w = leaf(3, 3)
    a = w * 1.0
    row, flat, turned = a[0], a.view(-1), a.t()
    return square(integrate(lambda t, y: y @ a + row + flat[3:6] * y - y @ turned, torch.ones(2, 3))), [w]


class Prepared(nn.Module):
    """A weight that is prepared once per solve."""

    def __init__(self, prepare):
        super().__init__()
        self.W, self.b = nn.Parameter(0.5 * torch.randn(3, 3)), nn.Parameter(torch.randn(3))
        self.prepare = prepare
        self.A = None

    def ready(self):
        self.A = self.prepare(self.W)
        return self

    def forward(self, t, y):
        return torch.tanh(y @ self.A + self.b)


def prepared(prepare):
    def solved(integrate):
        module = Prepared(prepare).ready()
        return square(integrate(module, torch.ones(2, 3))), list(module.parameters())

    return solved


PROGRAMS["antisymmetric weight"] = prepared(lambda w: w - w.t())
PROGRAMS["masked weight"] = prepared(lambda w: w * torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 0]]))
PROGRAMS["triangular weight"] = prepared(lambda w: torch.tril(w))
PROGRAMS["normed weight"] = prepared(lambda w: w / w.norm())


@program
def weight_prepared_for_two_solves(integrate):
    module = Prepared(lambda w: w - w.t()).ready()
    y = integrate(module, torch.ones(2, 3))[-1]
    return square(integrate(module.ready(), y)) + module.A.sum(), list(module.parameters())


@program
def weight_prepared_once_for_two_solves(integrate):
    module = Prepared(lambda w: w - w.t()).ready()
    y = integrate(module, torch.ones(2, 3))[-1]
    return square(integrate(module, y, (1.0, 0.0))), list(module.parameters())


@program
def buffer_with_a_history(integrate):
    module = nn.Linear(3, 3)
    module.register_buffer("A", module.weight - module.weight.t())
    return square(integrate(lambda t, y: y @ module.A + module(y), torch.ones(2, 3))), list(module.parameters())


class Conditional(nn.Module):
    """The usual conditional neural ODE: a context from an encoder, kept on the module."""

    def __init__(self):
        super().__init__()
        self.enc, self.net = nn.Linear(2, 3), nn.Linear(6, 3)

    def dynamics(self, t, y):
        return torch.tanh(self.net(torch.cat([y, self.ctx], 1)))

    def forward(self, integrate, x, y0):
        self.ctx = torch.tanh(self.enc(x))
        return integrate(self.dynamics, y0)


@program
def conditional(integrate):
    model = Conditional()
    return square(model(integrate, torch.randn(2, 2), torch.ones(2, 3))), list(model.parameters())


@program
def conditional_in_a_loop(integrate):
    model, y0 = Conditional(), leaf(2, 3)
    losses = [square(model(integrate, torch.randn(2, 2), y0)) for _ in range(2)]
    return sum(losses) + model.ctx.sum(), [y0, *model.parameters()]


@program
def context_from_the_encoder_of_the_state(integrate):
    model, x = Conditional(), torch.randn(2, 2)
    return square(model(integrate, x, torch.sin(model.enc(x)))), list(model.parameters())


@program
def context_through_keywords(integrate):
    enc = nn.Linear(2, 12)
    weight, bias = enc(torch.randn(2)).split([9, 3])
    weight = weight.view(3, 3)

    def f(t, y):
        return torch.tanh(nn.functional.linear(input=y, weight=weight, bias=bias))

    return square(integrate(f, torch.ones(2, 3))), list(enc.parameters())


@program
def hidden_state_of_a_recurrent_cell(integrate):
    enc, cell = nn.Linear(2, 8), nn.LSTMCell(4, 4)
    h, c = torch.randn(3, 2).matmul(enc.weight.t()).chunk(2, 1)
    return square(integrate(lambda t, y: cell(y, (h, c))[0], torch.ones(3, 4))), [enc.weight, *cell.parameters()]


@program
def functional_call_of_a_hypernetwork(integrate):
    hyper, net = nn.Linear(2, 12), nn.Linear(3, 3)
    weight, bias = hyper(torch.randn(2)).split([9, 3])
    parts = {"weight": weight.view(3, 3), "bias": bias}
    f = lambda t, y: torch.tanh(torch.func.functional_call(net, parts, (y,)))  # noqa: E731
    return square(integrate(f, torch.ones(2, 3))), list(hyper.parameters())


@program(jumps=True)
def operators_and_indices(integrate):
    w = leaf(3)
    a, table = w.exp(), torch.outer(w, w)
    index = torch.tensor([2, 0, 1])

    def f(t, y):
        out = torch.zeros_like(y)
        out[0] = a[0]
        out = out + table[index, 0] - a**2 / 9 + 2.0**-a + (1 - a) * y
        return torch.where(y > 0, out, a) + torch.einsum("ij,j->i", table, y) + torch.stack([a[1], a[2], a[0]])

    return square(integrate(f, torch.ones(3))), [w]


@program
def recurrent_score_of_a_context(integrate):
    """func differentiates by what it captures."""
    enc = leaf(3)
    ctx = torch.sin(enc)

    def f(t, y):
        with torch.enable_grad():
            (score,) = torch.autograd.grad((torch.cos(ctx * y.detach()) ** 2).sum(), ctx, create_graph=True)
        return score - ctx * y

    return square(integrate(f, torch.ones(3))), [enc]


# Shared with the initial state, with the times, with other solves


@program
def captured_leaf_is_the_initial_state(integrate):
    y0 = leaf(3)
    return square(integrate(lambda t, y: y0 * torch.cos(y), y0)), [y0]


@program
def captured_tensor_is_the_initial_state(integrate):
    w = leaf(3)
    z = torch.tanh(w)
    return square(integrate(lambda t, y: z * torch.cos(y), z)), [w]


@program
def encoder_and_func_share_a_weight(integrate):
    net = nn.Linear(3, 3)
    return square(integrate(lambda t, y: torch.tanh(net(y)), net(torch.ones(2, 3)))), list(net.parameters())


@program
def times_from_a_parameter_of_func(integrate):
    w = leaf(scale=0.1)
    t = torch.stack([w * 0, 1 + 3 * (w - w.detach())])
    return square(integrate(lambda t, y: w * y * torch.cos(t) + w, torch.ones(2), t)), [w]


@program
def three_solves_in_a_row(integrate):
    w, y = leaf(3), torch.ones(3)
    for i in range(3):
        y = integrate(lambda t, y: w * torch.sin(y + t), y, (float(i), i + 1.0))[-1]
    return square(y[None]), [w]


@program
def solve_inside_func(integrate):
    w, v = leaf(2), leaf(2)
    a = torch.sin(w)

    def f(t, y):
        return integrate(lambda s, z: a * z + v, y, (0.0, 0.5))[-1] * torch.cos(t)

    return square(integrate(f, torch.ones(2))), [w, v]


@program
def two_funcs_share_a_context(integrate):
    w, y = leaf(3), torch.ones(3)
    a = torch.sin(w)
    first = integrate(lambda t, y: a * y, y)[-1]
    return square(integrate(lambda t, y: torch.cos(a) * y + first, first)), [w]


# Used by later evaluations alone


def late(hold, *, history):
    """Parts of a tensor that func picks from by time. ``hold(parts)`` returns what picks one."""

    def solved(integrate):
        w = leaf(3, 2)
        parts = (torch.sin(w) if history else w * 1).unbind() if history else [leaf(2) for _ in range(3)]
        pick = hold(parts)
        f = lambda t, y: pick(min(2, int(t * 2))) - y  # noqa: E731
        return square(integrate(f, torch.ones(2), (0.0, 1.0))), [w] if history else parts

    return solved


def in_list(parts):
    parts = list(parts)
    return lambda i: parts[i]


def in_dict(parts):
    parts = {f"u{i}": part for i, part in enumerate(parts)}
    return lambda i: parts[f"u{i}"]


def in_deque(parts):
    parts = collections.deque(parts)
    return lambda i: parts[i]


class Slots:
    __slots__ = ("parts",)

    def pick(self, i):
        return self.parts[i]


def in_slots(parts):
    holder = Slots()
    holder.parts = tuple(parts)
    return holder.pick


def in_partial(parts):
    return functools.partial(lambda parts, i: parts[i], parts)


def in_partial_keyword(parts):
    return functools.partial(lambda i, *, parts: parts[i], parts=parts)


def in_default(parts):
    return lambda i, parts=parts: parts[i]


def in_global(parts):
    global _late_parts
    _late_parts = parts
    return lambda i: _late_parts[i]


class OnTheClass:
    parts = ()

    def pick(self, i):
        return self.parts[i]


def in_class_attribute(parts):
    return type("Own", (OnTheClass,), {"parts": tuple(parts)})().pick


def in_lru_cache(parts):
    @functools.lru_cache
    def made(i):
        return parts[i]

    for i in range(3):
        made(i)
    return made


def in_namespace(parts):
    space = types.SimpleNamespace(deep=[{"parts": parts}])
    return lambda i: space.deep[0]["parts"][i]


def in_property(parts):
    class Holder:
        def __init__(self):
            self._parts = parts

        @property
        def current(self):
            return self._parts

    holder = Holder()
    return lambda i: holder.current[i]


def in_module_dict(parts):
    module = nn.Module()
    module.table = dict(enumerate(parts))
    return lambda i: module.table[i]


def in_generator(parts):
    """A frame holds them, which no search looks into."""

    def served():
        i = yield
        while True:
            i = yield parts[i]

    server = served()
    next(server)
    return server.send


HOLDERS = [
    in_list, in_dict, in_deque, in_slots, in_partial, in_partial_keyword, in_default, in_global, in_class_attribute,
    in_lru_cache, in_namespace, in_property, in_module_dict,
]  # fmt: skip
for _hold in HOLDERS:
    for _history in (False, True):
        _name = f"late {'unbind' if _history else 'leaves'} {_hold.__name__}"
        PROGRAMS[_name] = late(_hold, history=_history)
        JUMPS.add(_name)


class UsesGlobal(nn.Module):
    def forward(self, t, y):
        return _global_net(y) if t > 0.3 else -y


@program(jumps=True)
def global_module_late(integrate):
    global _global_net
    _global_net = nn.Linear(3, 3)
    return square(integrate(UsesGlobal(), torch.ones(2, 3))), list(_global_net.parameters())


@program(jumps=True)
def module_deep_in_an_object_late(integrate):
    holder = types.SimpleNamespace(nets={"late": [nn.Linear(3, 3)]})
    f = lambda t, y: holder.nets["late"][0](y) if t > 0.3 else -y  # noqa: E731
    return square(integrate(f, torch.ones(2, 3))), list(holder.nets["late"][0].parameters())


@program
def branch_on_the_state(integrate):
    """The kink is continuous, and the branch's weight is used behind it alone."""
    w, v = leaf(1), leaf(1)
    a = torch.sin(v)
    f = lambda t, y: 1 + w * 0 + (a * (y - 1.5) ** 4 if y.item() > 1.5 else 0 * y)  # noqa: E731
    return square(integrate(f, torch.ones(1), (0.0, 2.0))), [w, v]


# Not seen by a watch on operations

OPAQUE = ("inside_a_custom_function", "inside_a_custom_function_and_outside", "inside_torchscript", "solve_inside_func")


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, bar):
        x, w = ctx.saved_tensors
        return bar * w, bar * x


@program
def inside_a_custom_function(integrate):
    w = leaf(3)
    a = torch.sin(w)
    return square(integrate(lambda t, y: Scaled.apply(torch.cos(y), a), torch.ones(3))), [w]


@program
def inside_a_custom_function_and_outside(integrate):
    w = leaf(3)
    a = torch.sin(w)
    return square(integrate(lambda t, y: Scaled.apply(torch.cos(y), a) + a * y + w, torch.ones(3))), [w]


@torch.jit.script
def _scripted(y, a):
    return torch.tanh(y * a) + a


@program
def inside_torchscript(integrate):
    w = leaf(3)
    a = torch.sin(w)
    return square(integrate(lambda t, y: _scripted(y, a), torch.ones(3))), [w]


@program
def behind_a_checkpoint(integrate):
    net, w = nn.Linear(3, 3), leaf(3)
    a = torch.sin(w)

    def f(t, y):
        return checkpoint(lambda y: torch.tanh(net(y)) * a, y, use_reentrant=False)

    return square(integrate(f, torch.ones(2, 3))), [w, *net.parameters()]


@program
def returned_as_it_is(integrate):
    w = leaf(3)
    a = torch.sin(w)
    return square(integrate(lambda t, y: a, torch.ones(3))), [w]


@program
def leaf_returned_as_it_is(integrate):
    w = leaf(3)
    return square(integrate(lambda t, y: w, torch.ones(3))), [w]


@program
def returned_in_a_tuple(integrate):
    w = leaf(3)
    a = torch.sin(w)
    ys = integrate(lambda t, y: (a, y[0] * a), (torch.ones(3), torch.ones(3)))
    return (ys[0][-1] * ys[1][-1]).sum(), [w]


@program
def context_in_the_state(integrate):
    enc, net = nn.Linear(2, 3), nn.Linear(6, 3)
    ctx = enc(torch.randn(2, 2))
    f = lambda t, y: (torch.tanh(net(torch.cat(y, 1))), torch.zeros_like(y[1]))  # noqa: E731
    ys = integrate(f, (torch.ones(2, 3), ctx))
    return (ys[0][-1] ** 2).sum() + ys[1][-1].sum(), [*enc.parameters(), *net.parameters()]


# Right programs with something odd


@program
def weight_made_in_another_thread(integrate):
    w, made = leaf(3), []
    thread = threading.Thread(target=lambda: made.append(torch.sin(w)))
    thread.start()
    thread.join()
    return square(integrate(lambda t, y: made[0] * y, torch.ones(3))), [w]


@program
def weight_cached_at_the_first_call(integrate):
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.W, self.A = nn.Parameter(0.5 * torch.randn(3, 3)), None

        def forward(self, t, y):
            if self.A is None:
                self.A = self.W - self.W.t()
            return torch.tanh(y @ self.A)

    # torch.is_grad_enabled: a solver may evaluate without gradients first, which is the func's own affair
    module = Caching()
    with torch.enable_grad():
        return square(integrate(module, torch.ones(2, 3))), [module.W]


class Antisymmetric(nn.Module):
    def forward(self, w):
        return w - w.t()


def parametrized(cached):
    def solved(integrate):
        net = nn.Linear(3, 3)
        parametrize.register_parametrization(net, "weight", Antisymmetric())
        f = lambda t, y: torch.tanh(net(y))  # noqa: E731
        if not cached:
            return square(integrate(f, torch.ones(2, 3))), list(net.parameters())
        with parametrize.cached():
            return square(integrate(f, torch.ones(2, 3))), list(net.parameters())

    return solved


PROGRAMS["parametrized weight"] = parametrized(False)
PROGRAMS["parametrized weight, cached"] = parametrized(True)


@program
def weight_with_a_freed_history_beside(integrate):
    """An attribute whose history is gone, and which func does not use."""
    module = Prepared(lambda w: w - w.t()).ready()
    module.last_loss = (module.W**2).sum()
    module.last_loss.backward()
    return square(integrate(module, torch.ones(2, 3))), list(module.parameters())


@program
def weights_with_a_stop_of_the_gradient(integrate):
    w = leaf(3)
    a = torch.sin(w)
    return square(integrate(lambda t, y: a.detach() * y + a, torch.ones(3))), [w]


@program
def changed_in_place_before_the_solve(integrate):
    w = leaf(3)
    a = torch.sin(w)
    a *= 2.0
    a[0] = w[1]
    return square(integrate(lambda t, y: a * y, torch.ones(3))), [w]


def in_two_threads(work):
    """Call work in two threads at once, which take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # below 1e-5 a loaded machine does little but switch
    try:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)  # a thread that hangs is a failure, not the end of the tests
    finally:
        sys.setswitchinterval(before)
