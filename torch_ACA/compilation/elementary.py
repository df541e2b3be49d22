"""Elementary functions for generated code, where those of Inductor take long.

Powers with exponents like -3/2, as in laws of gravitation and their derivatives: square roots, products and a quotient
take less time than C's pow. The error is 2 units in the last place at most (pow's 0.6).

The hyperbolic tangent in single precision: Inductor calls SLEEF's, which takes twice the time of what is here, and
XLA, which jitted diffrax runs on, has a formula of its own too. The error is 1.2 units in the last place at most
(SLEEF's 1.0); `tests/torch_ACA/test_compiled_elementary.py` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
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


MOST = 3.5  # exponent, beyond which errors add up


def power(x: Tensor, exponent: Any) -> Any:
    """x**exponent for 3/2, 5/2, 7/2 and their negatives; NotImplemented but for float32 and float64 on a CPU."""
    whole = abs(exponent) - 0.5
    known = x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    if not (known and 1 <= whole < MOST and whole == int(whole)):
        return NotImplemented
    product = x
    for _ in range(int(whole) - 1):
        product = product * x
    product = product * x.sqrt()
    return product if exponent > 0 else 1.0 / product


DECOMPOSITIONS: dict[Any, Callable] = {torch.ops.aten.tanh.default: tanh, torch.ops.aten.pow.Tensor_Scalar: power}
