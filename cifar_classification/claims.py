"""The paper's claims on CIFAR, each with its comparison of recorded runs."""

from itertools import chain
from statistics import mean

import numpy as np

from cifar_classification import predictions, robustness
from cifar_classification.data import TITLES
from cifar_classification.reliability import icc, pseudo_values
from cifar_classification.runs import on_gpus
from harness.verdicts import Means, hours_each

SHARED_PROCESSOR = "the processor was shared, and times are compared in one quiet run of alternating processes only"


def of_scale(chosen, own, robust, times):
    """(comparisons, claims with the reason why nothing is compared) of one scale.

    ``chosen`` holds the runs by data set and label, ``own`` the labels with the paper's settings, ``robust`` is what
    `robustness.tested` found, and ``times`` what `timing.seconds` did.
    """
    found, others = [], []
    ten = chosen["cifar10"]
    for how, ours, labels in (
        ("like for like", "aca", ("adjoint", "naive")),
        ("with the paper's settings", own[0], own[1:]),
    ):
        for label in labels:
            pair, name = (ten[ours], ten[label]), label.removesuffix("-own")
            end = f"than {name}, {how}"
            # a seed gives both networks the same first weights and, but for another batch size, the same batches
            found.append(compared(f"ACA is more accurate {end}", pair, accuracy, 1, unit=" points", paired=True))
            fewer, unit = f"ACA evaluates f less often {end}", " per block and batch"
            found.append(compared(fewer, pair, evaluations, -1, unit=unit, paired=True))
            faster = f"ACA takes less time {end}"
            if ours in times and label in times:  # rounds stand for seeds
                found.append(Means(faster, times[ours], times[label], -1, paired=True, logs=True))
            elif any(pair) and on_gpus([*pair[0], *pair[1]]):
                found.append(compared(faster, pair, minutes, -1, form=".1f", unit=" min", paired=True))
            else:
                others.append((faster, SHARED_PROCESSOR))
    for dataset, labels in chosen.items():
        what = f"NODE-18 is more accurate than ResNet-18 on {TITLES[dataset]}"
        pair = (labels["aca"], labels["resnet"])
        as_run = "" if not all(pair) or scale_of(pair[0][0]) == scale_of(pair[1][0]) else ", unlike at the start"
        found.append(compared(f"{what}{as_run}", pair, accuracy, 1, unit=" points"))
        if as_run:
            for pair in ((labels["aca"], labels["resnet-scale"]), (labels["aca-scale"], labels["resnet"])):
                size = scale_of(next(run for runs in pair for run in runs))
                cost = hours(labels["aca"], labels["resnet"])
                like = f"{what}, second blocks of both begin at {size:g}"
                found.append(compared(like, pair, accuracy, 1, cost, unit=" points"))
    for dataset, labels in chosen.items():
        pair = (labels["aca"], labels["resnet"])
        for of in ("true-class probability", "correctness"):
            what = f"NODE-18 is more reliable than ResNet-18 on {TITLES[dataset]}: ICC(2,1) of {of}"
            found.append(Means(what, *(reliabilities(runs, of) for runs in pair), 1, form=".3f", hours=hours(*pair)))
    found += sturdier(robust)
    found = [comparison for comparison in found if comparison.ours or comparison.theirs]
    scaled = any(", scaled down" in run.title for run in chain(*ten.values()))
    reason = "not at this scale" if scaled else "see the tables"
    others += [(claim, reason) for claim in ("NODE-18 has about 5 % error on CIFAR-10", "NODE-18 beats ResNet-101")]
    return found, others


def compared(claim, pair, value, sign, cost=None, **keywords):
    """The comparison of a value of each run, over two lists of runs. ``cost``: hours of a run on each side, where the
    runs themselves don't tell."""
    sides = ({run.place[3]: value(run) for run in runs} for runs in pair)
    return Means(claim, *sides, sign, hours=hours(*pair) or cost, **keywords)


def scale_of(run):
    """The weight that the last BatchNorm of every second block began with."""
    return getattr(run.chosen, "field_scale" if run.chosen.model == "ode" else "branch_scale", None) or 1.0


def accuracy(run):
    return 100 * run.summary["test_accuracy"]


def evaluations(run):
    return run.average("Solver/n_f_evals") + run.average("Solver/n_backward_f_evals")


def minutes(run):
    return run.summary["seconds"] / 60


def hours(*sides):
    return hours_each(*([run.seconds for run in runs] for runs in sides))


def ratings(runs):
    """[test images, runs] of true-class probability and of correctness; None unless two or more runs kept them."""
    kept = [found for run in runs if (found := predictions.read(run.folder))]
    if len(kept) < 2:
        return None
    return {
        "true-class probability": np.stack([one.probability for one in kept], 1),
        "correctness": np.stack([one.correct for one in kept], 1).astype(np.float64),
    }


def reliabilities(runs, of):
    """ICC(2,1) as one value a run, by the jackknife; none of fewer than three runs, as it leaves out one of them."""
    matrix = ratings(runs)
    if matrix is None or matrix[of].shape[1] < 3:
        return {}
    return pseudo_values(lambda columns: icc(columns)["ICC(2,1)"], matrix[of])


def sturdier(robust):
    """That other test solvers hurt NODE-18 less than the network trained with one Euler step: on average over the
    solvers, and by the worst of them."""
    grown = {label: robustness.increases(tests, label).values() for label, (_, tests) in robust.items()}

    def side(label, value):
        run, _ = robust[label]
        return {run.place[3]: value(grown[label])} if run else {}

    what = "Other test solvers hurt NODE-18 less than the network trained with one Euler step"
    cost = hours(*([run] if run else [] for run in (robust["aca"][0], robust["euler"][0])))
    return [
        Means(f"{what}: {words}", side("aca", value), side("euler", value), -1, unit=" points", hours=cost)
        for words, value in (("mean growth of the error", mean), ("growth by the worst solver", max))
    ]
