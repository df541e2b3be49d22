"""How a backward pass holds the user's func, without keeping alive what func belongs to, nor earlier solutions.

A module or object that stores its own solution would never be freed if the graph of that solution held it: Python's
collector does not see through graphs. So what func is, is bound to or closes over is held weakly, with what is needed
for a shallow copy, which takes over where the module itself is gone by the time of the backward pass (it was made for
one solve), or has other tensors by then (a weight or a noise that is drawn anew for every solve).

Nor may a solution hold the one before it, and that the one before: where func does not use a tensor with a history, the
copy has it without.

Names that func closes over, or finds in its module, mean what they meant in the forward pass, also where a loop has
given them other values since; but for those that func itself assigns to.
"""

import collections
import contextlib
import copy
import dis
import functools
import operator
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .reach import KEPT_BY_PYTORCH, package_of, slots_of

_DEEPEST = 6  # containers and objects within one another that are looked into for earlier solutions
_MOST = 1000  # things that are looked at; a container with more in it is data
_SEQUENCES = list, tuple, collections.deque
_DICTS = dict, collections.OrderedDict, collections.defaultdict


class KeptFunc:
    """A func that can be had again, without holding the modules and objects that it is, is bound to or closes over.

    :param uses: whether a tensor with a history belongs to what func computes with
    """

    def __init__(self, func: Any, uses: Callable[[Tensor], bool]) -> None:
        self._get = _kept(func, _Lightened(uses))

    def __call__(self) -> Any:
        """The func."""
        return self._get()


def _kept(thing: Any, lightened: "_Lightened", around: frozenset[int] | None = frozenset()) -> "_Kept":
    """The thing, as it is now.

    :param around: identities of the functions around it; None: functions are not looked into
    """
    if type(thing) is types.FunctionType:
        looked_into = around is not None and id(thing) not in around and (thing.__closure__ or not around)
        return _Names(thing, lightened, around) if looked_into else _Value(thing, thing)
    if type(thing) is types.MethodType:
        return _Called(types.MethodType, [_Value(thing.__func__, thing.__func__), _kept(thing.__self__, lightened)])
    if type(thing) is functools.partial:
        parts = [_kept(part, lightened) for part in (thing.func, *thing.args)]
        return _Called(functools.partial, parts, {name: _kept(v, lightened) for name, v in thing.keywords.items()})
    if _is_module(thing) or _has_attributes_alone(thing) and package_of(type(thing).__module__) != "torch_ACA":
        with contextlib.suppress(TypeError):  # it cannot be held weakly
            return _Owner(thing, lightened)
    return _Value(thing, lightened(thing))


class _Kept:
    """What can be had again, by calling this."""

    is_itself = False  # whether the thing itself is held, and nothing in its place

    def __call__(self) -> Any:
        raise NotImplementedError


class _Value(_Kept):
    """What is held as everything is, or without the earlier solutions in it."""

    def __init__(self, thing: Any, value: Any) -> None:
        self._value, self.is_itself = value, value is thing

    def __call__(self) -> Any:
        return self._value


class _Called(_Kept):
    """A method or partial, by what it is made of."""

    def __init__(self, kind: Callable, parts: list[_Kept], keywords: dict[str, _Kept] | None = None) -> None:
        self._kind, self._parts, self._keywords = kind, parts, keywords or {}

    def __call__(self) -> Any:
        return self._kind(*(part() for part in self._parts), **{name: part() for name, part in self._keywords.items()})


class _Names(_Kept):
    """A function, with the values of its names as they are now; so are those of functions that it closes over."""

    def __init__(self, func: types.FunctionType, lightened: "_Lightened", around: frozenset[int]) -> None:
        around |= {id(func)}
        code, self._globals, self._cells = func.__code__, func.__globals__, func.__closure__ or ()
        assigned = _assigned_names(code)
        # of each cell its contents; None: as they are by then
        self._held = [
            None if name in assigned else _held(cell, lightened, around)
            for name, cell in zip(code.co_freevars, self._cells)
        ]
        self._named = {
            name: _kept(self._globals[name], lightened, None)
            for name in code.co_names
            if name in self._globals and name not in assigned and type(self._globals[name]) is not types.ModuleType
        }
        self._code, self._name = code, func.__name__
        self._defaults = [_kept(value, lightened, None) for value in func.__defaults__ or ()]
        self._keywords = {name: _kept(value, lightened, None) for name, value in (func.__kwdefaults__ or {}).items()}
        self._cells = tuple(c if held is None or held.is_itself else None for c, held in zip(self._cells, self._held))
        given = (*self._defaults, *self._keywords.values())
        self.is_itself = None not in self._cells and all(held.is_itself for held in given)
        self._func = func if self.is_itself else None

    def __call__(self) -> Any:
        cells = [cell if held is None else _refilled(cell, held()) for cell, held in zip(self._cells, self._held)]
        named = {name: held() for name, held in self._named.items()}
        changed = {name: value for name, value in named.items() if self._globals.get(name) is not value}
        if self._func is not None and not changed and all(map(operator.is_, cells, self._cells)):
            return self._func
        namespace = {**self._globals, **changed} if changed else self._globals
        defaults = tuple(held() for held in self._defaults) or None
        func = types.FunctionType(self._code, namespace, self._name, defaults, tuple(cells))
        func.__kwdefaults__ = {name: held() for name, held in self._keywords.items()} or None
        return func


