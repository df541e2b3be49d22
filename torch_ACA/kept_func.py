"""How a backward pass holds the user's func, without keeping alive what func belongs to.

A module or object that stores its own solution would never be freed if the graph of that solution held it: Python's
collector does not see through graphs. So what func is, is bound to or closes over is held weakly, with what is needed
for a shallow copy, which takes over where the module itself is gone by the time of the backward pass (it was made for
one solve), or has other tensors by then (a weight or a noise that is drawn anew for every solve).

Names that func closes over, or finds in its module, mean what they meant in the forward pass, also where a loop has
given them other values since; but for those that func itself assigns to.
"""

import abc
import contextlib
import dis
import functools
import operator
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .copies import Copies, has_attributes_alone, identities
from .reach import KEPT_BY_PYTORCH, package_of


class KeptFunc:
    """A func that can be had again, without holding the modules and objects that it is, is bound to or closes over.

    :param unused: whether func does not compute with a tensor that has a history
    """

    def __init__(self, func: Any, unused: Callable[[Tensor], bool]) -> None:
        self._get = _Keeper(unused).keep(func)

    def __call__(self) -> Any:
        """The func."""
        return self._get()


class _Kept(abc.ABC):
    """What can be had again, by calling this."""

    is_itself = False  # whether the thing itself is held, and nothing in its place

    @abc.abstractmethod
    def __call__(self) -> Any: ...


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


class _Keeper:
    """What makes the parts of one `KeptFunc`."""

    def __init__(self, unused: Callable[[Tensor], bool]) -> None:
        self.copies, self._owners = Copies(unused), dict[int, _Owner]()

    def keep(self, thing: Any, around: frozenset[int] | None = frozenset()) -> _Kept:
        """The thing, as it is now.

        :param around: identities of the functions around it; None: functions are not looked into
        """
        if type(thing) is types.FunctionType:
            looked_into = around is not None and id(thing) not in around and (thing.__closure__ or not around)
            return _Names(thing, self, around) if looked_into else _Value(thing, thing)
        if type(thing) is types.MethodType:
            return _Called(types.MethodType, [_Value(thing.__func__, thing.__func__), self.keep(thing.__self__)])
        if type(thing) is functools.partial:
            parts = [self.keep(part) for part in (thing.func, *thing.args)]
            return _Called(functools.partial, parts, {name: self.keep(v) for name, v in thing.keywords.items()})
        if _is_module(thing) or has_attributes_alone(thing) and package_of(type(thing).__module__) != "torch_ACA":
            with contextlib.suppress(TypeError):  # it cannot be held weakly
                return self._owner_of(thing)
        return _Value(thing, self.copies(thing))

    def _owner_of(self, thing: Any) -> "_Owner":
        owner = self._owners.get(id(thing))
        if owner is None:
            owner = self._owners[id(thing)] = _Owner(thing)
            owner.look_into(self)
        return owner


class _Names(_Kept):
    """A function, with the values of its names as they are now; so are those of functions that it closes over."""

    def __init__(self, func: types.FunctionType, keeper: "_Keeper", around: frozenset[int]) -> None:
        around |= {id(func)}
        code, self._globals, self._cells = func.__code__, func.__globals__, func.__closure__ or ()
        assigned = _assigned_names(code)
        # of each cell its contents; None: as they are by then
        self._held = [
            None if name in assigned else _held(cell, keeper, around)
            for name, cell in zip(code.co_freevars, self._cells)
        ]
        self._named = {
            name: keeper.keep(self._globals[name], None)
            for name in code.co_names
            if name in self._globals and name not in assigned and type(self._globals[name]) is not types.ModuleType
        }
        self._code, self._name = code, func.__name__
        self._defaults = [keeper.keep(value, None) for value in func.__defaults__ or ()]
        self._keywords = {name: keeper.keep(value, None) for name, value in (func.__kwdefaults__ or {}).items()}
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

    def __init__(self, thing: Any) -> None:
        self._thing, self._kind = weakref.ref(thing), type(thing)
        self._attributes, self._parts, self._tensors, self._read = {}, {}, {}, {}
        self._copy: Any = None

    def look_into(self, keeper: "_Keeper") -> None:
        """Take up its attributes, as they are now."""
        for name, value in vars(self._thing()).items():
            if _is_module(value):
                self._parts[name] = keeper.keep(value)
                continue
            self._attributes[name] = value if name in KEPT_BY_PYTORCH else keeper.copies(value)
            if isinstance(value, Tensor) and self._attributes[name] is value:
                self._tensors[name] = value
            elif id(value) in keeper.copies.read:
                self._read[name] = identities(value)

    def __call__(self) -> Any:
        thing = self._thing()
        if thing is not None and self._is_as_it_was(vars(thing)):
            return thing
        if self._copy is None:
            self._copy = object.__new__(self._kind)  # before its parts, which may lead back to it
            vars(self._copy).update(self._attributes, **{name: part() for name, part in self._parts.items()})
        return self._copy

    def _is_as_it_was(self, attributes: dict[str, Any]) -> bool:
        same = all(attributes.get(name) is value for name, value in self._tensors.items())
        return same and all(identities(attributes.get(name)) == entries for name, entries in self._read.items())


def _is_module(thing: object) -> bool:
    return isinstance(thing, nn.Module) and not isinstance(thing, torch.jit.ScriptModule)


def _held(cell: types.CellType, keeper: "_Keeper", around: frozenset[int]) -> _Kept | None:
    try:
        contents = cell.cell_contents
    except ValueError:  # a cell that is not filled
        return None
    return keeper.keep(contents, around)


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
