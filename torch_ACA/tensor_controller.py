"""Step-size control on tensors, without branches: of one solve (0-d, in generated code) or row by row ([b]).

The formulas are those of `controller.Controller` and of `march`. What branches on Python's numbers there chooses
between results here; the tests hold both together.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .controller import Controller, Verdict
from .march import EPS, lands


def next_step(t: Any, stop: Any, size: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Whether the step lands on the stop; its h, and its end."""
    landing: Any = lands(t, stop, size)
    h = torch.where(landing, stop - t, torch.copysign(size, stop - t))
    return landing, h, torch.where(landing, stop, t + h)


def is_stuck(t: Any, h: Any, span: Any, rejected: Tensor) -> Tensor:
    """Whether a step size has become too small for another try."""
    least = 10 * EPS * torch.maximum(t.abs(), span.clamp(max=1.0))
    return rejected & ((h.abs() <= least) | (t + h == t))


def rms(x: Tensor) -> Tensor:
    """As `controller.rms_norm`, in float64."""
    return torch.linalg.vector_norm(x).double() / math.sqrt(max(x.numel(), 1))


class TensorController:
    """Judges tries whose numbers are float64 tensors, all of one shape, and whose answers are bool ones.

    :param controller: `Controller`; its numbers may be 0-d tensors, which no branch looks at
    :param norm: root mean squares, float64, of a flat vector
    """

    def __init__(self, controller: Controller, norm: Callable[[Tensor], Tensor] = rms) -> None:
        self.controller, self.norm = controller, norm
        of_floats = not isinstance(controller.beta, Tensor)
        self._has_no_memory = of_floats and controller.beta == 0.0
        self._has_no_limits = of_floats and controller.min_step == 0.0 and controller.max_step == math.inf

    def spread(self, numbers: Tensor) -> Tensor:
        """Numbers as factors of the entries of a flat vector."""
        return numbers

    def each(self, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """A function of numbers, where its rounding matters."""
        return function(*arguments)

    def error_ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """Error in units of the tolerance."""
        return self.norm(error / self.controller.scale(torch.maximum(y0.abs(), y1.abs())))

    def judge(
        self, ratio: Tensor, previous: Tensor, size: Tensor, h: Tensor, *, landing: Tensor, rejected: Tensor
    ) -> Verdict:
        """As `Controller.judge`."""
        controller, length = self.controller, h.abs()
        finite: Any = torch.isfinite(ratio)
        factor = self._factor(torch.where(finite, ratio, math.inf), previous)
        at_minimum: Any = torch.minimum(size, length) <= controller.min_step
        accepted: Any = (ratio <= 1.0) | (finite & at_minimum)
        factor = torch.where(rejected | ~accepted, factor.clamp(max=1.0), factor)
        proposed = self._limit(length * factor)
        keeps = accepted & landing & ~rejected  # a step shortened to land says little about the size that is allowed
        proposed = torch.where(keeps, torch.maximum(proposed, size), proposed)
        if not self._has_no_memory:
            remembered, has_memory = ratio.clamp(max=1.0), controller.beta != 0.0
            if isinstance(has_memory, Tensor):
                remembered = torch.where(has_memory, remembered, 1.0)
            previous = torch.where(accepted, remembered, previous)
        return Verdict(accepted, finite, at_minimum, proposed, previous)

    def _factor(self, ratio: Tensor, previous: Tensor) -> Tensor:
        """As `Controller.factor`; its smallest for an infinite ratio."""
        controller = self.controller
        if not self._has_no_memory:
            return self.each(controller.factor, ratio, previous)
        exponent = -1.0 / controller.error_order

        def grown(ratio: Tensor) -> Tensor:
            return (controller.safety * ratio**exponent).clamp(controller.dfactor, controller.ifactor)

        return self.each(grown, ratio)

    def _limit(self, size: Tensor) -> Tensor:
        return size if self._has_no_limits else self.controller.limit(size)

    def initial_step(
        self, evaluate: Callable[[Tensor, Tensor], Tensor], t0: Tensor, t1: Tensor, y0: Tensor, k1: Tensor
    ) -> Tensor:
        """As `Controller.initial_step`."""
        span = (t1 - t0).abs()
        scale = self.controller.scale(y0.abs())
        d0, d1 = self.norm(y0 / scale), self.norm(k1 / scale)
        tiny = 1e-6 * span.clamp(max=1.0)
        unclear = (d0 < 1e-5) | (d1 < 1e-5) | ~torch.isfinite(d0 + d1)
        size = torch.minimum(torch.where(unclear, tiny, 0.01 * d0 / d1), span)
        probe = torch.copysign(size, t1 - t0)
        k2 = evaluate(t0 + probe, y0 + self.spread(probe.to(y0.dtype)) * k1)
        steepest = torch.maximum(d1, self.norm((k2 - k1) / scale) / size)
        longer = self.each(lambda x: (0.01 / x) ** (1 / self.controller.error_order), steepest)
        longer = torch.where(steepest <= 1e-15, torch.maximum(tiny, 1e-3 * size), longer)
        longer = torch.minimum(torch.minimum(100 * size, longer), span)
        return self.controller.limit(torch.where(torch.isfinite(steepest), longer, size))
