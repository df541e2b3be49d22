"""Runs the program of a case with torch_ACA and with the oracle, and says how the two differ."""

from dataclasses import dataclass, replace

import torch

from . import oracle
from .cases import Case, draw
from .program import Oracle, Outcome, Program, Solver

# Two orders of the same operations, relative to the largest number among the states and what is compared: some 1e3
# operations in float64 (2e-16 each) or float32 (1e-7), most of which average out. Derivatives are divided by step
# sizes, and second ones twice.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4}
_MORE_FOR = {"first derivative": 10, "second derivative": 100}
# The continuous adjoint has the error of its backward solve (rtol 1e-9 for each of some 1e2 steps), and that of outputs
# inside steps, which are interpolated at order 4 or 5.
_CONTINUOUS = 2e-6
# Where rounding in float32 grows, the oracle has its share of it too: its distance to itself in float64.
_TIMES_THE_ORACLES = 3


@dataclass
class Difference:
    """A case on which torch_ACA differs from the oracle: ``kind`` names what differs in a few words."""

    case: Case
    kind: str
    what: str
    got: object
    want: object
    way: str = "steps"

    def __str__(self):
        way = "" if self.way == "steps" else f"--way {self.way} "
        return (
            f"seed {self.case.seed}: {self.kind}: {self.what}\n  case: {self.case.describe()}\n"
            f"  got:  {_shown(self.got)}\n  want: {_shown(self.want)}\n"
            f"  again: bash scripts/fuzz.sh {way}--seed {self.case.seed}"
        )


def check(seed):
    """The `Difference` of the case of a seed, or None."""
    return check_case(draw(seed))


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

    def expected(case):
        want = Program(case).run(Oracle(solver.steps))
        for name in want.gradients:
            if name.partition(", pass")[0] in program.unnamed:
                want.gradients[name] = None
        return want

    try:
        want = expected(case)
    except oracle.StepsMissing as error:
        return Difference(case, "steps", str(error), solver.steps, "a step to each of them")
    found = _too_long(case, solver.steps) or difference(case, got, want)
    if found is not None and case.precision != "float64":  # an ill-conditioned program: how far off is the oracle?
        found = difference(case, got, want, expected(replace(case, precision="float64")))
    return found


def _too_long(case, steps):
    """Steps above the size that was allowed."""
    longest = dict(case.options).get("max_step", case.step_size)
    sizes = [abs(h) for solve in steps for _, h in solve]
    if longest is not None and max(sizes) > longest * (1 + 1e-6):
        return Difference(case, "steps", "a step is longer than allowed", max(sizes), longest)
    return None


def difference(case, got: Outcome, want: Outcome, precise: Outcome | None = None, rounding: float | None = None):
    """What is too far apart, as a `Difference`, or None.

    :param precise: the oracle in float64, which says how far off it is itself
    :param rounding: the largest difference of values allowed, relative to the largest of them (None: by precision)
    """
    groups = [("value", got.states, want.states)]
    if case.exact or case.gradient == "adjoint":
        groups.append(("first derivative", got.gradients, want.gradients))
        groups.append(("second derivative", got.second, want.second))
    groups.append(("buffer", got.buffers, want.buffers))
    states = max(map(_largest, want.states.values()))
    for kind, found, expected in groups:
        relative = _tolerance(case, kind) if rounding is None else rounding * _MORE_FOR.get(kind, 1)
        allowed = relative * max([states, *map(_largest, expected.values())])
        if precise is not None:
            better = {"first derivative": precise.gradients, "second derivative": precise.second}.get(kind, {})
            allowed += _TIMES_THE_ORACLES * max([0.0, *(_distance(expected[name], better[name]) for name in better)])
        for name, wanted in expected.items():
            if not _distance(found.get(name), wanted) <= allowed:
                missing = " is None" if found.get(name) is None else ""
                return Difference(case, kind + missing, name, found.get(name), wanted)
    # a gradient of zero may reach a hook that no gradient reaches in the other
    if case.exact and any(got.hook_calls.get(hook) != count for hook, count in want.hook_calls.items() if count):
        return Difference(case, "hook calls", "how often each hook ran", got.hook_calls, want.hook_calls)
    return None


def _tolerance(case, kind):
    """The largest difference allowed, relative to the largest number of its kind."""
    if case.gradient == "adjoint" and kind == "first derivative":
        return _CONTINUOUS
    moving = case.times_require_grad and case.times_precision == "float32" and kind != "value"
    single = moving or case.precision != "float64"
    return _ROUNDING[torch.float32 if single else torch.float64] * _MORE_FOR.get(kind, 1)


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
