"""Tables over all runs, rendered from their records: runs.csv, one row a run, and tables.md, one row a model."""

from pathlib import Path

from harness.cli import run_main
from harness.environment import origins
from harness.experiment import BEST
from harness.files import write_text
from harness.record import read_epochs, read_run, working_seconds
from harness.tables import replace_measured, results_folder, spread, table, write_runs
from harness.testing import runs_tested
from harness.training import FINISHED
from harness.verdicts import Means, hours_each, verdict_table
from three_body.data import PAPER, System, simulate, time_grid
from three_body.experiment import PROFILES, ThreeBody, label
from three_body.findings import first_gradient, later_gradients, valleys
from three_body.models import RECURRENT

README = Path(__file__).parent / "README.md"
RESULTS = ThreeBody().results
COMPARED = ("adjoint", "naive", "aca")
CONSTANT = "constant"  # predicts the mean positions of the training data at all times: knows nothing
EXPLODED = 1e3  # norm of a gradient; where training goes well it is a few units at most
LABELS = (*RECURRENT, *(f"{model}-{gradient}" for model in ("node", "ode") for gradient in COMPARED))
COLUMNS = (
    "profile", "system", "label", "seed", "status", "mse", "mse_trained", "mass_error", "last_mass_error",
    "energy_drift", "momentum_drift", "gradient_norm", "seconds", "forward", "backward", "epochs", "parameters",
    "prediction",
)  # fmt: skip
HEADINGS = {
    "mse": "MSE [0, 2]",
    "mse_trained": "MSE [0, 1]",
    "mass_error": "mass error",
    "last_mass_error": "mass error, last epoch",
    "energy_drift": "energy drift",
    "momentum_drift": "momentum drift",
    "gradient_norm": "largest gradient norm",
    "seconds": "seconds",
    "forward": "NFE forward",
    "backward": "NFE backward",
}
_QUICK, _PAPER = ([PROFILES[name][family]["epochs"] for family in ("recurrent", "ode")] for name in ("quick", "paper"))
TITLES = {
    "released": "Settings of the authors' script (`--profile released`)",
    "paper": "Settings of the paper (`--profile paper`)",
    "tight": "Settings of the paper with the tolerance of the authors' script (`--profile tight`)",
    "quick": f"Quick, scaled down: {_QUICK[0]} of {_PAPER[0]} epochs (LSTM), {_QUICK[1]} of {_PAPER[1]}",
}


def collect(root):
    """One dict with COLUMNS and ``folder`` for each tested run below ``root``, in the order of the tables."""
    rows = [_row(*found) for found in runs_tested(ThreeBody(), root, BEST)]
    return sorted(rows, key=lambda row: (row["profile"], row["system"], _rank(row["label"]), row["seed"]))


def _rank(name):
    return (LABELS.index(name) if name in LABELS else len(LABELS), name)


def _row(folder, run, test):
    settings, summary = run["settings"], run["summary"]
    last, true = summary["last"]["masses"], settings["system"]["masses"]
    return {
        **{name: test[name] for name in COLUMNS if name in test},
        **{name: summary[name] for name in ("status", "epochs", "parameters")},
        "seconds": working_seconds(run),
        **(summary["evaluations"] or {"forward": None, "backward": None}),
        "profile": settings["profile"],
        "system": settings["system"]["name"],
        "label": label(settings),
        "seed": settings["seed"],
        "gradient_norm": max((row["Train/GradientNorm"] for row in read_epochs(folder)), default=None),
        "last_mass_error": last and max(abs(m - t) for m, t in zip(last, true)),
        "environment": run["environment"],
        "folder": folder,
    }


def tables(rows, root):
    """The text of tables.md."""
    parts = ["# Three-body problem: results\n\nWritten by `python three_body/report.py` from the records beside it.\n"]
    for profile, title in TITLES.items():
        own = [row for row in rows if row["profile"] == profile]
        for systems, chosen in (
            ("the paper's system", [row for row in own if row["system"] == PAPER.name]),
            ("other systems", [row for row in own if row["system"] != PAPER.name]),
        ):
            if chosen:
                parts.append(_table(f"{title}: {systems}", chosen))
    if found := comparisons(rows):
        parts.append(f"## The paper's claims, at its settings and on its system\n\n{verdict_table(found)}")
    parts += findings(root)
    parts.append(
        "Mean ± standard deviation over the runs. MSE: over time, bodies and axes, for the weights of "
        "least training error. Mass error: the largest of the three. Constant: the mean positions on [0, 1], "
        "at all times. Largest gradient norm: of the loss, over all epochs. Drifts: largest deviation of the "
        "prediction from the true energy (relative) and momentum (relative to the bodies' momenta). Blank: not run, or "
        "no number. Seconds: of the processor; of runs that did not record them, of the clock, on a machine that was "
        "shared with other work.\n"
    )
    return "\n".join(parts)


