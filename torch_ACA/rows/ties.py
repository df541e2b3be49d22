"""Notices functions of rows that depend on each other, by their values.

Where the values at two points are known, each with times and states of all rows, a mixture of both tells: some rows
stand at one point, the others at the other, and every row's value must be what it was there. The mixtures go by the
binary places of the rows' numbers, so that any two rows are told apart, in both directions, by as many mixtures as
there are places. Points of the trajectory cost nothing, and func is meant for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layout import RowLayout

_AT_START = 4  # mixtures: the other places come in turn, later on
_EVERY = 64  # tries, where powers of two have become rare


class Point(NamedTuple):
    """Times [b], states [size], the values [b, k] there, and the ``side`` of the times, as for `RowField.time`."""

    t: Tensor
    y: Tensor
    values: Tensor
    side: Any = 0


class RowTies:
    """Of one function in one solve.

    :param evaluate: evaluate(t [b], y [size], side) -> values [b, k], without a trace
    :param eps: relative rounding of its arithmetic
    :param refuse: refuse(row, what, t) raises the error for a row that depends on "states" or "times" of others
    """

    def __init__(self, evaluate: Callable, rows: RowLayout, eps: float, refuse: Callable) -> None:
        self._evaluate, self._rows, self._refuse = evaluate, rows, refuse
        self._rounding = min(1e3 * eps, eps**0.5)
        self._places = (rows.count - 1).bit_length() if rows.width else 0
        self._n_looked = 0

    @staticmethod
    def due(n_tries: int) -> bool:
        """Whether it is time to look again."""
        return n_tries & (n_tries - 1) == 0 or n_tries % _EVERY == 0

    def look_at_start(self, start: Point, end: Tensor) -> None:
        """Look at the start of a solve, where no other point is known: at states of other rows, somewhat smaller, and
        at times further on.

        :param end: times [b] at which the solve is to end
        :raises ValueError: rows depend on each other
        """
        if not self._places:
            return
        t, y, _, side = start
        part = torch.cos(torch.arange(1, len(t) + 1, device=t.device, dtype=t.dtype))
        far = torch.where(end.isfinite(), end, t + torch.copysign(torch.ones_like(t), end - t))
        later = t + (0.5 + 0.2 * part) * (far - t)
        state = self._rows.spread((0.8 + 0.1 * part).to(y)) * (self._rows.flat(self._rows.rows(y).roll(1, 0)) + 0.1)
        if isinstance(side, Tensor):
            side = torch.where(later == t, side, 0.0)
        try:
            other = Point(later, state, self._evaluate(later, state, side), side)
        except Exception:  # no state that func is meant for
            return
        self._look(start, other, min(self._places, _AT_START))

    def look(self, one: Point, other: Point, among: Tensor | None = None, *, last: bool = False) -> None:
        """Look at two points of the trajectory.

        :param among: the rows [b] whose values are known at both (None: all)
        :param last: do what is left to be done
        :raises ValueError: rows depend on each other
        """
        if self._places:
            self._look(one, other, max(1, self._places - self._n_looked) if last else 1, among)

    def point(self, t: Tensor, y: Tensor, flat: Tensor | None, side: Any) -> Point:
        """A `Point` from its values [size], which are perhaps not known yet (None)."""
        if flat is None and self._places:
            return Point(t, y, self._evaluate(t, y, side), side)
        return Point(t, y, self._rows.rows(y if flat is None else flat), side)

    def _look(self, one: Point, other: Point, n_mixtures: int, among: Tensor | None = None) -> None:
        numbers = torch.arange(len(one.t), device=one.t.device)
        scale = torch.maximum(one.values.abs(), other.values.abs()).amax(1, keepdim=True)
        for _ in range(n_mixtures):
            at_one = (numbers >> self._n_looked % self._places) % 2 == 0
            self._n_looked += 1
            mixed = self._mixture(at_one, one, other)
            tied = self._differ(self._evaluate(mixed.t, mixed.y, mixed.side), mixed.values, scale, among)
            if not bool(tied.any()) or not self._repeats(one, other, mixed, tied, scale):
                continue
            row = int(tied.nonzero()[0])
            there = one if bool(at_one[row]) else other
            by_time = self._evaluate(mixed.t, there.y, mixed.side)
            by_time = bool(self._differ(by_time, there.values, scale, among)[row])
            self._refuse(row, "times" if by_time else "states", float(there.t[row]))

    def _mixture(self, at_one: Tensor, one: Point, other: Point) -> Point:
        """One point in these rows, the other in the rest."""
        side: Any = 0
        if isinstance(one.side, Tensor) or isinstance(other.side, Tensor):
            side = torch.where(at_one, one.side, other.side)
        t, values = torch.where(at_one, one.t, other.t), torch.where(at_one[:, None], one.values, other.values)
        return Point(t, torch.where(self._rows.spread(at_one), one.y, other.y), values, side)

    def _differ(self, found: Tensor, expected: Tensor, scale: Tensor, among: Tensor | None) -> Tensor:
        """Rows [b] in which values differ by more than rounding; what is infinite or NaN says nothing."""
        distance = (found - expected).abs()
        differ = ((distance > self._rounding * scale) & distance.isfinite()).any(1)
        return differ if among is None else differ & among

    def _repeats(self, one: Point, other: Point, mixed: Point, tied: Tensor, scale: Tensor) -> bool:
        """Whether rows are tied once more, by a function that is the same when it is called again."""
        for point in (one, other):
            if bool(self._differ(self._evaluate(point.t, point.y, point.side), point.values, scale, tied).any()):
                return False
        again = self._evaluate(mixed.t, mixed.y, mixed.side)
        return bool(self._differ(again, mixed.values, scale, tied).any())
