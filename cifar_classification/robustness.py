"""One trained network, many test solvers: the supplement's tables 1 and 2, beside the same of recorded tests."""

from statistics import median

import numpy as np

from cifar_classification.experiment import ADAPTIVE, ALL_SOLVERS, FIXED
from cifar_classification.quoted import PAPER
from cifar_classification.runs import of_place
from harness.tables import table
from harness.testing import read_tests

QUOTED = PAPER["solvers"]
ROBUST = {"euler": "trained with one Euler step", "aca": "NODE-18, trained with HeunEuler and ACA"}
# where the tested models of a scale lie, best first
SCALES = {"gpu": ("gpu",), "table": ("cpu", "table"), "paper": ("paper-350", "paper")}
BASES = {"euler": {"method": "Euler", "h": 1.0}, "aca": {"method": "HeunEuler", "rtol": 1e-2, "atol": 1e-2}}
FELT = 0.1  # percentage points that count as a change of the error


def tested(runs, scale):
    """For each of ROBUST a run that was tested with ALL_SOLVERS, and its tests by `cell`; (None, {}) where none was."""
    return {label: _tested(runs, scale, label) for label in ROBUST}


def _tested(runs, scale, label):
    for where in SCALES[scale]:
        for run in of_place(runs, where, "cifar10", label):
            groups = {}
            for record in read_tests(run.folder):
                kind = record["checkpoint"], record["epoch"], record.get("amp"), record.get("images")
                groups.setdefault(kind, {})[cell(record["solver"])] = record
            tests = max(groups.values(), key=lambda group: len(group.keys() & set(map(cell, ALL_SOLVERS))), default={})
            if cell(BASES[label]) in tests and len(tests) > 1:
                return run, tests
    return None, {}


def cell(solver):
    """A solver as a key: its method, and its step size or tolerance."""
    return solver["method"], solver.get("rtol") or solver.get("h")


def name(solver):
    """What a solver is called in tables and figures."""
    method, size = cell(solver)
    return f"{method}, {'h' if method in FIXED else 'tolerance'} {size:g}"


def increases(tests, label):
    """{`cell`: percentage points by which a test solver increases the error}, of all but that of the training."""
    base = cell(BASES[label])
    return {
        cell(other): 100 * (tests[base]["test_accuracy"] - tests[cell(other)]["test_accuracy"])
        for other in ALL_SOLVERS
        if cell(other) in tests and cell(other) != base
    }


def quoted(label):
    """The same as in the paper."""
    sizes = {method: iter(QUOTED[label][method]) for method in (*FIXED, *ADAPTIVE)}
    grown = {cell(solver): next(sizes[solver["method"]]) for solver in ALL_SOLVERS}
    return {other: points for other, points in grown.items() if other != cell(BASES[label])}


def section(found, root):
    """The tables of all networks that `tested` found below the folder ``root`` of the results, and in words what they
    come to."""
    tables = [_table(*found[label], label, root) for label in ROBUST]
    return "\n".join([*tables, _about(), *(f"{sentence}\n" for sentence in sentences(found))])


def sentences(found):
    """How many solvers change the error of each tested network, which hurt most, if NODE-18 has the worst of all."""
    grown = {label: increases(tests, label) for label, (_, tests) in found.items() if len(tests) > 1}
    texts = []
    for label, by_solver in grown.items():
        felt = sum(abs(points) > FELT for points in by_solver.values())
        texts.append(
            f"{_subject(label)}: of {len(by_solver)} other test solvers {felt} change the error by more than {FELT:g} "
            f"points. The median is {median(by_solver.values()):+.2f} points; {_worst(by_solver)}."
        )
    if len(grown) == len(ROBUST):
        ours, theirs = (max(grown[label].values()) for label in ("aca", "euler"))
        published = [max(quoted(label).values()) for label in ("aca", "euler")]
        if ours > theirs:
            texts.append(
                f"So robustness does not hold for every solver: the worst one hurts NODE-18 more ({ours:+.2f} points) "
                f"than any hurts the network trained with one Euler step ({theirs:+.2f}). In the paper's tables these "
                f"are {published[0]:+.2f} and {published[1]:+.2f}."
            )
    return texts


def _subject(label):
    return "NODE-18" if label == "aca" else f"The network {ROBUST[label]}"


def _worst(by_solver):
    """The two solvers that hurt most, as text."""
    names = {cell(solver): name(solver) for solver in ALL_SOLVERS}
    first, second = sorted(by_solver, key=by_solver.get, reverse=True)[:2]
    return f"worst are {names[first]} ({by_solver[first]:+.2f}) and {names[second]} ({by_solver[second]:+.2f})"


def _table(run, tests, label, root):
    """One of the supplement's tables beside the same for ``run``; blank where nothing was tested."""
    theirs, what, in_paper = QUOTED[label], ROBUST[label], quoted(label)
    base = tests.get(cell(BASES[label]))
    if base:
        precision = "bfloat16" if base.get("amp", run.chosen.amp) else "float32"
        what += (
            f": [{base['title']}]({run.record(root)}), error {1 - base['test_accuracy']:.2%} "
            f"(paper: {theirs['error']:g} %), after epoch {base['epoch']}, {base.get('images', 10_000)} test images, "
            f"{precision}, {run.hardware}{_first_step(run, label)}"
        )
    rows = []
    for solver in ALL_SOLVERS:
        own = tests.get(cell(solver))
        rows.append(
            [
                name(solver),
                f"{100 * (base['test_accuracy'] - own['test_accuracy']):+.2f}" if own else "",
                f"{in_paper.get(cell(solver), 0):+.2f}",
                f"{np.mean(own['nfe_per_block']):.1f}" if own else "",
                f"{own['seconds']:.1f}" if own else "",
            ]
        )
    cells = table(["test solver", "increase", "in the paper", "NFE", "seconds"], rows)
    return f"**Supplement table {theirs['table']}**, {what}\n\n{cells}"


def _first_step(run, label):
    """Why the training's own test, which the other tables have, differs a little from the solver of the same name."""
    if label != "aca" or not run.chosen.h:
        return ""
    own = f"{1 - run.summary['test_accuracy']:.2%}"
    return (
        f"; in training, where the first step to be tried was {run.chosen.h:g} and not chosen by a rule, it was {own}"
    )


def _about():
    return f"Increase of the error in percentage points; NFE per block, mean over blocks. {QUOTED['about']}\n"
