"""What a callable can reach: the modules and the tensors that require grad behind it.

Closures, defaults, globals by the names in the code, attributes, slots, partials, methods, lists, dicts and whatever
holds such things in turn are followed. Globals of PyTorch's own functions are not, and no search looks at more than
`MOST` objects: what lies behind more of them is met when it is used (see `capture`).
"""

import collections
import functools
import gc
import types
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

MOST = 20_000
_ATOMS = frozenset(
    (bool, int, float, complex, str, bytes, bytearray, range, slice, type(None), type(...), type(NotImplemented))
    + (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Generator, np.ndarray, np.dtype)
    + (types.BuiltinFunctionType, types.MethodWrapperType, types.MethodDescriptorType, types.WrapperDescriptorType)
)
_PLAIN = (dict, collections.OrderedDict, list, tuple, set, frozenset, collections.deque)
_FOREIGN = ("torch", "numpy", "builtins", "collections", "functools", "typing", "abc")  # no func of a user is there
_PARTS = ("_parameters", "_buffers", "_modules")
_KEPT_BY_PYTORCH = frozenset(vars(nn.Module()))
_CALLED = frozenset(("forward", "__call__"))


@dataclass
class Reach:
    """``modules``: every `nn.Module`, parts included; ``tensors``: those that require grad; ``constants``: the
    others."""

    modules: list
    tensors: list
    constants: list
    search: "_Search"

    def has_grown(self):
        """Whether there may be more by now: a place that was looked into holds something else."""
        return self.search.has_grown()


def reach(func):
    """The `Reach` of a callable."""
    search = _Search()
    search.add(func)
    if parametrize._cache_enabled:
        search.add(parametrize._cache)
    search.run()
    return Reach(search.modules, search.tensors, search.constants, search)


class _Search:
    def __init__(self):
        self.modules, self.tensors, self.constants = [], [], []
        self._queue, self._seen = collections.deque(), set()
        self._places, self._module_attributes, self._cells, self._globals = [], [], [], []  # where things were found
        self._names, self._classes = set(), []  # names in the code seen, and the classes whose methods they may be

    def add(self, *things):
        """Look at these when their turn comes, if they were not met before."""
        seen, queue = self._seen, self._queue
        for thing in things:
            if type(thing) not in _ATOMS:
                key = id(thing)
                if key not in seen:
                    seen.add(key)
                    queue.append(thing)

    def has_grown(self):
        seen = self._seen
        return any(
            id(thing) not in seen and type(thing) not in _ATOMS
            for things in (
                *map(_contents, self._places),
                *map(_own, self._module_attributes),
                *map(_content, self._cells),
                *map(_named, self._globals),
            )
            for thing in things
        )

    def run(self):
        queue, visits = self._queue, _VISITS
        while queue and len(self._seen) <= MOST:
            thing = queue.popleft()
            visit = visits.get(type(thing)) or _visit_of(thing)
            visit(self, thing)

    def add_tensor(self, tensor):
        (self.tensors if tensor.requires_grad else self.constants).append(tensor)

    def add_module(self, module):
        self.modules.append(module)
        attributes = vars(module)
        self._module_attributes.append(attributes)
        self.add(*_own(attributes))
        for name in _PARTS:
            if attributes[name]:
                self.add_place(attributes[name])
        if isinstance(module, torch.jit.ScriptModule):
            self.add(*module.parameters(), *module.buffers())
        self._add_class(type(module))

    def add_place(self, place):
        """Look at what a dict or a sequence holds, now and in `has_grown`."""
        if len(place) <= MOST:
            self._places.append(place)
            self.add(*_contents(place))

    def add_holder(self, thing):
        self.add_place(thing)
        self.add_object(thing)

    def add_method(self, method):
        self.add(method.__self__, method.__func__)

    def add_partial(self, partial):
        self.add(partial.func, *partial.args, *partial.keywords.values())

    def add_cached(self, function):
        self.add(*gc.get_referents(function))

    def add_reference(self, reference):
        self.add(reference())

    def add_type(self, kind):
        if not _is_foreign(kind):
            self.add(*(v for v in vars(kind).values() if not isinstance(v, types.FunctionType)))

    def add_property(self, found):
        self.add(found.fget)

    def add_wrapper(self, wrapper):
        self.add(wrapper.__func__)

    def pass_over(self, thing):
        """A Python module: of those, only what code names is looked at."""

    def add_object(self, thing):
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict):
            self.add_place(attributes)
        kind = type(thing)
        for parent in kind.__mro__:
            for name in parent.__dict__.get("__slots__", ()):
                try:
                    self.add(getattr(thing, name, None))
                except Exception:  # a slot's name may be anything, and reading one may run code of its owner
                    continue
        self._add_class(kind)

    def add_function(self, function):
        closure = function.__closure__ or ()
        self._cells += closure
        self.add(*(content for cell in closure for content in _content(cell)))
        self.add(*function.__defaults__ or (), *(function.__kwdefaults__ or {}).values(), *vars(function).values())
        if not _is_foreign(function):
            self._add_globals(function.__code__, function.__globals__)

    def _add_globals(self, code, namespace):
        names = _names_in(code)
        self._globals.append((namespace, names))
        for name in names:
            value = namespace.get(name)
            if isinstance(value, types.ModuleType):
                self._seen.add(id(value))
                if not _is_foreign(value):
                    attributes = vars(value)
                    self.add(*(attributes[n] for n in names if n in attributes))
            else:
                self.add(value)
        for kind in self._classes:
            self._add_members(kind, names - self._names)
        self._names |= names

    def _add_class(self, kind):
        """The members of a class that the code seen may use."""
        for parent in kind.__mro__:
            if id(parent) not in self._seen and not _is_foreign(parent):
                self._seen.add(id(parent))
                self._classes.append(parent)
                self._add_members(parent, self._names | _CALLED)

    def _add_members(self, kind, names):
        members = kind.__dict__
        self.add(*(members[name] for name in names if name in members))


