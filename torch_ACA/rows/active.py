"""func on those rows alone that are still on their way, where it gets the rows' data as arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..autocast import coarsest_rounding
from ..kept_func import KeptFunc
from ..option_checks import check_callable
from ..private_torch import pytree

if TYPE_CHECKING:
    from .field import RowField

_FEWER = 7 / 8  # of the rows: leaving out less does not pay


class ActiveRows:
    """func(t, y, *args) of some rows as func(t, y) of all, in which the others have the value 0. It may also be a
    Jacobian of func.

    :param func: called with rows of t, y and args
    :param args: tensors [b, ...]
    :raises TypeError: func cannot be called
    """

    rows: Tensor | None
    _kept: KeptFunc | None

    def __init__(self, func: Callable, args: Sequence[Tensor]) -> None:
        check_callable(func, "func(t, y, *args)")
        self.func, self.args, self.rows, self._kept = func, args, None, None

    def __call__(self, t: Tensor, y: Any) -> Any:
        func = self._kept() if self.func is None else self.func
        if self.rows is None:
            return func(t, y, *self.args)

        def of(x: Tensor) -> Tensor:
            return x.index_select(0, self.rows)

        value = func(of(t), pytree.tree_map(of, y), *map(of, self.args))
        count = len(t)
        return pytree.tree_map(lambda x: x.new_zeros(count, *x.shape[1:]).index_copy(0, self.rows, x), value)

    def let_go(self, unused: Callable[[Tensor], bool]) -> None:
        """Hold func as `KeptFunc` does."""
        self._kept, self.func = KeptFunc(self.func, unused), None


class Choice:
    """Which rows the `ActiveRows` of one solve are called with: all, unless ``args`` were given."""

    def __init__(self, functions: Sequence[ActiveRows] = ()) -> None:
        self.functions = functions

    def keep(self, active: Tensor, *, exactly: bool = False) -> None:
        """Leave out the other rows, where they are enough.

        :param active: [b], bool; of any two such sets one holds the other
        :param exactly: leave them out however few they are: func may be NaN there
        """
        if not self.functions:
            return
        rows, now = active.nonzero()[:, 0], self.functions[0].rows
        count = len(active) if now is None else len(now)
        if exactly or 0 < len(rows) <= _FEWER * count or len(rows) > count:
            self._set(rows)

    @contextlib.contextmanager
    def all_behind(self) -> Iterator[None]:
        """Context behind which func is called with all rows again."""
        try:
            yield
        finally:
            self.keep_all()

    def keep_all(self) -> None:
        self._set(None)

    def let_go(self, unused: Callable[[Tensor], bool]) -> None:
        for function in self.functions:
            function.let_go(unused)

    def check(self, field: RowField, t: Tensor, y: Tensor, slope: Tensor, side: Any) -> None:
        """Refuse a func that closes over data of rows: it does not go with some of them alone.

        :param slope: func of all rows at t [b] and y [size], on that ``side`` of t
        :raises ValueError: as said
        """
        count = len(t)
        if not self.functions or count == 1:
            return
        some = torch.arange(count // 2, count, device=t.device)
        with self.all_behind():
            self._set(some)
            try:
                found = field.rows.rows(field.slope(t, y, side))[some]
            except Exception as failure:
                raise ValueError(_NEEDS.format(f"fails: {type(failure).__name__}: {failure}")) from failure
        expected = field.rows.rows(slope)[some]
        rounding = coarsest_rounding(field) ** 0.5 * expected.abs().amax() if expected.numel() else 0.0
        if bool(((found - expected).abs() > rounding).any()):  # what is NaN says nothing
            raise ValueError(_NEEDS.format("has other values"))

    def _set(self, rows: Tensor | None) -> None:
        for function in self.functions:
            function.rows = rows


def checked_args(args: Any, count: int) -> tuple[Tensor, ...]:
    """args as a tuple.

    :param count: of rows
    """
    if not isinstance(args, tuple | list):
        raise TypeError(f"args must be a tuple of tensors, got {type(args).__name__}")
    for arg in args:
        if not isinstance(arg, torch.Tensor):
            raise TypeError(f"args must be tensors, got {type(arg).__name__}: let func close over what all rows share")
        if arg.dim() == 0 or len(arg) != count:
            raise ValueError(f"args need a first axis of b = {count} rows as in y0, got shape {tuple(arg.shape)}")
    return tuple(args)


_NEEDS = (
    "with args func is called on rows of the batch that are still on their way, with their rows of t, y and args; on "
    "some of the rows it {}. Data of rows must come through args, and random numbers do not go with it"
)
