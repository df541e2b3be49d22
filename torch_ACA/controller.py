"""Step-size control: error norm, initial step, I and PI controllers.

`Controller.judge` works on floats and on 0-d tensors alike: the naive gradient method keeps step sizes in its graph.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK = 2**16  # numbers: so many, with what is computed of them, stay in the cache of a processor


def rms_norm(x: Tensor) -> Tensor:
    """Root mean square over all entries of a flat vector (0 for an empty one): 0-d tensor."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(x.numel(), 1))


def all_finite(x: Tensor) -> bool:
    return x.numel() == 0 or math.isfinite(torch.linalg.vector_norm(x, math.inf).item())


@dataclass(slots=True)
class Verdict:
    """On a try: whether the step is ``accepted``, whether its error was ``finite``, whether no smaller one will follow;
    the size that is ``proposed`` for the next try (positive), and the error ratio to remember."""

    accepted: bool
    finite: bool
    at_minimum: bool
    proposed: float | torch.Tensor
    previous: float | torch.Tensor


@dataclass(frozen=True)
class Controller:
    """Accepts a step when norm(error / (atol + rtol max(|y0|, |y1|))) <= 1 and proposes the next size.

    :param rtol, atol: tolerances; floats, or tensors of the flat state's size
    :param error_order: order in h of the error estimate (5 for Dopri5, 2 for Heun-Euler)
    :param safety: 0.85, where scipy and torchdiffeq have 0.9: fewer rejected tries at no more evaluations
    :param beta: 0 for the I controller; about 0.04 for Hairer's PI controller (Hairer, Norsett, Wanner I, IV.2)
    :param norm: flat vector -> 0-d tensor
    """

    rtol: float | torch.Tensor
    atol: float | torch.Tensor
    error_order: int
    safety: float = 0.85
    ifactor: float = 10.0
    dfactor: float = 0.2
    beta: float = 0.0
    min_step: float = 0.0
    max_step: float = math.inf
    norm: Callable = rms_norm

    def error_ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """Error in units of the tolerance, 0-d tensor; differentiable."""
        if self.norm is not rms_norm and not all_finite((y1 + error).detach()):
            return error.new_tensor(math.nan)  # a norm may pass over what is infinite or NaN, a solution may not
        if self.norm is not rms_norm or error.device.type != "cpu" or len(error) <= _CHUNK:
            return self.norm(_scaled(error, y0, y1, self.rtol, self.atol))
        tolerances = (
            value.split(_CHUNK) if isinstance(value, torch.Tensor) else itertools.repeat(value)
            for value in (self.rtol, self.atol)
        )
        chunks = zip(error.split(_CHUNK), y0.split(_CHUNK), y1.split(_CHUNK), *tolerances)
        norms = torch.stack([torch.linalg.vector_norm(_scaled(*chunk)) for chunk in chunks])
        return torch.linalg.vector_norm(norms) / math.sqrt(len(error))

    def error_ratios(self) -> "_ErrorRatios":
        """`error_ratio` as a float, for the steps of one march in turn."""
        return _ErrorRatios(self)

    def factor(self, ratio: Any, previous: Any = 1.0) -> Any:
        """By how much to multiply the step size after an error ratio (and the one of the last accepted step)."""
        exponent = 1.0 / self.error_order
        if isinstance(ratio, torch.Tensor):
            # the floor keeps the gradient of a vanishing error finite; the clamp then makes it zero
            ratio = ratio.clamp(min=torch.finfo(ratio.dtype).tiny)
            previous = previous.clamp(min=1e-4) if isinstance(previous, torch.Tensor) else max(previous, 1e-4)
            grown = self.safety * ratio ** (0.75 * self.beta - exponent) * previous**self.beta
            return grown.clamp(self.dfactor, self.ifactor)
        if ratio == 0.0:
            return self.ifactor
        grown = self.safety * ratio ** (0.75 * self.beta - exponent) * max(previous, 1e-4) ** self.beta
        return min(max(grown, self.dfactor), self.ifactor)

    def _norm(self, x: Tensor) -> float:
        """The norm as a float."""
        if self.norm is rms_norm:  # an operation on a tensor of one number less
            return torch.linalg.vector_norm(x).item() / math.sqrt(max(len(x), 1))
        return float(self.norm(x))

    def scale(self, magnitude: Tensor) -> Tensor:
        """Tolerance of every entry of a flat vector; overwrites the magnitudes."""
        return _scale(magnitude, self.rtol, self.atol)

    def leaves_unseen(self, in_error: bool) -> bool:
        """Whether the slope at the end of an accepted step may be infinite or NaN.

        :param in_error: it is part of the error estimate
        """
        return not in_error

    def limit(self, size: Any) -> Any:
        """A step size (positive) within min_step and max_step."""
        if isinstance(size, torch.Tensor):
            return size.clamp(self.min_step, self.max_step)
        return min(max(size, self.min_step), self.max_step)

    def judge(self, ratio: Any, previous: Any, size: Any, h: Any, *, landing: bool, rejected: bool) -> Verdict:
        """The `Verdict` on a try.

        :param ratio: its error ratio
        :param previous: the one of the last accepted step, at most 1
        :param size, h: the step size that was proposed (positive), and the one that was tried
        :param landing: the try was shortened to end on a stop
        :param rejected: another try of the same step was rejected before
        """
        finite = math.isfinite(ratio.item() if isinstance(ratio, torch.Tensor) else ratio)
        factor = self.factor(ratio, previous) if finite else self.dfactor
        at_minimum = min(size, abs(h)) <= self.min_step  # no smaller try will follow
        accepted = finite and bool(ratio <= 1.0 or at_minimum)
        if rejected or not accepted:
            factor = _at_most(factor, 1.0)
        proposed = self.limit(abs(h) * factor)
        if accepted:
            # one that only min_step let pass would keep later tries from shrinking
            previous = _at_most(ratio, 1.0) if self.beta else 1.0
            if landing and not rejected:  # a step shortened to land says little about the size that is allowed
                proposed = max(proposed, size)
        return Verdict(accepted, finite, at_minimum, proposed, previous)

    def initial_step(
        self, evaluate: Callable[[float, Tensor], Tensor], t0: float, t1: float, y0: Tensor, k1: Tensor,
    ) -> float:  # fmt: skip
        """First step size (positive), by the rule of Hairer, Norsett and Wanner I, II.4.

        :param evaluate: evaluate(t, y) -> slope; called once, a short explicit Euler step away from (t0, y0)
        """
        span = abs(t1 - t0)
        scale = self.scale(y0.abs())
        d0, d1 = self._norm(y0 / scale), self._norm(k1 / scale)
        tiny = 1e-6 * min(span, 1.0)
        size = tiny if d0 < 1e-5 or d1 < 1e-5 or not math.isfinite(d0 + d1) else 0.01 * d0 / d1
        size = min(size, span)
        probe = math.copysign(size, t1 - t0)
        k2 = evaluate(t0 + probe, torch.add(y0, k1, alpha=probe))
        d2 = self._norm((k2 - k1).div_(scale)) / size
        steepest = max(d1, d2)
        if not math.isfinite(steepest):
            return self.limit(size)
        longer = max(tiny, 1e-3 * size) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / self.error_order)
        return self.limit(min(100 * size, longer, span))


