"""The start of a solve whose steps are compiled."""

from ..cut import outer_cuts
from ..notices import warn_caller
from . import choice
from .code import code_for
from .func_graph import NotCompilable


def code_of(field, t, y, options, controller, watched):
    """`Code` of a func in one solve; None, with a warning, where it cannot be compiled.

    :param t, y: a time (float) and the flat state there, without a history
    :param options: of Inductor, a dict
    :param controller: of the solve
    :param watched: func may change from step to step
    """
    if outer_cuts():
        warn_caller("compile=True: a solve inside of another one's func runs as it is")
        return None
    return code_for(field, t, y, options, controller, watched)


def check(field):
    """Give code up that the first evaluation of func tells not to stand for it."""
    effects, code = field.side_effects, field.code
    if effects.draws or effects.counts:
        code.compiler.give_up("it draws random numbers" if effects.draws else "it changes a number that it keeps")
        field.code = None


def start(field, settings, ts, y):
    """Slope at the start, and first step size; None where they are to be found by evaluating func.

    :param settings: `Settings`
    """
    code = field.code
    if code.graph.changed or settings.first_step is not None or not choice.is_plain(settings.controller):
        return None
    controller = settings.controller
    try:
        found = code.start(settings.method, choice.settings_of(controller), (ts[0], ts[-1]), y.contiguous())
    except NotCompilable as failure:
        code.compiler.give_up(failure)
        field.code = None
        return None
    field.n_evals += 2
    field.depends_on(code.sources)
    return found
