"""The start of a solve whose steps are compiled."""

from typing import Any

import torch
from torch import Tensor

from ..callbacks import NO_CALLBACKS
from ..controller import FixedSteps
from ..cut import outer_cuts
from ..notices import warn_caller
from ..plan import Plan
from ..solver_options import SolverOptions
from ..state import StateLayout
from ..steppers.base import LINEARISE
from ..vector_field import VectorField
from .chunks import LoopStorage
from .code import code_for
from .controller_settings import is_plain, settings_of
from .func_graph import Differentiable, NotCompilable
from .private_compiler import against_loops

LATER = None, None  # the slope at the start and the first step size are found by the loop


def start(
    func: Any, layout: StateLayout, autocast: Any, ts: list[float], y: Tensor, asked: SolverOptions, plan: Plan, *,
    plain: bool, alone: bool, time_grad: bool,
) -> Any:  # fmt: skip
    """`Code` of func in this solve (None, with a warning, where it cannot be compiled); and the slope at the start with
    the first step size, `LATER`, or None where they are to be found by evaluating func.

    :param ts: times of the solve, floats
    :param y: the flat state at the first of them, without a history
    :param plain: no jumps, gradients in times or choice of tensors stand against generated code from the start
    :param alone: nothing but the loop over steps needs them
    :param time_grad: gradients in the times are wanted
    """
    if outer_cuts():
        warn_caller("compile=True: a solve inside of another one's func runs as it is")
        return None, None
    settings = plan.settings
    watched = plan.callbacks != NO_CALLBACKS
    differentiable = Differentiable.now(time_grad=time_grad)
    code = code_for(
        func, layout, autocast, ts[0], y, plan.compile_options, settings.controller, watched, differentiable
    )
    if code is None:
        return None, None
    code.by_rows = asked.jac_structure == "rows"
    if plan.compile_loop:
        code.against_loop = reason_against(asked, plan, code, y)
    fixed, linearises = isinstance(settings.controller, FixedSteps), LINEARISE in settings.method.abilities
    known = settings.first_step is None and is_plain(settings.controller)
    if code.graph.changed or not plain or not (known or fixed):
        return code, None
    loops = plan.compile_loop and code.against_loop is None
    if alone and loops and not linearises:
        return code, LATER
    if fixed or linearises and not loops:  # whose steps have no generated code but in a loop
        return code, None
    try:
        with torch.no_grad():
            return code, code.start(settings.method, settings_of(settings.controller), ts, y.contiguous())
    except NotCompilable as failure:
        code.compiler.give_up(failure)
        return None, None


JAC_GIVEN = "jac was given: leave it out, generated code derives it from func"


def reason_against(asked: SolverOptions, plan: Plan, code: Any, y: Tensor) -> str | None:
    """Why the loop of a solve cannot be compiled, though its steps can; or None."""
    controller = plan.settings.controller
    if against := code.compiler.against_loops or against_loops(y.device.type):
        return against
    if plan.settings.options.get("perturb"):
        return "perturb=True was asked for"
    if not isinstance(controller, FixedSteps) and not is_plain(controller):
        return "the error norm is not the default one"
    if asked.jac is not None:
        return JAC_GIVEN
    if code.graph.changed:
        return "func changes tensors, as batch normalisation does"
    if plan.memory.max_states(y.numel() * y.element_size()) < LoopStorage.LEAST:
        return f"memory is limited to less than {LoopStorage.LEAST} states"
    for is_asked, name in (
        (asked.dense, "dense=True"), (code.watched or asked.record, "callbacks or record=True"),
    ):  # fmt: skip
        if is_asked:
            return f"{name} was asked for"
    return None


def check(field: VectorField) -> None:
    """Give code up that the first evaluation of func tells not to stand for it."""
    effects, code = field.side_effects, field.code
    if effects.draws or effects.counts:
        code.compiler.give_up("it draws random numbers" if effects.draws else "it changes a number that it keeps")
        field.code = None


def code_again(field: VectorField, t: Any, y: Tensor) -> Any:
    """`Code` of func as it has become."""
    code, layout = field.code, field.layout
    options, controller = code.compiler.options, code.controller
    return code_for(field.func, layout, field.autocast, t, y, options, controller, True, code.differentiable)
