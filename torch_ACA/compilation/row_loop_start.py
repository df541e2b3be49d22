"""The start of a solve by rows whose loops are compiled."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .code import code_for
from .func_graph import Differentiable
from .row_loop_proof import rows_are_apart


def row_code(field: Any, t: Tensor, y: Tensor, plan: Any, *, time_grad: bool) -> Any:
    """`Code` of the func of a `RowField`; None, with a warning once, where there can be none.

    :param t, y: where the solve starts: times [b], and the flat state without a history
    :param plan: `Plan`
    :param time_grad: gradients in the times are wanted
    """
    layout, settings = field.layout, plan.settings
    time = field.rows.time(t.to(layout.dtype))
    options, differentiable = plan.compile_options, Differentiable.now(time_grad=time_grad)
    return code_for(field.func, layout, field.autocast, time, y, options, settings.controller, False, differentiable)


def are_apart(field: Any, t: Tensor, y: Tensor) -> bool:
    """Whether the graph of func shows that its rows do not depend on each other.

    :param t, y: as for `row_code`
    """
    code, layout, rows = field.code, field.layout, field.rows
    if code is None or len(layout.leaves) > 1 or not rows.width:
        return False
    time = rows.time(t.to(layout.dtype))
    return code.kept("apart", lambda: rows_are_apart(code.graph, time, y, code.others, rows.count))
