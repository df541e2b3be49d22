"""Tables of the records, into tables.md beside them and into the README."""

from pathlib import Path
from statistics import mean, stdev

from harness.environment import origins
from harness.files import write_text
from harness.record import read_epochs, trainings, working_seconds
from harness.tables import replace_measured, table
from harness.training import FINISHED
from harness.verdicts import Counts, Means, hours_each, verdict_table
from van_der_pol import records
from van_der_pol.data import MU, START

README = Path(__file__).parent / "README.md"
PROBLEM_TITLES = {"parameter": "the equation's parameter", "neural": "neural field"}
GRADIENTS = ("aca", "direct", "naive", "adjoint", "mali")
# rows of the paper's table 1; m tries per step, N_f layers of f, N_t accepted steps
PAPER = {"naive": ("N_f N_t m", "N_f N_t m", "2 N_f N_t m"), "aca": ("N_f N_t", "N_f + N_t", "N_f N_t (m + 1)")}


def write(folder):
    """Write all tables that have records to ``folder``/tables.md, the project's results into the README too."""
    makers, places = (reconstruction, gradient_error, picture, depth, train), records.places(folder)
    text = "\n".join(make(places[make.__name__]) for make in makers if make.__name__ in places)
    write_text(folder / "tables.md", text)
    if folder.resolve() == records.RESULTS:
        replace_measured(README, "plot.py", f"\n{text}\n")


def reconstruction(folder):
    rows = [row for row in records.read(folder, kind="error", sweep="horizon") if row["start"] == 0]
    horizons = list(dict.fromkeys(row["horizon"] for row in rows))
    labels = ("adjoint", "scipy", "mali", "aca", "direct")
    found = {(row["label"], row["horizon"]): row for row in rows}
    lines = [[f"{T:g}", *(_error(found.get((label, T))) for label in labels)] for T in horizons]
    solver = rows[0]
    text = _table(
        f"Distance of what is rebuilt from the forward trajectory (at t = 0; for ACA and direct the largest of all "
        f"steps), paper's start {START}, RK45 at rtol {solver['rtol']:g}, atol {solver['atol']:g}",
        ["T", "adjoint: solved back", "scipy, solved back", "MALI: inverted", "ACA: replayed", "direct: kept"],
        lines,
    )
    rows = records.read(folder, kind="error", sweep="tolerance")
    found = {(row["label"], row["method"], row["rtol"]): row for row in rows}
    tolerances = list(dict.fromkeys(row["rtol"] for row in rows))
    lines = []
    for tolerance in tolerances:
        ours, scipys = found["adjoint", "RK45", tolerance], found["scipy", "RK45", tolerance]
        apart = max(abs(a - b) for a, b in zip(ours["rebuilt"], scipys["rebuilt"])) if "rebuilt" in ours else None
        cells = [_error(found[key]) for key in (("adjoint", m, tolerance) for m in ("RK12", "RK23", "RK45"))]
        cells += [_number(apart), _error(found["mali", "ALF", tolerance]), _error(found["aca", "RK45", tolerance])]
        lines.append([f"{tolerance:.0e}", *cells])
    replays = [row for row in records.read(folder, kind="error") if "bit_for_bit" in row]
    steps = sum(row["n_accepted"] for row in replays)
    same = sum(row["bit_for_bit"] for row in replays)
    return (
        text
        + _table(
            f"The same against rtol at T = {rows[0]['horizon']:g} (atol = rtol / 1000)",
            ["rtol", "RK12", "RK23", "RK45", "RK45, ours - scipy's", "MALI", "ACA, RK45"],
            lines,
        )
        + f"In {same} of {len(replays)} solves ({steps} steps) every replayed state is the stored one bit for bit.\n"
    )


