"""Write what the recorded runs show: tables.md, figures, and the measured part of the README."""

import re
from pathlib import Path
from statistics import mean

import numpy as np

from cifar_classification import claims, gradient_error, plot, robustness, timing
from cifar_classification.data import TITLES
from cifar_classification.experiment import Cifar
from cifar_classification.quoted import PAPER
from cifar_classification.reliability import FORMS, icc, resampled
from cifar_classification.runs import collect, of_place, on_gpus
from cifar_classification.single_runs import every_run, single_runs, single_tests
from harness.cli import run_main
from harness.environment import origins
from harness.files import write_text
from harness.plots import save_figure
from harness.tables import replace_measured, results_folder, spread, table
from harness.verdicts import verdict_table

README = Path(__file__).parent / "README.md"
RESULTS = Cifar().results
SCRIPT = "cifar_classification/report.py"
SEEN = "../results/cifar_classification"  # its folder, as seen from the README
SCALES = ("table", "gpu", "paper")  # in the order of the reports
LIKE_FOR_LIKE = ("aca", "direct", "naive", "adjoint", "mali", "torchdiffeq", "torchdiffeq-adjoint")
OWN = {  # at the table's scale aca has the paper's solver, tolerance and batch anyway
    "gpu": ("aca", "adjoint-own", "naive-own"),
    "table": ("aca", "adjoint-own", "naive-own"),
    "paper": ("aca-own", "adjoint-own", "naive-own"),
}
NETWORKS = {"aca": "NODE-18, ACA", "resnet": "ResNet-18"}
# the same with their second blocks at the other size in the beginning
OTHER_SCALE = {"aca-scale": "NODE-18, ACA", "resnet-scale": "ResNet-18"}


def main(argv=None):
    root = results_folder(argv, f"{__doc__} the README shows those of the default folder.", Cifar(), packs=True)
    runs = collect(root)
    sections = [section for scale in SCALES for section in compared(runs, scale, root)]
    sections += of_gradients(root)
    single = [run for run in runs if run.summary and not (run.place and run.place[0] in SCALES)]
    tests = [*filter(None, (single_tests(run) for run in single if not run.place))]  # the others' are in the tables
    introduction = f"# NODE-18 on CIFAR: results\n\nWritten by `python {SCRIPT}`.\n"
    alone = ["## Single runs\n", single_runs(single, root, "."), *tests] if single else []
    write_text(root / "tables.md", "\n".join([introduction, *alone, *sections, every_run(runs, root)]))
    if root.resolve() == RESULTS:
        linked = [re.sub(r"\]\((?!http)", f"]({SEEN}/", section) for section in sections]
        replace_measured(README, SCRIPT, "\n".join([single_runs(single, root, SEEN), *tests, *linked]))
    print(f"{sum(run.summary is not None for run in runs)} finished runs -> {root / 'tables.md'}")


# Runs compared with each other


def compared(runs, scale, root):
    """The sections of a scale, and its figures; no section where nothing was run."""
    chosen = chosen_runs(runs, scale)
    known = [run for rows in chosen.values() for found in rows.values() for run in found]
    if not known:
        return []
    heading = known[0].title.partition(", ")[2] or "the paper's scale"
    scaled = f"`--profile {scale}`, {heading}"
    figure = plot.draw_networks(chosen, NETWORKS, OTHER_SCALE, PAPER["networks"], heading)
    save_figure(figure, root / scale / "networks.png")
    parts = [
        f"## The paper's claims ({scaled})\n",
        verdict_table(*claims_of(runs, scale, root)),
        *of_methods(chosen["cifar10"], scale, root, heading),
        f"## NODE-18 and ResNet-18 ({scaled})\n",
        network_table(chosen),
        f"![NODE-18 and ResNet-18]({scale}/networks.png)\n",
        f"## Reliability of repeated runs ({scaled})\n",
        reliability(chosen),
        *of_test_solvers(robustness.tested(runs, scale), scale, root),
    ]
    return list(filter(None, parts))


