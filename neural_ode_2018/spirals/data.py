"""Spirals in the plane, half of them clockwise, seen with noise at irregular times.

The paper gives neither radius nor noise nor the length of what is seen. Its errors are below 0.4, so the largest radius
here is 1; noise and pitch are in the ratio of torchdiffeq's public example. In the paper the 100 times of a spiral are
equally spaced, and n of them are drawn. Here the 100 times are irregular themselves, and the same for all spirals.
"""

import math
from dataclasses import dataclass

import torch

from harness.seeding import generator

TIMES = 100  # seen, and as many ahead of them, and behind
SPAN = 1.2 * math.pi  # of the times seen; a spiral turns by one radian in a unit of time
TURNS = 3  # the angle at which the longest spirals end, in turns
PITCH = 1 / (TURNS * 2 * math.pi)  # radius over angle
NOISE = PITCH


@dataclass(frozen=True)
class Spirals:
    """N spirals; T = TIMES.

    Attributes:
        times: those that are seen [T], from 0 on; float64, as ``ahead`` [T] later and ``behind`` [T] earlier than
            these, which recedes from 0.
        truth, truth_ahead, truth_behind: without noise [N, T, 2].
        index: which of the times are seen of each spiral, increasing [N, n].
        values: what is seen there, with noise [N, n, 2].
    """

    times: torch.Tensor
    ahead: torch.Tensor
    behind: torch.Tensor
    truth: torch.Tensor
    truth_ahead: torch.Tensor
    truth_behind: torch.Tensor
    index: torch.Tensor
    values: torch.Tensor

    def __len__(self):
        return len(self.values)

    def seen_times(self, chosen=slice(None)):
        """Times of what is seen of the chosen spirals [N', n], float32."""
        return self.times.float()[self.index[chosen]]


def make_spirals(count, points, seed, part, device="cpu"):
    """``count`` spirals of which ``points`` times are seen; ``part`` names the draw: other parts have other spirals."""
    common, draw = generator("cpu", seed, "times"), generator("cpu", seed, "spirals", part)
    seen, ahead, behind = SPAN * torch.rand(3, TIMES, generator=common, dtype=torch.float64).sort().values
    times, ahead, behind = seen - seen[0], ahead + SPAN, -behind - 1e-3
    start = SPAN + (TURNS * 2 * math.pi - 3 * SPAN) * torch.rand(count, 1, generator=draw, dtype=torch.float64)
    direction = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)[:, None]

    def at(t):
        angle = start + t
        return PITCH * torch.stack([angle * angle.cos(), direction * angle * angle.sin()], dim=2).float()

    truth = at(times)
    index = torch.rand(count, TIMES, generator=draw).argsort(1)[:, :points].sort(1).values
    noisy = truth + NOISE * torch.randn(truth.shape, generator=draw)
    values = noisy.gather(1, index[..., None].expand(-1, -1, 2))
    states = (tensor.to(device) for tensor in (truth, at(ahead), at(behind), index, values))
    return Spirals(times, ahead, behind, *states)
