"""The cut itself: stand-ins in the place of tensors with a history, wherever func hands these to an operation."""

import contextlib
import threading
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .private_torch import is_transformed, outside_transforms

_active = threading.local()  # .cuts: those that this thread is inside of, the outermost first


class Cut(TorchFunctionMode):
    """Puts stand-ins in the place of tensors, wherever these are handed to an operation.

    :param entries: {id: [tensor, stand-in or None]}; missing ones are made
    :param used: {id: None}, filled with those that were met
    """

    def __init__(self, entries: dict[int, list], used: dict[int, None]) -> None:
        super().__init__()
        self.entries, self.used = entries, used

    def __enter__(self) -> Any:
        if not hasattr(_active, "cuts"):
            _active.cuts = []
        _active.cuts.append(self)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> Any:
        _active.cuts.pop()
        return super().__exit__(*exception)

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WITHOUT_GRADIENT:
            return func(*args, **(kwargs or {}))
        if kwargs:
            return func(*map(self.of, args), **{name: self.of(value) for name, value in kwargs.items()})
        return func(*map(self.of, args))

    def of(self, value: Any) -> Any:
        """The value, or what stands in for it; lists and tuples too."""
        entry = self.entries.get(id(value))
        if entry is not None:
            self.used[id(value)] = None
            return stand_in_of(entry)
        if type(value) in (list, tuple):
            return type(value)([self.of(part) for part in value])
        return value


class UseWatch(Cut):
    """A cut that also notes whether a tensor is handed to any operation, or read as a number: ``sees_use``; and, of it
    and others that require grad, whether numbers are made of them, or of what comes of them, that autograd knows
    nothing of: ``sees_way_out``.

    :param cut: what it does besides (None: nothing)
    :param others: leaves
    :param below: whether to see a use within TorchScript too, which slows every operation down
    """

    def __init__(self, tensor: Tensor, cut: Cut | None, others: Iterable[Tensor] = (), *, below: bool = True) -> None:
        super().__init__({} if cut is None else cut.entries, {} if cut is None else cut.used)
        self._tensor, self.sees_use, self.sees_way_out = tensor, False, False
        self._from_them = {id(one): one for one in (tensor, *others)}
        self._looks_below, self._below = below, contextlib.ExitStack()

    def __enter__(self) -> Any:
        if self._looks_below:
            self._below.enter_context(_Below(self))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> Any:
        result = super().__exit__(*exception)
        self._below.close()  # no cycle of references is left
        return result

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        self.look(given)
        result = super().__torch_function__(func, kinds, args, kwargs)
        if not self.sees_way_out and any(map(self._comes_of_them, given)):
            if getattr(func, "__name__", None) not in _SHAPED_LIKE:
                self.sees_way_out = any(map(_is_value, _parts(result)))
            self._from_them |= {id(x): x for x in _parts(result) if isinstance(x, Tensor)}
        return result

    def _comes_of_them(self, value: Any) -> bool:
        inside = is_transformed()  # a transform inside func hands on tensors of its own
        return any(id(x) in self._from_them or inside and isinstance(x, Tensor) for x in _parts(value))

    def look(self, given: tuple) -> None:
        self.sees_use = self.sees_use or any(x is self._tensor for value in given for x in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    """What a nested list or tuple holds."""
    if not isinstance(value, list | tuple):
        return (value,)
    return [part for item in value for part in _parts(item)]


class _Below(TorchDispatchMode):
    """Shows what operations are given within TorchScript too, where a `TorchFunctionMode` sees nothing."""

    def __init__(self, watch: UseWatch) -> None:
        super().__init__()
        self._watch = watch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would import its compiler, which takes seconds, to keep it out of here

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._watch.look((*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


def stand_in_of(entry: list) -> Tensor:
    if entry[1] is None:
        with outside_transforms():  # where func differentiates something itself
            entry[1] = entry[0].detach().requires_grad_()
    return entry[1]


def outer_cuts() -> list[Cut]:
    """The cuts of the solves around this one, the outermost first, as contexts to be entered again."""
    return [Cut(cut.entries, cut.used) for cut in getattr(_active, "cuts", ())]


@contextlib.contextmanager
def within(cuts: Iterable[Cut]) -> Iterator[None]:
    """Context inside of these cuts, the outermost first."""
    with contextlib.ExitStack() as stack:
        for cut in cuts:
            stack.enter_context(cut)
        yield


def of_outer_solves(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """What stands in for tensors in the solves around this one."""
    for cut in outer_cuts():
        tensors = [cut.of(tensor) for tensor in tensors]
    return tuple(tensors)


def _made_without_gradient() -> set[Any]:
    """Operations on a tensor that no gradient comes back from."""
    differentiable = ("T", "mT", "H", "mH", "real", "imag")
    attributes = (getattr(torch.Tensor, name) for name in dir(torch.Tensor) if name not in differentiable)
    found = {a.__get__ for a in attributes if isinstance(a, (property, types.GetSetDescriptorType))}
    names: tuple[str, ...] = (
        "detach",
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "storage_offset",
        "is_contiguous",
    )
    names += ("item", "tolist", "numpy", "register_hook", "retain_grad", "data_ptr", "is_complex", "is_floating_point")
    names += ("__len__", "__bool__", "__float__", "__int__", "__index__", "__hash__", "__repr__", "__format__")
    return found | {getattr(torch.Tensor, name) for name in names} | {torch.detach, torch.numel}


_WITHOUT_GRADIENT = frozenset(_made_without_gradient())
_SHAPED_LIKE = frozenset(
    ("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty")
)


def _is_value(result: Any) -> bool:
    """Whether numbers are known here of which autograd does not know where they come from."""
    if isinstance(result, Tensor):
        return not result.requires_grad and (result.is_floating_point() or result.is_complex())
    return isinstance(result, (float, complex, np.ndarray))
