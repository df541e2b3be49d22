"""What a callable can reach: the modules and the tensors that require grad behind it.

Closures, defaults, globals by the names in the code, attributes, slots, partials, methods, lists, dicts and whatever
holds such things in turn are followed. Globals of functions of PyTorch, of this package and of Python's library are
not, nor is what a figure or a progress bar holds, and no search looks at more than `MOST` objects: what lies behind
more of them is met when it is used (see `capture`).
"""

import builtins
import collections
import contextlib
import functools
import gc
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from .private_torch import parametrize_cache

MOST = 20_000
ATOMS = frozenset(
    (bool, int, float, complex, str, bytes, bytearray, range, slice, type(None), type(...), type(NotImplemented))
    + (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Generator, np.ndarray, np.dtype)
    + (types.MethodDescriptorType, types.WrapperDescriptorType)
)
_PLAIN = (dict, collections.OrderedDict, list, tuple, set, frozenset, collections.deque)
# packages whose objects hold no tensor of func's, and lead to very many others: figures, progress bars, logs
_OPAQUE = frozenset(("matplotlib", "mpl_toolkits", "logging", "pandas", "PIL", "tqdm", "tensorboard", "tensorboardX"))
# no func of a user is there
_FOREIGN = _OPAQUE | sys.stdlib_module_names | {"torch", "torch_ACA", "torchdiffeq", "numpy", "scipy"}
KEPT_BY_PYTORCH = frozenset(vars(nn.Module()))  # attributes of every module
# methods that are called without being named
_OPERATORS = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow")
_SPECIAL = (
    "call", "getattr", "getattribute", "getitem", "len", "contains", "iter", "next", "enter", "exit", "bool", "float",
    "int", "index", "hash", "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", *_OPERATORS,
    *(f"r{name}" for name in _OPERATORS),
)  # fmt: skip
_CALLED = frozenset(("forward", *(f"__{name}__" for name in _SPECIAL)))


@dataclass
class Reach:
    """``modules``: all, parts included; ``tensors``: those that require grad; ``constants``: the others."""

    modules: list
    tensors: list
    constants: list
    search: "_Search"

    @property
    def is_scripted(self) -> bool:
        """Whether a part is in TorchScript, which nothing of Python sees into."""
        return self.search is not None and self.search.is_scripted

    def has_grown(self) -> bool:
        """Whether there may be more by now: a place that was looked into holds something else."""
        return self.search.has_grown()

    def gained(self) -> list[torch.Tensor]:
        """Tensors without a history that have been added since, not put in the place of others."""
        return self.search.gained({id(tensor) for tensor in (*self.tensors, *self.constants)})

    @property
    def may_be_reordered(self) -> bool:
        """Whether there is an OrderedDict."""
        return bool(self.search.ordered)

    def orders(self) -> tuple:
        """Keys of every OrderedDict whose order is not that of the dict it is built on (`move_to_end`), which is what
        Dynamo looks at."""
        orders = ((tuple(place), tuple(dict.__iter__(place))) for place in self.search.ordered)
        return tuple(order for order, of_dict in orders if order != of_dict)

    @property
    def places(self) -> "Places":
        return self.search.places

    def members(self) -> "Members":
        """What is found by name in the user's classes."""
        return Members(self.search)


def reach(func: Any) -> Reach:
    """The `Reach` of a callable."""
    search = _Search()
    search.add((func, parametrize_cache()))
    search.run()
    return Reach(search.modules, search.tensors, search.constants, search)


@dataclass
class Places:
    """Where things were found: ``modules``, ``objects`` with attributes, ``slotted`` ones, ``dicts``, ``lists``,
    ``globals``, (namespace, names in it) each, and ``classes``, of which the ``names`` may be used."""

    modules: list
    classes: list
    names: set
    objects: list = field(default_factory=list)
    slotted: list = field(default_factory=list)
    dicts: list = field(default_factory=list)
    lists: list = field(default_factory=list)
    globals: list = field(default_factory=list)


