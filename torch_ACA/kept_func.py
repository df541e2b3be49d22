"""How a backward pass holds the user's func, without keeping its modules alive.

A module that stores its own solution would never be freed if the graph of that solution held the module: Python's
collector does not see through graphs. So modules are held weakly, with a shallow copy, which takes over where the
module itself is gone by the time of the backward pass (it was made for one solve), or has other tensors by then (a
weight or a noise that is drawn anew for every solve).

Names that func closes over, or finds in its module, mean what they meant in the forward pass, also where a loop has
given them other values since; but for those that func itself assigns to.
"""

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


class KeptFunc:
    """A func that can be had again, without holding the modules that it is, is bound to or closes over.

    :param uses: whether a tensor with a history belongs to what func computes with
    """

    def __init__(self, func: Any, uses: Callable[[Tensor], bool]) -> None:
        self._func: Any = func
        self._owner = self._names = None
        if _is_module(func):
            self._func, self._owner = None, _Owner(func, uses)
        elif isinstance(func, types.MethodType) and _is_module(func.__self__):
            self._func, self._owner = func.__func__, _Owner(func.__self__, uses)
        elif isinstance(func, types.FunctionType):
            self._func, self._names = None, _Names(func, uses)

    def __call__(self) -> Any:
        """The func."""
        if self._owner is not None:
            owner = self._owner()
            return owner if self._func is None else types.MethodType(self._func, owner)
        return self._func if self._names is None else self._names()


class _Names:
    """A function, with the values of its names as they are now; so are those of functions that it closes over.

    :param uses: as of `KeptFunc`; None: modules are held as everything else is
    :param around: identities of the functions around it
    """

    def __init__(self, func: types.FunctionType, uses: Callable | None, around: frozenset[int] = frozenset()) -> None:
        around |= {id(func)}
        code, self._globals, self._cells = func.__code__, func.__globals__, func.__closure__ or ()
        assigned, no_modules = _assigned_names(code), True
        self._held: list[Any] = []  # of each cell: a function that returns its contents; None: as they are by then
        for name, cell in zip(code.co_freevars, self._cells):
            held = None if name in assigned else _held(cell, uses, around)
            no_modules &= not isinstance(held, _Owner)
            self._held.append(held)
        self._named = {
            name: _value(self._globals[name], uses, None)
            for name in code.co_names
            if name in self._globals and name not in assigned and type(self._globals[name]) is not types.ModuleType
        }
        self._func = func if no_modules else None
        self._parts = code, func.__name__, func.__defaults__, func.__kwdefaults__
        if not no_modules:
            self._cells = tuple(None if isinstance(h, _Owner) else c for c, h in zip(self._cells, self._held))

    def __call__(self) -> Any:
        cells = [cell if held is None else _refilled(cell, held()) for cell, held in zip(self._cells, self._held)]
        named = {name: held() for name, held in self._named.items()}
        changed = {name: value for name, value in named.items() if self._globals.get(name) is not value}
        if self._func is not None and not changed and all(map(operator.is_, cells, self._cells)):
            return self._func
        code, name, defaults, keywords = self._parts
        namespace = {**self._globals, **changed} if changed else self._globals
        func = types.FunctionType(code, namespace, name, defaults, tuple(cells))
        func.__kwdefaults__ = keywords
        return func


class _Owner:
    """A module, held weakly, and what takes over when it is gone or holds other tensors than it did."""

    def __init__(self, module: Any, uses: Callable[[Tensor], bool]) -> None:
        self._module = weakref.ref(module)
        self._copy = object.__new__(type(module))
        attributes = {
            name: value
            for name, value in vars(module).items()
            if not (isinstance(value, torch.Tensor) and value.grad_fn is not None) or uses(value)
        }
        vars(self._copy).update(attributes)
        self._tensors = {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)}

    def __call__(self) -> Any:
        module = self._module()
        if module is None or any(vars(module).get(name) is not value for name, value in self._tensors.items()):
            return self._copy
        return module


def _is_module(thing: object) -> bool:
    return isinstance(thing, nn.Module) and not isinstance(thing, torch.jit.ScriptModule)


def _held(cell: types.CellType, uses: Callable | None, around: frozenset[int]) -> Any:
    try:
        return _value(cell.cell_contents, uses, around)
    except ValueError:  # a cell that is not filled
        return None


def _value(value: Any, uses: Callable | None, around: frozenset[int] | None) -> Callable[[], Any]:
    """A function that returns the value, as it is now.

    :param around: as of `_Names`; None: functions are not looked into
    """
    if uses is not None and _is_module(value):
        return _Owner(value, uses)
    if type(value) is types.FunctionType and value.__closure__ and around is not None and id(value) not in around:
        return _Names(value, None, around)
    return lambda: value


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
