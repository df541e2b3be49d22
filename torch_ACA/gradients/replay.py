"""The replay is the forward pass again, or an error says that func has changed.

An accepted step that is evaluated again must end where it ended, bit for bit: the same operations on the same numbers.
One step in a few is compared with the next state that was kept, and the last step with a sample of its end. Nothing
waits for a GPU before the backward pass is over. Other kernels with gradients than without, or sums in another order on
a GPU, leave a difference of rounding, which is allowed for.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ReplayError
from ..state import StateLayout
from ..steppers.base import Stepper

COMPARED = 24  # evaluations of f after which a step is compared: of fewer, the comparison would take a hundredth
_SAMPLE = 2**14  # entries, or up to twice as many, that are compared of a larger state, and the sum of all


@dataclass(frozen=True)
class Sample:
    """Of a state: one entry in so many, and the sum of all (0-d, float64)."""

    entries: torch.Tensor
    total: torch.Tensor


class Replay:
    """Compares what is replayed with what is remembered.

    :param layout: `StateLayout`
    :param autocast_dtype: of f, or None
    """

    def __init__(self, layout: StateLayout, autocast_dtype: torch.dtype | None = None) -> None:
        self.every = layout.size // _SAMPLE | 1
        kinds = [leaf.dtype for leaf in layout.leaves] + ([autocast_dtype] if autocast_dtype else [])
        precise = layout.dtype == torch.float64
        self._of_change = max(1e-5 if precise else 1e-3, 16 * max(torch.finfo(kind).eps for kind in kinds))
        self._of_size = 64 * torch.finfo(layout.dtype).eps
        self._excesses, self._times = [], []

    def sample(self, y: Tensor) -> Any:
        """What is kept of a state for a comparison: a copy of it, or a `Sample`."""
        if self.every == 1:
            return y.clone()
        return Sample(y[:: self.every].clone(), y.sum(dtype=torch.float64))

    def compare_step(self, stepper: Stepper, step: Any, start: Tensor, end: Any) -> None:
        """A step that the stepper has replayed from start must end on end: the state [n], or its `sample`."""
        found = stepper.replayed_end(start, step.h, self.every)
        if self.every == 1:
            self._compare(found, end, start, step.t_end)
        else:
            end = end if isinstance(end, Sample) else self.sample(end)
            self._compare_samples(Sample(*found), end, start, step.t_end)

    def compare_state(self, found: Tensor, expected: Any, start: Tensor, t: float) -> None:
        """A state at t that was made again in many steps, with the state itself or its `sample`.

        :param start: the state at the other end of the steps that lead there
        """
        found = found.detach()
        if isinstance(expected, Sample):
            self._compare_samples(self.sample(found), expected, start, t, rounding=100.0)
        else:
            self._compare(found, expected, start, t, rounding=100.0)

    def _compare_samples(self, found: Sample, expected: Sample, start: Tensor, t: float, rounding: float = 1.0) -> None:
        start = start[:: self.every]
        self._compare(found.entries, expected.entries, start, t, rounding)
        if found.total.device.type == "cpu" and torch.equal(found.total, expected.total):
            return
        change = 10 * self._of_change * self.every**0.5 * torch.linalg.vector_norm(found.entries - start)
        size = rounding * self._of_size * self.every * torch.linalg.vector_norm(found.entries, 1)
        excess = (found.total - expected.total).abs() - change - size
        self._note(torch.where(expected.total.isfinite(), excess, torch.zeros_like(excess)), t)

    def conclude(self) -> None:
        """To be called when the backward pass is over.

        :raises ReplayError: a step ended elsewhere
        """
        if self._excesses:
            excesses, times = torch.stack(self._excesses).tolist(), self._times
            self._excesses, self._times = [], []
            for excess, t in zip(excesses, times):
                if not excess <= 0.0:
                    raise ReplayError(f"the step that ends at t = {t:.6g} ends in another state, by {excess:.2g}")

    def _compare(self, found: Tensor, expected: Tensor, start: Tensor, t: float, rounding: float = 1.0) -> None:
        if found.numel() == 0 or (found.device.type == "cpu" and torch.equal(found, expected)):
            return
        # infinite and NaN entries, which fixed steps may carry on, are like themselves and unlike numbers
        far = torch.finfo(found.dtype).max / 4
        found, expected, start = (torch.nan_to_num(x, far, 2 * far, -2 * far) for x in (found, expected, start))
        difference, change, size = (
            torch.linalg.vector_norm(x, float("inf")) for x in (found - expected, expected - start, expected)
        )
        self._note(difference - self._of_change * change - rounding * self._of_size * size, t)

    def _note(self, excess: Tensor, t: float) -> None:
        self._excesses.append(excess.double())
        self._times.append(t)
