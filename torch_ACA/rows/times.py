"""The times of rows: when each starts and ends, on which times it lands on its way, and which outputs it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..notices import shown
from ..option_checks import times_of
from ..problem import stops_of
from ..settings import checked_times, warn_of_coarse_times

if TYPE_CHECKING:
    from ..state import StateLayout


@dataclass(frozen=True)
class RowTimes:
    """Tensors in float64 on the device of the state, but for numbers and flags.

    ``outputs`` [b, m - 1]: the given times behind the first, NaN where a row has no output; ``interpolated``: which of
    the outputs come from dense output. ``stops`` [b, q]: the times to land on, the end last; row r has ``n_stops``[r]
    of them. ``given`` [b, q]: their number among the times given, 0 for none of them. ``jumps`` [b, q]: whether func
    jumps there, and ``starts_at_jump`` [b]: at the start (both None: nowhere). ``direction`` [b]: the
    signs in which time runs.
    """

    start: torch.Tensor
    outputs: torch.Tensor
    interpolated: torch.Tensor
    stops: torch.Tensor
    given: torch.Tensor
    n_stops: torch.Tensor
    jumps: torch.Tensor | None
    starts_at_jump: torch.Tensor | None
    direction: torch.Tensor

    @property
    def lands_inside(self) -> bool:
        """Whether a step may end on a given time that is not the last of its row."""
        return self.stops.shape[1] > 1

    @property
    def end(self) -> Tensor:
        return self.stops.gather(1, self.n_stops[:, None] - 1)[:, 0]

    def stop(self, place: Tensor) -> tuple[Tensor | None, ...]:
        """Of the stops at places [..., b]: their times, their numbers among the times given, whether func jumps there.
        A row that is behind its last one is given that."""
        parts = (self.stops, self.given, self.jumps)
        if self.stops.shape[1] == 1:
            return tuple(part if part is None else part[:, 0] for part in parts)
        row, place = torch.arange(len(self.start), device=place.device), place.clamp(max=self.stops.shape[1] - 1)
        return tuple(part if part is None else part[row, place] for part in parts)


def checked_row_times(t: Any, layout: StateLayout, count: int, options: Mapping[str, Any]) -> tuple[Tensor, RowTimes]:
    """Times as a tensor [m] or [b, m], and the `RowTimes` that they and the options ask for.

    :raises ValueError, TypeError: as `checked_times`; rows of times that cannot be used
    """
    times = times_of("t", t)
    if times.dim() != 2:
        times, ts = checked_times(times, layout)
        values = torch.tensor([ts], dtype=torch.float64, device="cpu")
    else:
        times, values = _checked(times, layout, count)
        times = times if times.requires_grad else times.clone()  # as `checked_times` does
    direction = torch.where((values.diff() < 0).any(1), -1.0, 1.0).double()
    parts = (*_stops(values, options), direction)
    return times, RowTimes(*(part if part is None else part.expand(count, *part.shape[1:]).to(layout.device)
                             for part in parts))  # fmt: skip


def _checked(times: Tensor, layout: StateLayout, count: int) -> tuple[Tensor, Tensor]:
    """Times [b, m] as a tensor of floating point, and their values."""
    if len(times) != count or times.shape[1] < 2:
        raise ValueError(
            f"t must be [m] or [b, m] with m >= 2 and b = {count} rows as in y0, got shape {tuple(times.shape)}"
        )
    if times.is_complex():
        raise TypeError(f"t must be real, got {times.dtype}")
    times = times if times.is_floating_point() else times.to(layout.dtype)
    values = times.detach().double().cpu()
    there = ~values.isnan()
    refused = (
        (values.isinf().any(1), "t must be finite, or NaN behind the last time of a row"),
        (~there[:, 0], "t must give every row its first time"),
        ((there[:, 1:] & ~there[:, :-1]).any(1), "NaN in t stands behind the last time of a row, not before others"),
        ((values.diff() > 0).any(1) & (values.diff() < 0).any(1), "t must not turn round within a row"),
    )
    for bad, text in refused:
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(f"{text}: row {row} is {shown(values[row].tolist())}")
    first, last = values[:, 0], values.gather(1, there.sum(1, keepdim=True) - 1)[:, 0]
    # of the row with the coarsest times; one whose times are all the same does not need them
    coarseness = torch.maximum(first.abs(), last.abs()) / torch.where(first == last, math.inf, (last - first).abs())
    row = int(coarseness.argmax()) if count else None
    if count and first[row] != last[row]:
        warn_of_coarse_times(float(first[row]), float(last[row]), layout.dtype)
    return times, values


def _stops(values: Tensor, options: Mapping[str, Any]) -> tuple[Tensor | None, ...]:
    """What is in `RowTimes` but for the direction, of values [b, m] on the CPU."""
    stops: Any  # of one row; () for a row of one time
    jumps: Any  # flags of one row, then of all
    there = ~values.isnan()
    last = there.sum(1) - 1
    step_t, jump_t, lands = (options.get(name, default) for name, default in _OPTIONS)
    outputs, rows = values[:, 1:], range(len(values))
    if not (step_t or jump_t or lands):
        end = values.gather(1, last[:, None])
        interpolated = there[:, 1:] & (torch.arange(1, values.shape[1], device="cpu") < last[:, None])
        return values[:, 0], outputs, interpolated, end, last[:, None], torch.ones_like(last), None, None
    found = []
    for row in rows:
        ts = values[row, : last[row] + 1].tolist()
        stops = stops_of(ts, land_on_outputs=lands, step_t=step_t, jump_t=jump_t) if len(ts) > 1 else ()
        # a jump at the start is behind a row: an output there lies in its first step, and a row that ends there ends on
        # no jump
        stops = [stop for stop in stops if stop.t != ts[0] or stop is stops[-1]]
        jumps = [stop.jump and stop.t != ts[0] for stop in stops]
        found.append([(s.t, s.index or 0, jump) for s, jump in zip(stops, jumps)] or [(ts[0], 0, False)])
    most = max(map(len, found), default=1)
    padded = [stops + [stops[-1]] * (most - len(stops)) for stops in found]
    times, given, jumps = (
        torch.tensor([[stop[i] for stop in stops] for stops in padded], dtype=dtype, device="cpu").view(-1, most)
        for i, dtype in enumerate((torch.float64, torch.int64, torch.bool))
    )
    landed = torch.zeros(values.shape, dtype=torch.bool, device="cpu").scatter_(1, given, True)
    n_stops = torch.tensor([len(stops) for stops in found], device="cpu")
    starts = torch.isin(values[:, 0], torch.tensor(list(jump_t), dtype=torch.float64, device="cpu")) if jump_t else None
    jumps, interpolated = jumps if jump_t else None, (there & ~landed)[:, 1:]
    return values[:, 0], outputs, interpolated, times, given, n_stops, jumps, starts


def as_given(bars: Tensor, times: Tensor) -> Tensor:
    """Cotangents [b, m] of the times of all rows as those of the times that were given, [m] or [b, m]."""
    return (bars if times.dim() == 2 else bars.sum(0)).to(times)


_OPTIONS = (("step_t", ()), ("jump_t", ()), ("land_on_t", False))