def gradient_error(folder):
    text = ""
    toy = records.read(folder, problem="toy")
    end = max(row["horizon"] for row in toy)
    lines = []
    solvers = list(dict.fromkeys((row["library"], row["gradient"]) for row in toy))
    for library, gradient in solvers:
        cells = []
        for flow in ("growing", "contracting"):
            for value in ("error_start", "error_parameter"):
                chosen = {"library": library, "gradient": gradient, "flow": flow, "horizon": end}
                cells.append(_spread([row[value] for row in records.read(folder, problem="toy", **chosen)]))
        lines.append([gradient, library, *cells])
    text += _table(
        f"Relative errors of the toy's gradients at T = {end:g}, rtol = atol = {toy[0]['rtol']:g}, mean and standard "
        "deviation over starts",
        ["method", "library", "growing, dL/dz0", "growing, dL/dk", "contracting, dL/dz0", "contracting, dL/dk"],
        lines,
    )
    rows = records.read(folder, problem="van der Pol")
    tolerances = list(dict.fromkeys(row["rtol"] for row in rows))
    lines = []
    for library, gradient in solvers:
        found = {row["rtol"]: row for row in rows if (row["library"], row["gradient"]) == (library, gradient)}
        lines.append([gradient, library, *(_error(found[tol], "error_start") for tol in tolerances)])
    return text + _table(
        f"Relative error of the gradient of |y(T)|^2 in y(0), van der Pol, T = {rows[0]['horizon']:g}, against rtol",
        ["method", "library", *(f"{tol:.0e}" for tol in tolerances)],
        lines,
    )


def picture(folder):
    rows = records.read(folder, sweep="kernel")
    lines = []
    for label in ("adjoint", "aca"):
        errors = [row["error"] for row in rows if row["label"] == label]
        lines.append([label, *(_spread(column) for column in list(zip(*errors))[:-1])])
    times = rows[0]["t"][:-1]
    kernels = sum(row["label"] == "aca" for row in rows)
    return _table(
        f"Relative error of the rebuilt photograph, mean and standard deviation over {kernels} kernels",
        ["method", *(f"t = {t:g}" for t in times)],
        lines,
    )


def depth(folder):
    rows = records.read(folder)
    lines = []
    for shrink in dict.fromkeys(row["shrink"] for row in rows):
        for gradient in dict.fromkeys(row["gradient"] for row in rows):
            chosen = records.read(folder, shrink=shrink, gradient=gradient)
            work = [row["n_f_evals"] + row["n_backward_f_evals"] + row["n_vjps"] for row in chosen]
            values = {
                "m": [row["tries_per_step"] for row in chosen],
                "depth": [row["depth"] for row in chosen],
                "bytes": [row["held_bytes"] for row in chosen],
                "work": work,
                "error": [row["error"] for row in chosen],
            }
            lines.append([gradient, *(_spread(v) for v in values.values())])
    head = ["method", "tries per step m", "graph depth", "bytes held", "evaluations + VJPs", "gradient error"]
    text = _table("Growth with the tries per step, mean and standard deviation over fields", head, lines)
    lines = [[gradient, *formulas, *growth(rows, gradient)] for gradient, formulas in PAPER.items()]
    return text + _table(
        "The paper's table 1, and by what factor the means grew between the smallest and the largest m measured",
        ["method", "depth", "memory", "computation", "m grew", "depth grew", "bytes grew", "work grew"],
        lines,
    )


def growth(rows, gradient):
    """By what factors tries, depth, bytes and work grew between the first and the last shrinking factor, as texts."""
    rows = [row for row in rows if row["gradient"] == gradient]
    ends = [[row for row in rows if row["shrink"] == end["shrink"]] for end in (rows[0], rows[-1])]
    values = (
        lambda row: row["tries_per_step"],
        lambda row: row["depth"],
        lambda row: row["held_bytes"],
        lambda row: row["n_f_evals"] + row["n_backward_f_evals"] + row["n_vjps"],
    )
    return [f"{mean(map(value, ends[1])) / mean(map(value, ends[0])):.2f}" for value in values]


