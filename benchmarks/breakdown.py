"""Where the time of a solve and its backward pass goes: func, its VJPs, and the solver's own parts around them.

Timers are put around functions of `torch_ACA`; each takes the time that those inside it do not. They take about a
microsecond a call themselves.
"""

import contextlib
import time
from statistics import median
from unittest import mock

import torch

from benchmarks import solvers
from torch_ACA import api, evaluation, vector_field
from torch_ACA.compilation.func_graph import Tracer
from torch_ACA.compilation.inside import Inside
from torch_ACA.compilation.loop_solve import LoopSolve
from torch_ACA.compilation.loops import Loops
from torch_ACA.gradients.discrete import DiscreteSolve
from torch_ACA.steppers.compiled import CompiledRungeKutta

FUNC, FUNC_WITH_GRAPH = "func", "func with graph"
GENERATED, GUARDS = "generated code", "calls of generated code"  # the latter: Dynamo's guards, looked at once a solve
TIMED = (  # what is timed: where it is found, its name there, and what it is called
    (vector_field.VectorField, "call", lambda: FUNC_WITH_GRAPH if torch.is_grad_enabled() else FUNC),
    (evaluation, "pulled_back", lambda: "VJPs of func"),
    (evaluation.GradientSum, "add", lambda: "sums of gradients"),
    *((Loops, name, lambda: GENERATED) for name in ("begin", "forward", "through_slope", "backward")),
    *((Inside, name, lambda: GENERATED) for name in ("outputs", "cotangents")),
    (CompiledRungeKutta, "call", lambda: GENERATED),
    (Tracer, "__call__", lambda: GUARDS),
    (api, "problem_of", lambda: "set-up"),
    (DiscreteSolve, "forward", lambda: "steps forward"),
    (DiscreteSolve, "backward", lambda: "steps backward"),
    (LoopSolve, "forward", lambda: "steps forward"),
    (LoopSolve, "backward", lambda: "steps backward"),
)
OTHER = "loss, autograd, result"
PARTS = tuple(dict.fromkeys([FUNC, *(part() for _, _, part in TIMED), OTHER]))


class Timers:
    """Seconds by part in ``spent``."""

    def __init__(self):
        self.spent, self._inside = dict.fromkeys(PARTS, 0.0), [0.0]

    def around(self, function, part):
        """The function, timed as what ``part()`` says."""

        def timed(*args, **keywords):
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                taken = time.perf_counter() - start
                self.spent[part()] += taken - self._inside.pop()
                self._inside[-1] += taken

        return timed


def seconds_by_part(problem, solver, rounds):
    """{part: seconds}, medians over ``rounds`` solves with their backward passes."""
    prepared = solvers.SOLVERS[solver].prepare(problem)
    prepared()
    found = []
    for _ in range(rounds):
        timers = Timers()
        with contextlib.ExitStack() as stack:
            for owner, name, part in TIMED:
                stack.enter_context(mock.patch.object(owner, name, timers.around(getattr(owner, name), part)))
            timers.around(prepared, lambda: OTHER)()
        found.append(timers.spent)
    return {part: median(spent[part] for spent in found) for part in PARTS}
