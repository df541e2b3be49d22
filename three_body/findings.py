"""Tables of what the first gradients and the first epochs show, from the records of first_gradient.py and valley.py."""

from collections import defaultdict
from statistics import mean, median

import numpy as np

from harness import packed
from harness.environment import origins
from harness.measurement import read
from harness.record import read_epochs, read_run, trainings, working_seconds
from harness.tables import table
from harness.verdicts import Counts, hours_each, verdict_table
from three_body.data import PAPER
from three_body.experiment import PROFILES, ThreeBody, label
from three_body.first_gradient import FOLDER, PAPERS
from three_body.valley import FAR, METHODS

EPOCHS = PROFILES["valley"]["ode"]["epochs"]
TOLERANCES = {"valley": "1e-5", "valley-tight": "1e-7"}
LARGE = 0.9  # share of a difference that the steps named in the text have to make up


def first_gradient(root):
    """The section on the first gradient; empty where no measurement has ended."""
    folder = root / FOLDER.name
    if packed.read(folder, "summary.json") is None:
        return ""
    rows = read(folder)
    seeds = len({row["seed"] for row in rows})
    grouped = defaultdict(dict)
    for row in rows:
        if row["kind"] == "tolerance":
            grouped[row["method"]].setdefault(row["tolerance"], []).append(row)
    tolerances = sorted({tolerance for found in grouped.values() for tolerance in found}, reverse=True)
    errors = [[method, *(_middle(found.get(tolerance), seeds) for tolerance in tolerances)]
              for method, found in grouped.items()]  # fmt: skip
    corrections = defaultdict(list)
    for row in rows:
        if row["kind"] == "correction":
            corrections[row["name"]].append(row)
    costs = [[name, _middle(own, seeds), f"{mean(row['evaluations'] for row in own if row['error'] is not None):.0f}"]
             for name, own in corrections.items()]  # fmt: skip
    texts = [
        f"## The first gradient\n\nRelative error of the gradient in the masses at the first iterate, median (least "
        f"to largest) over {seeds} seeds; the paper's tolerance is 1e-05.\n",
        table(["method", *(f"{tolerance:.0e}" for tolerance in tolerances)], errors),
        _differences([row for row in rows if row["kind"] == "differences"]),
        *(_steps(rows, seed) for seed in dict.fromkeys(row["seed"] for row in rows if row["kind"] == "step")),
        "\nThe same for aca at 1e-05 with other settings (ours, not the paper's), and the mean of the evaluations of "
        "both passes:\n",
        table(["aca", "relative error", "evaluations"], costs),
        origins(_parts(read_run(folder))) + "\n",
    ]
    return "\n".join(texts)


def _parts(run):
    """For `origins`: a measurement that was interrupted, and the parts that went on with it."""
    return [("the first seeds", run["environment"]), *(("later ones", part["environment"]) for part in run["resumed"])]


def _middle(rows, seeds):
    """Median, least and largest error; how many solves gave up, and how many seeds there are if not all."""
    if not rows:
        return ""
    errors = sorted(row["error"] for row in rows if row["error"] is not None)
    lost = f", {len(rows) - len(errors)} gave up" if len(errors) < len(rows) else ""
    lost += f"; {len(rows)} seeds" if len(rows) < seeds else ""
    return f"{median(errors):.1e} ({errors[0]:.0e} to {errors[-1]:.0e}{lost})" if errors else "gave up"


def _differences(rows):
    """Which function each gradient is the derivative of."""
    worst = {name: max(row[name] for row in rows) for name in ("frozen_aca", "anew_naive", "anew_aca")}
    return (
        f"Of the loss that the solver computes, central differences agree with naive to {worst['anew_naive']:.1e} of "
        f"the gradient in every seed where the step sizes are chosen anew, and with aca to {worst['frozen_aca']:.1e} "
        f"on the grid of the first solve; with new step sizes they are up to {worst['anew_aca']:.1e} of the gradient "
        "away from aca. So both are right, and they are derivatives of different functions.\n"
    )


def _steps(rows, seed):
    """How much of the difference of the two gradients comes from how few steps, and where these are."""
    steps = [row for row in rows if row["kind"] == "step" and row["seed"] == seed]
    steps.sort(key=lambda row: row["distance"])
    added = np.array([row["added"] for row in steps])
    total = added.sum(0)
    left = np.linalg.norm(total - added.cumsum(0), axis=1)  # behind the nearest 1, 2, ... steps
    near = steps[: 1 + int(np.argmax(left <= (1 - LARGE) * np.linalg.norm(total)))]
    first = {row["method"]: np.array(row["gradient"]) for row in rows if row["kind"] == "tolerance"
             and (row["seed"], row["tolerance"]) == (seed, PAPERS) and row["method"] in ("aca", "naive")}  # fmt: skip
    apart = first["naive"] - first["aca"]
    missed = np.linalg.norm(apart - total) / np.linalg.norm(apart)
    return (
        f"Seed {seed}: the difference of naive and aca is the sum over the {len(steps)} inner steps of dL/dt_i "
        f"times dt_i/dm, to {missed:.1e} of it. The {len(near)} steps that end where two bodies are nearest, within "
        f"{near[-1]['distance']:.2g}, make up {LARGE:.0%} of it; they last "
        f"{sum(row['h'] for row in near):.2g} of time 1.\n"
    )


