"""What a solve returns."""

from dataclasses import dataclass
from typing import Any

import torch

from .march import Stats


@dataclass
class Solution:
    """``ts`` [m]: the times asked for; ``ys``: the states there, each leaf [m, *shape], ``ys[0]`` the initial one;
    ``stats``: `Stats` of the solve."""

    ts: torch.Tensor
    ys: Any
    stats: Stats
