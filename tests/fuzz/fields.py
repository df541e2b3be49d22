"""Vector fields: sums of terms, each with tensors of its own, wrapped into callables of several styles."""

import functools
from types import SimpleNamespace

import torch
from torch import nn

_SHARED = {}  # what a func of style "global" refers to by a global name


class Tensors:
    """Makes the tensors of a program from a seed and knows them by name.

    ``leaves`` are those whose gradients are compared; ``prepared`` are made of them, once, before the solve.
    """

    def __init__(self, seed, dtype, frozen):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self._frozen = dtype, frozen
        self.leaves, self.prepared = {}, {}

    def normal(self, *shape, dtype=None):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype)

    def leaf(self, name, *shape, scale=0.6):
        """A parameter; the same one for the same name."""
        if name not in self.leaves:
            self.add(name, scale * self.normal(*shape))
        return self.leaves[name]

    def add(self, name, values):
        """A parameter of these values."""
        frozen = float(torch.rand((), generator=self.generator)) < self._frozen
        self.leaves[name] = nn.Parameter(values, requires_grad=not frozen)
        return self.leaves[name]

    def prepare(self, name, tensor):
        self.prepared[name] = tensor
        return tensor

    def named(self, name):
        return self.prepared.get(name, self.leaves.get(name))

    def of_module(self, name, module):
        """The module with its parameters drawn anew."""
        module = module.to(self.dtype)
        for key, parameter in list(module.named_parameters()):
            owner, _, last = key.rpartition(".")
            values = 0.5 * self.normal(*parameter.shape)
            setattr(module.get_submodule(owner), last, self.add(f"{name}.{key}", values))
        return module


class Span:
    """Where in time the tensors of a field come into use: from first to last, at jumps, and at a time to land on."""

    def __init__(self, first, last, jumps, stop):
        self.low, self.high, self.jumps, self.stop = min(first, last), max(first, last), sorted(jumps), stop

    def at(self, fraction):
        return self.low + fraction * (self.high - self.low)

    def index(self, t, count):
        """Which of so many pieces of the interval a time lies in."""
        edges = [self.at((i + 0.618) / count) for i in range(count - 1)]
        return sum(bool(t >= edge) for edge in edges)


class _Named:
    """Makes the tensors of one term, under names that begin with its own."""

    def __init__(self, tensors, name):
        self.tensors, self.name = tensors, name

    def leaf(self, key, *shape, scale=0.6):
        return self.tensors.leaf(f"{self.name}.{key}", *shape, scale=scale)

    def prepare(self, key, tensor):
        return self.tensors.prepare(f"{self.name}.{key}", tensor)

    def module(self, key, module):
        return self.tensors.of_module(f"{self.name}.{key}", module)


class _Term:
    """A summand of a field on n numbers. Subclasses give ``make``, its parts from `_Named`, and ``value``, its rule.

    It holds no tensors: func reaches those that are in its parts, and no others.
    """

    def __init__(self, n, span):
        self.n, self.span = n, span


class Linear(_Term):
    """W x."""

    def make(self, new):
        return {"W": new.leaf("W", self.n, self.n)}

    def value(self, parts, t, x):
        return parts.W @ x


class Sliced(_Term):
    """func takes slices of one tensor."""

    def make(self, new):
        return {"w": new.leaf("w", 2 * self.n)}

    def value(self, parts, t, x):
        return parts.w[: self.n] * torch.tanh(x) + parts.w[self.n :]


class Views(_Term):
    """func holds views of one tensor."""

    def make(self, new):
        u, v = new.leaf("W", 2, self.n).unbind()
        return {"u": new.prepare("u", u), "v": new.prepare("v", v)}

    def value(self, parts, t, x):
        return parts.u * torch.sin(x) + parts.v


class Skew(_Term):
    """A weight prepared once."""

    def make(self, new):
        W = new.leaf("W", self.n, self.n)
        return {"A": new.prepare("A", W - W.T)}

    def value(self, parts, t, x):
        return parts.A @ x


class SkewAndItself(_Term):
    """A prepared weight beside the one that it is made of."""

    def make(self, new):
        W = new.leaf("W", self.n, self.n)
        return {"W": W, "A": new.prepare("A", W - W.T)}

    def value(self, parts, t, x):
        return parts.A @ x + 0.3 * parts.W @ torch.tanh(x)


class Chain(_Term):
    """Three weights, each prepared from the one before."""

    def make(self, new):
        W = new.leaf("W", self.n, self.n)
        A = new.prepare("A", torch.tanh(W))
        return {"W": W, "A": A, "B": new.prepare("B", -A @ A.T / self.n)}

    def value(self, parts, t, x):
        return parts.B @ x + 0.2 * parts.A @ x + 0.1 * parts.W.mean() * torch.sin(x)


