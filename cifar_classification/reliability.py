"""Reliability of repeated trainings: intraclass correlations (ICC) between runs that differ in their seed alone.

The paper says that NODE-18 is the more reliable network by "ICC" (its table 3) without saying of what. Here the matrix
has a row for every test image and a column for every run, and holds either whether the run classified the image
correctly (1 or 0) or the probability that it gave to the image's true class. The six forms are those of Shrout and
Fleiss, Psychological Bulletin 86 (1979) 420: images are their targets and runs their judges.

ICC(1,1): runs may be others for every image (one-way); ICC(2,1): the same runs for all images, a sample of all runs, so
that a run which is better throughout counts as disagreement; ICC(3,1): these runs only, so that it does not. The forms
(1,k), (2,k), (3,k) are the reliability of the mean of the k runs. A single trained network is the subject, so ICC(2,1)
is the one to compare networks by.
"""

import numpy as np

RESAMPLES = 200  # for the spread
FORMS = ("ICC(1,1)", "ICC(2,1)", "ICC(3,1)", "ICC(1,k)", "ICC(2,k)", "ICC(3,k)")


def icc(ratings):
    """The six intraclass correlations of a matrix [targets, judges] as a dict by the names in FORMS.

    From the mean squares of the two-way analysis of variance without replication. NaN where nothing varies.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    if ratings.ndim != 2 or min(ratings.shape) < 2:
        raise ValueError(f"ratings must be [targets, judges] with at least two of each, got shape {ratings.shape}")
    n, k = ratings.shape
    mean, of_targets, of_judges = ratings.mean(), ratings.mean(1), ratings.mean(0)
    total = np.square(ratings - mean).sum()
    between_targets = k * np.square(of_targets - mean).sum()
    between_judges = n * np.square(of_judges - mean).sum()
    targets = between_targets / (n - 1)
    within = (total - between_targets) / (n * (k - 1))
    judges = between_judges / (k - 1)
    error = max(total - between_targets - between_judges, 0.0) / ((n - 1) * (k - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (
            (targets - within) / (targets + (k - 1) * within),
            (targets - error) / (targets + (k - 1) * error + k * (judges - error) / n),
            (targets - error) / (targets + (k - 1) * error),
            (targets - within) / targets,
            (targets - error) / (targets + (judges - error) / n),
            (targets - error) / targets,
        )
    return {name: float(value) for name, value in zip(FORMS, values)}


def resampled(ratings, others=None, *, form="ICC(2,1)", seed=0):
    """``form`` of the matrix over images drawn anew with replacement, RESAMPLES times: [RESAMPLES].

    With ``others``, a matrix over the same images, its value less theirs for the same draws. The spread is that over
    images; how much other seeds would change it, a handful of runs can't tell.
    """
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        chosen = draw.integers(len(ratings), size=len(ratings))
        value = icc(ratings[chosen])[form]
        values.append(value if others is None else value - icc(others[chosen])[form])
    return np.array(values)


def pseudo_values(statistic, ratings):
    """Jackknife: one value for each column of a matrix [targets, runs], whose mean estimates ``statistic`` of it.

    Their spread is that between runs, which a resampling of the targets does not have (Tukey 1958).
    """
    runs = ratings.shape[1]
    without = [statistic(np.delete(ratings, run, axis=1)) for run in range(runs)]
    return {run: runs * statistic(ratings) - (runs - 1) * value for run, value in enumerate(without)}
