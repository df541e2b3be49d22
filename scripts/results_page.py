"""The page results/README.md: the papers' tables and figures beside what was measured here. Written by render_docs.py.

What a paper says comes from the files of the experiments (paper.json, QUOTED), what was measured from the records.
"""

import os
from itertools import chain

import counterparts  # it lies beside this script

from cifar_classification import claims, robustness
from cifar_classification import report as cifar
from cifar_classification.data import TITLES
from cifar_classification.experiment import ALL_SOLVERS
from harness import packed
from harness.environment import ROOT, kinds
from harness.record import read_run
from harness.tables import spread, table
from harness.verdicts import HEADER as CLAIM_HEADER
from harness.verdicts import NOTE, in_how_many, verdict_rows
from latent_ode_mujoco import report as latent_ode
from latent_ode_mujoco import untrained
from latent_ode_mujoco.baselines import FOLDER
from three_body import findings as valleys
from three_body import report as three_body
from van_der_pol import records
from van_der_pol import tables as van_der_pol

RESULTS = ROOT / "results"
SCRIPT = "scripts/render_docs.py"
FIGURE, SUPPLEMENT, MEMORY, UNKNOWN = "read off a figure", "supplement", "from memory", "-"
TABLE_2 = (0.2, 1e-2)  # step size and tolerance of its solvers
LATENT_PROFILES = ("paper", "table", "quick")  # the largest that was run counts
HEADER = ["what", "in the paper", "source", "here", "runs", "record"]
INTRODUCTION = f"""# Results beside the papers

Written by `python {SCRIPT}` from the records of the runs; nothing here is typed. "Here" is the mean ± the standard
deviation over the runs. Compare the rows of a table with each other first: where it says "scaled down", the runs were
smaller than the paper's, and only their order can be compared.

Sources of the paper's numbers: "{SUPPLEMENT}": read in the paper's supplement. "{FIGURE}": estimated by eye.
"{MEMORY}": from memory of the published table, not checked against it. "{UNKNOWN}": the paper gives no number, or it is
not known here.

"""
RULE = """How a claim is decided: [the rule](../docs/verdicts.md). A claim about solves without random seeds is decided
if it holds, or fails, in every case.

"""


def page():
    """The text of the page."""
    parts = [(name, *make()) for name, make in SECTIONS.items()]
    summary, texts = [], []
    for name, text, rows in parts:
        summary += [[name, row[0], row[-1]] for row in rows]
        texts.append(text)
        if found := [row for row in rows if len(row) == len(CLAIM_HEADER)]:
            texts.append(f"{table(CLAIM_HEADER, found)}\n{NOTE}\n")
    head = f"{INTRODUCTION}{RULE}## All claims in one minute\n\n{table(['where', 'claim', 'verdict'], summary)}"
    return "\n".join([head, *texts, counterparts.section()])


def link(folders):
    """A link to the record of the runs in ``folders``: a pack, or the folder that has all of them."""
    places = {packed.source(folder) for folder in folders}
    if not places:
        return ""
    path = os.path.relpath(os.path.commonpath(places), RESULTS)
    return f"[record]({path})"


def numbers(experiment, environments):
    """Where all numbers of a section are, and whether the runs behind its rows have different origins."""
    text = f"All numbers: [tables]({experiment}/tables.md)."
    if len(kinds(("", environment) for environment in environments)) > 1:
        text += " Not all rows come from one version of the code and one kind of machine: the tables name them."
    return f"{text}\n"


# Why reverse time goes wrong


