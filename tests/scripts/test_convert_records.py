"""Records from before all experiments had one layout, as they were written then."""

import importlib.util
import json

import pytest

from cifar_classification.runs import collect
from harness.environment import ROOT
from harness.experiment import BEST, LAST
from harness.record import read_epochs, read_run
from harness.testing import own_test, read_tests
from three_body import report as three_body_report
from van_der_pol import tables

spec = importlib.util.spec_from_file_location("convert_records", ROOT / "scripts" / "convert_records.py")
convert_records = importlib.util.module_from_spec(spec)
spec.loader.exec_module(convert_records)


def write(folder, command, arguments, **files):
    folder.mkdir(parents=True)
    environment = {"command": f"python {command}", "cpu": "some CPU", "gpus": [], "threads": 1}
    run = {"arguments": arguments, "seed": 0, "environment": environment, "resumed": []}
    texts = {"run.json": run} | {name.replace("_", "."): content for name, content in files.items()}
    for name, content in texts.items():
        rows = content if isinstance(content, list) else [content]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def three_body(tmp_path):
    system = {"name": "paper", "masses": [1.0, 1.0, 1.0]}
    settings = {"model": "ode", "preset": "quick", "system": system, "seed": 0, "gradient": "aca", "epochs": 20}
    evaluations = {"forward": 5, "backward": 4}
    summary = {"status": "finished", "epochs": 20, "parameters": 3, "evaluations": evaluations, "seconds": 2.0,
               "last": {"masses": [1.1, 1.0, 1.0]}}  # fmt: skip
    test = {"title": "ODE-ACA, quick preset", "weights": "best", "epoch": 15, "training": "finished", "mse": 0.25,
            "prediction": "finished", "environment": {"command": "python three_body/test.py c.pt --out x"}}  # fmt: skip
    return write(tmp_path / "quick/paper/ode-aca/seed0", "three_body/train.py --preset quick",
                 {"preset": "quick", "settings": settings}, summary_json=summary, test_json=test)  # fmt: skip


def test_a_test_becomes_a_row_and_no_number_changes(three_body, tmp_path, capsys):
    convert_records.main([str(tmp_path)])
    run = read_run(three_body)
    assert run["settings"]["profile"] == run["arguments"]["profile"] == "quick" and "preset" not in run["settings"]
    assert run["environment"]["command"].endswith("--preset quick")  # as it was typed
    assert run["converted"]["by"] == "scripts/convert_records.py" and run["converted"]["changed"]
    row = own_test(three_body, BEST)
    assert (row["mse"], row["epoch"], row["title"]) == (0.25, 15, "ODE-ACA, quick profile")
    assert not (three_body / "test.json").exists()
    (found,) = three_body_report.collect(tmp_path)
    assert (found["mse"], found["seconds"], found["label"]) == (0.25, 2.0, "ode-aca")
    before = (three_body / "run.json").read_text()
    convert_records.main([str(tmp_path)])
    assert (three_body / "run.json").read_text() == before
    assert "0 records converted" in capsys.readouterr().out


def test_cifars_checkpoints_are_renamed(tmp_path):
    arguments = {"profile": "quick", "dataset": "cifar10", "network": "resnet", "model": "ode", "width": 16,
                 "epochs": 3, "gradient": "aca"}  # fmt: skip
    solver = {"method": "Euler", "h": 0.2}
    tests = [{"checkpoint": "model_best.pth.tar", "epoch": 3, "solver": solver, "test_accuracy": 0.5,
              "environment": {"command": "python cifar_classification/test.py --method euler"}}]  # fmt: skip
    folder = write(tmp_path / "run", "cifar_classification/train.py", arguments,
                   summary_json={"test_accuracy": 0.75}, tests_jsonl=tests)  # fmt: skip
    (folder / "checkpoint.pth.tar").write_text("x")
    convert_records.main([str(tmp_path)])
    assert (folder / LAST).read_text() == "x"
    (row,) = read_tests(folder)
    assert (row["checkpoint"], row["test_accuracy"], row["as_trained"]) == (BEST, 0.5, False)
    (run,) = collect(tmp_path)
    assert run.summary["test_accuracy"] == 0.75 and "3 of 90 epochs" in run.title


def test_van_der_pols_tags_and_its_tests(tmp_path):
    arguments = {"problem": "neural", "seed": 0, "lr": 0.05, "gradient": "mali", "rtol": 1e-3, "atol": 1e-6,
                 "iterations": 40}  # fmt: skip
    rows = [{"step": 1, "Solver/Evaluations": 9.0, "Solver/BackwardEvaluations": 8.0, "seconds": 1.0}]
    folder = write(tmp_path / "train/neural_mali_seed0", "van_der_pol/train.py", arguments,
                   metrics_jsonl=rows, summary_json={"status": "finished", "iterations": 40})  # fmt: skip
    test = {"step": 0, "run": "neural_mali_seed0", "rmse": 0.5, "seconds": 0.1}
    solver = {"resume": "c.pt", "method": "RK23", "rtol": 1e-3, "atol": 1e-6}
    tested = write(tmp_path / "test/x", "van_der_pol/test.py --resume c.pt", solver, metrics_jsonl=[test])
    convert_records.main([str(tmp_path)])
    (run,) = tables.training_runs(tmp_path / "train")
    assert run["summary"]["epochs"] == 40 and run["settings"]["method"] == "ALF"
    (row,) = read_epochs(folder)
    assert (row["Solver/Forward"], row["Solver/Backward"]) == (9.0, 8.0)
    (test,) = read_tests(folder)
    assert (test["rmse"], test["solver"]["method"]) == (0.5, "RK23") and test["converted"] and not tested.exists()
