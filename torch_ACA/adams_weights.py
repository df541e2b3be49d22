"""Weights of Adams methods: integrals over a step of the polynomial through slopes at any times.

Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, sections III.1 and III.5.
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from .interpolants import Polynomials

MIN_ORDER, MAX_ORDER = 4, 12
# Dense output: weights of the slope at the start, of the chord's and, in the cubic Hermite, of the slope at the end
LINEAR = Polynomials(((0,), (1,)))
HERMITE = Polynomials(((1, -2, 1), (0, 3, -2), (0, -1, 1)))
# Gauss-Legendre on [0, 1], exact for polynomials through MAX_ORDER nodes
_POINTS, _SHARES = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(MAX_ORDER // 2))
_POINTS, _SHARES = (_POINTS + 1) / 2, _SHARES / 2


def weights_of(t: Any, h: Any, times: Sequence[Any], *, with_end: bool = False) -> list[Any]:
    """h times the weights of the slopes at t and at ``times``, of that at t + h before them if it is one of them.

    The integral from t to t + h of the Lagrange polynomials. Floats, or 0-d tensors if t, h or a time is one.
    """
    nodes: Any = [*((1.0,) if with_end else ()), 0.0, *((time - t) / h for time in times)]
    tensors = [x for x in (t, h, *times) if isinstance(x, torch.Tensor)]
    if not tensors:
        return [h * w for w in _integrals(torch.tensor(nodes, dtype=torch.float64, device="cpu")).tolist()]
    nodes = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=tensors[0].device) for x in nodes])
    return list((h * _integrals(nodes)).unbind())


def weighed(weights: Iterable[Any], slopes: Iterable[torch.Tensor]) -> torch.Tensor:
    """sum of weights[j] * slopes[j], rounded alike whether the weights are floats, as in the forward pass, or 0-d
    tensors, as in a replay that differentiates by the times."""
    return functools.reduce(torch.add, map(operator.mul, weights, slopes))


def _integrals(nodes: torch.Tensor) -> torch.Tensor:
    """Integrals over [0, 1] of the Lagrange polynomials of the nodes [k], float64: [k]."""
    points, shares = _POINTS.to(nodes.device), _SHARES.to(nodes.device)
    itself = torch.eye(len(nodes), dtype=torch.bool, device=nodes.device)
    above = torch.where(itself, 1.0, (points[:, None] - nodes)[:, None, :]).prod(-1)
    return shares @ above / torch.where(itself, 1.0, nodes[:, None] - nodes).prod(-1)
