"""The command line, loop and record that all experiments share, on the smallest one."""

import json
from pathlib import Path

import pytest
import torch

from harness.checkpoint import save_checkpoint
from harness.cli import UsageError
from harness.experiment import BEST, LAST
from harness.record import Run, read_epochs, read_metrics, read_run
from harness.testing import own_test, read_tests, runs_tested
from harness.testing import test as run_test
from harness.training import train
from tests.comparing import assert_equal, outcome
from tests.harness import toy
from tests.harness.toy import Toy, ToyTraining


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "results", tmp_path / "results")
    return tmp_path / "results"


def run(*flags):
    return train(Toy(), list(flags))


def test_a_new_experiment_is_under_150_lines():
    assert len(Path(toy.__file__).read_text().splitlines()) < 150


@pytest.mark.parametrize("profile", ["paper", "batched"])
@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, profile, after, capsys):
    flags = ["--profile", profile, "--epochs", "3"]
    assert run(*flags, "--out", str(tmp_path / "whole")) == 0
    parts = str(tmp_path / "parts")
    code = run(*flags, "--out", parts, "--stop-after", str(after))
    if code == 0:  # it had fewer steps
        assert profile == "paper" and after >= 3
        return
    assert code == 130 and f"python toy/train.py --resume {parts}" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "summary.json").exists()
    for resumed in (["--resume", parts, "--stop-after", str(after + 1)], ["--resume", f"{parts}/{LAST}"]):
        run(*resumed)
    assert_equal(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))
    best = [torch.load(tmp_path / name / BEST, weights_only=True) for name in ("whole", "parts")]
    assert_equal(*best)


def test_auto_starts_goes_on_and_leaves_alone(results, capsys):
    assert run("--resume", "auto", "--stop-after", "3") == 130
    assert run("--resume", "auto") == 0
    assert [row["step"] for row in read_metrics(results / "paper/seed0")] == [1, 2, 3, 4, 5, 6]
    before = outcome(results / "paper/seed0")
    assert run("--resume", "auto") == run("--resume", str(results / "paper/seed0")) == 0
    assert capsys.readouterr().out.count("finished already") == 2
    assert_equal(outcome(results / "paper/seed0"), before)
    assert run("--resume", "auto", "--epochs", "7") == 0
    assert len(read_epochs(results / "paper/seed0")) == read_run(results / "paper/seed0")["settings"]["epochs"] == 7


def test_a_failure_is_exit_code_1_with_a_row_and_stays_one(results, capsys):
    flags = ["--max-evals", "3"]
    assert run(*flags) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: failed in epoch 1: max_evals = 3 was reached") and message.count("\n") == 1
    (row,) = read_metrics(results / "paper/seed0")
    assert row["step"] == 1 and "max_evals" in row["error"] and read_epochs(results / "paper/seed0") == []
    assert read_run(results / "paper/seed0")["summary"]["status"].startswith("failed in epoch 1")
    assert run("--resume", "auto", *flags) == 1
    assert "already" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_leaves_the_weights(results, monkeypatch):
    ordinary = ToyTraining.loss

    def loss(self):
        value, *others = ordinary(self)
        return value * (float("nan") if self.step == 2 else 1.0), *others

    monkeypatch.setattr(ToyTraining, "loss", loss)
    assert run() == 1
    state = torch.load(results / "paper/seed0" / LAST, weights_only=True)
    assert state["epoch"] == 2 and all(value.isfinite().all() for value in state["model"].values())
    assert "loss nan" in read_metrics(results / "paper/seed0")[-1]["error"]


def test_best_is_of_the_least_loss(results):
    run("--lr", "3")
    rows = read_epochs(results / "paper/seed0")
    best = torch.load(results / "paper/seed0" / BEST, weights_only=True)
    least = min(rows, key=lambda row: row["Train/Loss"])
    assert (best["epoch"], best["value"]) == (least["step"], least["Train/Loss"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "3"], "--lr 3.0 contradicts the run to resume, which has 0.1"),
        (["--profile", "batched"], "--profile batched contradicts"),
        (["--epochs", "2"], "--epochs 2 contradicts the run to resume, which has 6"),
        (["--gradient", "naive"], "--gradient naive contradicts"),
        (["--out", "elsewhere"], "--out would have no effect"),
        (["--overwrite"], "--overwrite would have no effect"),
    ],
)
def test_a_resumed_run_keeps_its_settings(results, flags, said):
    run()
    before = outcome(results / "paper/seed0")
    with pytest.raises(UsageError, match=said):
        run("--resume", str(results / "paper/seed0"), *flags)
    assert_equal(outcome(results / "paper/seed0"), before)
    assert run("--resume", str(results / "paper/seed0"), "--lr", "0.1", "--profile", "paper") == 0


def test_a_record_is_replaced_on_demand_only(results):
    run("--epochs", "1")
    with pytest.raises(UsageError, match="already holds a run"):
        run("--epochs", "2")
    assert run("--epochs", "2", "--overwrite") == 0


def test_overwriting_leaves_nothing_of_the_tests(results):
    folder = results / "paper/seed0"
    run("--epochs", "1")
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    run_test(Toy(), ["--resume", str(folder)])
    (folder / "notes.csv").touch()
    assert run("--epochs", "1", "--overwrite") == 0
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == {*names, "notes.csv"}


def test_a_stop_that_lies_behind_is_refused(results):
    folder = results / "paper/seed0"
    assert run("--stop-after", "3") == 130
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for resume in (str(folder), "auto"):
        for after in ("2", "3"):
            with pytest.raises(UsageError, match=f"^--stop-after {after}: the run to resume has 3 steps already"):
                run("--resume", resume, "--stop-after", after)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run("--resume", str(folder), "--stop-after", "4") == 130


