"""Step-size control row by row: the formulas of `Controller` on tensors [b]."""

import math
from dataclasses import dataclass

import torch

_AT_ONCE = 64  # numbers: a multiple of what any vector kernel takes


@dataclass(frozen=True)
class RowVerdict:
    """As `controller.Verdict`, every member [b]."""

    accepted: torch.Tensor
    finite: torch.Tensor
    at_minimum: torch.Tensor
    proposed: torch.Tensor
    previous: torch.Tensor


class RowController:
    """Judges the tries of all rows at once.

    :param controller: `Controller`
    :param rows: `RowLayout`
    """

    def __init__(self, controller, rows):
        self.controller, self.rows = controller, rows

    def error_ratio(self, error, y0, y1):
        """Errors [size], which are overwritten, in units of the tolerance: [b], float64."""
        return self.rows.norm(error.div_(self.controller.scale(torch.maximum(y0.abs(), y1.abs()))))

    def judge(self, ratio, previous, size, h, *, landing, rejected):
        """The `RowVerdict`; all arguments [b], as of `Controller.judge`."""
        controller = self.controller
        finite, length = torch.isfinite(ratio), h.abs()
        factor = self._factor(torch.where(finite, ratio, math.inf), previous)
        at_minimum = torch.minimum(size, length) <= controller.min_step
        accepted = (ratio <= 1.0) | (finite & at_minimum)
        factor = torch.where(rejected | ~accepted, factor.clamp(max=1.0), factor)
        proposed = self._limit(length * factor)
        keeps = accepted & landing & ~rejected  # a step shortened to land says little about the size that is allowed
        proposed = torch.where(keeps, torch.maximum(proposed, size), proposed)
        if controller.beta:
            previous = torch.where(accepted, ratio.clamp(max=1.0), previous)
        return RowVerdict(accepted, finite, at_minimum, proposed, previous)

    def _factor(self, ratio, previous):
        """As `Controller.factor`; its smallest for an infinite ratio."""
        controller = self.controller
        if controller.beta:
            return _everywhere_alike(controller.factor, ratio, previous)
        exponent = -1.0 / controller.error_order

        def grown(ratio):
            return (controller.safety * ratio**exponent).clamp(controller.dfactor, controller.ifactor)

        return _everywhere_alike(grown, ratio)

    def _limit(self, size):
        controller = self.controller
        return size if controller.min_step == 0.0 and controller.max_step == math.inf else controller.limit(size)

    def initial_step(self, evaluate, t0, t1, y0, k1):
        """First step sizes [b] (positive), by the rule of `Controller.initial_step`.

        :param evaluate: evaluate(t [b], y [size]) -> slope; called once
        """
        controller, rows = self.controller, self.rows
        span = (t1 - t0).abs()
        scale = controller.scale(y0.abs())
        d0, d1 = rows.norm(y0 / scale), rows.norm(k1 / scale)
        tiny = 1e-6 * span.clamp(max=1.0)
        unknown = (d0 < 1e-5) | (d1 < 1e-5) | ~torch.isfinite(d0 + d1)
        size = torch.minimum(torch.where(unknown, tiny, 0.01 * d0 / d1), span)
        probe = torch.copysign(size, t1 - t0)
        k2 = evaluate(t0 + probe, y0 + rows.spread(probe.to(y0.dtype)) * k1)
        steepest = torch.maximum(d1, rows.norm((k2 - k1) / scale) / size)
        longer = _everywhere_alike(lambda x: (0.01 / x) ** (1 / controller.error_order), steepest)
        longer = torch.where(steepest <= 1e-15, torch.maximum(tiny, 1e-3 * size), longer)
        longer = torch.minimum(torch.minimum(100 * size, longer), span)
        return controller.limit(torch.where(torch.isfinite(steepest), longer, size))


def _everywhere_alike(function, *arguments):
    """function of tensors [b], entry by entry, with bits that do not depend on an entry's place.

    The last entries of a tensor, fewer than a vector kernel takes at once, go through another kernel, whose powers may
    be rounded otherwise: here they are not the last.
    """
    b = len(arguments[0])
    padded = [torch.nn.functional.pad(x, (0, -b % _AT_ONCE), value=1.0) for x in arguments]
    return function(*padded)[:b]