def reverse_time():
    """Van der Pol, the photograph, the toy and the costs: solved without random seeds."""
    place = {name: records.RESULTS / name for name in ("reconstruction", "picture", "gradient_error", "depth")}
    rows, found_claims = [], []

    def row(name, what, paper, source, here, verdict, claim=None):
        rows.append([what, paper, source, here, verdict, link([place[name]])])
        if claim:
            found_claims.append([claim, verdict])

    found = records.read(place["reconstruction"], kind="error", sweep="horizon")
    errors = {name: {(r["start"], r["horizon"]): r["error"] for r in found if r["label"] == name}
              for name in ("aca", "adjoint")}  # fmt: skip
    shared = sorted(errors["aca"].keys() & errors["adjoint"].keys())
    end = max(horizon for _, horizon in shared)
    here = ", ".join(f"{name} {errors[name][0, end]:.2g}" for name in errors)
    verdict = in_how_many(*([errors[name][key] for key in shared] for name in ("aca", "adjoint")))
    row("reconstruction", f"van der Pol: distance of the rebuilt y(0) from the true one, T = {end:g}",
        "a figure: the curves disagree", UNKNOWN, here, f"{verdict} starts and horizons",
        "the backward pass of aca sees a trajectory nearer the forward one than that of the adjoint")  # fmt: skip

    kernels = records.read(place["picture"], sweep="kernel")
    starts = {name: [r["error"][0] for r in kernels if r["label"] == name] for name in ("aca", "adjoint")}
    here = ", ".join(f"{name} {spread(starts[name], '.2g') if any(starts[name]) else 0}" for name in starts)
    verdict = f"{in_how_many(starts['aca'], starts['adjoint'])} kernels"
    row("picture", "photograph along a convolution ODE: relative error of the rebuilt one",
        "a figure: it is not the same", UNKNOWN, here, verdict,
        "a photograph is rebuilt better with aca than with the adjoint")  # fmt: skip

    toy = records.read(place["gradient_error"], problem="toy", library="torch_ACA", flow="contracting")
    end = max(r["horizon"] for r in toy)
    of = {name: [r["error_start"] for r in toy if (r["gradient"], r["horizon"]) == (name, end)]
          for name in ("aca", "naive", "adjoint")}  # fmt: skip
    here = ", ".join(f"{name} {spread(values, '.2g')}" for name, values in of.items())
    for other in ("adjoint", "naive"):
        row("gradient_error", f"dz/dt = kz: relative error of dL/dz(0), contracting, T = {end:g}; aca and {other}",
            "a figure: aca least", MEMORY, here, f"{in_how_many(of['aca'], of[other])} starts",
            f"on dz/dt = kz the gradient of aca has less error than that of {other}")  # fmt: skip

    rows_of_depth = records.read(place["depth"])
    grown = {name: van_der_pol.growth(rows_of_depth, name) for name in van_der_pol.PAPER}
    verdict = f"{in_how_many(*(map(float, grown[name][1:]) for name in ('aca', 'naive')))} growths"
    for name, formulas in van_der_pol.PAPER.items():
        here = "m {}-fold: depth {}-fold, bytes {}-fold, work {}-fold".format(*grown[name])
        claim = "graph depth, memory and work grow less with aca than with naive" if name == "aca" else None
        row("depth", f"table 1, {name}: depth, memory, computation", "; ".join(formulas), MEMORY, here, verdict, claim)
    header = ["what", "in the paper", "source", "here", "verdict: aca's is smaller", "record"]
    figures = [("rebuilt trajectories", "reconstruction"), ("gradient errors", "gradient_error"),
               ("the photograph", "picture"), ("graph depth and memory", "depth"), ("training", "train")]  # fmt: skip
    images = "".join(f"\n![{text}](van_der_pol/{name}/{name}.png)\n" for text, name in figures)
    text = f"## Reverse time, gradients and costs\n\n{table(header, rows)}\n"
    runs = van_der_pol.training_runs(records.RESULTS / "train")
    text += numbers("van_der_pol", [run["environment"] for run in runs])
    return text + images, found_claims + verdict_rows(van_der_pol.comparisons(runs))


# CIFAR


def classification():
    """The largest scale that has all comparisons, and below it the networks at the others."""
    runs = cifar.collect(cifar.RESULTS)
    scales = [scale for scale in reversed(cifar.SCALES) if any(run.place and run.place[0] == scale for run in runs)]
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


# Latent ODE