# how things are looked into: by their very type, else by the first class that they are of
_VISITS = {kind: _Search.add_place for kind in _PLAIN}
_BY_CLASS = {
    nn.Module: _Search.add_module,
    torch.Tensor: _Search.add_tensor,
    types.FunctionType: _Search.add_function,
    types.MethodType: _Search.add_method,
    functools.partial: _Search.add_partial,
    functools._lru_cache_wrapper: _Search.add_cached,
    weakref.ref: _Search.add_reference,
    property: _Search.add_property,
    staticmethod: _Search.add_wrapper,
    classmethod: _Search.add_wrapper,
    type: _Search.add_type,
    types.ModuleType: _Search.pass_over,
}
_VISITS |= _BY_CLASS | {nn.Parameter: _Search.add_tensor}


def _visit_of(thing):
    if isinstance(thing, _PLAIN):
        return _Search.add_holder
    return next((visit for kind, visit in _BY_CLASS.items() if isinstance(thing, kind)), _Search.add_object)


def _own(attributes):
    """What a module's attributes are, but for its parts and for what PyTorch keeps there and is empty as a rule."""
    return [
        value
        for name, value in attributes.items()
        if name not in _KEPT_BY_PYTORCH or (value and name not in _PARTS and isinstance(value, dict))
    ]


def _contents(place):
    return place.values() if isinstance(place, dict) else place


def _content(cell):
    try:
        return (cell.cell_contents,)
    except ValueError:  # a cell that is not filled yet
        return ()


def _named(place):
    namespace, names = place
    return map(namespace.get, names)


_NAMES = weakref.WeakKeyDictionary()


def _names_in(code):
    """Names of globals and attributes in a code object and those inside it."""
    names = _NAMES.get(code)
    if names is None:
        inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
        names = _NAMES[code] = frozenset(code.co_names).union(*map(_names_in, inner))
    return names


def _is_foreign(thing):
    name = getattr(thing, "__module__", None) or getattr(thing, "__name__", "")
    return isinstance(name, str) and name.partition(".")[0] in _FOREIGN
