"""Other ways to the answer of a case, each with one that it must agree with: rows of a batch that take their own steps,
and the rows alone; compiled code, and func as it is; an event, and a solve to its time.

Both go through torch_ACA. The plain one of them is what `check` compares with plain autograd.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import torch_ACA

from . import fields
from .cases import Case, draw
from .check import Difference, difference
from .program import Program, as_tensor, asked

# The steps of two ways have sizes that differ by the rounding of an error norm. Where the error is small that is 1e-4
# of a size, and the answers differ by as much of the error that they have.
_STEPS_DIFFER = 3e-9
# An event is compared with a solve to its time, both at rtol 1e-10: the state at an event is that of the dense output.
_DENSE_OUTPUT = 2e-7
_TIGHT = {"rtol": 1e-10, "atol": 1e-11}
_AS_TIGHT_AS_FAST = {"rtol": 1e-7, "atol": 1e-8}
_NOT_SMOOTH = {*fields.BREAKS_WITH_TIME, "branch on state", "branch at a stop"}
_COUNTS_CALLS = {"batch norm", "dropout"}

# What makes a batch of rows of one state, how far each of them goes, and their part in the state that is compared.
_ROWS, _SPANS, _PARTS = (1.0, 0.7, -0.5), (1.0, 0.9, 0.83), (1.0, -0.6, 0.4)


@dataclass(frozen=True)
class Way:
    """``suited``: the case as it can go this way, or None; ``pair``: two solvers for `Program.run`, of which the second
    is the plain one."""

    suited: Callable
    pair: Callable
    rounding: float = _STEPS_DIFFER


def check(seed, name):
    """The `Difference` of the case of a seed by the way of a name; None also where the case does not suit it."""
    case = WAYS[name].suited(draw(seed))
    return None if case is None else check_case(case, name)


def check_case(case: Case, name, spoil=None):
    """As `check.check_case`, of a case that suits the way."""
    got, want = WAYS[name].pair()
    try:
        found = Program(case).run(got)
    except Exception as error:
        message = str(error).partition("\n")[0]
        return Difference(case, f"raises {type(error).__name__}", message, error, "no error", name)
    if spoil is not None:
        spoil(found)
    apart = difference(case, found, Program(case).run(want), rounding=WAYS[name].rounding)
    return None if apart is None else replace(apart, way=name)


class Alone:
    """One solve."""

    def __init__(self, **more):
        self._more = more

    def __call__(self, program, func, y0, times):
        solution = torch_ACA.solve(func, y0, times, **asked(program), **self._more)
        return solution.ys, solution.dense


class Rows:
    """A sum of solves, whose rows are y0 times other numbers; some cases give each row times of its own."""

    def __init__(self, *, together, **more):
        self._together, self._more = together, more

    def __call__(self, program, func, y0, times):
        layout, times = program.layout, as_tensor(times)
        spans = _SPANS if _chance(program).random() < 0.5 else [1.0] * len(_ROWS)
        ts = [times[0] + span * (times - times[0]) for span in spans]
        rows = [layout.assemble([row * part for part in layout.parts(y0)]) for row in _ROWS]
        if self._together:
            keywords = asked(program) | {"per_sample": True} | self._more
            solution = torch_ACA.solve(_of_rows(func, layout), _stacked(rows, layout), torch.stack(ts), **keywords)
            ends = [[part[:, i] for part in layout.parts(solution.ys)] for i in range(len(_ROWS))]
        else:
            solutions = [torch_ACA.solve(func, row, t, **asked(program)) for row, t in zip(rows, ts)]
            ends = [layout.parts(solution.ys) for solution in solutions]
        return layout.assemble(_weighted(ends)), None


class Events:
    """Solves that end at an event, whose time enters the state. Subclasses say how they find it."""

    def __call__(self, program, func, y0, times):
        layout, times = program.layout, as_tensor(times)
        event = _Event(program, times)
        keywords = asked(program) | self.tolerances
        keywords.pop("dense")
        time, end = self.solved(program, func, y0, event, keywords)
        starts = layout.parts(y0)
        parts = [torch.stack([start, last]) for start, last in zip(starts, end)]
        at_end = torch.tensor([0.0, 1.0], dtype=torch.float64).view(-1, *[1] * starts[0].dim())
        parts[0] = parts[0] + at_end * time
        return layout.assemble(parts), None


class ToEvent(Events):
    """`torch_ACA.solve_event`. ``found`` collects the times."""

    tolerances = _TIGHT

    def __init__(self, found, **more):
        self._found, self._more = found, more

    def solved(self, program, func, y0, event, keywords):
        keywords |= {"reverse_time": event.sign < 0} | self._more
        time, ys = torch_ACA.solve_event(func, y0, event.t0, event, **keywords)
        self._found.append(float(time))
        return time, [part[-1] for part in program.layout.parts(ys)]


class ToTime(Events):
    """A solve to the time that was found, and a step of Newton's method from there, which moves with all tensors as the
    event does, to first order."""

    tolerances = _TIGHT

    def __init__(self, found):
        self._found = iter(found)

    def solved(self, program, func, y0, event, keywords):
        layout, t = program.layout, torch.tensor(next(self._found), dtype=torch.float64)
        ys = torch_ACA.solve(func, y0, torch.stack([event.t0.double(), t]), **keywords).ys
        end = [part[-1] for part in layout.parts(ys)]
        with torch.no_grad():
            slope = layout.parts(func(t, layout.assemble(end)))
            step = 1e-6 * event.sign  # the event function is smooth: an error of 1e-12, beside 2e-7
            ahead, behind = (
                event(t + s, layout.assemble([part + s * dy for part, dy in zip(end, slope)])) for s in (step, -step)
            )
            rate = (ahead - behind) / (2 * step)
        values = event(t, layout.assemble(end))
        crossing = values.detach().abs().argmin()
        value, rate = values.reshape(-1)[crossing], rate.reshape(-1)[crossing]
        moved = t - (value - value.detach()) / rate
        return moved, [part + dy * (moved - t) for part, dy in zip(end, slope)]


class RowsToEvents(Events):
    """A sum of solves to events, of rows that some cases let start at times of their own."""

    tolerances = _AS_TIGHT_AS_FAST

    def __init__(self, *, together):
        self._together = together

    def solved(self, program, func, y0, event, keywords):
        layout = program.layout
        late = 0.05 * event.span if _chance(program).random() < 0.5 else 0.0
        starts = [event.t0 + number * late for number in range(len(_ROWS))]
        rows = [layout.assemble([row * part for part in layout.parts(y0)]) for row in _ROWS]
        keywords["reverse_time"] = event.sign < 0
        if self._together:
            func, event = _of_rows(func, layout), _event_of_rows(event, layout)
            start = torch.stack(starts) if late else starts[0]
            times, ys = torch_ACA.solve_event(func, _stacked(rows, layout), start, event, per_sample=True, **keywords)
            ends = [[part[-1, i] for part in layout.parts(ys)] for i in range(len(_ROWS))]
        else:
            found = [torch_ACA.solve_event(func, row, start, event, **keywords) for row, start in zip(rows, starts)]
            times = [time for time, _ in found]
            ends = [[part[-1] for part in layout.parts(ys)] for _, ys in found]
        return _weighted([[time] for time in times])[0], _weighted(ends)


class _Event:
    """An event function with leaves of its own, which crosses zero between 0.4 and 0.7 of the times."""

    def __init__(self, program, times):
        self.layout, self.t0 = program.layout, times[0]
        self._first, self.span = float(times[0]), float(times[-1] - times[0])
        self.sign = 1 if self.span > 0 else -1
        self._kind = random.Random(program.case.seed).choice(("time", "state", "many"))
        leaf = program.tensors.leaf
        self._w, self._b = leaf("event.w", self.layout.size), leaf("event.b")

    def __call__(self, t, y):
        height, x = (t - self._first) / self.span - 0.55, self.layout.join(y)
        moved = height + 0.05 * torch.tanh(self._w @ x) + 0.05 * torch.tanh(self._b)
        others = {"time": height, "state": moved}
        return others.get(self._kind, torch.stack([moved, height - 0.1 + 0.05 * torch.sin(x.sum())]))


def _chance(program):
    return random.Random(program.case.seed)


def _stacked(rows, layout):
    return layout.assemble([torch.stack(column) for column in zip(*map(layout.parts, rows))])


def _weighted(rows):
    """The sum of lists of tensors with the weights of `_PARTS`."""
    return [sum(weight * part for weight, part in zip(_PARTS, column)) for column in zip(*rows)]


def _row(y, i, layout):
    return layout.assemble([part[i] for part in layout.parts(y)])


def _of_rows(func, layout):
    """func of a batch of states."""

    def batched(t, y):
        slopes = [func(time, _row(y, i, layout)) for i, time in enumerate(t.reshape(-1))]
        return _stacked(slopes, layout)

    return batched


def _event_of_rows(event, layout):
    return lambda t, y: torch.stack([event(time, _row(y, i, layout)) for i, time in enumerate(t.reshape(-1))])


def _rows(case):
    """Rows take steps by error estimates, and have no dense output. That of Dopri8 is rounding where steps are short,
    and where func breaks at a time, steps that differ by it end in other answers."""
    terms = _COUNTS_CALLS | set(fields.BREAKS_WITH_TIME)
    if case.gradient != "aca" or case.fixed or case.method in ("alternating", "dopri8") or terms & set(case.terms):
        return None
    return None if case.precision != "float64" or case.loss == "dense" else replace(case, hooks=())


def _compiled(case):
    """What has a graph: no branches, and nothing kept from call to call."""
    terms = _COUNTS_CALLS | _NOT_SMOOTH | {"cached", "jumping"}
    if case.gradient != "aca" or case.method == "alternating" or terms & set(case.terms):
        return None
    return None if case.precision != "float64" or "complex" in case.state else case


def _compiled_rows(case):
    return None if _compiled(case) is None else _rows(case)


def _compiled_events(case):
    return None if _compiled(case) is None else _events(case)


def _events(case):
    """Smooth between jumps, with steps by error estimates."""
    if case.gradient in ("mali", "adjoint") or case.precision != "float64":
        return None
    if (_COUNTS_CALLS | _NOT_SMOOTH) & set(case.terms):
        return None
    return replace(
        case,
        method=random.Random(case.seed).choice(("dopri5", "tsit5", "Rodas5P")),
        gradient="direct" if case.gradient == "direct" else "aca",
        options=tuple((name, value) for name, value in case.options if name in ("beta", "max_step")),
        jumps=tuple(jump for jump in case.jumps if jump[0] == "time"),
        **{"hooks": (), "loss": "all", "order": "first", "times_precision": "float64", "step_t": ()},
        **{"step_size": None, "first_step": None, "grid": None},
    )


def _rows_to_events(case):
    events = _events(case)
    return None if events is None else replace(events, gradient="aca", order=case.order)


def _to_event_and_to_its_time():
    found = []
    return ToEvent(found), ToTime(found)


WAYS = {
    "rows": Way(_rows, lambda: (Rows(together=True), Rows(together=False))),
    "compiled": Way(_compiled, lambda: (Alone(compile=True), Alone())),
    "events": Way(_events, _to_event_and_to_its_time, _DENSE_OUTPUT),
    "compiled-rows": Way(_compiled_rows, lambda: (Rows(together=True, compile=True), Rows(together=True))),
    "compiled-events": Way(_compiled_events, lambda: (ToEvent([], compile=True), ToEvent([]))),
    "rows-to-events": Way(_rows_to_events, lambda: (RowsToEvents(together=True), RowsToEvents(together=False))),
}
