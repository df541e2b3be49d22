"""Copies of what func holds, without the solutions before.

A solution may not hold the one before it, and that the one before: a tensor with a history that func does not use is
left out, and where it is in a list, or another container or object, that is copied without it. Where func does use one,
its container is copied as well: the program may go on and append the solution itself to it, as by the method of steps.
"""

import collections
import copy
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ReplayError
from .graph import leads_to
from .private_torch import pytree
from .reach import ATOMS, is_foreign, package_of, slots_of

_DEEPEST = 6  # containers and objects within one another that are looked into
_MOST = 1000  # things that are looked at, but for numbers and the like; a container with more in it is data
_DEQUE = collections.deque
_SEQUENCES = list, tuple, _DEQUE
DICTS = dict, collections.OrderedDict, collections.defaultdict
_OF_ITSELF = [getattr(Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf")]


class LeftOut(Tensor):
    """Stands for a tensor whose history func does not use: it has the values alone. So does what is made of it, until
    that is detached, or taken as numbers.

    :raises ReplayError: func has come to use it together with what has a gradient
    """

    @classmethod
    def of(cls, tensor: Tensor) -> Tensor:
        values = tensor.detach()
        # other kinds have ways of their own
        return values.as_subclass(cls) if type(values) is Tensor and values.layout is torch.strided else values

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OF_ITSELF:
            return Tensor.__torch_function__(func, (Tensor,), args, kwargs or {})
        opened, others = [], []

        def open_up(thing: Any) -> Any:
            if isinstance(thing, cls):
                thing = Tensor.__torch_function__(Tensor.detach, (Tensor,), (thing,)).requires_grad_()
                opened.append(thing)
            elif isinstance(thing, Tensor) and thing.requires_grad:
                others.append(thing)
            return thing

        def close(thing: Any) -> Any:
            if not isinstance(thing, Tensor) or thing.grad_fn is None or not _leads_to_any([thing.grad_fn], opened):
                return thing
            if _leads_to_any([thing.grad_fn], others):
                raise ReplayError("it has come to use a tensor that it did not use")
            return cls.of(thing)

        args, kwargs = pytree.tree_map(open_up, (args, kwargs or {}))
        return pytree.tree_map(close, func(*args, **kwargs))


def _leads_to_any(nodes: list[Any], tensors: list[Tensor]) -> bool:
    return any(leads_to(nodes, tensor) for tensor in tensors)


class Copies:
    """Things without the earlier solutions in them: what leads to one is copied, and has a `LeftOut` in its place.

    ``read``: the identities of containers of which func uses something with a history; they are copied, too.

    :param unused: as of `KeptFunc`
    """

    def __init__(self, unused: Callable[[Tensor], bool]) -> None:
        self._unused, self._found, self.read = unused, dict[int, Any](), set[int]()

    def __call__(self, thing: Any, depth: int = 0) -> Any:
        if type(thing) in ATOMS or depth > _DEEPEST or len(self._found) > _MOST:
            return thing
        key = id(thing)
        if key not in self._found:
            self._found[key] = thing  # for what leads back to it
            self._found[key] = self._without(thing, depth + 1)
        return self._found[key]

    def _without(self, thing: Any, depth: int) -> Any:
        kind: Any = type(thing)
        if issubclass(kind, Tensor):
            return LeftOut.of(thing) if thing.grad_fn is not None and self._unused(thing) else thing
        if kind in _SEQUENCES and len(thing) <= _MOST:
            changed = self._changed(thing, enumerate(thing), depth)
            if changed is None:
                return thing
            entries = [changed.get(place, entry) for place, entry in enumerate(thing)]
            return kind(entries, thing.maxlen) if kind is _DEQUE else kind(entries)
        if kind in DICTS and len(thing) <= _MOST:
            changed = self._changed(thing, thing.items(), depth)
            if changed is None:
                return thing
            copied = copy.copy(thing)
            copied.update(changed)
            return copied
        if kind is types.SimpleNamespace or has_attributes_alone(thing):
            changed = self._changed(thing, vars(thing).items(), depth)
            if changed is None:
                return thing
            copied = types.SimpleNamespace() if kind is types.SimpleNamespace else object.__new__(kind)
            vars(copied).update(vars(thing), **changed)
            return copied
        return thing

    def _changed(self, thing: Any, parts: Iterable[tuple[Any, Any]], depth: int) -> dict[Any, Any] | None:
        """What a copy of a thing has in the place of some of its parts; None if there need be no copy."""
        looked_at = [(place, part) for place, part in parts if type(part) not in ATOMS]
        copied = [(place, part, self(part, depth)) for place, part in looked_at]
        if any(self._is_read(thing, part) for _, part in looked_at):
            self.read.add(id(thing))
        changed = {place: new for place, part, new in copied if new is not part}
        return changed if changed or id(thing) in self.read else None

    def _is_read(self, thing: Any, part: Any) -> bool:
        """Whether func uses a tensor with a history that is a part of a thing, or in one."""
        if not isinstance(part, Tensor):
            return id(part) in self.read
        # nothing else takes out of a deque what comes into it
        return type(thing) is _DEQUE or part.grad_fn is not None and not self._unused(part)


def identities(thing: Any, depth: int = 0) -> Any:
    """Of the tensors in a thing that `Copies` has copied."""
    if depth <= _DEEPEST:
        if type(thing) in _SEQUENCES:
            return [identities(entry, depth + 1) for entry in thing]
        if type(thing) in DICTS:
            return {key: identities(entry, depth + 1) for key, entry in thing.items()}
        if type(thing) is types.SimpleNamespace or has_attributes_alone(thing):
            return identities(vars(thing), depth + 1)
    return id(thing) if isinstance(thing, Tensor) else None


def has_attributes_alone(thing: object) -> bool:
    """Whether an object is all in its dict of attributes, so that a shallow copy is easily made. Those of Python's
    library may be more than that, and those that something is to be done for when they are gone."""
    kind = type(thing)
    if kind.__new__ is not object.__new__ or hasattr(kind, "__del__") or isinstance(thing, nn.Module):
        return False
    if is_foreign(kind) and package_of(kind.__module__) != "torch_ACA" or slots_of(kind):
        return False
    if any(reference.__callback__ is not None for reference in weakref.getweakrefs(thing)):
        return False
    return isinstance(getattr(thing, "__dict__", None), dict)
