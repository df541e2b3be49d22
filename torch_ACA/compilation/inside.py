"""Outputs inside the steps of a buffer by the interpolant of the method, and the way back from them to the steps.

Where all outputs of a solve lie in the steps of one buffer, code is generated for it: the tensors then have the same
shapes in every solve of the kind. Else it runs as it is.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .loops import OPTIONS, Loops


class Inside:
    """Of one solve.

    :param loops: `Loops` with slopes
    :param count: outputs inside steps, in the whole solve
    :param sign: in which time runs
    """

    def __init__(self, loops: Loops, count: int, sign: int) -> None:
        self._loops, self._count, self._sign = loops, count, sign
        self._interpolant = loops.tableau.interpolant

    def outputs(self, wanted: Tensor, times: Tensor, n_steps: int, states: Tensor, slopes: Tensor) -> Any:
        """States inside steps.

        :param wanted: times of the outputs [m], in order
        :param times, states, slopes: buffers
        :param n_steps: how many steps are in there
        :returns: states [m, n]; of each the step, where in the step it lies, and what slopes are weighed with [m, rows]
        """
        given = [wanted, torch.tensor(n_steps, device="cpu"), times, self._interpolant.matrix, states, slopes]
        return self._call("outputs", self._outputs, given, len(wanted))

    def _outputs(
        self, wanted: Tensor, n_steps: Tensor, times: Tensor, matrix: Tensor, states: Tensor, slopes: Tensor, *_: Any
    ) -> Any:
        steps = torch.arange(len(times), device="cpu")
        ends = torch.where(steps < n_steps, self._sign * times[:, 2], math.inf)  # behind the steps is nothing
        places: Any = torch.searchsorted(ends, self._sign * wanted)
        starts, h = times.index_select(0, places)[:, :2].unbind(1)
        theta = (wanted - starts) / h
        exponents = torch.arange(1, len(matrix) + 1, device="cpu")
        weights = (theta[:, None] ** exponents @ matrix * h[:, None]).to(states)
        places_there = places.to(states.device)
        within = (weights[..., None] * slopes.index_select(0, places_there)).sum(1)
        return states.index_select(0, places_there) + within, places, theta, weights

    def cotangents(self, bars: Tensor, places: Tensor, weights: Tensor, n_steps: int, pending: Tensor) -> Any:
        """What outputs say to the steps that they lie in.

        :param bars: cotangents of the outputs [m, n]
        :param places, weights: as `outputs` returned them
        :param pending: cotangent of the last slope of the step before the first of these [n]
        :returns: cotangents of the states at the starts of the steps [capacity, n], of the slopes that these pay for
            [capacity, own, n], and of the last slope of the last step [n] (zero where steps end without one)
        """
        given = [bars.contiguous(), places, weights, torch.tensor([n_steps - 1], device="cpu"), pending]
        return self._call("cotangents", self._cotangents, given, len(bars))

    def _cotangents(
        self, bars: Tensor, places: Tensor, weights: Tensor, last: Tensor, pending: Tensor, *_: Any
    ) -> Any:
        loops, width, places = self._loops, bars.shape[1], places.to(bars.device)
        starts = bars.new_zeros(loops.capacity, width).index_add(0, places, bars)
        slopes = bars.new_zeros(loops.capacity, loops.rows, width)
        slopes = slopes.index_add(0, places, weights[..., None] * bars[:, None])
        if loops.rows == loops.own:
            return starts, slopes, torch.zeros_like(pending)
        ends = slopes[:, loops.own]  # the slope at the end of a step is the first one of the next
        first = slopes[:, 0] + torch.cat([pending[None], ends[:-1]])
        own = torch.cat([first[:, None], slopes[:, 1 : loops.own]], 1)
        return starts, own, ends.index_select(0, last.to(bars.device)).squeeze(0)

    def _call(self, name: str, function: Callable, given: list[Tensor], count: int) -> Any:
        if count != self._count:
            return function(*given)
        code, key = self._loops.code, (name, count, self._sign, *self._loops.key)
        return code.function(key, function, lambda: given, options=OPTIONS)([*given, *code.others])