class Members:
    """Methods and attributes of the user's classes, by the names in the code of func, when this was made; and which of
    these names were missing where others were used in their stead: the instance's own before `__getattr__`, globals
    before builtins, what `getattr` with a default asks Python's modules for."""

    def __init__(self, search: "_Search") -> None:
        names = search.names | search.literals | _CALLED
        self._classes = []
        for kind in search.classes:
            known = {name: _holds(member) for name, member in kind.__dict__.items() if name in names}
            self._classes.append((weakref.ref(kind), id(kind.__mro__), list(known.items()), names - known.keys()))
        owners = [(thing, vars(thing), names) for thing in (*search.namespaces, *search.with_substitutes())]
        of_builtins = names & vars(builtins).keys()
        owners += [(function, function.__globals__, of_builtins) for function in search.functions]
        missing: dict[int, tuple] = {}
        for owner, namespace, wanted in owners:
            absent = wanted - namespace.keys()
            if absent and id(namespace) not in missing:
                with contextlib.suppress(TypeError):  # it cannot be held weakly
                    missing[id(namespace)] = weakref.ref(owner), absent
        self._missing = list(missing.values())

    def are_replaced(self) -> bool:
        """Whether any was replaced, added or deleted since, in a class that is still there, or came to be where it was
        missing."""
        for reference, parents, known, absent in self._classes:
            kind = reference()
            if kind is not None:
                now = kind.__dict__
                same = absent.isdisjoint(now) and all(name in now and holds(now[name]) for name, holds in known)
                if not same or id(kind.__mro__) != parents:
                    return True
        for reference, absent in self._missing:
            owner = reference()
            if owner is not None:
                names = owner.__globals__ if type(owner) is types.FunctionType else vars(owner)
                if not names.keys().isdisjoint(absent):
                    return True
        return False


def _holds(member: Any) -> Callable[[Any], bool]:
    """Whether another is the same, without keeping alive what may lead to its class."""
    try:
        reference = weakref.ref(member)
    except TypeError:
        key = id(member)
        return (lambda now: now is member) if type(member) in ATOMS else (lambda now: id(now) == key)
    if (code := _code_of(member)) is None:
        return lambda now: now is reference()
    return lambda now: now is reference() and _code_of(now) is code


def _code_of(member: Any) -> Any:
    """The code of a method, None for others: it may be replaced where the method stays, as by IPython's autoreload."""
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return getattr(function, "__code__", None)