class Normed(_Term):
    """A weight divided by its norm."""

    def make(self, new):
        W = new.leaf("W", self.n, self.n)
        norm = new.prepare("norm", W.norm())
        return {"A": new.prepare("A", W / norm), "norm": norm}

    def value(self, parts, t, x):
        return parts.A @ x - 0.1 * parts.norm * x


class Network(_Term):
    """A small network."""

    def make(self, new):
        net = nn.Sequential(nn.Linear(self.n, 4), nn.Tanh(), nn.Linear(4, self.n))
        return {"net": new.module("net", net)}

    def value(self, parts, t, x):
        return parts.net(x)


class Hypernetwork(_Term):
    """Weights that a network made."""

    def make(self, new):
        z, H = new.leaf("z", 3), new.leaf("H", 2 * self.n, 3)
        rows = new.prepare("rows", torch.tanh(H @ z).view(2, self.n))
        return {"rows": list(rows.unbind())}

    def value(self, parts, t, x):
        return parts.rows[0] * x + parts.rows[1]


class LateHypernetwork(Hypernetwork):
    """Weights that a network made, one at a time."""

    def value(self, parts, t, x):
        return parts.rows[self.span.index(t, 2)] * torch.cos(x)


class LateList(_Term):
    """A list of tensors, one at a time."""

    def make(self, new):
        return {"weights": [new.leaf(f"w{i}", self.n) for i in range(3)]}

    def value(self, parts, t, x):
        return parts.weights[self.span.index(t, 3)] * torch.tanh(x)


class LateModule(_Term):
    """A module in a dict, used from some time on."""

    def make(self, new):
        modules = {key: new.module(key, nn.Linear(self.n, self.n)) for key in "ab"}
        return {"modules": modules}

    def value(self, parts, t, x):
        return torch.tanh(parts.modules["ab"[self.span.index(t, 2)]](x))


class BranchOnTime(_Term):
    """One tensor early, another late."""

    def make(self, new):
        return {"u": new.leaf("u", self.n), "v": new.leaf("v", self.n)}

    def value(self, parts, t, x):
        return parts.u * x if t < self.span.at(0.382) else parts.v * torch.sin(x)


class BranchAtStop(BranchOnTime):
    """A branch exactly at a time that the solve lands on, which is not called a jump."""

    def value(self, parts, t, x):
        return parts.u * x if t < self.span.stop else parts.v * torch.sin(x)


class BranchOnState(_Term):
    """One tensor on either side of a plane."""

    def make(self, new):
        return {"u": new.leaf("u", self.n), "v": new.leaf("v", self.n)}

    def value(self, parts, t, x):
        height = x.sum() - 0.3
        return 0.5 * height * (parts.u if height > 0 else parts.v)


class Forcing(_Term):
    """Depends on the time."""

    def make(self, new):
        return {"w": new.leaf("w", self.n, scale=2.0), "phase": new.leaf("phase", self.n)}

    def value(self, parts, t, x):
        return torch.sin(parts.w * t.to(x.dtype) + parts.phase)


class Gain(_Term):
    """A number, which the times may be made from as well."""

    def make(self, new):
        return {"s": new.tensors.leaf("gain.s")}

    def value(self, parts, t, x):
        return parts.s * torch.cos(t.to(x.dtype)) * x


class Anchor(_Term):
    """Pulls the state towards the vector that y0 is made from."""

    def make(self, new):
        return {"v": new.tensors.named("anchor")}

    def value(self, parts, t, x):
        return 0.5 * (parts.v - x) + 0.2 * parts.v * x


class Captured(_Term):
    """A captured tensor with a history, and nothing else."""

    def make(self, new):
        return {"u": new.prepare("u", 2 * new.leaf("w", self.n))}

    def value(self, parts, t, x):
        return parts.u


class Cached(_Term):
    """A weight made in the first call and kept."""

    def make(self, new):
        return {"W": new.leaf("W", self.n, self.n), "cache": {}}

    def value(self, parts, t, x):
        if "A" not in parts.cache:
            parts.cache["A"] = torch.tanh(parts.W)
        return parts.cache["A"] @ x


class Unused(_Term):
    """A parameter that nothing depends on."""

    def make(self, new):
        return {"w": new.leaf("w", self.n)}

    def value(self, parts, t, x):
        return torch.zeros_like(x)


