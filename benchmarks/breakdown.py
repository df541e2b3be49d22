"""Where the time of a solve and its backward pass goes: func, its VJPs, and the solver's own parts around them.

Timers are put around functions of `torch_ACA`; each takes the time that those inside it do not. They cost under a
microsecond a call.
"""

import contextlib
import functools
import time
from statistics import median
from unittest import mock

import torch

from benchmarks import solvers
from torch_ACA import api, vector_field
from torch_ACA.gradients.discrete import DiscreteSolve

FUNC, FUNC_WITH_GRAPH = "func", "func with graph"
TIMED = (  # what is timed: where it is found, its name there, and what it is called
    (vector_field.VectorField, "_call", lambda: FUNC_WITH_GRAPH if torch.is_grad_enabled() else FUNC),
    (vector_field, "_engine_run_backward", lambda: "VJPs of func"),
    (vector_field.GradientSum, "add", lambda: "sums of gradients"),
    (api, "problem_of", lambda: "set-up"),
    (DiscreteSolve, "forward", lambda: "steps forward"),
    (DiscreteSolve, "backward", lambda: "steps backward"),
)
OTHER = "loss, autograd, result"
PARTS = (FUNC, FUNC_WITH_GRAPH, "VJPs of func", "sums of gradients", "set-up", "steps forward", "steps backward", OTHER)


class Timers:
    """Seconds by part in ``spent``; ``within(part)`` is a context."""

    def __init__(self):
        self.spent, self._inside = dict.fromkeys(PARTS, 0.0), [0.0]

    @contextlib.contextmanager
    def within(self, part):
        self._inside.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            self.spent[part] += taken - self._inside.pop()
            self._inside[-1] += taken

    def around(self, function, part):
        @functools.wraps(function)
        def timed(*args, **keywords):
            with self.within(part()):
                return function(*args, **keywords)

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
            with timers.within(OTHER):
                prepared()
        found.append(timers.spent)
    return {part: median(spent[part] for spent in found) for part in PARTS}