class _Search:
    def __init__(self) -> None:
        self.modules, self.tensors, self.constants = [], [], []
        self._queue, self._seen = collections.deque(), set()
        self._places = []  # (how to look, where, the identities of what was found there)
        self.names, self.classes = set(), []  # names in the code seen, and the classes whose methods they may be
        self.literals: set[str] = set()  # texts in the code, which may be names
        self.functions, self.namespaces = [], []  # those of the user's, and Python's modules that they name
        self.places = Places(self.modules, self.classes, self.names)
        self.ordered: list[collections.OrderedDict] = []
        self.is_scripted = False

    def add(self, things: Iterable[Any]) -> None:
        """Look at these when their turn comes, if they were not met before."""
        seen, queue, atoms = self._seen, self._queue, ATOMS
        for thing in things:
            if type(thing) not in atoms:
                key = id(thing)
                if key not in seen:
                    seen.add(key)
                    queue.append(thing)

    def look(self, how: Callable[[Any], Any], place: Any) -> None:
        """Add what is found in a place, now and, for `has_grown`, later."""
        found = how(place)
        self._places.append((how, place, tuple(map(id, found))))
        self.add(found)

    def has_grown(self) -> bool:
        for how, place, before in self._places:
            found = how(place)
            if tuple(map(id, found)) != before and any(
                id(thing) not in self._seen and type(thing) not in ATOMS for thing in found
            ):
                return True
        return False

    def gained(self, tensors: Set[int]) -> list[torch.Tensor]:
        """As of `Reach`; ``tensors``: the identities of those that were found."""
        gained, holders = [], []
        for how, place, before in self._places:
            found, n_before = how(place), sum(key in tensors for key in before)
            now = [thing for thing in found if isinstance(thing, torch.Tensor)]
            new = [thing for thing in found if id(thing) not in self._seen and type(thing) not in ATOMS]
            holders += [thing for thing in new if not isinstance(thing, torch.Tensor)]
            if len(now) > n_before:
                gained += [thing for thing in new if isinstance(thing, torch.Tensor) and not thing.requires_grad]
        return gained + (reach(holders).constants if holders else [])

    def with_substitutes(self) -> list[Any]:
        """Modules and objects whose class has a `__getattr__` of its own."""
        return [
            thing
            for thing in (*self.modules, *self.places.objects)
            if any("__getattr__" in vars(kind) for kind in _own_classes(type(thing)))
        ]

    def run(self) -> None:
        queue, visits = self._queue, _VISITS
        while queue and len(self._seen) <= MOST:
            thing = queue.popleft()
            visit = visits.get(type(thing)) or _visit_of(thing)
            visit(self, thing)

    def add_tensor(self, tensor: torch.Tensor) -> None:
        (self.tensors if tensor.requires_grad else self.constants).append(tensor)

    def add_module(self, module: nn.Module) -> None:
        self.modules.append(module)
        if isinstance(module, torch.jit.ScriptModule):  # its attributes live in C++
            self.is_scripted = True
            self.add([*module.parameters(), *module.buffers()])
        else:
            self.look(_in_module, module)
        self._add_class(type(module))

    def add_dict(self, place: dict) -> None:
        if len(place) <= MOST:
            self.look(dict.values, place)
            self.places.dicts.append(place)
            if isinstance(place, collections.OrderedDict):
                self.ordered.append(place)

    def add_sequence(self, place: Any) -> None:
        if len(place) <= MOST:
            self.look(_again, place)
            if isinstance(place, list):
                self.places.lists.append(place)

    def add_holder(self, thing: Any) -> None:
        (self.add_dict if isinstance(thing, dict) else self.add_sequence)(thing)
        self.add_object(thing)

    def add_method(self, method: types.MethodType) -> None:
        self.add((method.__self__, method.__func__))

    def add_partial(self, partial: functools.partial) -> None:
        self.add((partial.func, *partial.args, *partial.keywords.values()))

    def add_cached(self, function: Any) -> None:
        self.look(gc.get_referents, function)

    def add_reference(self, reference: weakref.ref) -> None:
        self.add((reference(),))

    def add_type(self, kind: type) -> None:
        if not is_foreign(kind):
            self.add([v for v in vars(kind).values() if not isinstance(v, types.FunctionType)])

    def add_builtin(self, function: Any) -> None:
        if not isinstance(function.__self__, types.ModuleType):
            self.add((function.__self__,))

    def add_generator(self, generator: types.GeneratorType) -> None:
        if generator.gi_frame is not None:
            self.add(generator.gi_frame.f_locals.values())

    def add_property(self, found: property) -> None:
        self.add((found.fget,))

    def add_wrapper(self, wrapper: Any) -> None:
        self.add((wrapper.__func__,))

    def pass_over(self, thing: types.ModuleType) -> None:
        """A Python module: of those, only what code names is looked at."""

    def add_scripted(self, function: torch.jit.ScriptFunction) -> None:
        self.is_scripted = True

    def add_object(self, thing: Any) -> None:
        if package_of(getattr(type(thing), "__module__", None)) in _OPAQUE:
            return
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict) and len(attributes) <= MOST:
            self.look(dict.values, attributes)
            if package_of(type(thing).__module__) != "torch_ACA":  # what the solver itself wraps func in
                self.places.objects.append(thing)
        kind = type(thing)
        if slots_of(kind):
            self.look(_in_slots, thing)
            if not is_foreign(kind):
                self.places.slotted.append(thing)
        self._add_class(kind)

    def add_function(self, function: types.FunctionType) -> None:
        if function.__closure__:
            self.look(_in_cells, function.__closure__)
        if function.__defaults__:
            self.add(function.__defaults__)
        if function.__kwdefaults__:
            self.add(function.__kwdefaults__.values())
        if function.__dict__:
            self.add(function.__dict__.values())
        namespace = function.__globals__
        if not _is_foreign_name(namespace.get("__name__")):
            self.functions.append(function)
            names, literals = _names_in(function.__code__)
            self.literals |= literals
            self._add_globals(names, namespace)

    def _add_globals(self, names: frozenset[str], namespace: dict[str, Any]) -> None:
        present = names & namespace.keys()
        if present:
            self.look(_named, (namespace, present))
            self.places.globals.append((namespace, present))
        for kind in self.classes:
            self._add_members(kind, names)
        self.names |= names
        for name in present:
            value = namespace[name]
            if type(value) is types.ModuleType and not _is_foreign_name(value.__name__):
                attributes = value.__dict__
                self.namespaces.append(value)
                self.look(_named, (attributes, names & attributes.keys()))
                self.places.globals.append((attributes, names & attributes.keys()))

    def _add_class(self, kind: type) -> None:
        """The members of a class that the code seen may use."""
        for parent in _own_classes(kind):
            if id(parent) not in self._seen:
                self._seen.add(id(parent))
                self.classes.append(parent)
                self._add_members(parent, self.names | _CALLED)

    def _add_members(self, kind: type, names: Set[str]) -> None:
        members = kind.__dict__
        self.add([members[name] for name in names & members.keys()])


