"""Training, resuming and failing, on command lines of seconds."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from harness.cli import UsageError
from harness.record import read_metrics
from three_body import test as testing
from three_body import train
from torch_ACA import NonFiniteError

SMALL = ["--points", "100", "--until", "0.35", "0.4", "--threads", "1", "--device", "cpu"]
LOOSE = ["--rtol", "1e-3", "--atol", "1e-3"]


def run(folder, *flags):
    return train.main([*SMALL, "--out", str(folder), *flags])


def record(folder):
    """Metrics without the clock, and the final checkpoint."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(folder)]
    return rows, torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("model", ["lstm", "lstm-aug", "node", "ode"])
def test_every_model_trains_and_is_tested(model, tmp_path):
    assert run(tmp_path, "--model", model, "--epochs", "3") == 0
    rows, _ = record(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["Train/Loss"] != rows[0]["Train/Loss"]
    testing.main([str(tmp_path / "checkpoint.pt"), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "test.json").read_text())
    assert result["predicted_until"] == 0.4
    assert "3 of" in result["title"]
    assert (result["mass_error"] is not None) == (model == "ode")
    assert len((tmp_path / "trajectory.csv").read_text().splitlines()) == 1 + 40


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
def test_every_gradient_method_trains_the_masses(gradient, tmp_path):
    assert run(tmp_path, *LOOSE, "--gradient", gradient, "--epochs", "1") == 0
    rows, state = record(tmp_path)
    assert rows[0]["Train/GradientNorm"] > 0
    assert all(state["model"]["masses"] != state["best"]["weights"]["masses"])


def test_masses_are_recovered_from_a_short_arc(tmp_path):
    # the first encounter alone tells the masses to better than the 0.1 of their initial spread in a few epochs
    run(tmp_path, "--preset", "released", "--epochs", "25", "--rtol", "1e-5", "--atol", "1e-5")
    testing.main([str(tmp_path / "checkpoint.pt"), "--out", str(tmp_path)])
    assert json.loads((tmp_path / "test.json").read_text())["mass_error"] < 1e-2


@pytest.mark.parametrize("flags", [["--model", "lstm"], ["--model", "node", *LOOSE]])
def test_a_killed_run_resumes_to_the_same_bits(flags, tmp_path):
    flags = [*flags, "--epochs", "40", "--checkpoint-every", "3"]
    assert run(tmp_path / "whole", *flags) == 0
    command = [sys.executable, "-m", "three_body.train", *SMALL, *flags, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    while len(read_metrics(tmp_path / "killed")) < 5 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert train.main(["--resume", str(tmp_path / "killed" / "checkpoint.pt"), "--threads", "1"]) == 0
    assert_equal(record(tmp_path / "whole"), record(tmp_path / "killed"))


def test_an_interrupt_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch, capsys):
    log = train.Run.log

    def log_and_interrupt(self, step, scalars):
        log(self, step, scalars)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.Run, "log", log_and_interrupt)
    assert run(tmp_path, "--model", "lstm", "--epochs", "4") == 130
    assert f"--resume {tmp_path / 'checkpoint.pt'}" in capsys.readouterr().out
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "checkpoint.pt")]) == 0
    assert [row["step"] for row in record(tmp_path)[0]] == [1, 2, 3, 4]


def test_a_failing_solve_ends_the_run_with_a_record(tmp_path):
    assert run(tmp_path, "--max-evals", "30", "--epochs", "3") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"].startswith("failed in epoch 1: max_evals = 30 was reached at t = ")
    assert summary["epochs"] == 0
    testing.main([str(tmp_path / "checkpoint.pt"), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "test.json").read_text())
    assert result["training"] == summary["status"]
    assert result["mse"] is None
    assert result["predicted_until"] < 0.4


def test_a_failing_backward_pass_keeps_the_weights(tmp_path, monkeypatch):
    def fail(loss, *arguments, **keywords):
        raise NonFiniteError(0.5, 1e-9, 12, 100)

    training = train.Training(train.settle(train.parser().parse_args(SMALL)), torch.device("cpu"))
    before = training.model.masses.clone()
    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with pytest.raises(train.TrainingFailed, match="epoch 1: .* infinite or NaN at t = 0.5"):
        training.advance()
    assert torch.equal(training.model.masses, before)
    assert training.epoch == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--masses", "1", "-1", "1"], "masses must be positive"),
        (["--until", "2", "1"], "--until takes two increasing times above 0, got 2 1"),
        (["--system", "nowhere.json"], "neither 'paper', nor a seed"),
        (["--model", "lstm", "--gradient", "aca"], "--gradient would have no effect"),
        (["--model", "lstm", "--preset", "released"], "--preset released is for node and ode"),
        (["--gradient", "mali", "--method", "Dopri5"], "go together"),
        (["--betas", "1", "0.5"], "--betas must be below 1"),
        (["--points", "10"], "fewer than one sequence"),
        (["--resume", "nowhere.pt"], "nowhere.pt is not there"),
    ],
)
def test_bad_input_is_refused(flags, message, tmp_path):
    with pytest.raises(UsageError, match=message) as refusal:
        run(tmp_path, *flags)
    assert "\n" not in str(refusal.value)
    assert not any(tmp_path.iterdir())


def test_an_unknown_model_ends_with_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["--model", "gru"])
    assert exit.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_ended_runs_and_changed_settings_are_not_resumed(tmp_path):
    run(tmp_path, "--model", "lstm", "--epochs", "1")
    checkpoint = str(tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError, match="has ended"):
        train.main(["--resume", checkpoint])
    with pytest.raises(UsageError, match="--epochs cannot be changed"):
        train.main(["--resume", checkpoint, "--epochs", "2"])
    with pytest.raises(UsageError, match="--rtol would have no effect"):
        testing.main([checkpoint, "--rtol", "1e-3"])
