"""The replay is the forward pass again, or an error says that func has changed.

An accepted step that is evaluated again must end where it ended, bit for bit: the same operations on the same numbers.
The last step, and one in a few, is compared with the next state that was kept; of large states one part after the
other, and of very large ones a sample of entries, spread evenly. Nothing waits for a GPU before the backward pass is
over. Other kernels with gradients than without, or sums in another order on a GPU, leave a difference of rounding,
which is allowed for.
"""

import torch

from ..errors import ReplayError

COMPARED = 16  # evaluations of f after which a step is compared: of fewer, the comparison would take a hundredth
_PART = 2**11  # entries of a state that are compared at a time
_SAMPLE = 2**15  # states of more entries are sampled


class Replay:
    """Compares what is replayed with what is remembered.

    :param layout: `StateLayout`
    :param autocast_dtype: of f, or None
    """

    def __init__(self, layout, autocast_dtype=None):
        self._every = layout.size // _PART | 1 if layout.size > _SAMPLE else 1
        self._n_compared = 0
        kinds = [leaf.dtype for leaf in layout.leaves] + ([autocast_dtype] if autocast_dtype else [])
        precise = layout.dtype == torch.float64
        self._of_change = max(1e-5 if precise else 1e-3, 16 * max(torch.finfo(kind).eps for kind in kinds))
        self._of_size = 64 * torch.finfo(layout.dtype).eps
        self._excesses, self._times = [], []

    def sample(self, y):
        """What is kept of a state for a comparison: a copy."""
        return y[:: self._every].clone()

    def compare_step(self, stepper, step, start, end):
        """A step that the stepper has replayed from start must end on end [n], or on its `sample`."""
        part = self._part(len(start))
        found, expected = stepper.replayed_end(start, step.h, part), end
        if len(end) == len(start):
            expected = end[part]
        if found.device.type == "cpu" and torch.equal(found, expected):
            return
        self._compare(found, expected, start[part], step.t_end)

    def _part(self, size):
        if self._every > 1:
            return slice(None, None, self._every)
        if size <= _PART:
            return slice(None)
        first = self._n_compared * _PART % size
        self._n_compared += 1
        return slice(first, first + _PART)

    def compare_state(self, found, sample, start, t):
        """A state at t that was rebuilt in many steps, with its `sample`; start: the state at their other end."""
        every = self._every
        self._compare(found.detach()[::every], sample, start[::every], t, rounding=100.0)

    def conclude(self):
        """To be called when the backward pass is over.

        :raises ReplayError: a step ended elsewhere
        """
        if self._excesses:
            excesses, times = torch.stack(self._excesses).tolist(), self._times
            self._excesses, self._times = [], []
            for excess, t in zip(excesses, times):
                if not excess <= 0.0:
                    raise ReplayError(f"the step that ends at t = {t:.6g} ends in another state, by {excess:.2g}")

    def _compare(self, found, expected, start, t, rounding=1.0):
        if found.numel() == 0:
            return
        # infinite and NaN entries, which fixed steps may carry on, are like themselves and unlike numbers
        far = torch.finfo(found.dtype).max / 4
        found, expected, start = (torch.nan_to_num(x, far, 2 * far, -2 * far) for x in (found, expected, start))
        difference, change, size = (
            torch.linalg.vector_norm(x, float("inf")) for x in (found - expected, expected - start, expected)
        )
        self._excesses.append(difference - self._of_change * change - rounding * self._of_size * size)
        self._times.append(t)
