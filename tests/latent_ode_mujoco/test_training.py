"""Training, resuming, failing, testing and reporting, on command lines of seconds and synthetic trajectories."""

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
from harness.experiment import BEST, LAST
from harness.record import read_metrics, read_run
from harness.testing import add_test, own_test, read_tests
from latent_ode_mujoco import experiment, plot, report, speed, train
from latent_ode_mujoco import test as testing
from latent_ode_mujoco.data import _store, load
from latent_ode_mujoco.evaluation import mean_error
from latent_ode_mujoco.models import MODELS
from latent_ode_mujoco.tasks import prepare
from tests.comparing import assert_equal, outcome
from torch_ACA import NonFiniteError

SMALL = [
    *("--trajectories", "30", "--batch-size", "10", "--latent", "3", "--recognition", "4", "--units", "6"),
    *("--layers", "0", "--gru-units", "5", "--samples", "2", "--targets", "5", "--device", "cpu", "--threads", "1"),
]
ONE_RUN = "table/interpolation-10/rnn/seed0"


@pytest.fixture
def run(cache, tmp_path):
    """Trains on the synthetic trajectories, into a folder of that name."""
    return lambda name, *flags: train.main([*SMALL, "--data", cache, "--out", str(tmp_path / name), *flags])


def new_training(cache, *flags):
    chosen = experiment.LatentODE().new_settings(*SMALL, *flags)
    task = prepare(load(cache, 30), chosen["task"], 0, torch.device("cpu"), chosen["validation"])
    return experiment.LatentODETraining(chosen, task, torch.device("cpu"))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_is_tested(model, run, cache, tmp_path):
    assert run("a", "--model", model, "--epochs", "2") == 0
    rows, state = outcome(tmp_path / "a")
    assert [row["step"] for row in rows] == [1, 2]
    assert state["step"] == 2 * 3  # 24 - 3 trajectories to train on, 10 a batch
    assert rows[1]["Train/MSE"] != rows[0]["Train/MSE"]
    assert testing.main(["--resume", str(tmp_path / "a"), "--weights", "last", "--data", cache]) == 0
    result = own_test(tmp_path / "a", LAST)
    assert not any("Test/MSE" in row for row in rows)
    assert result["trajectories"] == 6
    assert "2 of 300 epochs" in result["title"]
    assert len((tmp_path / "a" / "reconstructions.csv").read_text().splitlines()) == 1 + 3 * 100


def test_the_best_weights_are_chosen_by_validation_and_the_test_set_is_not_looked_at(run, tmp_path, cache):
    """On other trajectories to test on, training writes the same rows and the same weights, bit for bit."""
    other = tmp_path / "other"
    states = load(cache, 30).clone()
    low, high = states.flatten(0, 1).amin(0), states.flatten(0, 1).amax(0)
    states[24:] = states[24:].flip(1)  # keeps the extremes, with which all are scaled
    assert torch.equal(states.flatten(0, 1).amin(0), low) and torch.equal(states.flatten(0, 1).amax(0), high)
    other.mkdir()
    _store(other, states.numpy())
    flags = ["--epochs", "6", "--validate-every", "2", "--lr", "0.3", "--lr-decay", "1"]
    assert run("a", *flags) == run("b", *flags, "--data", str(other)) == 0
    assert_equal(outcome(tmp_path / "a"), outcome(tmp_path / "b"))
    errors = {row["step"]: row["Validation/MSE"] for row in outcome(tmp_path / "a")[0] if "Validation/MSE" in row}
    assert list(errors) == [1, 2, 4, 6]
    best = torch.load(tmp_path / "a" / BEST, weights_only=True)
    assert best["epoch"] == min(errors, key=errors.get) == read_run(tmp_path / "a")["summary"]["best_epoch"]
    assert best["epoch"] < 6  # so the last weights are others
    training = new_training(cache, *flags)
    training.model.load_state_dict(best["model"])
    assert mean_error(training.model, training.aside, "validation", training.settings)[0] == best["value"]


def as_of_an_earlier_version(folder):
    """Writes a run folder as runs had it before there was a validation split."""
    record = json.loads((folder / "run.json").read_text())
    state = torch.load(folder / LAST, weights_only=True)
    for settings in (record["settings"], state["settings"]):
        settings["test_every"] = settings.pop("validate_every")
        del settings["validation"]
    (folder / "run.json").write_text(json.dumps(record))
    torch.save(state, folder / LAST)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace("Validation/MSE", "Test/MSE"))