def findings(root):
    """The sections on the gradients of Newton's law."""
    return [text for text in (first_gradient(root), valleys(root), later_gradients(root)) if text]


def comparisons(rows):
    """The paper's claims on the error over [0, 2], at its settings and on its system."""
    rows = [row for row in rows if (row["profile"], row["system"]) == ("paper", PAPER.name)]
    pairs = [(f"{model}-aca", f"{model}-{other}") for model in ("node", "ode") for other in ("adjoint", "naive")]
    pairs += [("ode-aca", "node-aca"), ("node-aca", "lstm-aug"), ("node-aca", "lstm")]
    return [_comparison(rows, ours, theirs) for ours, theirs in pairs] if rows else []


def _comparison(rows, ours, theirs):
    """Of the runs that finished. Errors range over orders of magnitude, so their logarithms are compared; paired where
    the weights begin alike."""
    sides = [[row for row in rows if row["label"] == name] for name in (ours, theirs)]
    errors = ({row["seed"]: row["mse"] if row["status"] == FINISHED else None for row in side} for side in sides)
    same_model = ours.partition("-")[0] == theirs.partition("-")[0]
    hours = hours_each(*([row["seconds"] for row in side] for side in sides))
    return Means(f"{ours} has less error than {theirs}", *errors, -1, same_model, hours, logs=True)


def _table(title, rows):
    lines, failures = [], []
    for name in (CONSTANT, *sorted({*LABELS, *(row["label"] for row in rows)}, key=_rank)):
        own = [row for row in rows if row["label"] == name]
        cells = [spread([row[key] for row in own], ".2e", deviation_form=".1e") for key in HEADINGS]
        if name == CONSTANT:
            cells = [_constant(rows, key) for key in HEADINGS]
        lines.append([name, str(len(own) or ""), *cells])
        for row in own:
            for stage, outcome in (("training", row["status"]), ("prediction", row["prediction"])):
                if outcome != FINISHED:
                    failures.append(f"- {name}, {row['system']} system, seed {row['seed']}, {stage}: {outcome}\n")
    kinds = origins([(row["label"], row["environment"]) for row in rows])
    text = f"## {title}\n\n{table(['model', 'runs', *HEADINGS.values()], lines)}\n{exploded(rows)}{kinds}\n"
    return text + ("\nFailures (means leave out what has no number):\n\n" + "".join(failures) if failures else "")


def exploded(rows):
    """A paragraph on the models whose gradients exploded, with how many of their runs; nothing if there are none."""
    parts, found = [], False
    for name in sorted({row["label"] for row in rows}, key=_rank):
        norms = [row["gradient_norm"] for row in rows if row["label"] == name and row["gradient_norm"] is not None]
        if largest := [norm for norm in norms if norm > EXPLODED]:
            parts.append(f"{name} in {len(largest)} of {len(norms)} runs, up to {max(norms):.1e}")
            found = True
        elif norms:
            parts.append(f"{name} in none, at most {max(norms):.2g}")
    return f"Gradients of norm above {EXPLODED:g}: {'; '.join(parts)}.\n\n" if found else ""


def _constant(rows, key):
    """The error of the mean positions on [0, 1], of the systems of these rows, on the times that ``key`` stands for."""
    until = {"mse": 2.0, "mse_trained": 1.0}.get(key)
    if until is None:
        return ""
    systems = {row["system"]: row["folder"] for row in rows}
    return spread([constant_error(read_run(folder), until) for folder in systems.values()], ".2e", deviation_form=".1e")


def constant_error(run, until):
    """The mean squared error until then of a prediction that stays at the mean positions of the training data."""
    settings = run["settings"]
    times = time_grid(settings["until"][1], settings["points"])
    positions = simulate(System(**settings["system"]), times)[:, :3]
    mean = positions[times <= settings["until"][0] + 1e-9].mean(0)
    return float(((positions - mean)[times <= until + 1e-9] ** 2).mean())


def main(argv=None):
    root = results_folder(argv, "Write runs.csv and tables.md from the records of all runs.", ThreeBody(), packs=True)
    rows = collect(root)
    write_runs(root / "runs.csv", COLUMNS, rows)
    write_text(root / "tables.md", tables(rows, root))
    if root.resolve() == RESULTS:
        replace_measured(README, "three_body/report.py", "\n".join(findings(root)).replace("\n## ", "\n### "))
    print(f"{len(rows)} runs -> {root / 'tables.md'}")


if __name__ == "__main__":
    run_main(main)
