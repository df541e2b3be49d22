"""Write what the recorded runs show: tables.md, figures, and the measured part of the README."""

import json
import re
from pathlib import Path

import numpy as np

from cifar_classification import claims, plot
from cifar_classification.data import TITLES
from cifar_classification.experiment import ADAPTIVE, ALL_SOLVERS, FIXED, Cifar
from cifar_classification.reliability import FORMS, icc, resampled
from cifar_classification.runs import collect, of_place, on_gpus
from harness import packed
from harness.cli import flag, run_main
from harness.environment import origins
from harness.files import write_text
from harness.plots import save_figure
from harness.tables import replace_measured, results_folder, spread, table
from harness.testing import read_tests
from harness.verdicts import verdict_table

README = Path(__file__).parent / "README.md"
CIFAR = Cifar()
RESULTS = CIFAR.results
SCRIPT = "cifar_classification/report.py"
COMMANDS = {"quick": "bash scripts/run_cifar.sh", "paper": "bash scripts/run_cifar.sh --paper"}
PAPER = json.loads((Path(__file__).parent / "paper.json").read_text())
SCALES = ("table", "paper")
LIKE_FOR_LIKE = ("aca", "direct", "naive", "adjoint", "mali", "torchdiffeq", "torchdiffeq-adjoint")
OWN = {  # at the table's scale aca has the paper's solver, tolerance and batch anyway
    "table": ("aca", "adjoint-own", "naive-own"),
    "paper": ("aca-own", "adjoint-own", "naive-own"),
}
NETWORKS = {"aca": "NODE-18, ACA", "resnet": "ResNet-18"}
# the same with their second blocks at the other size in the beginning
OTHER_SCALE = {"aca-scale": "NODE-18, ACA", "resnet-scale": "ResNet-18"}
ROBUST = {"euler": "trained with one Euler step", "aca": "NODE-18, trained with HeunEuler and ACA"}
ROBUST_SCALES = {"table": ("cpu", "table"), "paper": ("paper-350", "paper")}  # where its robust models lie, best first
BASES = {"euler": {"method": "Euler", "h": 1.0}, "aca": {"method": "HeunEuler", "rtol": 1e-2, "atol": 1e-2}}


def main(argv=None):
    root = results_folder(argv, f"{__doc__} the README shows those of the default folder.", RESULTS, packs=True)
    runs = collect(root)
    sections = [section for scale in SCALES for section in compared(runs, scale, root)]
    introduction = f"# NODE-18 on CIFAR: results\n\nWritten by `python {SCRIPT}`.\n"
    write_text(root / "tables.md", "\n".join([introduction, *sections, every_run(runs)]))
    if root.resolve() == RESULTS:
        single = [run for run in runs if run.summary and not (run.place and run.place[0] in SCALES)]
        tests = filter(None, (single_tests(run) for run in single if not run.place))  # the others' are in the tables
        linked = [re.sub(r"\]\((?!http)", "](../results/cifar_classification/", section) for section in sections]
        replace_measured(README, SCRIPT, "\n".join([single_runs(single, "../results"), *tests, *linked]))
    print(f"{sum(run.summary is not None for run in runs)} finished runs -> {root / 'tables.md'}")


# Single runs


def single_runs(runs, results):
    rows = [
        [
            command_of(run),
            f"[{run.summary['title']}]({results}/cifar_classification/{link(run, RESULTS)})",
            f"{run.chosen.gradient}, {run.chosen.method}" if run.chosen.model == "ode" else "",
            f"{run.summary['test_accuracy']:.2%}",
            f"{run.summary['best_test_accuracy']:.2%}",
            f"{run.summary['seconds'] / 60:.1f}",
            run.hardware,
        ]
        for run in runs
    ]
    return table(["command", "what", "solver", "test accuracy", "best", "minutes", "hardware"], rows)


def link(run, root):
    """Where the record of a run lies, as seen from the folder of the results."""
    return packed.source(run.folder).relative_to(root).as_posix()


