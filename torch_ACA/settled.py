"""What func finds in the places that it reaches, and leaves as it is, is there when it is evaluated again too.

A task's number, a flag or a control is an attribute that a loop sets anew for every solve. Where a backward pass comes
after several of them, func must be what it was in each; and states alone do not tell, as where a gate is still zero.
So numbers, flags, texts and tensors without a history that were in modules, objects, dicts, lists and globals from the
first evaluation to the last are put back for as long as func is evaluated again, and what was appended to such lists
since, as the solution itself, is taken out. What func itself has changed, such as a count of its calls, is its own
affair.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from .copies import DICTS
from .reach import KEPT_BY_PYTORCH, Places, filled_slots

_OF_NUMPY = np.bool_, np.int32, np.int64, np.float32, np.float64
_SIMPLE = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, *_OF_NUMPY))
_PUT_BACK_IN_MODULES = frozenset(("training",))  # of the attributes that every module has
_MOST = 1000  # entries of a dict or list: larger ones are data, and take time to look at in every solve
_NOTHING = object()


class Settled:
    """What is simple in the places that func reaches. `leave_out_changed` is to be called once func has been evaluated
    for the last time, `put_back` where it is evaluated again.

    :param places: those of the `Reach` of func before its first evaluation
    """

    def __init__(self, places: Places) -> None:
        self._held = [(place, _simple_in(place())) for place in _lookups(places)]
        self._names: list[frozenset] = []
        plain = [entries for entries in places.lists if type(entries) is list]  # others may refuse to let go
        self._lists, self._lengths = [entries for entries in plain if _leads_nowhere(_Listed(entries))], []

    def leave_out_changed(self) -> None:
        """What func has changed itself is not put back."""
        held, self._names = [], []
        for place, before in self._held:
            now = place()
            if now is not None:
                held.append((place, {key: v for key, v in before.items() if _is_same(now.get(key, _NOTHING), v)}))
                self._names.append(frozenset(key for key, _ in now.items()))
        self._held, self._lengths = held, [len(entries) for entries in self._lists]

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        """Context in which everything is where it was, and what has been added since is not there."""
        changed, appended = [], []
        try:
            for entries, length in zip(self._lists, self._lengths):
                if len(entries) > length:
                    later = entries[length:]
                    del entries[length:]
                    appended.append((entries, length, later))
            for now, key, value, found in self._differences():
                _put(now, key, value)
                changed.append((now, key, value, found))
            yield
        finally:
            for now, key, value, found in changed:
                if now.get(key, _NOTHING) is value:  # else func has put something else there
                    _put(now, key, found)
            for entries, length, later in appended:
                entries[length:length] = later  # before what func has appended

    def _differences(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        """(place, key, what was there, what is there now) where these differ."""
        for (place, before), names in zip(self._held, self._names):
            now = place()
            if now is not None:
                added = dict.fromkeys((key for key in _removable(now) if key not in names), _NOTHING)  # in their order
                for key, value in (before | added).items():
                    found = now.get(key, _NOTHING)
                    if not _is_same(found, value):
                        yield now, key, value, found


def _put(place: Any, key: Any, value: Any) -> None:
    if value is _NOTHING:
        del place[key]
    else:
        place[key] = value


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and type(one) in _SIMPLE and (one == other or one != one and other != other)


def _simple_in(place: Any) -> dict[Any, Any]:
    """Entries whose values are simple."""
    return {
        key: value
        for key, value in (() if place is None else place.items())
        if type(value) in _SIMPLE or isinstance(value, torch.Tensor) and value.grad_fn is None
    }


def _removable(place: Any) -> Iterable[Any]:
    """Keys that may be taken out. A dict of another class may refuse; of attributes, others may be PyTorch's own."""
    if isinstance(place, dict):
        return place if type(place) in DICTS else ()
    return _simple_in(place)


def _leads_nowhere(place: Any) -> bool:
    """Whether a dict or list holds simple things alone. It is held itself: one with an earlier solution in it would
    keep that, and what that one holds, alive for as long as the next."""
    return len(place) <= _MOST and len(_simple_in(place)) == len(place)


def _lookups(places: Places) -> Iterator[Callable[[], Any]]:
    """Functions that return a place, as a dict is one, or None where its owner is gone: owners are not held."""
    for module in places.modules:
        yield _of_owner(module, _attributes)
        yield _of_owner(module, _buffers)
    dicts = list(places.dicts)
    for thing in places.objects:
        try:
            yield _of_owner(thing, vars)
        except TypeError:  # it cannot be held weakly
            dicts.append(vars(thing))
    for thing in places.slotted:
        try:
            yield _of_owner(thing, _Slots)
        except TypeError:
            yield functools.partial(_itself, _Slots(thing))
    for place in (*dicts, *map(_Listed, places.lists)):
        if _leads_nowhere(place):
            yield functools.partial(_itself, place)
    for namespace, names in places.globals:
        yield functools.partial(_itself, _Part(namespace, names))
    for kind in places.classes:
        yield _of_owner(kind, functools.partial(_OfClass, names=places.names))


def _of_owner(owner: Any, part: Callable[[Any], Any]) -> Callable[[], Any]:
    reference = weakref.ref(owner)

    def place() -> Any:
        now = reference()
        return None if now is None else part(now)

    return place


def _itself(place: Any) -> Any:
    return place


def _attributes(module: nn.Module) -> "_Part":
    attributes = module.__dict__
    return _Part(attributes, [n for n in attributes if n not in KEPT_BY_PYTORCH or n in _PUT_BACK_IN_MODULES])


def _buffers(module: nn.Module) -> dict[str, Any]:
    return module.__dict__.get("_buffers", {})  # TorchScript has none there


class _Part:
    """Some names of a dict."""

    def __init__(self, whole: Any, names: Iterable[str]) -> None:
        self._whole, self._names = whole, names

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self._whole[name]) for name in self._names if name in self._whole]

    def get(self, name: str, default: Any) -> Any:
        return self._whole.get(name, default)

    def __setitem__(self, name: str, value: Any) -> None:
        self._whole[name] = value

    def __delitem__(self, name: str) -> None:
        del self._whole[name]


class _OfClass(_Part):
    """Some names of a class."""

    def __init__(self, kind: type, names: Iterable[str]) -> None:
        self._kind = kind
        super().__init__(kind.__dict__, names)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._kind, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._kind, name)


class _Slots:
    """The slots of an object; they are set where it does not let others do so (``dataclass(frozen=True)``)."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def items(self) -> list[tuple[Any, Any]]:
        return filled_slots(self._owner)

    def get(self, slot: Any, default: Any) -> Any:
        try:
            return slot.__get__(self._owner)
        except AttributeError:
            return default

    def __setitem__(self, slot: Any, value: Any) -> None:
        slot.__set__(self._owner, value)

    def __delitem__(self, slot: Any) -> None:
        slot.__delete__(self._owner)


class _Listed:
    """A list, by the numbers of its entries. Its length is that which it has by now."""

    def __init__(self, entries: list) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterable[tuple[int, Any]]:
        return enumerate(self._entries)

    def get(self, number: int, default: Any) -> Any:
        return self._entries[number] if number < len(self) else default

    def __setitem__(self, number: int, value: Any) -> None:
        if number < len(self):
            self._entries[number] = value

    def __delitem__(self, number: int) -> None:
        """Entries that were added to a list of another kind stay: the others keep their numbers."""
