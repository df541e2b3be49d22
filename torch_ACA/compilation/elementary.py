"""Elementary functions for generated code, where those of Inductor take long.

The hyperbolic tangent in single precision: Inductor calls SLEEF's, which takes twice the time of what is here, and
XLA, which jitted diffrax runs on, has a formula of its own too. The error is 1.2 units in the last place at most
(SLEEF's 1.0); `tests/torch_ACA/test_compiled_elementary.py` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALL = 0.625  # behind it 1 - 2 / (e^2x + 1) loses nothing
# (tanh(x) / x - 1) / x^2 as a polynomial in x^2, from the constant: minimax on [0, SMALL] for the error of tanh, which
# is 0.04 of the unit of single precision (by Remez' algorithm)
NEAR_ZERO = (
    -0.333332819420127742, 0.133314421981758317, -0.0537397150858266047, 0.0206390872447337689, -0.00570498699345972662,
)  # fmt: skip


def tanh(x: Tensor) -> Any:
    """tanh(x) by a polynomial near zero and the exponential function elsewhere; NotImplemented but for single precision
    on a CPU."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return NotImplemented
    square = x * x
    polynomial: Any = NEAR_ZERO[-1]
    for coefficient in NEAR_ZERO[-2::-1]:
        polynomial = polynomial * square + coefficient
    size = x.abs()
    far = torch.copysign(1.0 - 2.0 / (torch.exp(2.0 * size) + 1.0), x)
    return torch.where(size < SMALL, x * (polynomial * square + 1.0), far)


DECOMPOSITIONS = {torch.ops.aten.tanh.default: tanh}