def test_a_run_of_an_earlier_version_is_tested_and_reported_but_not_gone_on_with(run, cache, tmp_path):
    folder = tmp_path / ONE_RUN
    run(ONE_RUN, "--model", "rnn", "--profile", "table", "--epochs", "2")
    testing.main(["--resume", str(folder), "--weights", "last", "--data", cache])
    now = own_test(folder, LAST)["mse"]
    report.main(["--results", str(tmp_path)])
    assert "Set aside for validation: 12.5% of the" in (tmp_path / "tables.md").read_text()
    as_of_an_earlier_version(folder)
    testing.main(["--resume", str(folder), "--weights", "last", "--data", cache])
    assert own_test(folder, LAST)["mse"] == now
    report.main(["--results", str(tmp_path)])
    text = (tmp_path / "tables.md").read_text()
    assert "the test error was taken between epochs, in runs of all models." in text
    plot.main(["--results", str(tmp_path)])
    assert (tmp_path / "table" / "figures" / "interpolation-curves.png").exists()
    with pytest.raises(UsageError, match="begun by an earlier version") as refusal:
        train.main(["--resume", str(folder), "--data", cache, "--epochs", "3"])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
def test_every_gradient_method_trains(gradient, run, tmp_path):
    assert run("a", "--gradient", gradient, "--epochs", "1") == 0
    rows, _ = outcome(tmp_path / "a")
    assert rows[0]["Train/GradientNorm"] > 0
    assert rows[0]["Solver/Forward"] > 0


@pytest.mark.parametrize("model", ["rnn-vae", "latent-ode"])
def test_extrapolation_trains_and_is_tested(model, run, cache, tmp_path):
    assert run("a", "--model", model, "--task", "extrapolation", "--epochs", "1") == 0
    testing.main(["--resume", str(tmp_path / "a"), "--data", cache])
    trajectories, times, observed, true, predicted = plot.read_reconstructions(tmp_path / "a")
    first = trajectories == 0
    assert observed[first].sum() == 6  # of 66 points, 10 %
    assert times[first & observed].max() < 66 / 200 <= times[first & ~observed].min()
    assert len(times[first & ~observed]) == 134


def test_the_latent_ode_learns(run, tmp_path):
    flags = ["--epochs", "30", "--lr", "0.03", "--targets", "20", "--latent", "6", "--sample", "0.2"]
    run("a", *flags, "--validate-every", "9")
    errors = [row["Validation/MSE"] for row in outcome(tmp_path / "a")[0] if "Validation/MSE" in row]
    assert len(errors) == 5
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize("flags", [["--model", "rnn"], ["--model", "latent-ode"]])
def test_a_stopped_run_resumes_to_the_same_bits_from_within_an_epoch(flags, run, cache, tmp_path):
    flags = [*flags, "--epochs", "4"]
    assert run("whole", *flags) == 0
    assert run("parts", *flags, "--stop-after", "5") == 130
    checkpoint = str(tmp_path / "parts" / "checkpoint.pt")
    torch.manual_seed(99)  # nothing hangs on the global stream
    assert train.main(["--resume", checkpoint, "--data", cache, "--threads", "1", "--stop-after", "7"]) == 130
    assert train.main(["--resume", checkpoint, "--data", cache, "--threads", "1"]) == 0
    assert_equal(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))
    assert [part["step"] for part in read_run(tmp_path / "parts")["resumed"]] == [1, 2]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(run, cache, tmp_path):
    flags = ["--model", "rnn", "--epochs", "30", "--checkpoint-every", "3", "--validate-every", "4"]
    assert run("whole", *flags) == 0
    command = [sys.executable, "-m", "latent_ode_mujoco.train", *SMALL, *flags, "--data", cache]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed")],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    while len(read_metrics(tmp_path / "killed")) < 5 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    checkpoint = str(tmp_path / "killed" / "checkpoint.pt")
    assert train.main(["--resume", checkpoint, "--data", cache, "--threads", "1"]) == 0
    assert_equal(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))