def test_a_run_does_not_go_on_without_its_metrics(results):
    folder = results / "paper/seed0"
    assert run("--stop-after", "3") == 130
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="metrics.jsonl lacks the row of step 3"):
        run("--resume", str(folder))


def test_rows_are_on_disk_before_the_checkpoint_that_needs_them(results, monkeypatch):
    done = []
    monkeypatch.setattr(Run, "sync", lambda self: done.append("rows"))
    monkeypatch.setattr("harness.training.save_checkpoint", lambda path, *args, **keywords: done.append(path.name))
    run("--epochs", "2")
    assert LAST in done and all(done[i - 1] == "rows" for i, name in enumerate(done) if name == LAST)


def test_a_run_that_was_stopped_before_its_first_row_goes_on(results):
    assert run("--profile", "batched", "--stop-after", "2") == 130
    assert run("--resume", str(results / "batched/seed0")) == 0


def test_what_cannot_be_written_to_is_refused_before_any_work(results, tmp_path, monkeypatch):
    run("--epochs", "1")
    (tmp_path / "file").touch()
    for name in ("training", "tester"):
        monkeypatch.setattr(Toy, name, lambda *args: pytest.fail("began to work"))
    for out in (str(tmp_path / "file"), str(tmp_path / "file" / "run")):
        with pytest.raises(UsageError, match="is not a folder"):
            run("--out", out)
        with pytest.raises(UsageError, match="is not a folder"):
            run_test(Toy(), ["--resume", str(results / "paper/seed0"), "--out", out])


def test_damaged_tests_are_named(results):
    folder = results / "paper/seed0"
    run("--epochs", "1")
    run_test(Toy(), ["--resume", str(folder)])
    text = (folder / "tests.jsonl").read_text()
    (folder / "tests.jsonl").write_text(text + text[:20])
    with pytest.raises(UsageError, match="tests.jsonl, line 2 is damaged"):
        read_tests(folder)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"settings": {}, "iteration": 3}, kind="toy")
    with pytest.raises(UsageError, match="earlier version of this experiment: it lacks epoch, model"):
        run("--resume", str(tmp_path / "a.pt"))


def test_print_folder_writes_nothing(results, capsys):
    assert run("--print-folder", "--seed", "3") == 0
    assert capsys.readouterr().out == f"{results / 'paper/seed3'}\n" and not results.exists()


def test_tests_are_recorded_and_drawn_with_the_own_solver_only(results, capsys):
    folder = results / "paper/seed0"
    run()
    assert run_test(Toy(), ["--resume", str(folder), "--method", "rk4", "--h", "0.5"]) == 0
    assert not (folder / "end.csv").exists() and own_test(folder, BEST) is None
    assert run_test(Toy(), ["--resume", str(folder)]) == 0
    assert run_test(Toy(), ["--resume", str(folder), "--weights", "last"]) == 0
    assert run_test(Toy(), ["--resume", str(folder / LAST)]) == 0
    assert (folder / "end.csv").exists()
    assert "RK4, h 0.5" in capsys.readouterr().out
    rows = read_tests(folder)
    assert [(row["checkpoint"], row["solver"]["method"]) for row in rows] == [
        (BEST, "RK4"), (BEST, "Dopri5"), (LAST, "Dopri5"),
    ]  # fmt: skip
    assert rows[1]["training"] == "finished" and rows[1]["environment"]["command"]
    assert [found for found, *_ in runs_tested(Toy(), results, BEST)] == [folder]


def test_a_test_that_fails_is_exit_code_1_with_a_row(results, monkeypatch):
    folder = results / "paper/seed0"
    run()
    monkeypatch.setattr(toy, "solve", lambda *args, **keywords: toy_fails())
    assert run_test(Toy(), ["--resume", str(folder)]) == 1
    assert read_tests(folder) == []
    assert json.loads((folder / "tests.jsonl").read_text())["error"]


def toy_fails():
    from torch_ACA import NonFiniteError

    raise NonFiniteError(0.5, 1e-9, 12, 100)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "RK4"], "h"),
        (["--method", "RK4", "--h", "0.1", "--rtol", "1"], "--rtol would have no effect: RK4 has fixed steps"),
        (["--method", "ALF"], "mali"),
    ],
)
def test_solvers_that_cannot_be_tested_with(results, flags, said):
    run("--epochs", "1")
    with pytest.raises(UsageError, match=said):
        run_test(Toy(), ["--resume", str(results / "paper/seed0"), *flags])


def test_what_was_trained_with_mali_or_fixed_steps_is_tested(results):
    for flags, method in ((["--gradient", "mali"], "Dopri5"), (["--method", "Euler", "--h", "0.1"], "Euler")):
        assert run("--epochs", "1", "--overwrite", *flags) == 0
        assert run_test(Toy(), ["--resume", str(results / "paper/seed0")]) == 0
        assert own_test(results / "paper/seed0", BEST)["solver"]["method"] == method
    with pytest.raises(UsageError, match="--rtol is needed: RK23 has steps of varying size"):
        run_test(Toy(), ["--resume", str(results / "paper/seed0"), "--method", "RK23"])


def test_compile_is_the_solvers(results):
    with pytest.raises(UsageError, match="--compile goes with --gradient aca, not naive"):
        run("--compile", "--gradient", "naive")
    assert Toy().new_settings("--compile")["compile"] is True
