"""Whether recorded runs decide a claim: the rule of docs/verdicts.md, for every report alike.

A claim has one primary comparison, `Means` or `Counts`, of values that are one a seed. `judge` decides those of a table
together, with Holm's correction.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from statistics import mean

import numpy as np
from scipy.special import chdtri, ndtr
from scipy.stats import binom, binomtest, norm, t, ttest_ind, ttest_rel

from harness.tables import table

LEVEL = 0.05  # of all comparisons of a table together
CONFIDENCE = 0.95  # of the interval of each one alone
POWER = 0.8  # that the seeds asked for give to a difference as large as the recorded one
LEAST_SEEDS, MOST_SEEDS = 3, 1000  # of each side: below nothing is decided, above nothing is asked for
FOR, AGAINST, UNDECIDED = "decided for", "decided against", "undecided"
HEADER = ["claim", f"difference ({CONFIDENCE:.0%})".replace("%", " %"), "seeds", "test", "p, corrected", "verdict"]
NOTE = (
    f"Decided by the rule of docs/verdicts.md, at p < {LEVEL:g} for all comparisons of the table together (Holm). "
    f"Intervals are of one comparison alone. Seeds needed: for a difference as large as the recorded one, with power "
    f"{POWER:g}; hours: of the further runs, as long as the recorded ones took."
)


@dataclass(frozen=True)
class Comparison(ABC):
    """The claim that something is larger (``sign`` 1) or smaller (-1) for ``ours`` than for ``theirs``: {seed: value},
    None for a run that failed.

    Attributes:
        paired: a seed gives both sides the same start, so that only seeds of both count, and their differences.
        hours: of a further run of ours and of one of theirs, as recorded; None: not recorded.
    """

    claim: str
    ours: dict
    theirs: dict
    sign: int
    paired: bool = False
    hours: tuple | None = None

    @property
    def sides(self):
        """The values that are compared: two arrays, of the same seeds if ``paired``."""
        ours, theirs = ({s: value for s, value in side.items() if value is not None} for side in self._run)
        seeds = sorted(ours.keys() & theirs.keys())
        chosen = (seeds, seeds) if self.paired else (sorted(ours), sorted(theirs))
        return [np.array([side[seed] for seed in own]) for side, own in zip((ours, theirs), chosen)]

    @property
    def _run(self):
        """What was run, as ours and theirs; if ``paired``, on both sides."""
        sides = self.ours, self.theirs
        return [{s: side[s] for s in side if not self.paired or all(s in other for other in sides)} for side in sides]

    def runs_for(self, seeds):
        """How many seeds give values of as many, if runs fail as often as they did."""
        return max(math.ceil(seeds * len(run) / max(1, len(side))) for run, side in zip(self._run, self.sides))

    @property
    def seeds(self):
        """How many values are on the smaller side."""
        return min(map(len, self.sides))

    def cost(self, seeds):
        """Hours of the runs that are missing to as many seeds on each side; None where no cost is recorded."""
        if self.hours is None:
            return None
        runs = self.runs_for(seeds)
        return sum(hours * max(0, runs - len(run)) for hours, run in zip(self.hours, self._run))

    # to be defined

    @property
    @abstractmethod
    def difference(self):
        """Ours less theirs; only its sign is asked for."""

    @property
    @abstractmethod
    def p_value(self):
        """Two-sided, uncorrected; None where there are too few values, or they do not vary."""

    @abstractmethod
    def found(self):
        """The difference and its interval, as text."""

    @abstractmethod
    def needed(self, level):
        """The least number of seeds that finds the recorded difference at ``level`` with `POWER`; None above the most
        that are asked for."""


@dataclass(frozen=True)
class Means(Comparison):
    """Of means, by Student's paired test or Welch's. With ``logs`` of logarithms: the difference is a factor."""

    form: str = ".2f"
    unit: str = ""
    logs: bool = False

    @property
    def test(self):
        return f"{'paired' if self.paired else 'Welch'} t{' of logarithms' if self.logs else ''}"

    @property
    def values(self):
        return [np.log(side) for side in self.sides] if self.logs else self.sides

    @property
    def difference(self):
        ours, theirs = self.values
        return float(ours.mean() - theirs.mean())

    @property
    def _spread(self):
        """Variances of the mean of one seed's difference, one for each independent part."""
        ours, theirs = self.values
        parts = [ours - theirs] if self.paired else [ours, theirs]
        return np.array([part.var(ddof=1) for part in parts])

    @property
    def _tested(self):
        if self.seeds < LEAST_SEEDS or self._spread.sum() <= (1e-12 * self.difference) ** 2:
            return None
        return ttest_rel(*self.values) if self.paired else ttest_ind(*self.values, equal_var=False)

    @property
    def p_value(self):
        return self._tested and float(self._tested.pvalue)

    def found(self):
        numbers = [self.difference]
        if self._tested:
            numbers += self._tested.confidence_interval(CONFIDENCE)
        if self.logs:
            middle, *ends = map(factor_text, numbers)
            middle = f"factor {middle}"
        else:
            middle, *ends = (f"{number:+{self.form}}" for number in numbers)
        return f"{middle}{self.unit}" + (f" ({' to '.join(ends)})" if ends else "")

    def needed(self, level):
        variances, difference = self._spread, abs(self.difference)

        def enough(seeds):
            return t_power(difference, variances, seeds, level) >= POWER

        choice = range(LEAST_SEEDS, MOST_SEEDS + 1)
        return choice[bisect_left(choice, True, key=enough)] if enough(MOST_SEEDS) else None