def test_an_interrupt_leaves_a_checkpoint_to_go_on_from(run, cache, tmp_path, monkeypatch, capsys):
    advance = experiment.LatentODETraining.advance

    def advance_and_interrupt(self):
        row = advance(self)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(experiment.LatentODETraining, "advance", advance_and_interrupt)
    assert run("a", "--model", "rnn", "--epochs", "2") == 130
    checkpoint = tmp_path / "a" / "checkpoint.pt"
    assert (
        "stopped after 4 of 6 steps; go on with: python latent_ode_mujoco/train.py "
        f"--resume {checkpoint.parent} --data {cache}\n"
        in (capsys.readouterr().err)
    )
    monkeypatch.undo()
    assert train.main(["--resume", str(checkpoint), "--data", cache]) == 0
    assert [row["step"] for row in outcome(tmp_path / "a")[0]] == [1, 2]


def test_models_of_one_seed_are_tested_on_the_same_points(run, cache, tmp_path):
    points = []
    for name, flags in (("a", ["--model", "rnn"]), ("b", []), ("c", ["--seed", "1"])):
        run(name, *flags, "--epochs", "1")
        testing.main(["--resume", str(tmp_path / name), "--weights", "last", "--data", cache])
        _, _, observed, true, _ = plot.read_reconstructions(tmp_path / name)
        points.append((observed.tolist(), true.tolist()))
    assert points[0] == points[1]
    assert points[0] != points[2]


def test_a_trained_model_can_be_tested_with_another_solver(run, cache, tmp_path, capsys):
    run("a", "--epochs", "1")
    checkpoint = str(tmp_path / "a" / "checkpoint.pt")
    results = []
    for i, flags in enumerate(([], ["--method", "RK4", "--h", "0.1"], ["--method", "Euler", "--h", "0.5"])):
        testing.main(["--resume", checkpoint, "--data", cache, "--out", str(tmp_path / str(i)), *flags])
        results += read_tests(tmp_path / str(i))
    assert results[1]["mse"] == pytest.approx(results[0]["mse"], rel=1e-3)
    assert results[2]["mse"] == pytest.approx(results[0]["mse"], rel=0.1)
    assert results[2]["mse"] != results[0]["mse"]
    assert results[2]["evaluations"] < results[1]["evaluations"] == 5 * 4


def test_learning_rate_and_weight_of_the_divergence_follow_the_recipe(run, tmp_path, cache):
    flags = ["--epochs", "3", "--lr-decay", "0.5", "--kl-from", "1", "--kl-decay", "0.9"]
    run("a", *flags)
    rates = [row["Train/LearningRate"] for row in outcome(tmp_path / "a")[0]]
    assert rates == pytest.approx([0.01 * 0.5**3, 0.01 * 0.1, 0.01 * 0.1])
    training = new_training(cache, *flags)
    weights = []
    for training.step in (0, 3, 6, 9):
        weights.append(training._divergence_weight())
    assert weights == pytest.approx([0, 0, 0.1, 0.19])


def test_a_failing_solve_ends_the_run_with_a_outcome(run, tmp_path):
    assert run("a", "--max-evals", "3", "--epochs", "2") == 1
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"].startswith("failed in epoch 1, batch 1: max_evals = 3 was reached")
    assert summary["iterations"] == 0


def test_a_failing_backward_pass_keeps_the_weights(cache, monkeypatch):
    def fail(loss, *arguments, **keywords):
        raise NonFiniteError(0.1, 1e-9, 12, 100)

    training = new_training(cache)
    before = training.model.decoder.weight.clone()
    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with pytest.raises(loop.TrainingFailed, match="epoch 1, batch 1: .* infinite or NaN at t = 0.1"):
        training.advance()
    assert torch.equal(training.model.decoder.weight, before)
    assert training.step == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "rnn", "--gradient", "aca"], "--gradient would have no effect"),
        (["--model", "rnn", "--task", "extrapolation"], "cannot extrapolate"),
        (["--repaired"], "--repaired is for rnn and rnn-decay"),
        (["--sample", "0"], "leaves nothing to observe"),
        (["--trajectories", "4"], "at least 5"),
        (["--validation", "0"], "leaves 24 to train on and 0 to validate on"),
        (["--validation", "1"], "leaves 0 to train on and 24 to validate on"),
        (["--trajectories", "10001"], "the recipe has 10000"),
        (["--gradient", "mali", "--method", "Dopri5"], "go together"),
    ],
)
def test_bad_input_is_refused_before_any_work(flags, message, run, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "load", None)
    with pytest.raises(UsageError, match=message) as refusal:
        run("a", *flags)
    assert "\n" not in str(refusal.value)
    assert not any(tmp_path.iterdir())


