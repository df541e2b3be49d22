"""The page results/README.md: the papers' tables and figures beside what was measured here. Written by render_docs.py.

What a paper says comes from the files of the experiments (paper.json, QUOTED), what was measured from the records.
"""

from itertools import chain

import counterparts  # these lie beside this script
from results_cifar import classification
from results_parts import FIGURE, HEADER, MEMORY, SUPPLEMENT, UNKNOWN, link, numbers

from harness.record import read_run
from harness.tables import spread, table
from harness.verdicts import AGAINST, FOR, NOTE, UNDECIDED, in_how_many, verdict_rows
from harness.verdicts import HEADER as CLAIM_HEADER
from latent_ode_mujoco import report as latent_ode
from latent_ode_mujoco import untrained
from latent_ode_mujoco.baselines import FOLDER
from neural_ode_2018.cnf import report as cnf
from neural_ode_2018.cnf.experiment import CNF
from neural_ode_2018.mnist import report as mnist
from neural_ode_2018.mnist.experiment import MNIST
from neural_ode_2018.spirals import report as spirals
from neural_ode_2018.spirals.experiment import SPIRALS
from three_body import findings as valleys
from three_body import report as three_body
from van_der_pol import records
from van_der_pol import tables as van_der_pol

SCRIPT = "scripts/render_docs.py"
LATENT_PROFILES = ("paper", "table", "quick")  # the largest that was run counts
INTRODUCTION = f"""# Results beside the papers

Written by `python {SCRIPT}` from the records of the runs; nothing here is typed. "Here" is the mean ± the standard
deviation over the runs. Compare the rows of a table with each other first: where it says "scaled down", the runs were
smaller than the paper's, and only their order can be compared.

Sources of the paper's numbers: "{SUPPLEMENT}": read in the paper's supplement. "{FIGURE}": estimated by eye.
"{MEMORY}": from memory of the published table, not checked against it. "{UNKNOWN}": the paper gives no number, or it is
not known here.

"""
TERMS = """Like for like: all methods with one solver and tolerance; with the paper's settings: each with its own.
Second blocks begin at 0.2 or at 1: the factor on the residual branches, or fields, of the blocks that keep the size, at
the start of training; unlike: NODE-18's at 0.2, ResNet-18's at 1.

"""
RULE = """How a claim is decided: [the rule](../docs/verdicts.md). A claim about solves without random seeds is decided
if it holds, or fails, in every case.

"""


def parts():
    """(name, text, rows of claims) of every section."""
    return [(name, *make()) for name, make in SECTIONS.items()]


def verdicts(sections):
    """(name of the section, claim, verdict) of every claim."""
    return [(name, row[0], row[-1]) for name, _, rows in sections for row in rows]


def page():
    """The text of the page."""
    sections, texts = parts(), []
    summary = verdicts(sections)
    for _, text, rows in sections:
        texts.append(text)
        if found := [row for row in rows if len(row) == len(CLAIM_HEADER)]:
            texts.append(f"{table(CLAIM_HEADER, found)}\n{NOTE}\n")
    head = f"{INTRODUCTION}{RULE}## All claims in one minute\n\n{tally(summary)}\n{TERMS}"
    head += table(["where", "claim", "verdict"], summary)
    return "\n".join([head, *texts, counterparts.section()])


def counted(summary):
    """How many of these claims are decided for, decided against and undecided."""
    found = [verdict for *_, verdict in summary]
    return [sum(verdict.startswith(kind) for verdict in found) for kind in (FOR, AGAINST, UNDECIDED)]


def tally(summary):
    """How many claims hold, by place, and which are decided against."""
    lines = [[name, *map(str, counted(row for row in summary if row[0] == name))] for name in SECTIONS]
    lines.append(["all", *map(str, counted(summary))])
    against = "".join(f"- {name}: {claim}\n" for name, claim, verdict in summary if verdict.startswith(AGAINST))
    header = ["where", "decided for: it holds here", "decided against: it does not", "undecided"]
    return f"{table(header, lines)}\nDecided against:\n\n{against}"


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

    toy = records.read(place["gradient_error"], problem="toy", library="torch_ACA")
    end = max(r["horizon"] for r in toy)
    errors = {
        name: {(r["flow"], r["horizon"], r["start"], kind): r[kind] for r in toy if r["gradient"] == name
               for kind in ("error_start", "error_parameter")}
        for name in ("aca", "naive", "adjoint")
    }  # fmt: skip
    for other in ("adjoint", "naive"):
        here = []
        for flow in ("contracting", "growing"):
            of = (f"{name} {spread(at_end(errors[name], flow, end), '.2g')}" for name in ("aca", other))
            here.append(f"{flow}: {', '.join(of)}")
        verdict = in_how_many(*([errors[name][key] for key in errors["aca"]] for name in ("aca", other)))
        row("gradient_error", f"dz/dt = kz: relative error of dL/dz(0), T = {end:g}; aca and {other}",
            "a figure: aca least", MEMORY, "; ".join(here), f"{verdict} flows, horizons, starts and tensors",
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


def at_end(errors, flow, horizon):
    """The errors of dL/dz(0) in a flow at a horizon, of all starts."""
    return [error for key, error in errors.items() if (key[:2], key[3]) == ((flow, horizon), "error_start")]


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


# The experiments of the paper of 2018


def of_2018():
    links = "[tables and figures](../neural_ode_2018/README.md)"
    text = "## Neural ordinary differential equations (2018)\n\n"
    text += f"MNIST, continuous flows and spirals, quick runs: {links}.\n"
    found = []
    for name, part, report in (("", MNIST, mnist), ("flows, ", CNF, cnf), ("spirals, ", SPIRALS, spirals)):
        rows = [row for row in part.runs(part.results) if row["profile"] == "quick"]
        found += [[f"{name}{row[0]}", *row[1:]] for row in verdict_rows(report.comparisons(rows))]
    return text, found


SECTIONS = {
    "van der Pol and others": reverse_time,
    "CIFAR": classification,
    "latent ODE": time_series,
    "three bodies": three_bodies,
    "2018": of_2018,
}