def train(folder):
    runs = training_runs(folder)
    lines = []
    for problem in PROBLEM_TITLES:
        for gradient in GRADIENTS:
            chosen = trained(runs, problem, gradient)
            if not chosen:
                continue
            complete = [run for run in chosen if run["summary"]["status"] == FINISHED]
            last = [run["rows"][-1] for run in complete]
            lines.append([
                PROBLEM_TITLES[problem], gradient, f"{len(complete)} of {len(chosen)}",
                _spread([row["Train/Loss"] for row in last]),
                _spread([abs(row["Train/Parameter"] - MU) for row in last]) if problem == "parameter" else "",
                _spread([run["summary"]["test"]["rmse"] for run in complete]),
                _spread([max(row["Train/GradientNorm"] for row in run["rows"]) for run in complete]),
                _spread([mean(row["Solver/Forward"] for row in run["rows"]) for run in complete]),
                _spread([mean(row["Solver/Backward"] for row in run["rows"]) for run in complete]),
                _spread([mean(row["Solver/SavedBytes"] for row in run["rows"]) for run in complete]),
                _spread([working_seconds(run) for run in complete]),
            ])  # fmt: skip
    text = _table(
        "Training: mean and standard deviation over the seeds that finished",
        [
            "problem", "method", "finished", "last loss", "error of the parameter", "RMSE to the truth",
            "largest gradient norm", "evaluations forward", "backward", "bytes held", "processor seconds",
        ],  # fmt: skip
        lines,
    )  # fmt: skip
    kinds = origins((f"{PROBLEM_TITLES[run['problem']]} ({run['gradient']})", run["environment"]) for run in runs)
    return f"{text}{kinds}\n\n{verdict_table(comparisons(runs))}"


def comparisons(runs):
    """That ACA trains the better fields: RMSE to the truth, which ranges over orders of magnitude, paired by seed; and
    that its runs fail less often."""
    fails = [
        Counts(f"runs of aca fail less often than those of {other}, {PROBLEM_TITLES[problem]}", *sides, -1)
        for problem in PROBLEM_TITLES
        for other in ("adjoint", "naive")
        for both in [[_by_seed(runs, problem, gradient) for gradient in ("aca", other)]]
        for sides in [[{seed: _failed(run) for seed, run in side.items()} for side in both]]
        if any(any(side.values()) for side in sides)
    ]
    return fails + [
        Means(f"aca ends nearer the truth than {other}, {PROBLEM_TITLES[problem]}", *sides, -1, True, hours, logs=True)
        for problem in PROBLEM_TITLES
        for other in ("adjoint", "naive")
        for both in [[_by_seed(runs, problem, gradient) for gradient in ("aca", other)]]
        for sides in [[{seed: _rmse(run) for seed, run in side.items()} for side in both]]
        for hours in [hours_each(*([working_seconds(run) for run in side.values()] for side in both))]
    ]


def trained(runs, problem, gradient):
    """The runs of a problem and method."""
    return [run for run in runs if (run["problem"], run["gradient"]) == (problem, gradient)]


def _by_seed(runs, problem, gradient):
    return {run["settings"]["seed"]: run for run in trained(runs, problem, gradient)}


def _failed(run):
    """Whether it ended early."""
    return run["summary"]["status"] != FINISHED


def _rmse(run):
    """None where the run, or its test, failed."""
    return None if _failed(run) else run["summary"]["test"]["rmse"]


def training_runs(folder):
    """The complete runs at any depth below a folder: dicts of settings, problem, gradient, summary and rows."""
    runs = []
    for place, record in trainings(folder, records.RESULTS.name):
        if record["summary"] is None:
            continue
        settings = record["settings"]
        chosen = {name: settings[name] for name in ("problem", "gradient")}
        runs.append({"settings": settings, **chosen, "summary": record["summary"], "rows": read_epochs(place)}
                    | {"environment": record["environment"], "resumed": record["resumed"]})  # fmt: skip
    return runs


def _table(title, head, lines):
    return f"**{title}**\n\n{table(head, lines)}\n"


def _error(row, value="error"):
    if row is None:
        return ""
    return _number(row[value]) if row[value] is not None else "did not finish"


def _number(value):
    return "" if value is None else "0" if value == 0 else f"{value:.2g}"


def _spread(values):
    """Mean and standard deviation of what finished."""
    done = [value for value in values if value is not None]
    if not done:
        return "did not finish"
    lost = f" ({len(values) - len(done)} did not finish)" if len(done) < len(values) else ""
    middle = f"{mean(done):.3g}" if mean(done) else "0"
    return middle + (f" ± {stdev(done):.2g}" if len(done) > 1 and stdev(done) else "") + lost
