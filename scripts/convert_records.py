"""Convert the records of runs from before all experiments had one layout. What was converted says so in its run.json.

No measured number changes. What was named differently gets its present name: `--preset` is `--profile`, settings stand
under "settings" in run.json, test.json becomes a row of tests.jsonl, the checkpoints of CIFAR are called checkpoint.pt
and best.pt. The command lines that were typed are kept as they were.
"""

import json
from pathlib import Path

from cifar_classification.experiment import OTHERS, PAPER
from harness import environment
from harness.cli import ArgumentParser, UsageError, run_main
from harness.experiment import BEST, LAST
from harness.files import write_text
from harness.record import parsed
from harness.testing import RECORD, add_test

NAMES = {"checkpoint.pth.tar": LAST, "model_best.pth.tar": BEST}
TAGS = {"Solver/Evaluations": "Solver/Forward", "Solver/BackwardEvaluations": "Solver/Backward"}
SCRIPT = "scripts/convert_records.py"


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folders below which runs of train.py lie")
    converted = 0
    for root in map(Path, parser.parse_args(argv).folders):
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder")
        converted += sum(convert(path.parent) for path in sorted(root.glob("**/run.json")))
    print(f"{converted} records converted")


def convert(folder):
    """Convert the record in a folder; returns whether that was needed. What train.py has not written stays."""
    path = folder / "run.json"
    run = parsed(path.read_bytes(), path, ("arguments", "environment"))
    arguments, command = run["arguments"], run["environment"]["command"]
    script = command.split()[1]
    if script == "van_der_pol/test.py" and arguments.get("resume"):
        _move_test(folder, arguments, run)
        return True
    if "settings" in run or Path(script).name not in ("train.py", "speed.py"):
        return False
    changed = {"cifar_classification": cifar, "van_der_pol": van_der_pol}.get(Path(script).parent.name, others)(
        folder, arguments, run
    )
    run["converted"] = {"by": SCRIPT, "changed": changed, "date": environment.describe()["date"]}
    _write(folder / "run.json", run)
    return True


def others(folder, arguments, run):
    """three_body and latent_ode_mujoco."""
    changed = ["preset is called profile", "settings stand beside the arguments, with the defaults of new ones"]
    settings = arguments.pop("settings")
    for names in (arguments, settings):
        names["profile"] = names.pop("preset")
    if settings.get("gradient"):
        settings |= {"h": None, "compile": False}
    run["settings"] = settings
    summary = _read(folder / "summary.json")
    if "title" in summary:
        summary["title"] = _title(summary["title"])
        _write(folder / "summary.json", summary)
    if (folder / "test.json").exists():
        test = _read(folder / "test.json")
        title, training, environment_ = (test.pop(name) for name in ("title", "training", "environment"))
        weights = test.pop("weights", "last")
        epoch = test.pop("epoch", summary["epochs"])
        test |= {"as_trained": "--method" not in environment_["command"], "environment": environment_}
        row = {"title": _title(title), "checkpoint": BEST if weights == "best" else LAST, "epoch": epoch}
        write_text(folder / RECORD, json.dumps(row | {"training": training} | test) + "\n")
        (folder / "test.json").unlink()
        changed.append(f"test.json is the row of {RECORD}")
    return changed


def cifar(folder, arguments, run):
    changed = ["settings stand beside the arguments, with the defaults of new ones", "the summary has the status"]
    run["settings"] = {name: arguments.get(name) for name in (*OTHERS, *PAPER)}
    summary = folder / "summary.json"
    if summary.exists():
        epochs = run["resumed"][-1]["arguments"]["epochs"] if run["resumed"] else arguments["epochs"]
        _write(summary, {"status": "finished", "epochs": epochs, **_read(summary)})
        run["settings"]["epochs"] = epochs
    if (folder / RECORD).exists():
        rows = [json.loads(line) for line in (folder / RECORD).read_text().splitlines()]
        for row in rows:
            row["checkpoint"] = NAMES[row["checkpoint"]]
            typed = row["environment"]["command"].split()
            row["as_trained"] = not {"--method", "--all-solvers"} & set(typed)
        write_text(folder / RECORD, "".join(json.dumps(row) + "\n" for row in rows))
        changed.append("checkpoints are called " + " and ".join(f"{new}, not {old}" for old, new in NAMES.items()))
    for old, new in NAMES.items():
        if (folder / old).exists():
            (folder / old).rename(folder / new)
    return changed


def van_der_pol(folder, arguments, run):
    own = {name: arguments[name] for name in ("problem", "seed", "lr", "gradient", "rtol", "atol")}
    method = "ALF" if own["gradient"] == "mali" else "Dopri5"
    own |= {"method": method, "h": None, "max_evals": 5_000, "compile": False}
    run["settings"] = {"profile": "standard", "epochs": arguments["iterations"], **own}
    metrics = folder / "metrics.jsonl"
    text = metrics.read_text() if metrics.exists() else ""  # none where the first step failed
    for old, new in TAGS.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    if text:
        write_text(metrics, text)
    summary = _read(folder / "summary.json")
    _write(folder / "summary.json", {"epochs" if key == "iterations" else key: summary[key] for key in summary})
    renamed = ", ".join(f"{old} is called {new}" for old, new in TAGS.items())
    return [
        "settings stand beside the arguments, with the defaults of new ones",
        "iterations are called epochs",
        renamed,
    ]


def _move_test(folder, arguments, run):
    """A test of van_der_pol was a record of its own: make it a row of the tests of the run that was tested."""
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tested = folder.parents[1] / "train" / row.pop("run")
    del row["step"], row["seconds"]
    solver = {name: arguments[name] for name in ("method", "rtol", "atol")}
    epochs = _read(tested / "summary.json")
    row = {"checkpoint": LAST, "epoch": epochs.get("epochs", epochs.get("iterations")), "solver": solver} | row
    converted = {"by": SCRIPT, "changed": [f"was a record of its own, {folder.name}"]}
    row |= {"as_trained": False, "environment": run["environment"], "converted": converted}
    add_test(tested, row)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _title(text):
    return text.replace(" preset", " profile")


def _read(path):
    return json.loads(path.read_text())


def _write(path, content):
    write_text(path, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
