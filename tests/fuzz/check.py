"""Runs the program of a case with torch_ACA and with the oracle, and says how the two differ."""

from dataclasses import dataclass

import torch

from . import oracle
from .cases import Case, draw
from .program import Oracle, Outcome, Program, Solver

# Two orders of the same operations, relative to the largest number compared. In float64 some 1e3 operations, the
# largest of them cancelling by 1e2 (times of short steps, second derivatives), leave 1e5 units of 2e-16.
_ROUNDING = {torch.float64: 2e-11, torch.float32: 2e-4}
# The leapfrog is run backwards: rounding grows as the flow contracts, e^3 at most here, and is divided by step sizes.
_RUN_BACKWARDS = 100
# The continuous adjoint has the error of its backward solve (rtol 1e-9, some 1e2 steps), and outputs inside steps are
# interpolated at order 4 or 5 where steps are some 0.1.
_CONTINUOUS = 2e-5


@dataclass
class Difference:
    """A case on which torch_ACA differs from the oracle: ``kind`` names what differs in a few words."""

    case: Case
    kind: str
    what: str
    got: object
    want: object

    def __str__(self):
        return (
            f"seed {self.case.seed}: {self.kind}: {self.what}\n  case: {self.case.describe()}\n"
            f"  got:  {_shown(self.got)}\n  want: {_shown(self.want)}\n"
            f"  again: bash scripts/fuzz.sh --seed {self.case.seed}"
        )


def check(seed, **changes):
    """The `Difference` of the case of a seed, or None. changes: of `program.Solver`'s outcome, see `check_case`."""
    return check_case(draw(seed), **changes)


def check_case(case, spoil=None):
    """The `Difference` of a case, or None.

    :param spoil: changes the outcome of torch_ACA before it is compared, to show that the comparison can fail
    """
    solver, program = Solver(), Program(case)
    try:
        got = program.run(solver)
    except Exception as error:  # whatever it is: the program is a right one
        message = str(error).partition("\n")[0]
        return Difference(case, f"raises {type(error).__name__}", message, error, "no error")
    if spoil is not None:
        spoil(got)
    try:
        want = Program(case).run(Oracle(solver.steps))
    except oracle.StepsMissing as error:
        return Difference(case, "steps", str(error), solver.steps, "a step to each of them")
    for name in want.gradients:
        if name.partition(", pass")[0] in program.unnamed:
            want.gradients[name] = None
    return _too_long(case, solver.steps) or _difference(case, got, want)


def _too_long(case, steps):
    """Steps above the size that was allowed."""
    longest = dict(case.options).get("max_step", case.step_size)
    sizes = [abs(h) for solve in steps for _, h in solve]
    if longest is not None and max(sizes) > longest * (1 + 1e-6):
        return Difference(case, "steps", "a step is longer than allowed", max(sizes), longest)
    return None


def _difference(case, got: Outcome, want: Outcome):
    tolerance = _tolerance(case)
    groups = [("value", got.states, want.states, _ROUNDING[_working_type(case)])]
    if case.exact or case.gradient == "adjoint":
        groups.append(("first derivative", got.gradients, want.gradients, tolerance))
        groups.append(("second derivative", got.second, want.second, 10 * tolerance))
    groups.append(("buffer", got.buffers, want.buffers, tolerance))
    for kind, found, expected, allowed in groups:
        scale = max([1e-3, *(_largest(t) for t in expected.values())])
        for name in expected:
            worst = _distance(found.get(name), expected[name])
            if not worst <= allowed * scale:
                missing = found.get(name) is None
                return Difference(case, kind + (" is None" if missing else ""), name, found.get(name), expected[name])
    if case.exact and got.hook_calls != want.hook_calls:
        return Difference(case, "hook calls", "how often each hook ran", got.hook_calls, want.hook_calls)
    return None


def _working_type(case):
    return torch.float64 if case.precision == "float64" else torch.float32


def _tolerance(case):
    if case.gradient == "adjoint":
        return _CONTINUOUS
    single = case.times_require_grad and case.times_precision == "float32"
    rounding = _ROUNDING[torch.float32 if single else _working_type(case)]
    return rounding * (_RUN_BACKWARDS if case.gradient == "mali" else 1)


def _largest(tensor):
    return 0.0 if tensor is None or tensor.numel() == 0 else float(tensor.abs().max())


def _distance(a, b):
    """The largest difference; None is zero."""
    if a is None or b is None:
        return _largest(b if a is None else a)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    return _largest(a - b)


def _shown(value):
    if isinstance(value, torch.Tensor):
        return f"{value.tolist()}"
    return repr(value)