class _Owner(_Kept):
    """A module or object, held weakly, and what takes over when it is gone or holds other tensors than it did.

    :raises TypeError: it cannot be held weakly
    """

    def __init__(self, thing: Any, lightened: "_Lightened") -> None:
        self._thing, self._kind = weakref.ref(thing), type(thing)
        self._attributes, self._parts, self._tensors = {}, {}, {}
        for name, value in vars(thing).items():
            if _is_module(value):
                self._parts[name] = _kept(value, lightened)
                continue
            self._attributes[name] = value if name in KEPT_BY_PYTORCH else lightened(value)
            if isinstance(value, Tensor) and self._attributes[name] is value:
                self._tensors[name] = value
        self._copy: Any = None

    def __call__(self) -> Any:
        thing = self._thing()
        if thing is not None and all(vars(thing).get(name) is value for name, value in self._tensors.items()):
            return thing
        if self._copy is None:
            self._copy = object.__new__(self._kind)
            vars(self._copy).update(self._attributes, **{name: part() for name, part in self._parts.items()})
        return self._copy


class _Lightened:
    """Things without the earlier solutions in them: what leads to one is copied, and the copy has it without history.

    :param uses: as of `KeptFunc`
    """

    def __init__(self, uses: Callable[[Tensor], bool]) -> None:
        self._uses, self._found = uses, dict[int, Any]()

    def __call__(self, thing: Any, depth: int = 0) -> Any:
        key = id(thing)
        if depth > _DEEPEST or len(self._found) > _MOST:
            return thing
        if key not in self._found:
            self._found[key] = thing  # for what leads back to it
            self._found[key] = self._without(thing, depth + 1)
        return self._found[key]

    def _without(self, thing: Any, depth: int) -> Any:
        kind: Any = type(thing)
        if issubclass(kind, Tensor):
            return thing if thing.grad_fn is None or self._uses(thing) else thing.detach()
        if kind in _SEQUENCES and len(thing) <= _MOST:
            entries = [self(entry, depth) for entry in thing]
            if all(map(operator.is_, entries, thing)):
                return thing
            return kind(entries, thing.maxlen) if kind is collections.deque else kind(entries)
        if kind in _DICTS and len(thing) <= _MOST:
            changed = self._changed(thing, depth)
            if not changed:
                return thing
            copied = copy.copy(thing)
            copied.update(changed)
            return copied
        if kind is types.SimpleNamespace or _has_attributes_alone(thing):
            changed = self._changed(vars(thing), depth)
            if not changed:
                return thing
            copied = types.SimpleNamespace() if kind is types.SimpleNamespace else object.__new__(kind)
            vars(copied).update(vars(thing), **changed)
            return copied
        return thing

    def _changed(self, entries: dict, depth: int) -> dict:
        lightened = {key: self(value, depth) for key, value in entries.items()}
        return {key: value for key, value in lightened.items() if value is not entries[key]}


def _is_module(thing: object) -> bool:
    return isinstance(thing, nn.Module) and not isinstance(thing, torch.jit.ScriptModule)


def _has_attributes_alone(thing: object) -> bool:
    """Whether an object is all in its dict of attributes, so that a shallow copy is easily made."""
    kind = type(thing)
    if kind.__new__ is not object.__new__ or hasattr(kind, "__del__") or isinstance(thing, nn.Module):
        return False
    return isinstance(getattr(thing, "__dict__", None), dict) and not slots_of(kind)


def _held(cell: types.CellType, lightened: "_Lightened", around: frozenset[int]) -> _Kept | None:
    try:
        return _kept(cell.cell_contents, lightened, around)
    except ValueError:  # a cell that is not filled
        return None


def _refilled(cell: types.CellType | None, value: Any) -> types.CellType:
    """The cell, if it holds this value; or a new one."""
    if cell is not None:
        with contextlib.suppress(ValueError):  # it has been emptied
            if cell.cell_contents is value:
                return cell
    return types.CellType(value)


@functools.lru_cache(1024)
def _assigned_names(code: types.CodeType) -> frozenset[str]:
    """Names outside of a function that it, or a function within it, assigns to: counts of calls and the like."""
    assigns = ("STORE_DEREF", "STORE_GLOBAL", "DELETE_DEREF", "DELETE_GLOBAL")
    names = {step.argval for step in dis.get_instructions(code) if step.opname in assigns}
    inner = (_assigned_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(names).union(*inner)