def time_series():
    rows = latent_ode.collect(latent_ode.RESULTS)
    rows = [row for row in rows if row["task"] == "interpolation"]
    profile = next(name for name in LATENT_PROFILES if any(row["profile"] == name for row in rows))
    rows = [row for row in rows if row["profile"] == profile]

    baselines = untrained.errors(latent_ode.RESULTS, profile, "interpolation")

    def of(label, fraction):
        return [row for row in rows if (row["label"], row["sample"]) == (label, fraction)]

    def errors(label, fraction):
        return [100 * row["mse"] for row in of(label, fraction)]

    lines = [
        [f"{untrained.TITLES[name]}, {fraction:.0%} observed", UNKNOWN, UNKNOWN, spread(values, ".3f"),
         str(len(values)), link([FOLDER])]
        for name, found in baselines.items() for fraction, values in found.items()
    ]  # fmt: skip
    labels = dict.fromkeys((*latent_ode.LABELS, *chain.from_iterable(latent_ode.QUOTED.values())))
    for label in labels:
        for index, fraction in enumerate(latent_ode.FRACTIONS):
            quoted = [f"{values[label][index]:g} ({source})" for source, values in latent_ode.QUOTED.items()
                      if label in values]  # fmt: skip
            own = of(label, fraction)
            if quoted or own:
                source = MEMORY if quoted else UNKNOWN
                cells = [", ".join(quoted) or UNKNOWN, source, spread(errors(label, fraction), ".3f")]
                counted = [str(len(own) or "not run"), link(row["folder"] for row in own)]
                lines.append([f"{label}, {fraction:.0%} observed", *cells, *counted])
    scale = latent_ode.joint_words(rows) or "the paper's settings"
    name = f"latent_ode_mujoco/{profile}/figures"
    images = [
        ("error against epoch and time", "interpolation-curves.png"),
        ("reconstructions", "interpolation-10-reconstructions.png"),
        ("the hopper's motion", "hopper.gif"),
    ]
    text = f"## Time series: latent ODE on hopper data (table 4)\n\n{scale[0].upper()}{scale[1:]}. Test MSE x 0.01.\n\n"
    text += f"{table(HEADER, lines)}\n{untrained.compared(latent_ode.means(rows), baselines)}\n"
    text += numbers("latent_ode_mujoco", [row["environment"] for row in rows])
    return text + "".join(f"\n![{words}]({name}/{file})\n" for words, file in images), verdict_rows(
        latent_ode.comparisons(rows)
    )


# Three bodies


def three_bodies():
    rows = three_body.collect(three_body.RESULTS)
    rows = [row for row in rows if (row["profile"], row["system"]) == ("paper", three_body.PAPER.name)]

    def of(label):
        return [row for row in rows if row["label"] == label and row["mse"] is not None]

    constant = three_body.constant_error(read_run(rows[0]["folder"]), 2.0)
    lines = [["constant: the mean positions on [0, 1]", UNKNOWN, UNKNOWN, f"{constant:.2g}", "", ""]]
    lines += [[label, UNKNOWN, UNKNOWN, spread([row["mse"] for row in of(label)], ".2g"), str(len(of(label))),
               link(row["folder"] for row in of(label))] for label in three_body.LABELS]  # fmt: skip
    text = "## Three bodies: mean squared error on [0, 2], trained on [0, 1]\n\nThe paper's settings and system.\n\n"
    text += f"{table(HEADER, lines)}\n{three_body.exploded(rows)}"
    text += numbers("three_body", [row["environment"] for row in rows])
    images = [("errors, gradients and masses", "paper/figures/comparison.png"), ("orbits", "paper/figures/orbits.gif"),
              ("orbits of all models", "paper/figures/orbits.png"),
              ("orbits of ode-aca on other systems", "systems.png")]  # fmt: skip
    text += f"\n{chr(10).join(three_body.findings(three_body.RESULTS))}".replace("\n## ", "\n### ")
    text += "\n![first gradient](three_body/first_gradient/first_gradient.png)\n"
    text += "".join(f"\n![{words}](three_body/paper/{file})\n" for words, file in images)
    counted = [[row[0], row[-1]] for row in verdict_rows(valleys.comparisons(three_body.RESULTS))]
    return text, verdict_rows(three_body.comparisons(rows)) + counted


SECTIONS = {
    "van der Pol and others": reverse_time,
    "CIFAR": classification,
    "latent ODE": time_series,
    "three bodies": three_bodies,
}
