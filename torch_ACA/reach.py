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
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
_FOREIGN = ("torch", "numpy", "builtins", "collections", "functools", "typing", "abc")  # no func of a user is there
_CALLED = frozenset(("forward", "__call__"))


@dataclass
class Reach:
    """``modules``: every `nn.Module`, parts included; ``tensors``: those that require grad; ``constants``: the
    others."""

    modules: list
    tensors: list
    constants: list


def reach(func):
    """The `Reach` of a callable."""
    search = _Search()
    search.add(func)
    if parametrize._cache_enabled:
        search.add(parametrize._cache)
    search.run()
    return Reach(search.modules, search.tensors, search.constants)


class _Search:
    def __init__(self):
        self.modules, self.tensors, self.constants = [], [], []
        self._queue, self._seen = collections.deque(), set()
        self._names, self._classes = set(), []  # names in the code seen, and the classes whose methods they may be

    def add(self, thing):
        if type(thing) not in _ATOMS and id(thing) not in self._seen:
            self._seen.add(id(thing))
            self._queue.append(thing)

    def add_all(self, things):
        if len(things) <= MOST:
            for thing in things:
                self.add(thing)

    def run(self):
        while self._queue and len(self._seen) <= MOST:
            self._visit(self._queue.popleft())

    def _visit(self, thing):
        if isinstance(thing, torch.Tensor):
            (self.tensors if thing.requires_grad else self.constants).append(thing)
        elif isinstance(thing, nn.Module):
            self.modules.append(thing)
            for value in vars(thing).values():
                if value.__class__ not in (dict, collections.OrderedDict, set) or value:
                    self.add(value)
            if isinstance(thing, torch.jit.ScriptModule):
                self.add_all([*thing.parameters(), *thing.buffers()])
            self._add_class(type(thing))
        elif isinstance(thing, dict):
            self.add_all(thing.values())
        elif isinstance(thing, _SEQUENCES):
            self.add_all(thing)
            if type(thing) not in _SEQUENCES:
                self._add_attributes(thing)
        elif isinstance(thing, types.FunctionType):
            self._add_function(thing)
        elif isinstance(thing, types.MethodType):
            self.add(thing.__self__)
            self.add(thing.__func__)
        elif isinstance(thing, functools.partial):
            self.add(thing.func)
            self.add_all(thing.args)
            self.add_all(thing.keywords.values())
        elif isinstance(thing, functools._lru_cache_wrapper):
            self.add_all(gc.get_referents(thing))
        elif isinstance(thing, weakref.ref):
            self.add(thing())
        elif isinstance(thing, type):
            if not _is_foreign(thing):
                self.add_all([v for v in vars(thing).values() if not isinstance(v, types.FunctionType)])
        elif isinstance(thing, property):
            self.add(thing.fget)
        elif isinstance(thing, (staticmethod, classmethod)):
            self.add(thing.__func__)
        elif not isinstance(thing, types.ModuleType):
            self._add_attributes(thing)

    def _add_attributes(self, thing):
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict):
            self.add_all(attributes.values())
        kind = type(thing)
        for parent in kind.__mro__:
            for name in parent.__dict__.get("__slots__", ()):
                try:
                    self.add(getattr(thing, name, None))
                except Exception:  # a slot's name may be anything, and reading one may run code of its owner
                    continue
        self._add_class(kind)

    def _add_function(self, function):
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # a cell that is not filled yet
                continue
        self.add_all(function.__defaults__ or ())
        self.add_all((function.__kwdefaults__ or {}).values())
        self.add_all(vars(function).values())
        if not _is_foreign(function):
            self._add_globals(function.__code__, function.__globals__)

    def _add_globals(self, code, namespace):
        names = _names_in(code)
        for name in names:
            value = namespace.get(name)
            if isinstance(value, types.ModuleType):
                if not _is_foreign(value):
                    attributes = vars(value)
                    self.add_all([attributes[n] for n in names if n in attributes])
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
        self.add_all([members[name] for name in names if name in members])


def _names_in(code):
    """Names of globals and attributes in a code object and those inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _is_foreign(thing):
    name = getattr(thing, "__module__", None) or getattr(thing, "__name__", "")
    return isinstance(name, str) and name.partition(".")[0] in _FOREIGN
