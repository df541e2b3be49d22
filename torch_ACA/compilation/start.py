"""The start of a solve whose steps are compiled."""

from typing import Any

import torch
from torch import Tensor

from ..cut import outer_cuts
from ..march import Callbacks
from ..notices import warn_caller
from ..plan import Plan
from ..state import StateLayout
from ..vector_field import VectorField
from . import choice
from .code import code_for
from .func_graph import NotCompilable


def start(
    func: Any, layout: StateLayout, autocast: Any, ts: list[float], y: Tensor, plan: Plan, *, plain: bool, by_rows: bool
) -> Any:
    """`Code` of func in this solve (None, with a warning, where it cannot be compiled); and the slope at the start with
    the first step size, or None where they are to be found by evaluating func.

    :param ts: times of the solve, floats
    :param y: the flat state at the first of them, without a history
    :param plain: no jumps, gradients in times or choice of tensors stand against generated code from the start
    :param by_rows: func is said to act row by row
    """
    if outer_cuts():
        warn_caller("compile=True: a solve inside of another one's func runs as it is")
        return None, None
    settings = plan.settings
    watched = plan.callbacks != Callbacks()
    code = code_for(func, layout, autocast, ts[0], y, plan.compile_options, settings.controller, watched)
    if code is not None:
        code.by_rows = by_rows
    known = settings.first_step is None and choice.is_plain(settings.controller)
    if code is None or code.graph.changed or not plain or not known:
        return code, None
    try:
        with torch.no_grad():
            return code, code.start(settings.method, choice.settings_of(settings.controller), ts, y.contiguous())
    except NotCompilable as failure:
        code.compiler.give_up(failure)
        return None, None


def check(field: VectorField) -> None:
    """Give code up that the first evaluation of func tells not to stand for it."""
    effects, code = field.side_effects, field.code
    if effects.draws or effects.counts:
        code.compiler.give_up("it draws random numbers" if effects.draws else "it changes a number that it keeps")
        field.code = None


def code_again(field: VectorField, t: Any, y: Tensor) -> Any:
    """`Code` of func as it has become."""
    code, layout = field.code, field.layout
    return code_for(field.func, layout, field.autocast, t, y, code.compiler.options, code.controller, True)
