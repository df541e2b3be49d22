"""How a backward pass holds the user's func.

A module that stores its own solution would never be freed if the graph of that solution held the module: Python's
collector does not see through graphs. So modules are held weakly, with a shallow copy, which takes over where the
module itself is gone by the time of the backward pass (it was made for one solve), or has other tensors by then (a
weight or a noise that is drawn anew for every solve).
"""

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
        self._owner = self._cells = None
        if _is_module(func):
            self._func, self._owner = None, _Owner(func, uses)
        elif isinstance(func, types.MethodType) and _is_module(func.__self__):
            self._func, self._owner = func.__func__, _Owner(func.__self__, uses)
        elif isinstance(func, types.FunctionType) and any(map(_holds_module, func.__closure__ or ())):
            self._cells = [_Owner(c.cell_contents, uses) if _holds_module(c) else c for c in func.__closure__]
            self._func = func.__code__, func.__globals__, func.__name__, func.__defaults__
            self._keywords = func.__kwdefaults__

    def __call__(self) -> Any:
        """The func."""
        if self._owner is not None:
            owner = self._owner()
            return owner if self._func is None else types.MethodType(self._func, owner)
        if self._cells is None:
            return self._func
        cells = tuple(types.CellType(c()) if isinstance(c, _Owner) else c for c in self._cells)
        func = types.FunctionType(*self._func, cells)  # type: ignore[call-arg]
        func.__kwdefaults__ = self._keywords
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


def _holds_module(cell: types.CellType) -> bool:
    try:
        return _is_module(cell.cell_contents)
    except ValueError:  # a cell that is not filled
        return False
