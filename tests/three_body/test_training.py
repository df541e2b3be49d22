"""Training, resuming and failing, on command lines of seconds."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from harness import training as loop
from harness.cli import UsageError
from harness.experiment import BEST
from harness.record import read_metrics
from harness.testing import own_test
from tests.comparing import assert_equal, outcome
from three_body import test as testing
from three_body import train
from three_body.experiment import ThreeBody
from torch_ACA import NonFiniteError

SMALL = ["--points", "100", "--until", "0.35", "0.4", "--threads", "1", "--device", "cpu"]
LOOSE = ["--rtol", "1e-3", "--atol", "1e-3"]


def run(folder, *flags):
    return train.main([*SMALL, "--out", str(folder), *flags])


@pytest.mark.parametrize("model", ["lstm", "lstm-aug", "node", "ode"])
def test_every_model_trains_and_is_tested(model, tmp_path):
    assert run(tmp_path, "--model", model, "--epochs", "3") == 0
    rows, _ = outcome(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["Train/Loss"] != rows[0]["Train/Loss"]
    assert testing.main(["--resume", str(tmp_path)]) == 0
    result = own_test(tmp_path, BEST)
    assert result["predicted_until"] == 0.4
    assert "3 of" in result["title"]
    assert (result["mass_error"] is not None) == (model == "ode")
    assert len((tmp_path / "trajectory.csv").read_text().splitlines()) == 1 + 40


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
def test_every_gradient_method_trains_the_masses(gradient, tmp_path):
    assert run(tmp_path, *LOOSE, "--gradient", gradient, "--epochs", "1") == 0
    rows, state = outcome(tmp_path)
    assert rows[0]["Train/GradientNorm"] > 0
    assert all(state["model"]["masses"] != state["best"]["model"]["masses"])


def test_masses_are_recovered_from_a_short_arc(tmp_path):
    # the first encounter alone tells the masses to better than the 0.1 of their initial spread in a few epochs
    run(tmp_path, "--profile", "released", "--epochs", "25", "--rtol", "1e-5", "--atol", "1e-5")
    testing.main(["--resume", str(tmp_path)])
    assert own_test(tmp_path, BEST)["mass_error"] < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--model", "lstm"], pytest.param(["--model", "node", *LOOSE], marks=pytest.mark.slow)]
)
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
    assert_equal(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))


def test_an_interrupt_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch, capsys):
    log = loop.Run.log

    def log_and_interrupt(self, step, scalars):
        log(self, step, scalars)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Run, "log", log_and_interrupt)
    assert run(tmp_path, "--model", "lstm", "--epochs", "4") == 130
    assert f"python three_body/train.py --resume {tmp_path}" in capsys.readouterr().err
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "checkpoint.pt")]) == 0
    assert [row["step"] for row in outcome(tmp_path)[0]] == [1, 2, 3, 4]


def test_a_failing_solve_ends_the_run_with_a_outcome(tmp_path):
    assert run(tmp_path, "--max-evals", "30", "--epochs", "3") == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"].startswith("failed in epoch 1: max_evals = 30 was reached at t = ")
    assert summary["epochs"] == 0
    assert testing.main(["--resume", str(tmp_path)]) == 0
    result = own_test(tmp_path, BEST)
    assert result["training"] == summary["status"]
    assert result["mse"] is None
    assert result["predicted_until"] < 0.4


def test_a_failing_backward_pass_keeps_the_weights(tmp_path, monkeypatch):
    def fail(loss, *arguments, **keywords):
        raise NonFiniteError(0.5, 1e-9, 12, 100)

    training = ThreeBody().training(ThreeBody().new_settings(*SMALL), torch.device("cpu"), None, None)
    before = training.model.masses.clone()
    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with pytest.raises(loop.TrainingFailed, match="epoch 1: .* infinite or NaN at t = 0.5"):
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
        (["--model", "lstm", "--profile", "released"], "--profile released is for node and ode"),
        (["--gradient", "mali", "--method", "Dopri5"], "go together"),
        (["--betas", "1", "0.5"], "--betas must be below 1"),
        (["--points", "10"], "fewer than one sequence"),
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


def test_changed_settings_are_refused(tmp_path):
    run(tmp_path, "--model", "lstm", "--epochs", "2")
    for flags, message in (
        (["--system", "3"], "--system 3 contradicts"),
        (["--masses", "1", "1", "1"], "contradicts the run to resume"),
        (["--epochs", "1"], "--epochs 1 contradicts the run to resume, which has 2"),
        (["--profile", "quick"], "--profile quick contradicts"),
    ):
        with pytest.raises(UsageError, match=message):
            train.main(["--resume", str(tmp_path), *flags])
    with pytest.raises(UsageError, match="--rtol would have no effect"):
        testing.main(["--resume", str(tmp_path), "--rtol", "1e-3"])


def test_a_run_of_more_epochs_is_the_longer_run(tmp_path):
    run(tmp_path / "whole", "--model", "lstm", "--epochs", "3")
    run(tmp_path / "parts", "--model", "lstm", "--epochs", "2")
    assert train.main(["--resume", str(tmp_path / "parts"), "--epochs", "3"]) == 0
    assert_equal(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))