def first_epochs(root):
    """For each profile of valley.py and method {seed: run}, with the ``masses`` after its epochs, the ``norm`` of the
    first gradient, and what the run was made with.

    Of seeds that valley.py has not run, the first epochs of a run with the paper's settings count: they are the same.
    """
    found = defaultdict(dict)
    runs = [(folder, run) for folder, run in trainings(root, ThreeBody.name)
            if run["summary"] and run["settings"]["model"] == "ode" and run["settings"]["system"]["name"] == PAPER.name]
    for profile, source in (("valley", "paper"), ("valley", "valley"), ("valley-tight", "valley-tight")):
        for folder, run in runs:
            settings = run["settings"]
            if settings["profile"] == source and (masses := _masses_after(folder, run)):
                seconds = working_seconds(run) * EPOCHS / settings["epochs"]
                norm = read_epochs(folder)[0]["Train/GradientNorm"]
                own = {"masses": masses, "norm": norm, "seconds": seconds, "environment": run["environment"]}
                found[profile, label(settings).partition("-")[2]][settings["seed"]] = own
    return found


def _masses_after(folder, run):
    """The masses after `EPOCHS` epochs; None of a run that ended earlier."""
    if run["settings"]["epochs"] == EPOCHS:
        return run["summary"]["last"]["masses"] if run["summary"]["epochs"] == EPOCHS else None
    rows = [row for row in read_epochs(folder) if row["step"] == EPOCHS + 1]  # a row has the masses before its step
    return [rows[0][f"Masses/{i}"] for i in (1, 2, 3)] if rows else None


def far(run):
    """Whether a mass is off by more than `FAR`."""
    return max(abs(mass - true) for mass, true in zip(run["masses"], PAPER.masses)) > FAR


def valleys(root):
    """The section on wrong valleys; empty where nothing was run."""
    found = first_epochs(root)
    lines = []
    for profile, tolerance in TOLERANCES.items():
        for method in METHODS:
            own = found.get((profile, method), {}).values()
            if own:
                norms = [sorted(run["norm"] for run in own if far(run) == missed) for missed in (True, False)]
                cells = [f"{some[0]:.2g} to {some[-1]:.2g}" if some else "" for some in norms]
                lines.append([f"ode-{method}", tolerance, str(len(own)), str(len(norms[0])), *cells])
    if not lines:
        return ""
    kinds = [(f"{method} at {TOLERANCES[profile]}", run["environment"])
             for (profile, method), own in found.items() for run in own.values()]  # fmt: skip
    header = ["model", "tolerance", "seeds", "in a wrong valley", "norm of their first gradients", "of the others'"]
    return (
        f"## Wrong valleys: a mass off by more than {FAR:g} after {EPOCHS} epochs at learning rate 0.1\n\n"
        f"{table(header, lines)}\n"
        f"{origins(kinds)}\n\n{verdict_table(comparisons(root))}"
    )


def comparisons(root):
    """What is claimed of these counts, on the seeds that both sides have."""
    found = first_epochs(root)
    claims = (
        ("ode-aca ends in a wrong valley less often than ode-naive, both at 1e-5",
         ("valley", "aca"), ("valley", "naive")),
        ("ode-aca ends in a wrong valley less often than ode-adjoint, both at 1e-5",
         ("valley", "aca"), ("valley", "adjoint")),
        ("ode-aca ends in a wrong valley less often at 1e-7 than at 1e-5", ("valley-tight", "aca"), ("valley", "aca")),
        ("ode-aca ends in a wrong valley less often in a time of its own, at 1e-5",
         ("valley", "aca-own-time"), ("valley", "aca")),
    )  # fmt: skip
    return [_comparison(claim, *(found.get(side, {}) for side in sides)) for claim, *sides in claims]


def _comparison(claim, *sides):
    hours = hours_each(*([run["seconds"] for run in side.values()] for side in sides))
    outcomes = ({seed: far(run) for seed, run in side.items()} for side in sides)
    return Counts(claim, *outcomes, -1, hours=hours)
