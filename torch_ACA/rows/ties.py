"""Notices functions of rows that depend on each other, by their values.

Where the values at two points are known, each with times and states of all rows, a mixture of both tells: some rows
stand at one point, the others at the other, and every row's value must be what it was there. The mixtures go by halves
of the rows, so that any two are told apart, in both directions, by log2(b) of them. Then the points change their roles.
Points of the trajectory cost nothing, and func is meant for them.

Looked at are, by one evaluation each: two halves at the start, from where func was evaluated and at a point made up
(one evaluation more); one half after 8, 16, 32, 64 and then every 64 tries, between the start and where rows stand
then, and at the end all halves that are left. So every solve looks by all of them. Values at other points say nothing
of this one, so that no solve takes over what another has seen. But where func is compiled, its graph may show once and
for all that there is nothing to find (`compilation.row_loop_proof`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layout import RowLayout

_MIXTURES = 2  # at the start: the other halves come in turn, on the way
_FIRST, _EVERY = 8, 64  # tries: before this one ends have to do, from this one on powers of two have become rare


class Point(NamedTuple):
    """Times [b], states [size], the values [b, k] there, and the ``side`` of the times, as for `RowField.time`."""

    t: Tensor
    y: Tensor
    values: Tensor
    side: Any = 0


class RowTies:
    """Of one function in one solve.

    :param evaluate: evaluate(t [b], y [size], side) -> values [b, k]
    :param eps: relative rounding of its arithmetic
    :param refuse: refuse(row, what, t) raises the error for a row that depends on "states" or "times" of others
    :param no_trace: context after which evaluations were not
    :param apart: it is known that rows do not depend on each other: nothing is looked at
    """

    def __init__(
        self, evaluate: Callable, rows: RowLayout, eps: float, refuse: Callable, no_trace: Callable = nullcontext,
        *, apart: bool = False,
    ) -> None:  # fmt: skip
        self._evaluate, self._rows, self._refuse, self._no_trace = evaluate, rows, refuse, no_trace
        self._rounding = min(1e3 * eps, eps**0.5)
        self._halves = 0 if apart or not rows.width else rows.halves
        self._n_looked = 0

    @staticmethod
    def due(n_tries: int) -> bool:
        """Whether it is time to look again."""
        return n_tries >= _FIRST and n_tries & (n_tries - 1) == 0 or n_tries % _EVERY == 0

    def look_at_start(self, start: Point, end: Tensor) -> None:
        """Look at the start of a solve, where no other point is known: at states of other rows, somewhat smaller, and
        at times further on.

        :param end: times [b] at which the solve is to end
        :raises ValueError: rows depend on each other
        """
        if not self._halves:
            return
        t, y, _, side = start
        part = torch.cos(torch.arange(1, len(t) + 1, device=t.device, dtype=t.dtype))
        far = torch.where(end.isfinite(), end, t + torch.copysign(torch.ones_like(t), end - t))
        later = t + (0.5 + 0.2 * part) * (far - t)
        state = self._rows.spread((0.8 + 0.1 * part).to(y)) * (self._rows.flat(self._rows.rows(y).roll(1, 0)) + 0.1)
        if isinstance(side, Tensor):
            side = torch.where(later == t, side, 0.0)
        with self._no_trace():
            try:
                other = Point(later, state, self._evaluate(later, state, side), side)
            except Exception:  # no state that func is meant for
                return
            self._look(start, other, min(self._halves, _MIXTURES))

    def look(self, one: Point, other: Point, among: Tensor | None = None, *, last: bool = False) -> None:
        """Look at two points of the trajectory.

        :param among: the rows [b] whose values are known at both (None: all)
        :param last: do what is left to be done
        :raises ValueError: rows depend on each other
        """
        if self._halves:
            with self._no_trace():
                left = self._halves - self._n_looked
                self._look(one, other, left if last and left > 1 else 1, among)
                if last and left <= 1:  # the same half once more, the other way round
                    self._n_looked -= 1
                    self._look(other, one, 1, among)

    def point(self, t: Tensor, y: Tensor, flat: Tensor | None, side: Any) -> Point:
        """A `Point` from its values [size], which are perhaps not known yet (None)."""
        if flat is None and self._halves:
            with self._no_trace():
                return Point(t, y, self._evaluate(t, y, side), side)
        return Point(t, y, self._rows.rows(y if flat is None else flat), side)

    def _look(self, one: Point, other: Point, n_mixtures: int, among: Tensor | None = None) -> None:
        for _ in range(n_mixtures):
            turn, number = divmod(self._n_looked, self._halves)
            self._n_looked += 1
            first, second = (other, one) if turn % 2 else (one, other)
            if self._tied(first, second, number, among) is not None:
                self._look_closely(one, other, among)
                return

    def _look_closely(self, one: Point, other: Point, among: Tensor | None) -> None:
        """Look once more, by all halves, from values that were found together; a function that is not the same when it
        is called again tells nothing."""
        one, other = (point._replace(values=self._evaluate(point.t, point.y, point.side)) for point in (one, other))
        for point in (one, other):
            again = self._evaluate(point.t, point.y, point.side)
            if bool(self._differ(again, point.values, point.values.abs(), among).any()):
                return
        for number, turn in itertools.product(range(self._halves), range(2)):
            first, second = (other, one) if turn else (one, other)
            row = self._tied(first, second, number, among)
            if row is not None and row == self._tied(first, second, number, among):
                at_first = bool(self._rows.half(number)[row])
                there = first if at_first else second
                if at_first:
                    second = there._replace(t=second.t, side=second.side)
                else:
                    first = there._replace(t=first.t, side=first.side)
                alone = torch.arange(len(there.t), device=there.t.device) == row
                what = "states" if self._tied(first, second, number, alone) is None else "times"
                self._refuse(row, what, float(there.t[row]))

    def _tied(self, one: Point, other: Point, number: int, among: Tensor | None) -> int | None:
        """The first row whose value tells that others are at the other point; None if there is none."""
        at_one = self._rows.half(number)
        side: Any = 0
        if isinstance(one.side, Tensor) or isinstance(other.side, Tensor):
            side = torch.where(at_one, one.side, other.side)
        t, y = torch.where(at_one, one.t, other.t), torch.where(self._rows.spread(at_one), one.y, other.y)
        found, expected = self._evaluate(t, y, side), torch.where(at_one[:, None], one.values, other.values)
        if torch.equal(found, expected):  # as it is nearly always
            return None
        tied = self._differ(found, expected, torch.maximum(one.values.abs(), other.values.abs()), among).nonzero()
        return int(tied[0]) if len(tied) else None

    def _differ(self, found: Tensor, expected: Tensor, sizes: Tensor, among: Tensor | None) -> Tensor:
        """Rows [b] in which values differ by more than rounding; what is infinite or NaN says nothing."""
        distance = (found - expected).abs()
        differ = ((distance > self._rounding * sizes.amax(1, keepdim=True)) & distance.isfinite()).any(1)
        return differ if among is None else differ & among