def _at_most(value: Any, bound: float) -> Any:
    return value.clamp(max=bound) if isinstance(value, torch.Tensor) else min(value, bound)


class _ErrorRatios:
    """Keeps the magnitudes of the last two states, if these are small: a step starts where another one ended or began.

    :param controller: `Controller`
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._start: Tensor | None = None
        self._end: Tensor | None = None
        self._start_magnitude: Tensor | None = None
        self._end_magnitude: Tensor | None = None

    def __call__(self, error: Tensor, y0: Tensor, y1: Tensor) -> float:
        controller = self._controller
        if controller.norm is not rms_norm or not 0 < len(error) <= _CHUNK:
            return float(controller.error_ratio(error, y0, y1))
        if y0 is not self._start:
            self._start_magnitude = self._end_magnitude if y0 is self._end else y0.abs()
            self._start = y0
        self._end, self._end_magnitude = y1, y1.abs()
        magnitude = torch.maximum(self._start_magnitude, self._end_magnitude)
        scale = controller.scale(magnitude)
        return controller._norm(torch.div(error, scale, out=scale))


def _scaled(error: Tensor, y0: Tensor, y1: Tensor, rtol: float | Tensor, atol: float | Tensor) -> Tensor:
    return error / _scale(torch.maximum(y0.abs(), y1.abs()), rtol, atol)


def _scale(magnitude: Tensor, rtol: float | Tensor, atol: float | Tensor) -> Tensor:
    """Tolerance of every entry; overwrites magnitude."""
    return magnitude.mul_(rtol).add_(atol)


@dataclass(frozen=True)
class FixedSteps:
    """No error estimate: every step has the given size, except that the last one ends on the end time.

    :param check_finite: infinite and NaN states are errors; otherwise they are carried on
    """

    size: float
    check_finite: bool = True
    error_order = None

    def leaves_unseen(self, in_error: bool) -> bool:
        """As of a `Controller`; False where infinite and NaN values are carried on."""
        return self.check_finite
