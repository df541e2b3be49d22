"""What the paper claims, and whether the recorded runs bear it out."""

from statistics import mean

import numpy as np
from scipy.stats import ttest_ind

from cifar_classification.reliability import resampled

SIGNIFICANCE = 0.05
LEAST_SEEDS = 3  # of each side of a comparison that results/README.md decides
RULE = (
    f"A comparison of means over seeds is decided by Welch's t-test, two-sided, at p < {SIGNIFICANCE}; one of ICCs if "
    "the difference keeps its sign in 95 % of resamples of the test images."
)
NOT_RUN = ("", "not judged: not run")


def larger(ours, theirs, form, factor=1.0, unit=""):
    """(what was found, verdict) on the claim that ``ours`` has the larger mean; both are values, one a seed.

    What was found is the difference of the means, times ``factor`` and in ``unit``.
    """
    return _decided(ours, theirs, 1, form, factor, unit)


def smaller(ours, theirs, form, factor=1.0, unit=""):
    """The same on the claim that ``ours`` has the smaller mean."""
    return _decided(ours, theirs, -1, form, factor, unit)


def _decided(ours, theirs, sign, form, factor, unit):
    if not ours or not theirs:
        return NOT_RUN
    difference = mean(ours) - mean(theirs)
    found = f"{factor * difference:+{form}}{unit} ({len(ours)} and {len(theirs)} seeds)"
    if min(len(ours), len(theirs)) < 2:
        return found, "not judged: a single seed"
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return found, "not judged: no spread between seeds"
    p = p_value(ours, theirs)
    found = f"{found}, p = {p:.2g}"
    if p >= SIGNIFICANCE:
        return found, "not decided: within the spread of the seeds"
    return found, "holds" if sign * difference > 0 else "does not hold: the opposite"


def p_value(ours, theirs):
    """Of Welch's t-test, two-sided, on the means of values that are one a seed; 1 where nothing varies."""
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return 1.0
    return float(ttest_ind(ours, theirs, equal_var=False).pvalue)


def holm(p_values):
    """Holm's correction for several comparisons: the corrected p-values, in the order given."""
    order, corrected, largest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def more_reliable(ours, theirs):
    """The same on ICC(2,1) of two matrices [images, runs] over the same images; either may be None."""
    if ours is None or theirs is None:
        return NOT_RUN
    differences = resampled(ours, theirs)
    low, high = np.quantile(differences, [0.025, 0.975])
    found = f"{differences.mean():+.3f} (95 %: {low:+.3f} to {high:+.3f}; {ours.shape[1]} and {theirs.shape[1]} runs)"
    if low <= 0 <= high:
        return found, "not decided: within the spread over test images"
    return found, "holds" if low > 0 else "does not hold: the opposite"


def more_robust(ours, theirs):
    """The same on increases of the error by other solvers, in percentage points; a model each."""
    if not ours or not theirs:
        return NOT_RUN
    found = f"{mean(ours):+.2f} against {mean(theirs):+.2f} points; at most {max(ours):+.2f} against {max(theirs):+.2f}"
    return found, "holds, for one model each" if mean(ours) < mean(theirs) else "does not hold, for one model each"