def command_of(run):
    """How such a run is made: by its profile, and flags for what it has otherwise. What its settings leave open has no
    flag."""
    chosen = run.chosen
    today = CIFAR.settle({name: getattr(chosen, name) for name in ("profile", "dataset", "seed")})
    others = {name: getattr(chosen, name, None) for name, value in today.items()}
    others = {name: value for name, value in others.items() if value not in (None, today[name])}
    command = COMMANDS.get(chosen.profile, f"python cifar_classification/train.py --profile {chosen.profile}")
    return f"`{' '.join([command, *map(as_flag, others, others.values())])}`"


def as_flag(name, value):
    """A setting as on the command line."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def single_tests(run):
    """A trained model under other solvers; nothing if it was not tested."""
    records = read_tests(run.folder)
    if not records:
        return None
    rows = [
        [solver_text(record["solver"]), f"{1 - record['test_accuracy']:.2%}", nfe_text(record["nfe_per_block"])]
        for record in records
    ]
    heading = f"**{records[-1]['title']}, after epoch {records[-1]['epoch']}, tested with**"
    return f"{heading}\n\n" + table(["solver", "error", "NFE per block"], rows)


def solver_text(solver):
    return ", ".join(f"{name} {value:g}" if name != "method" else value for name, value in solver.items() if value)


def nfe_text(per_block):
    return " ".join(f"{value:.1f}" for value in per_block)


# Runs compared with each other


def compared(runs, scale, root):
    """The sections of a scale, and its figures; no section where nothing was run."""
    chosen = chosen_runs(runs, scale)
    known = [run for rows in chosen.values() for found in rows.values() for run in found]
    if not known:
        return []
    heading = known[0].title.partition(", ")[2] or "the paper's scale"
    scaled = f"`--profile {scale}`, {heading}"
    methods = chosen["cifar10"]
    figure = plot.draw_methods(methods, LIKE_FOR_LIKE, OWN[scale], f"NODE-18 on CIFAR-10, {heading}")
    save_figure(figure, root / scale / "methods.png")
    save_figure(plot.draw_networks(chosen, NETWORKS, PAPER["networks"], heading), root / scale / "networks.png")
    parts = [
        f"## The paper's claims ({scaled})\n",
        verdict_table(*claims_of(runs, scale)),
        f"## Gradient methods ({scaled})\n",
        "Like for like: the same solver (MALI has its own), tolerance, batch and seeds; `torchdiffeq` rows are that "
        "library's `odeint` and `odeint_adjoint`.\n",
        method_table(methods, LIKE_FOR_LIKE),
        "Solver, tolerance and batch as in the paper's figure 7(a, b).\n",
        method_table(methods, OWN[scale]),
        paper_methods(),
        f"![gradient methods]({scale}/methods.png)\n",
        precision(methods),
        f"## NODE-18 and ResNet-18 ({scaled})\n",
        network_table(chosen),
        f"![NODE-18 and ResNet-18]({scale}/networks.png)\n",
        f"## Reliability of repeated runs ({scaled})\n",
        reliability(chosen),
        "## Robustness to the test solver\n",
        *(robustness(*solver_tests(runs, scale, label), label) for label in ROBUST),
        f"Increase of the error in percentage points; NFE per block, mean over blocks. {PAPER['solvers']['about']}\n",
    ]
    return list(filter(None, parts))


def chosen_runs(runs, scale):
    """The finished runs of a scale by data set and label."""
    labels = dict.fromkeys((*LIKE_FOR_LIKE, *OWN[scale], "aca-amp", "resnet", *OTHER_SCALE))
    return {
        dataset: {label: of_place(runs, scale, dataset, label) for label in labels}
        for dataset in ("cifar10", "cifar100")
    }


def claims_of(runs, scale):
    """What `claims.of_scale` says of a scale."""
    tested = {label: solver_tests(runs, scale, label) for label in ROBUST}
    robust = {label: (run, increases(run, tests, label)) for label, (run, tests) in tested.items()}
    return claims.of_scale(chosen_runs(runs, scale), OWN[scale], robust)


def accuracies(runs):
    return [claims.accuracy(run) for run in runs]


def method_table(methods, labels):
    """Mean and standard deviation over the seeds for each of ``labels``; blank where nothing was run."""
    header = ["method", "solver", "batch", "runs", "test accuracy", "NFE forward", "NFE backward", "s per epoch"]
    header += ["minutes", "peak memory, MiB", "hardware"]
    rows = []
    for label in labels:
        runs = methods[label]
        rows.append(
            [
                label.removesuffix("-own"),
                solver_of(runs[0]) if runs else "",
                str(runs[0].chosen.batch_size) if runs else "",
                str(len(runs) or ""),
                spread(accuracies(runs), ".2f", " %"),
                spread([run.average("Solver/n_f_evals") for run in runs], ".2f"),
                spread([run.average("Solver/n_backward_f_evals") for run in runs], ".2f"),
                spread([run.epoch_seconds for run in runs], ".0f"),
                spread([run.summary["seconds"] / 60 for run in runs], ".1f"),
                spread([run.peak_memory / 2**20 for run in runs], ".0f"),
                ", ".join(sorted({run.hardware for run in runs})),
            ]
        )
    note = (
        "Mean ± standard deviation over seeds, of the model after the last epoch. NFE: evaluations of the vector field "
        "per block and batch, mean over blocks and epochs. Memory: the peak of the whole process, with the data and "
        "all libraries (on a GPU: what is allocated there), so differences count, not ratios. "
        f"Times are of a machine that was shared with other work. {origins(named(methods, labels))}"
    )
    return f"{table(header, rows)}\n{note}\n"


def named(groups, labels):
    """For `origins`: the runs of some labels, with the names of their rows."""
    return [(label.removesuffix("-own"), run.environment) for label in labels for run in groups[label]]


def solver_of(run):
    chosen = run.chosen
    tolerance = f" {chosen.rtol:g}" if chosen.rtol else f" h {chosen.h:g}"
    return f"{chosen.method}{tolerance}"


def paper_methods():
    rows = [
        [label, values["solver"], str(values["batch"]), f"{values['accuracy']:g} %", f"{values['hours']:g} h"]
        for label, values in PAPER["methods"].items()
        if label != "about"
    ]
    return f"In the paper: {PAPER['methods']['about']}\n\n" + table(
        ["method", "solver", "batch", "accuracy", "time"], rows
    )


def precision(methods):
    """bfloat16 (--amp) beside single precision, all else equal, seed by seed; timed on GPUs, which it is for."""
    single, reduced = methods["aca"], methods["aca-amp"]
    rows = [
        [
            name,
            str(len(runs) or ""),
            spread(accuracies(runs), ".2f", " %"),
            spread([run.epoch_seconds for run in runs], ".0f") if on_gpus(runs) else "",
        ]
        for name, runs in (("float32", single), ("bfloat16, `--amp`", reduced))
    ]
    partner = {run.place[3]: run for run in single}
    gained = [100 * (run.summary["test_accuracy"] - partner[run.place[3]].summary["test_accuracy"])
              for run in reduced if run.place[3] in partner]  # fmt: skip
    text = f"\nGained by `--amp`, seed by seed: {spread(gained, '+.2f', ' points')}.\n" if gained else ""
    return f"### Precision\n\n{table(['ACA in', 'runs', 'test accuracy', 's per epoch on a GPU'], rows)}{text}"


def network_table(chosen):
    header = [
        "data",
        "network",
        "second blocks begin at",
        "runs",
        "test accuracy",
        "range",
        "best epoch's",
        "minutes",
        "median in the paper",
    ]
    rows = []
    for dataset, labels in chosen.items():
        for label, name in (NETWORKS | OTHER_SCALE).items():
            runs = labels[label]
            values = accuracies(runs)
            rows.append(
                [
                    TITLES[dataset],
                    name,
                    f"{claims.scale_of(runs[0]):g}" if runs else "the other size",
                    str(len(runs) or ""),
                    spread(values, ".2f", " %"),
                    f"{min(values):.2f} to {max(values):.2f} %" if values else "",
                    spread([100 * run.summary["best_test_accuracy"] for run in runs], ".2f", " %"),
                    spread([run.summary["seconds"] / 60 for run in runs], ".1f"),
                    f"{PAPER['networks'][dataset][label]['med']:g} %" if label in NETWORKS else "",
                ]
            )
    kinds = [(f"{NETWORKS[label]} on {TITLES[dataset]}", run.environment)
             for dataset, labels in chosen.items() for label in NETWORKS for run in labels[label]]  # fmt: skip
    unlike = (
        "NODE-18 begins with vector fields of a fifth of their size and ResNet-18 with whole branches, where the "
        "column says 0.2 and 1: such rows differ in that too, and only rows with the same number are like for like."
    )
    return f"{table(header, rows)}\nIn the paper: {PAPER['networks']['about']} {unlike} {origins(kinds)}\n"


def reliability(chosen):
    rows = []
    for dataset, labels in chosen.items():
        for label, name in NETWORKS.items():
            found = claims.ratings(labels[label])
            for of in ("true-class probability", "correctness"):
                matrix = found and found[of]
                values = [f"{value:.3f}" for value in icc(matrix).values()] if found else [""] * len(FORMS)
                interval = ""
                if found:
                    low, high = np.quantile(resampled(matrix), [0.025, 0.975])
                    interval = f"{low:.3f} to {high:.3f}"
                rows.append([TITLES[dataset], name, of, str(matrix.shape[1]) if found else "", *values, interval])
    note = (
        "Intraclass correlations (Shrout and Fleiss 1979) of a matrix of test images by runs, which differ in their "
        "seed alone; models after the last epoch. The interval is 95 % of resamples of the test images, for ICC(2,1). "
        "The paper's values (its table 3) are not known to us."
    )
    return f"{table(['data', 'network', 'ICC of', 'runs', *FORMS, 'ICC(2,1), 95 %'], rows)}\n{note}\n"


# One model, many test solvers


def solver_tests(runs, scale, label):
    """A run with that label that was tested with ALL_SOLVERS, and its tests by `cell`; (None, {}) where none was."""
    for where in ROBUST_SCALES[scale]:
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


def increases(run, tests, label):
    """By how many percentage points each solver but that of the training increases the error."""
    base = cell(BASES[label])
    others = [other for other in map(cell, ALL_SOLVERS) if run and other in tests and other != base]
    return [100 * (tests[base]["test_accuracy"] - tests[other]["test_accuracy"]) for other in others]


def robustness(run, tests, label):
    """One of the supplement's tables beside the same for `run`; blank where nothing was tested."""
    theirs, what = PAPER["solvers"][label], ROBUST[label]
    base = tests.get(cell(BASES[label]))
    if base:
        precision = "bfloat16" if base.get("amp", run.chosen.amp) else "float32"
        what += (
            f": [{base['title']}]({link(run, run.folder.parents[1])}), error {1 - base['test_accuracy']:.2%} "
            f"(paper: {theirs['error']:g} %), after epoch {base['epoch']}, {base.get('images', 10_000)} test images, "
            f"{precision}, {run.hardware}{_first_step(run, label)}"
        )
    rows = []
    for method in (*FIXED, *ADAPTIVE):
        solvers = [solver for solver in ALL_SOLVERS if solver["method"] == method]
        for solver, in_paper in zip(solvers, theirs[method], strict=True):
            own, (_, size) = tests.get(cell(solver)), cell(solver)
            rows.append(
                [
                    f"{method}, {'h' if method in FIXED else 'tolerance'} {size:g}",
                    f"{100 * (base['test_accuracy'] - own['test_accuracy']):+.2f}" if own else "",
                    f"{in_paper:+.2f}",
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


def every_run(runs):
    """All runs of the tables, and how they ended."""
    rows = [
        [
            f"[{'/'.join(run.folder.parts[-2:])}]({link(run, run.folder.parents[1])})",
            run.title,
            f"{run.summary['test_accuracy']:.2%}" if run.summary else "",
            f"{run.summary['seconds'] / 60:.1f}" if run.summary else "",
            "finished" if run.summary else run.failure or f"{len(run.rows)} of {run.chosen.epochs} epochs",
            run.hardware,
        ]
        for run in runs
        if run.place
    ]
    return "## All runs of the tables\n\n" + table(["run", "what", "accuracy", "minutes", "ended", "hardware"], rows)


if __name__ == "__main__":
    run_main(main)
