"""Second derivatives: gradients as functions of everything, or, where a method has none, an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import SecondDerivativeError
from ..graph import leaves_behind
from ..inference_mode import outside_inference_mode

if TYPE_CHECKING:
    from ..capture import Captured


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
    @outside_inference_mode
    def backward(ctx: Any, *bars: Tensor) -> Any:
        raise SecondDerivativeError(
            f"gradient={ctx.method!r} has no second derivatives; use gradient='aca', 'direct' or 'naive' for them"
        )


def differentiable_bars(run: Any, inputs: Sequence[Tensor], bars: Sequence[Tensor]) -> list[Tensor | None]:
    """The same cotangents as functions of everything (create_graph=True): the accepted grid runs again with a graph.

    It runs on aliases of all inputs: what an input shares with others, or with func, lies behind the aliases, where
    this pass does not go.
    """
    field = run.problem.field
    before = field.n_evals
    with torch.enable_grad():
        y0, times, *captured = aliases = [tensor.view_as(tensor) for tensor in inputs]
        with field.standing_in(captured):
            results = run.traced(y0, times)
        pairs = [(result, bar) for result, bar in zip(results, bars) if result.requires_grad]
        outputs, cotangents = zip(*pairs) if pairs else ((), ())
        targets = _targets(field.captured, inputs, aliases, outputs)
    wanted = [t for t in targets if t.requires_grad]
    found: Any = iter(())
    if outputs:
        found = iter(torch.autograd.grad(
            outputs, wanted, cotangents, create_graph=torch.is_grad_enabled(), allow_unused=True
        ))  # fmt: skip
    run.problem.stats.n_backward_f_evals = field.n_evals - before
    return [next(found, None) if t.requires_grad else None for t in targets]


def _targets(
    captured: Captured, inputs: Sequence[Tensor], aliases: list[Tensor], outputs: Sequence[Tensor]
) -> list[Tensor]:
    """What to differentiate outputs by: the aliases, but for leaves that func used past them (in TorchScript or in an
    `autograd.Function` of its own).

    :raises SecondDerivativeError: an alias has such a leaf in its history
    """
    edges = [alias.grad_fn for alias in aliases]
    direct = leaves_behind([output.grad_fn for output in outputs], until=edges)
    if not direct:
        return aliases
    captured.accept(direct, inputs)
    passed = {id(leaf) for leaf in direct}
    rest = [alias.grad_fn for alias, source in zip(aliases, inputs) if id(source) not in passed]
    if any(id(leaf) in passed for leaf in leaves_behind(rest)):
        raise SecondDerivativeError(
            "func uses a tensor inside an operation that cannot be looked into (TorchScript, a custom "
            "autograd.Function), and the initial state, the times or another tensor of func depends on it as well: use "
            "gradient='naive'"
        )
    return [source if id(source) in passed else alias for alias, source in zip(aliases, inputs)]
