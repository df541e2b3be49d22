"""The records of a benchmark, read: what a solver took beside the others in the same rounds."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.cases import CASES, EVALUATIONS, VJPS
from harness import packed
from harness.record import read_metrics, read_run


@dataclass(frozen=True)
class Record:
    """One case: ``solvers``: the row of each solver by name, in order; ``rounds``: seconds by name for each round."""

    case: str
    run: dict
    solvers: dict
    rounds: list

    @property
    def title(self):
        return titled(self.case, self.run)

    def median(self, *names):
        """Median over the rounds of the sum of the seconds of ``names``; None if one was not timed."""
        return _median(self._each(lambda times: sum(times[name] for name in names), names))

    def to_limit(self, name):
        """A solver's time over the limit's in the same round, median."""
        return _median(self.each_to_limit(name))

    def each_to_limit(self, name):
        """The same of every round, a list."""
        return self._each(lambda t: t[name] / (t[EVALUATIONS] + t[VJPS]), (name, EVALUATIONS, VJPS))

    def beyond_limit(self, name, n_evals):
        """Microseconds by which a solver's time exceeds the limit's in the same round, per evaluation, median."""
        names = (name, EVALUATIONS, VJPS)
        return _median(self._each(lambda t: 1e6 * (t[name] - t[EVALUATIONS] - t[VJPS]) / n_evals, names))

    def to_solver(self, name, other):
        """A solver's time over another's in the same round, median."""
        return _median(self.each_to_solver(name, other))

    def each_to_solver(self, name, other):
        """The same of every round, a list."""
        return self._each(lambda times: times[name] / times[other], (name, other))

    def _each(self, value, names):
        """Of the rounds in which all of ``names`` were timed."""
        return [value(times) for times in self.rounds if all(name in times for name in names)]


def _median(values):
    return median(values) if values else None


def read(folder, case):
    """The `Record` of a case of rounds, or None where it is not complete."""
    rows = _rows(folder, case)
    return rows and _record(folder, case, rows)


def read_diagram(folder, case):
    """{tolerance: `Record`} of a diagram of work and precision, or None where it is not complete."""
    return _read_by(folder, case, "tolerance")


def read_clients(folder, case):
    """{program: `Record`} of a case of client programs, or None where it is not complete."""
    return _read_by(folder, case, "program")


def read_growth(folder, case="memory"):
    """{solver: its rows over the number of steps} of the memory case, or None where it is not complete."""
    rows = _rows(folder, case)
    by_solver = {}
    for row in rows or ():
        by_solver.setdefault(row["solver"], []).append(row)
    return rows and by_solver


def read_breakdown(folder, case="breakdown"):
    """The rows of the breakdown, or None where it is not complete."""
    return _rows(folder, case)


def read_first_calls(folder, case="first_calls"):
    """{(problem, solver): its rows} of first calls, or None where the case is not complete."""
    rows = _rows(folder, case)
    found = {}
    for row in rows or ():
        found.setdefault((row["problem"], row["solver"]), []).append(row)
    return rows and found


def is_complete(folder):
    """Whether a folder holds the record of a case that has ended."""
    return packed.read(folder, "summary.json") is not None


def titled(case, run):
    """The title of a case, which says so if the run was scaled down."""
    return ("Quick, scaled down: " if run["arguments"]["quick"] else "") + CASES[case].title


def slope(rows):
    """Growth of the peak from the fewest to the most steps per step, in states; None if an end is missing."""
    ends = rows[0], rows[-1]
    if len(rows) < 2 or any("peak_bytes" not in row for row in ends):
        return None
    steps = ends[1]["n_accepted"] - ends[0]["n_accepted"]
    return (ends[1]["peak_bytes"] - ends[0]["peak_bytes"]) / steps / ends[0]["state_bytes"]


def _rows(folder, case):
    folder = Path(folder) / case
    return read_metrics(folder) if is_complete(folder) else None


def _read_by(folder, case, key):
    """{value of ``key``: `Record` of the rows that have it}, or None where the case is not complete."""
    rows = _rows(folder, case)
    values = dict.fromkeys(row[key] for row in rows or ())
    return rows and {value: _record(folder, case, [row for row in rows if row[key] == value]) for value in values}


def _record(folder, case, rows):
    return Record(
        case,
        read_run(Path(folder) / case),
        {row["solver"]: row for row in rows if row["kind"] == "solver"},
        [row["times"] for row in rows if row["kind"] == "round"],
    )