# how things are looked into: by their very type, else by the first class that they are of
_VISITS: dict[type, Any] = {
    kind: _Search.add_dict if issubclass(kind, dict) else _Search.add_sequence for kind in _PLAIN
}
_BY_CLASS: dict[type, Any] = {
    nn.Module: _Search.add_module,
    torch.Tensor: _Search.add_tensor,
    torch.jit.ScriptFunction: _Search.add_scripted,
    types.FunctionType: _Search.add_function,
    types.MethodType: _Search.add_method,
    functools.partial: _Search.add_partial,
    functools._lru_cache_wrapper: _Search.add_cached,
    weakref.ref: _Search.add_reference,
    types.BuiltinFunctionType: _Search.add_builtin,
    types.MethodWrapperType: _Search.add_builtin,
    types.GeneratorType: _Search.add_generator,
    property: _Search.add_property,
    staticmethod: _Search.add_wrapper,
    classmethod: _Search.add_wrapper,
    type: _Search.add_type,
    types.ModuleType: _Search.pass_over,
}
_VISITS |= _BY_CLASS | {nn.Parameter: _Search.add_tensor}


def _visit_of(thing: Any) -> Callable:
    kind = type(thing)  # `isinstance` would believe a mock, which says that it is a module
    if issubclass(kind, _PLAIN):
        return _Search.add_holder
    return next((visit for known, visit in _BY_CLASS.items() if issubclass(kind, known)), _Search.add_object)


def _in_module(module: nn.Module) -> list[Any]:
    """Parameters, buffers, parts and attributes of a module, and what its hooks hold."""
    attributes = module.__dict__
    found = [*attributes["_parameters"].values(), *attributes["_buffers"].values(), *attributes["_modules"].values()]
    found += [value for name, value in attributes.items() if name not in KEPT_BY_PYTORCH]
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        found += attributes[name].values()
    return found


def _again(place: Any) -> list | tuple:
    """A sequence, as something that can be gone through twice."""
    return place if isinstance(place, (list, tuple)) else list(place)


def _in_cells(cells: Iterable[types.CellType]) -> list[Any]:
    found = []
    for cell in cells:
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a cell that is not filled yet
            continue
    return found


_SLOTS = weakref.WeakKeyDictionary()


def slots_of(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    """The slots in which instances of a class keep what has no place in a dict of theirs."""
    slots = _SLOTS.get(kind)
    if slots is None:
        members = [vars(parent).values() for parent in kind.__mro__ if "__slots__" in vars(parent)]
        slots = _SLOTS[kind] = tuple(m for own in members for m in own if type(m) is types.MemberDescriptorType)
    return slots


def filled_slots(thing: Any) -> list[tuple[types.MemberDescriptorType, Any]]:
    """Slots of an object, with what is in them."""
    filled = []
    for slot in slots_of(type(thing)):
        try:
            filled.append((slot, slot.__get__(thing)))
        except AttributeError:  # an empty one
            continue
    return filled


def _in_slots(thing: Any) -> list[Any]:
    return [value for _, value in filled_slots(thing)]


def _named(place: tuple[dict[str, Any], Iterable[str]]) -> list[Any]:
    namespace, names = place
    return [namespace.get(name) for name in names]


_NAMES = weakref.WeakKeyDictionary()


def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names of globals and attributes in a code object and those inside it; and texts that may be names."""
    names = _NAMES.get(code)
    if names is None:
        inner = [_names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
        texts = (constant for constant in code.co_consts if isinstance(constant, str) and constant.isidentifier())
        names = _NAMES[code] = (
            frozenset(code.co_names).union(*(own for own, _ in inner)),
            frozenset(texts).union(*(own for _, own in inner)),
        )
    return names


_OWN_CLASSES = weakref.WeakKeyDictionary()


def _own_classes(kind: type) -> list[type]:
    """A class and its parents, but for those of PyTorch, Python and the like."""
    classes = _OWN_CLASSES.get(kind)
    if classes is None:
        classes = _OWN_CLASSES[kind] = [weakref.ref(parent) for parent in kind.__mro__ if not is_foreign(parent)]
    return [found for found in (reference() for reference in classes) if found is not None]


def is_foreign(thing: Any) -> bool:
    return _is_foreign_name(getattr(thing, "__module__", None))


def _is_foreign_name(name: Any) -> bool:
    return package_of(name) in _FOREIGN


def package_of(name: Any) -> str | None:
    """The package that a module is in, by its name."""
    return name.partition(".")[0] if isinstance(name, str) else None