def factor_text(logarithm):
    """A factor with three digits, or with as many as two digits of its difference from 1 take."""
    factor, apart = math.exp(logarithm), abs(math.expm1(logarithm))
    return f"{factor:.3g}" if apart > 0.01 or not apart else f"{factor:.{1 - math.floor(math.log10(apart))}f}"


def t_power(difference, variances, seeds, level):
    """The power of a two-sided t-test of the mean of ``seeds`` values (one variance) or of two such means (Welch's).

    From the noncentral t distribution, with Welch and Satterthwaite's degrees of freedom. It is integrated here, over
    the spread that the test may find, as scipy's is NaN for some arguments of this size.
    """
    variances = np.asarray(variances, dtype=float)
    freedom = (seeds - 1) * variances.sum() ** 2 / np.square(variances).sum()
    shift = difference / math.sqrt(variances.sum() / seeds)
    x = np.linspace(-9.0, 9.0, 721)  # the trapezium rule converges exponentially fast under this density
    critical = t.isf(level / 2, freedom) * np.sqrt(chdtri(freedom, ndtr(-x)) / freedom)
    return float((x[1] - x[0]) * (norm.pdf(x) * (ndtr(shift - critical) + ndtr(-critical - shift))).sum())


@dataclass(frozen=True)
class Counts(Comparison):
    """Of how often something happens, by McNemar's exact test: values are bools, and seeds are shared."""

    paired: bool = True
    test = "McNemar exact"

    @property
    def difference(self):
        ours, theirs = self.sides
        return int(ours.sum()) - int(theirs.sum())

    @property
    def _apart(self):
        """In how many seeds it happens to ours alone, and to theirs alone."""
        ours, theirs = self.sides
        return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())

    @property
    def p_value(self):
        if self.seeds < LEAST_SEEDS:
            return None
        ours, theirs = self._apart
        return float(binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0

    def found(self):
        return " against ".join(
            f"{int(side.sum())} of {len(side)} ({low:.0%} to {high:.0%})".replace("%", " %")
            for side in self.sides
            for low, high in [binomtest(int(side.sum()), len(side)).proportion_ci(CONFIDENCE)]
        )

    def needed(self, level):
        ours, theirs = self._apart
        if ours == theirs:
            return None
        share = (ours + theirs) / self.seeds
        for apart in range(1, math.floor(MOST_SEEDS * share) + 1):
            if sign_power(max(ours, theirs) / (ours + theirs), apart, level) >= POWER:
                return max(LEAST_SEEDS, math.ceil(apart / share))
        return None


def sign_power(probability, tries, level):
    """The power of the exact two-sided test of probability 1/2, where it is ``probability``, from ``tries`` tries."""
    # the largest tail that the level admits on each side; none if even the extreme outcome is too likely
    tail = int(binom.ppf(level / 2, tries, 0.5))
    if binom.cdf(tail, tries, 0.5) > level / 2:
        tail -= 1
    return float(binom.cdf(tail, tries, probability) + binom.sf(tries - tail - 1, tries, probability))


@dataclass(frozen=True)
class Judged:
    """A comparison and what became of it: corrected p-value (None: not tested) and verdict."""

    comparison: Comparison
    p: float | None
    verdict: str

    def row(self):
        """The cells under HEADER."""
        comparison, p = self.comparison, "" if self.p is None else f"{self.p:.2g}"
        if not comparison.seeds:
            return [comparison.claim, "", "", "", "", self.verdict]
        seeds = " and ".join(dict.fromkeys(str(len(side)) for side in comparison.sides))
        return [comparison.claim, comparison.found(), seeds, comparison.test, p, self.verdict]


def judge(comparisons):
    """All comparisons of a table, decided together: a list of `Judged`, in their order."""
    tested = {index: p for index, one in enumerate(comparisons) if one.seeds and (p := one.p_value) is not None}
    corrected = dict(zip(tested, holm(list(tested.values()))))
    level = LEVEL / max(1, len(comparisons))  # what Holm's correction asks of the smallest p-value: enough for any
    return [Judged(one, corrected.get(i), _verdict(one, corrected.get(i), level)) for i, one in enumerate(comparisons)]


def _verdict(comparison, p, level):
    if not comparison.seeds:
        cost = comparison.cost(LEAST_SEEDS)
        return f"{UNDECIDED}: not run" + (f"; {LEAST_SEEDS} seeds take {hours_text(cost)}" if cost else "")
    if p is not None and p < LEVEL:
        return FOR if comparison.sign * comparison.difference > 0 else AGAINST
    if p is None and comparison.seeds >= LEAST_SEEDS:
        return f"{UNDECIDED}: no spread between the seeds"
    seeds = LEAST_SEEDS if p is None else comparison.needed(level)
    if seeds is None:
        return f"{UNDECIDED}: needs more than {MOST_SEEDS} seeds"
    seeds = max(seeds, comparison.seeds + 1)
    cost = comparison.cost(seeds)
    runs, text = comparison.runs_for(seeds), f"{UNDECIDED}: needs {'at least ' if p is None else ''}{seeds} seeds"
    text += f" that finish, of {runs}" if runs > seeds else ""
    return text if cost is None else f"{text}, {hours_text(cost)}"


def hours_text(hours):
    """Hours with two digits, as far as they matter."""
    if hours < 0.1:
        return "less than 0.1 hours"
    return f"{hours:.2g} hours" if hours < 100 else f"{hours:.0f} hours"


def holm(p_values):
    """Holm's correction for several comparisons: the corrected p-values, in the order given."""
    order, corrected, largest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def verdict_rows(comparisons, others=()):
    """The rows under HEADER; ``others`` are claims with the reason why nothing was compared."""
    rows = [judged.row() for judged in judge(comparisons)]
    return rows + [[claim, "", "", "", "", f"{UNDECIDED}: {reason}"] for claim, reason in others]


def verdict_table(comparisons, others=()):
    """A Markdown table of them, and how they were decided."""
    return f"{table(HEADER, verdict_rows(comparisons, others))}\n{NOTE}\n"


def in_how_many(ours, theirs):
    """The verdict on solves without random seeds: that ours is smaller counts if it is in every case."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    won = sum(a < b for a, b in pairs)
    verdict = FOR if won == len(pairs) else AGAINST if won == 0 else UNDECIDED
    return f"{verdict}: in {won} of {len(pairs)}"


def hours_each(*runs_seconds):
    """The mean hours of a run on each side, from the recorded seconds; None where a side has no record."""
    if not all(runs_seconds):
        return None
    return tuple(mean(seconds) / 3600 for seconds in runs_seconds)
