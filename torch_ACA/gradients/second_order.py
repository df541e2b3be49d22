"""For gradient methods whose gradient is not differentiable: an error instead of a wrong number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SecondDerivativeError


def no_second_derivatives(
    method: str, bars: Sequence[Tensor | None], sources: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Cotangents as they are; under create_graph=True they raise `SecondDerivativeError` when differentiated."""
    if not torch.is_grad_enabled():
        return bars
    return [None if bar is None else _Refuse.apply(method, bar, *sources) for bar in bars]


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, method: str, bar: Tensor, *sources: Tensor) -> Tensor:
        ctx.method, ctx.n = method, len(sources)
        return bar.view_as(bar)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> Any:
        raise SecondDerivativeError(
            f"gradient={ctx.method!r} has no second derivatives; use gradient='aca', 'direct' or 'naive' for them"
        )
