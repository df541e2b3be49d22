"""Peak memory and elapsed time."""

import resource
import sys
import time

import torch


def peak_memory_bytes(device="cpu"):
    """Peak of this process so far: allocated memory on a CUDA ``device``, resident memory otherwise."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # unlike getrusage's figure, this one does not start at the parent process's
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


class Stopwatch:
    """Wall time since construction, on top of ``already`` seconds; waits for the work queued on a CUDA ``device``."""

    def __init__(self, already=0.0, device="cpu"):
        self._device = torch.device(device)
        self._start = self._now() - already

    @property
    def seconds(self):
        return self._now() - self._start

    def _now(self):
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