def test_an_unknown_model_ends_with_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["--model", "lstm"])
    assert exit.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_recurrent_network_has_no_solver_to_test_with(run, cache, tmp_path):
    run("a", "--model", "rnn", "--epochs", "1")
    with pytest.raises(UsageError, match="--rtol would have no effect"):
        testing.main(["--resume", str(tmp_path / "a"), "--rtol", "1e-3", "--data", cache])


def test_tables_and_figures_come_from_the_records(run, cache, tmp_path, capsys):
    errors = {}
    for name, flags in {
        ONE_RUN: ["--model", "rnn"],
        "table/interpolation-10/rnn/seed1": ["--model", "rnn", "--seed", "1"],
        "table/interpolation-10/rnn-repaired/seed0": ["--model", "rnn", "--repaired"],
        "table/interpolation-10/latent-ode-aca/seed0": [],
    }.items():
        run(name, *flags, "--profile", "table", "--epochs", "2")
        testing.main(["--resume", str(tmp_path / name), "--weights", "last", "--data", cache])
        errors[name] = 100 * own_test(tmp_path / name, LAST)["mse"]
    report.main(["--results", str(tmp_path)])
    text = (tmp_path / "tables.md").read_text()
    rows = {}
    for line in text.splitlines():
        if len(cells := line.split("|")) > 8:
            rows.setdefault(cells[1].strip(), cells)  # the table of errors comes before that of costs
    both = [errors[ONE_RUN], errors["table/interpolation-10/rnn/seed1"]]
    assert rows["rnn"][2].startswith(f" {sum(both) / 2:.3f} ± ")
    assert rows["rnn"][2].endswith("(2) ")
    assert rows["rnn"][5:8] == [" 2.45 ", " 1.71 ", " 0.79 "]
    assert rows["latent-ode-naive"][2].strip() == ""  # not run: blank
    ratio = both[0] / errors["table/interpolation-10/latent-ode-aca/seed0"]
    assert f"over that of the latent ODE with aca: {ratio:.2f} (by seed {ratio:.2f}) at 10%" in text
    assert "scaled down: 30 of 10000 trajectories, 2 of 300 epochs" in text
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 5
    plot.main(["--results", str(tmp_path)])
    drawn = {path.name for path in (tmp_path / "table" / "figures").iterdir()}
    assert drawn == {"interpolation-curves.png", "interpolation-10-reconstructions.png"}


def test_what_ended_early_is_said_below_the_table(run, cache, tmp_path):
    name = "table/interpolation-10/latent-ode-aca/seed0"
    run(name, "--profile", "table", "--max-evals", "3")
    row = {"checkpoint": LAST, "epoch": 0, "solver": None, "as_trained": True, "mse": 1.0, "evaluations": 1}
    add_test(tmp_path / name, row)
    report.main(["--results", str(tmp_path)])
    text = (tmp_path / "tables.md").read_text()
    assert "- latent-ode-aca, 10%, seed 0: failed in epoch 1, batch 1: max_evals" in text


def test_speed_is_measured_and_recorded(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["latent_ode_mujoco/speed.py"])  # which records tell where they come from
    out = tmp_path / "speed" / "small"
    flags = ["--rounds", "2", "--trajectories", "30", "--profile", "quick", "--data", cache, "--device", "cpu"]
    contestants = ["aca", "torchdiffeq.odeint"]
    pytest.importorskip("torchdiffeq")
    speed.main([*flags, "--of", *contestants, "--threads", "1", "--out", str(out)])
    rows = read_metrics(out)
    assert len(rows) == 2
    assert all(row[f"Seconds/{name}"] > 0 for row in rows for name in contestants)
    report.main(["--results", str(tmp_path)])
    won = sum(row["Seconds/aca"] < row["Seconds/torchdiffeq.odeint"] for row in rows)
    (line,) = [line for line in (tmp_path / "tables.md").read_text().splitlines() if line.startswith("| small |")]
    assert f"| {won} of 2 |" in line


def test_torchdiffeq_computes_the_same_model(cache):
    pytest.importorskip("torchdiffeq")
    chosen = experiment.LatentODE().new_settings(*SMALL, "--rtol", "1e-6", "--atol", "1e-7")
    task = prepare(load(cache, 30), chosen["task"], 0, torch.device("cpu"))
    ours, theirs = (speed.contestant(name, chosen, task, torch.device("cpu")) for name in ("aca", "torchdiffeq.odeint"))
    for training in (ours, theirs):
        training.advance()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3 * float(a.grad.abs().max()))
