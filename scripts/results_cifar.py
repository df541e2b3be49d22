"""The section of results/README.md on CIFAR."""

from results_parts import FIGURE, HEADER, SUPPLEMENT, UNKNOWN, link, numbers  # it lies beside this script

from cifar_classification import claims, robustness
from cifar_classification import report as cifar
from cifar_classification.data import TITLES
from cifar_classification.experiment import ALL_SOLVERS
from harness.tables import spread, table
from harness.verdicts import verdict_rows

TABLE_2 = (0.2, 1e-2)  # step size and tolerance of its solvers


LARGEST_FIRST = ("paper", "table", "gpu")


def classification():
    """The largest scale that has all comparisons, and below it the networks at the others."""
    runs = cifar.collect(cifar.RESULTS)
    scales = [scale for scale in LARGEST_FIRST if any(run.place and run.place[0] == scale for run in runs)]
    parts = [classified(runs, scale, whole=scale == scales[0]) for scale in scales]
    return "\n".join(text for text, _ in parts), [row for _, found in parts for row in found]


def classified(runs, scale, *, whole):
    """The text on a scale of the runs, and the rows of its claims.

    :param whole: all comparisons, otherwise of the networks alone
    """

    def of(label, dataset="cifar10"):
        return cifar.of_place(runs, scale, dataset, label)

    rows, paper = [], cifar.PAPER
    for label in ("aca", "adjoint", "naive") if whole else ():
        quoted = f"{paper['methods'][label]['accuracy']:g} %"
        rows.append(cifar_row(f"figure 7(a, b): {label}, like for like", quoted, of(label)))
    for label in cifar.OWN[scale][1:] if whole else ():
        name = label.removesuffix("-own")
        quoted = f"{paper['methods'][name]['accuracy']:g} %"
        rows.append(cifar_row(f"figure 7(a, b): {name}, the paper's solver and batch", quoted, of(label)))
    chosen = cifar.chosen_runs(runs, scale)
    for dataset, label in ((dataset, label) for dataset in chosen for label in cifar.NETWORKS):
        quoted = f"median {paper['networks'][dataset][label]['med']:g} %"
        what = f"figure 7(c, d): {TITLES[dataset]}, {cifar.NETWORKS[label]}"
        rows.append(cifar_row(what, quoted, of(label, dataset)))
    robust = robustness.tested(runs, scale)
    rows += robust_rows(robust) if whole else []
    for dataset in chosen:
        for label, name in cifar.NETWORKS.items():
            own = of(label, dataset)
            matrix = claims.ratings(own)
            here = f"{cifar.icc(matrix['correctness'])['ICC(2,1)']:.3f}" if matrix else ""
            what = f"table 3: {TITLES[dataset]}, {name}, ICC(2,1) of correctness"
            rows.append([what, UNKNOWN, UNKNOWN, here, str(len(own)), link(run.folder for run in own)])
    title = of("aca")[0].title.partition(", ")[2] or "the paper's settings"
    figures = {"networks": "networks"} if not whole else {
        "gradient methods": "methods", "networks": "networks", "test solvers": "robustness"
    }  # fmt: skip
    images = "".join(f"\n![{text}](cifar_classification/{scale}/{name}.png)\n" for text, name in figures.items())
    head = "Images: NODE-18 on CIFAR" if whole else "The same networks at another scale"
    text = f"## {head}\n\n{title[0].upper()}{title[1:]}. Test accuracy, unless said otherwise.\n\n"
    said = "".join(f"{sentence}\n\n" for sentence in robustness.sentences(robust)) if whole else ""
    kept = [run.environment for run in runs if run.place and run.place[0] == scale]
    text += f"{table(HEADER, rows)}\n{said}{numbers('cifar_classification', kept)}{images}"
    rows = verdict_rows(*cifar.claims_of(runs, scale, cifar.RESULTS))
    return text, rows if whole else [[f"{claim}; {title}", *others] for claim, *others in rows if "NODE-18 is" in claim]


def robust_rows(found):
    """The supplement's tables 1 and 2 in short, and the row of table 2 that follows from them."""
    rows = []

    def row(run, what, quoted, here):
        rows.append([what, quoted, SUPPLEMENT, here, "1" if run else "", link([run.folder] if run else [])])

    for label, words in robustness.ROBUST.items():
        run, tests = found[label]
        theirs, in_paper = robustness.QUOTED[label], robustness.quoted(label)
        grown = robustness.increases(tests, label)
        start = f"supplement table {theirs['table']}: {words}"
        largest = f"{max(in_paper.values()):.2f} points"
        here = f"{max(grown.values()):.2f} points" if grown else ""
        row(run, f"{start}, largest increase of the error by another test solver", largest, here)
        own = tests.get(robustness.cell(robustness.BASES[label]))
        what = f"{start}, error with that solver{trained(run)}"
        row(run, what, f"{theirs['error']:g} %", own and error_of(own) or "")
    for solver in ALL_SOLVERS:
        cell = robustness.cell(solver)
        if cell[1] in TABLE_2:  # the last network is the one that table 2 tests
            quoted = f"{theirs['error'] + in_paper.get(cell, 0):.2f} %"
            here = error_of(tests[cell]) if cell in tests else ""
            row(run, f"table 2: NODE-18 tested with {robustness.name(solver)}, error{trained(run)}", quoted, here)
    return rows


def trained(run):
    """How far the training of a run went, which is not that of the other rows."""
    return f", after {run.chosen.epochs} epochs" if run else ""


def error_of(test):
    return f"{1 - test['test_accuracy']:.2%}".replace("%", " %")


def cifar_row(what, quoted, runs):
    cell = spread(cifar.accuracies(runs), ".2f", " %")
    return [what, quoted, FIGURE, cell, str(len(runs) or ""), link(run.folder for run in runs)]