def of_methods(methods, scale, root, heading):
    """The sections on gradient methods; none where ACA has nothing beside it."""
    if not any(runs for label, runs in methods.items() if label in (*LIKE_FOR_LIKE, *OWN[scale]) and label != "aca"):
        return []
    figure = plot.draw_methods(methods, LIKE_FOR_LIKE, OWN[scale], f"NODE-18 on CIFAR-10, {heading}")
    save_figure(figure, root / scale / "methods.png")
    return [
        f"## Gradient methods (`--profile {scale}`, {heading})\n",
        "Like for like: the same solver (MALI has its own), tolerance, batch and seeds; `torchdiffeq` rows are that "
        "library's `odeint` and `odeint_adjoint`.\n",
        method_table(methods, LIKE_FOR_LIKE),
        "Solver, tolerance and batch as in the paper's figure 7(a, b).\n",
        method_table(methods, OWN[scale]),
        paper_methods(),
        processor_time(root / timing.FOLDER.name / scale),
        f"![gradient methods]({scale}/methods.png)\n",
        precision(methods),
    ]


def of_gradients(root):
    """The sections on the error of gradients on one batch."""
    found = gradient_error.render(root)
    texts = ["## The error of gradients by tolerance\n"] if found else []
    for folder in found:
        place = folder.relative_to(root).as_posix()
        texts += [gradient_error.section(folder), f"![error of the gradient]({place}/gradient_error.png)\n"]
    return texts


def of_test_solvers(robust, scale, root):
    """The section on other solvers than that of the training; none where none was tested."""
    if not any(run for run, _ in robust.values()):
        return []
    save_figure(plot.draw_robustness(robust), root / scale / "robustness.png")
    figure = f"![increase of the error by test solver]({scale}/robustness.png)\n"
    return ["## Robustness to the test solver\n", figure, robustness.section(robust, root)]


def chosen_runs(runs, scale):
    """The finished runs of a scale by data set and label; CIFAR-100 only where it has some."""
    labels = dict.fromkeys((*LIKE_FOR_LIKE, *OWN[scale], "aca-amp", "resnet", *OTHER_SCALE))
    found = {
        dataset: {label: of_place(runs, scale, dataset, label) for label in labels}
        for dataset in ("cifar10", "cifar100")
    }
    return {dataset: rows for dataset, rows in found.items() if dataset == "cifar10" or any(rows.values())}


def claims_of(runs, scale, root):
    """What `claims.of_scale` says of a scale."""
    times = timing.seconds(root / timing.FOLDER.name / scale)
    return claims.of_scale(chosen_runs(runs, scale), OWN[scale], robustness.tested(runs, scale), times)


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


def processor_time(folder):
    """What `timing.py` measured, if it did."""
    measured = timing.finished(folder)
    return f"### Processor time\n\n{timing.timing_table(folder)}" if measured else None


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
                    spread([run.seconds / 60 for run in runs], ".1f"),
                    f"{PAPER['networks'][dataset][label]['med']:g} %" if label in NETWORKS else "",
                ]
            )
    kinds = [(f"{name} from {claims.scale_of(run):g} on {TITLES[dataset]}", run.environment)
             for dataset, labels in chosen.items()
             for label, name in (NETWORKS | OTHER_SCALE).items() for run in labels[label]]  # fmt: skip
    unlike = (
        "NODE-18 begins with vector fields of a fifth of their size and ResNet-18 with whole branches, where the "
        "column says 0.2 and 1: such rows differ in that too, and only rows with the same number are like for like."
    )
    times = "Minutes: of the processor; of runs without a record of those, of the clock, on a shared machine."
    about = f"In the paper: {PAPER['networks']['about']} {unlike} {times} {origins(kinds)}"
    return "\n".join(filter(None, (table(header, rows), better_size(chosen), about))) + "\n"


def better_size(chosen):
    """With which size of the second blocks a network does better, where it was run with both; empty where none was."""
    found = []
    for dataset, labels in chosen.items():
        for label, name in NETWORKS.items():
            runs = sorted((labels[label], labels[f"{label}-scale"]), key=lambda own: mean(accuracies(own) or [0]))
            if not all(runs):
                continue
            (low, high), (less, more) = (accuracies(own) for own in runs), (claims.scale_of(own[0]) for own in runs)
            apart = "every run" if min(high) > max(low) else "the mean, not every run"
            found.append(f"{name} on {TITLES[dataset]} with {more:g} rather than {less:g}, by "
                         f"{mean(high) - mean(low):.2f} points ({apart}, {len(high)} and {len(low)} runs)")  # fmt: skip
    return f"Of the two sizes of the second blocks a network does better: {'; '.join(found)}.\n" if found else ""


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


if __name__ == "__main__":
    run_main(main)