class Jumping(_Term):
    """A tensor for each piece between the jump times."""

    def make(self, new):
        return {"weights": [new.leaf(f"w{i}", self.n) for i in range(len(self.span.jumps) + 1)]}

    def value(self, parts, t, x):
        return parts.weights[sum(bool(t >= jump) for jump in self.span.jumps)] * (1 + torch.sin(x))


class Normalised(_Term):
    """Batch normalisation in training mode."""

    def make(self, new):
        return {"norm": new.module("norm", nn.BatchNorm1d(2))}

    def value(self, parts, t, x):
        return 0.3 * parts.norm(torch.sin(x.view(-1, 2))).reshape(-1)


class Dropped(_Term):
    """Dropout in training mode."""

    def make(self, new):
        return {"net": new.module("net", nn.Sequential(nn.Linear(self.n, self.n), nn.Dropout(0.3)))}

    def value(self, parts, t, x):
        return torch.tanh(parts.net(x))


TERMS = {
    "linear": Linear,
    "sliced": Sliced,
    "views": Views,
    "skew": Skew,
    "skew and itself": SkewAndItself,
    "chain": Chain,
    "normed": Normed,
    "network": Network,
    "hypernetwork": Hypernetwork,
    "late hypernetwork": LateHypernetwork,
    "late list": LateList,
    "late module": LateModule,
    "branch on time": BranchOnTime,
    "branch at a stop": BranchAtStop,
    "branch on state": BranchOnState,
    "forcing": Forcing,
    "gain": Gain,
    "anchor": Anchor,
    "captured": Captured,
    "cached": Cached,
    "unused": Unused,
    "jumping": Jumping,
    "batch norm": Normalised,
    "dropout": Dropped,
}
BREAKS_WITH_TIME = ("late hypernetwork", "late list", "late module", "branch on time")
USES_LEAVES_DIRECTLY = ("linear", "sliced", "views", "late list", "branch on time", "branch on state", "forcing")


def make_terms(kinds, tensors, n, span):
    """(term, parts) for every kind."""
    made = []
    for i, kind in enumerate(kinds):
        term = TERMS[kind](n, span)
        made.append((term, term.make(_Named(tensors, f"{kind.replace(' ', '_')}{i}"))))
    return made


def slope_of(terms, layout, t, y):
    """The sum of the terms, nested like y; terms: (term, namespace of its parts)."""
    x = layout.join(y)
    first, *others = terms
    total = first[0].value(first[1], t, x)
    for term, parts in others:
        total = total + term.value(parts, t, x)
    return layout.slope(total)


class _Parts(nn.Module):
    """The parts of a term as attributes of a module: parameters are registered, prepared tensors are not."""

    def __init__(self, parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class _Field(nn.Module):
    def __init__(self, terms, layout):
        super().__init__()
        self.terms = [term for term, _ in terms]
        self.parts = nn.ModuleList(_Parts(parts) for _, parts in terms)
        self.layout = layout

    def forward(self, t, y):
        return slope_of(list(zip(self.terms, self.parts)), self.layout, t, y)


class _Owner:
    def __init__(self, terms, layout):
        self.terms, self.layout = terms, layout

    def slope(self, t, y):
        return slope_of(self.terms, self.layout, t, y)

    __call__ = slope


class _UsesGlobal(nn.Module):
    def forward(self, t, y):
        return _SHARED["field"](t, y)


def _closure(terms, layout):
    def func(t, y):
        return slope_of(terms, layout, t, y)

    return func


def _over_dict(terms, layout):
    store = {"terms": terms, "layout": layout}
    return lambda t, y: slope_of(store["terms"], store["layout"], t, y)


def _over_list(terms, layout):
    store = [terms, layout]
    return lambda t, y: slope_of(store[0], store[1], t, y)


def _uses_global(terms, layout):
    _SHARED["field"] = _Field(terms, layout)
    return _UsesGlobal()


_IN_NAMESPACES = {
    "closure": _closure,
    "partial": lambda terms, layout: functools.partial(slope_of, terms, layout),
    "bound method": lambda terms, layout: _Owner(terms, layout).slope,
    "callable object": _Owner,
    "lambda over a dict": _over_dict,
    "lambda over a list": _over_list,
}
_IN_MODULES = {"module": _Field, "global module": _uses_global}
STYLES = (*_IN_MODULES, *_IN_NAMESPACES)


def make_func(style, terms, layout):
    """func(t, y) of these (term, parts), as a callable of the style."""
    if style in _IN_MODULES:
        return _IN_MODULES[style](terms, layout)
    return _IN_NAMESPACES[style]([(term, SimpleNamespace(**parts)) for term, parts in terms], layout)
