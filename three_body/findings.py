"""Tables of what gradients and masses show on the way, from the records of first_gradient.py, later_gradients.py,
valley.py and the trainings."""

from collections import defaultdict
from statistics import mean, median

import numpy as np

from harness import packed
from harness.environment import origins
from harness.measurement import read
from harness.record import read_epochs, read_run, trainings, working_seconds
from harness.tables import table
from harness.verdicts import Counts, hours_each, verdict_table
from three_body import later_gradients as later
from three_body.data import PAPER
from three_body.experiment import PROFILES, ThreeBody, label
from three_body.first_gradient import FOLDER, PAPERS
from three_body.valley import FAR, METHODS

EPOCHS, WHOLE = (PROFILES[name]["ode"]["epochs"] for name in ("valley", "paper"))
TOLERANCES = {"paper": "1e-5", "tight": "1e-7"}
FATES = (f"are lost within {EPOCHS} epochs", "are lost later", "find the true masses")
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


def later_gradients(root):
    """The section on the gradients on the way; empty where no measurement has ended."""
    folder = root / later.FOLDER.name
    if packed.read(folder, "summary.json") is None:
        return ""
    rows = read(folder)
    fates = {seed: fate(run) for seed, run in newton_runs(root).get(("paper", "aca"), {}).items()}
    lines = []
    for name in FATES:
        own = [row for row in rows if fates.get(row["seed"]) == name and row["method"]]
        for method in later.METHODS:
            found = [row for row in own if row["method"] == method]
            if found:
                uphill = sum(row["error"] is not None and np.dot(row["gradient"], row["exact"]) < 0 for row in found)
                seeds = len({row["seed"] for row in found})
                lines.append([name, str(seeds), method, _middle(found, 0), f"{uphill} of {len(found)}"])
    lost = sum(row["method"] is None for row in rows)
    note = f" Of {lost} iterates the exact gradient is not known: the solver gave up.\n" if lost else ""
    header = ["runs of ode-aca that", "runs", "gradient at their masses", "relative error", "more than 90 degrees off"]
    return (
        f"## Gradients on the way\n\nOf the recorded runs of ode-aca at 1e-5, at the masses that they had before the "
        f"epochs {', '.join(map(str, later.AT))}: median (least to largest).\n\n"
        f"{table(header, lines)}{note}\n{origins(_parts(read_run(folder)))}\n"
    )


def newton_runs(root):
    """{(profile, method): {seed: run}} of the paper's system, with the masses ``early``, after `EPOCHS`, and at the
    ``end`` (None where the run did not come so far), the ``norm`` of the first gradient, and what it was made with.

    Of seeds that have no whole run, the run of valley.py counts: its epochs are the first ones of a whole run.
    """
    found = defaultdict(dict)
    runs = [
        (folder, run)
        for folder, run in trainings(root, ThreeBody.name)
        if run["summary"] and run["settings"]["model"] == "ode" and run["settings"]["system"]["name"] == PAPER.name
    ]
    for profile, sources in (("paper", ("valley", "paper")), ("tight", ("valley-tight", "tight"))):
        for source in sources:
            for folder, run in runs:
                settings = run["settings"]
                if settings["profile"] == source:
                    own = _newton_run(folder, run)
                    found[profile, label(settings).partition("-")[2]][settings["seed"]] = own
    return found


def _newton_run(folder, run):
    epochs, done, rows = run["settings"]["epochs"], run["summary"]["epochs"], read_epochs(folder)
    last = run["summary"]["last"]["masses"] if done == epochs else None
    early = [row for row in rows if row["step"] == EPOCHS + 1]  # a row has the masses before its step
    return {
        "early": last if epochs == EPOCHS else [early[0][f"Masses/{i}"] for i in (1, 2, 3)] if early else None,
        "end": last if epochs == WHOLE else None,
        "norm": rows[0]["Train/GradientNorm"],
        "seconds": working_seconds(run) * WHOLE / epochs,
        "environment": run["environment"],
    }


def far(masses):
    """Whether a mass is off by more than `FAR`."""
    return max(abs(mass - true) for mass, true in zip(masses, PAPER.masses)) > FAR


def fate(run):
    """What became of a whole run, one of `FATES`; None of another."""
    if run["early"] is None or run["end"] is None:
        return None
    return FATES[0] if far(run["early"]) else FATES[1] if far(run["end"]) else FATES[2]


def _counted(runs):
    """Cells: how many runs there are after `EPOCHS` and at the end, how many of them are in a wrong valley, and the
    first gradients of those that are early."""
    early, whole = ([run for run in runs if run[when] is not None] for when in ("early", "end"))
    norms = [sorted(run["norm"] for run in early if far(run["early"]) == lost) for lost in (True, False)]
    ranges = [f"{some[0]:.2g} to {some[-1]:.2g}" if some else "" for some in norms]
    at_end = [str(len(whole)), str(sum(far(run["end"]) for run in whole))] if whole else ["", ""]
    return [str(len(early)), str(len(norms[0])), *ranges, *at_end]


def valleys(root):
    """The section on wrong valleys; empty where nothing was run."""
    found = newton_runs(root)
    lines = []
    for profile, tolerance in TOLERANCES.items():
        for method in METHODS:
            own = list(found.get((profile, method), {}).values())
            if own:
                lines.append([f"ode-{method}", tolerance, *_counted(own)])
    if not lines:
        return ""
    kinds = [(f"{method} at {TOLERANCES[profile]}", run["environment"])
             for (profile, method), own in found.items() for run in own.values()]  # fmt: skip
    header = [
        "model", "tolerance", "seeds", f"in a wrong valley after {EPOCHS} epochs", "norm of their first gradients",
        "of the others'", f"seeds of {WHOLE} epochs", "in a wrong valley at their end",
    ]  # fmt: skip
    return (
        f"## Wrong valleys: a mass off by more than {FAR:g}, learning rate 0.1\n\n"
        f"{table(header, lines)}\n"
        f"{origins(kinds)}\n\n{verdict_table(comparisons(root))}"
    )


def comparisons(root):
    """What is claimed of the ends of whole runs, on the seeds that both sides have."""
    found = newton_runs(root)
    claims = (
        ("ode-aca ends in a wrong valley less often than ode-naive, both at 1e-5",
         ("paper", "aca"), ("paper", "naive")),
        ("ode-aca ends in a wrong valley less often than ode-adjoint, both at 1e-5",
         ("paper", "aca"), ("paper", "adjoint")),
        ("ode-aca ends in a wrong valley less often at 1e-7 than at 1e-5", ("tight", "aca"), ("paper", "aca")),
        ("ode-aca ends in a wrong valley less often in a time of its own, at 1e-5",
         ("paper", "aca-own-time"), ("paper", "aca")),
    )  # fmt: skip
    return [_comparison(claim, *(found.get(side, {}) for side in sides)) for claim, *sides in claims]


def _comparison(claim, *sides):
    whole = [{seed: run for seed, run in side.items() if run["end"] is not None} for side in sides]
    hours = hours_each(*([run["seconds"] for run in side.values()] for side in whole))
    return Counts(claim, *({seed: far(run["end"]) for seed, run in side.items()} for side in whole), -1, hours=hours)
