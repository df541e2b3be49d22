"""Dense output of a step: linear in its slopes, by the method's interpolant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..march import Step
    from .base import Carry, Time


class StepInterpolation:
    """What a `Stepper` gives inside the step whose slopes are in its buffer."""

    method: Any  # a `Method`
    slopes: Tensor
    needs_end_slope: bool

    def end_slope(self, carry: Carry, *, before_jump: bool = False) -> None:
        """Make sure that the slope at the end of the step just taken is in the last row, for dense output."""

    def interpolation_weights(self, theta: Tensor) -> Tensor:
        """What `interpolate` weighs the slopes with: [m, slopes].

        :param theta: fractions of the step [m], float64
        """
        return self._like(self.method.interpolant.weights(theta))

    def interpolate(self, y: Tensor, h: float, weights: Tensor) -> Tensor:
        """Dense output inside the step whose slopes are in the buffer, with `interpolation_weights`.

        :param y: state at the start of the step [n]
        :returns: states [m, n]
        """
        return torch.addmm(y.expand(len(weights), -1), weights, self.slopes[: weights.shape[1]], alpha=h)

    def interpolate_vjp(self, h: float, weights: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Pull cotangents [m, n] of `interpolate` back: those of the state at the start [n] and of the slopes
        [slopes, n].
        """
        return cotangents.sum(0), torch.mm(weights.T, cotangents).mul_(h)

    def interpolate_time_vjp(self, theta: Tensor, cotangents: Tensor) -> tuple[Tensor, float]:
        """Pull cotangents [m, n] of `interpolate` back to its times [m] and, at fixed slopes, to the step size; the
        slopes are in the buffer.
        """
        interpolant = self.method.interpolant
        weights, derivatives = (
            (self._like(w) @ self.slopes[: interpolant.slopes] * cotangents).sum(-1).double().cpu()
            for w in (interpolant.weights(theta), interpolant.derivatives(theta))
        )
        return derivatives, float((weights - derivatives * theta).sum())

    @property
    def start_slope(self) -> Tensor:
        """f at the start of the step last replayed or reloaded [n]."""
        return self.slopes[0]

    def put_end_slope(self, slope: Tensor) -> None:
        """Put f [n] at the end of a step where `end_slope` would, had it been evaluated."""
        self.slopes[-1].copy_(slope)

    def within(self, step: Step) -> Callable[[Tensor], Tensor]:
        """The states inside the step just taken: a function of fractions theta [m], float64, to states [m, n].

        :param step: `march.Step`, closed (`Problem.close`)
        """
        return lambda theta: self.interpolate(step.start.y, step.h, self.interpolation_weights(theta))

    def traced_interpolate(
        self, t: Time, h: Time, y: Tensor, slopes: list[Tensor], times: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Dense output of a `traced` step at some times (0-d tensors), differentiable: [n] each."""
        if not times:
            return ()
        theta = (torch.stack([*times]) - t) / h
        weights = [weight.to(y)[:, None] for weight in self.method.interpolant.traced_weights(theta)]
        return (y + h * combine(weights, slopes)).unbind()

    def _like(self, values: Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=self.slopes.dtype, device=self.slopes.device)


def combine(weights: Iterable[Any], slopes: Iterable[Tensor]) -> Any:
    """sum of weights[j] * slopes[j] over the weights (fractions or tensors) that are not zero."""
    total = None
    for weight, slope in zip(weights, slopes):
        if isinstance(weight, torch.Tensor):
            part = weight * slope
            total = part if total is None else total + part
            continue
        weight = float(weight)
        if weight == 0.0:
            continue
        if total is not None:
            total = torch.add(total, slope, alpha=weight)
        else:
            total = slope if weight == 1.0 else slope * weight
    return 0 if total is None else total
