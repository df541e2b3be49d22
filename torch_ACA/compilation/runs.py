"""Which compiled loop a solve is run by."""

from typing import Any

from ..controller import FixedSteps
from ..problem import Problem, StartOver
from ..steppers.base import LINEARISE
from .fixed_loops import FixedLoopSolve
from .func_graph import NotCompilable
from .loop_solve import LoopSolve


def loop_run(problem: Problem) -> Any:
    """`LoopSolve` of a problem, or None, with a warning once, where its loop cannot be compiled."""
    compiler, reason = problem.field.code.compiler, problem.field.code.against_loop
    if reason is None:
        fixed = isinstance(problem.controller, FixedSteps)
        run = FixedLoopSolve(problem) if fixed else LoopSolve(problem)
        try:
            if problem.field.jacobian.is_given:  # generated code does not check what was said of it
                problem.field.linearise(problem.ts[0], run.y0, 0).derivative()
            run.prepare()
            return run
        except NotCompilable as failure:
            reason = compiler.against_loops = str(failure)
            if problem.slope is None:
                raise StartOver from failure
    if LINEARISE not in problem.method.abilities:
        compiler.warn_of_steps(reason)
    else:
        compiler.warn(f"compile=True: for {compiler.name} {problem.method.name} runs as it is ({reason})")
        problem.compile_options = problem.field.code = None
    return None


