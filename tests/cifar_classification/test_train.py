import json
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_classification import data, plot, predictions, test, train
from cifar_classification.experiment import PROFILES, Cifar
from cifar_classification.training import CifarTraining, make_scheduler
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.cli import UsageError, run_main
from harness.distributed import Processes
from harness.experiment import BEST, LAST
from harness.record import read_metrics, read_run
from harness.testing import RECORD, read_tests
from tests.comparing import assert_equal, outcome

SCRIPT = Path(train.__file__)
ROOT = SCRIPT.parent.parent
# 3 batches an epoch; a tolerance so wide that every solve is one step
TINY = "--dataset digits --width 2 --batch-size 500 --epochs 3 --lr 0.05 --rtol 9 --atol 9 --h 1".split()  # noqa: SIM905
TINY += ["--crop", "24", "--crop-epochs", "2", "--checkpoint-every", "1", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    assert train.main([*TINY, "--out", str(folder)]) == 0
    return folder


def interrupt(folder, number):
    """Start the same run in a process of its own and send it a signal in the middle of its second epoch."""
    command = [sys.executable, SCRIPT, *TINY, "--out", folder]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600  # a machine may be busy
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / LAST).exists():
            state = load_checkpoint(folder / LAST, kind=Cifar.name)
            if state["epoch"] == 1 and state["batch"] >= 1:
                break
        time.sleep(0.005)
    process.send_signal(number)
    _, message = process.communicate(timeout=300)
    return process.returncode, message


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(finished, tmp_path):
    folder = tmp_path / "killed"
    code, _ = interrupt(folder, signal.SIGKILL)
    assert code == -signal.SIGKILL and len(read_metrics(folder)) < 3
    assert train.main(["--resume", str(folder)]) == 0
    assert_equal(outcome(folder), outcome(finished))
    assert len(read_run(folder)["resumed"]) == 1


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(finished, tmp_path):
    folder = tmp_path / "stopped"
    code, message = interrupt(folder, signal.SIGINT)
    assert code == 130 and f"train.py --resume {folder}" in message
    state = load_checkpoint(folder / LAST, kind=Cifar.name)
    assert state["epoch"] >= 1
    assert train.main(["--resume", str(folder / LAST)]) == 0
    assert_equal(outcome(folder), outcome(finished))


def test_the_record_is_complete(finished):
    rows = read_metrics(finished)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["Train/Loss"] < rows[0]["Train/Loss"]
    assert rows[0]["Solver/n_f_evals"] == rows[0]["Solver/n_backward_f_evals"] == 2  # one Heun-Euler step
    record = read_run(finished)
    assert record["seed"] == 0 and record["settings"]["gradient"] == "aca"
    accuracies = [row["Test/Accuracy"] for row in rows]
    summary = record["summary"]
    assert summary["test_accuracy"] == accuracies[-1]
    assert summary["best_test_accuracy"] == max(accuracies) == accuracies[summary["best_epoch"] - 1]
    assert "test images" in summary["best_selected_on"]
    assert "digits (not CIFAR)" in summary["title"] and "scaled down" in summary["title"]
    assert load_checkpoint(finished / BEST, kind=Cifar.name)["epoch"] == summary["best_epoch"]


def test_a_finished_run_is_not_run_again(finished, capsys):
    before = outcome(finished)[0]
    assert train.main([*TINY, "--out", str(finished), "--resume", "auto"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert outcome(finished)[0] == before and read_run(finished)["summary"]


def test_resume_auto_starts_where_nothing_is_there_and_a_multistep_run_can_be_extended(tmp_path):
    folder = tmp_path / "run"
    command = [*TINY, "--out", str(folder), "--resume", "auto"]
    assert train.main([*command, "--epochs", "1"]) == 0
    assert train.main(["--resume", str(folder), "--epochs", "2"]) == 0
    assert [row["step"] for row in read_metrics(folder)] == [1, 2]
    assert load_checkpoint(folder / LAST, kind=Cifar.name)["settings"]["milestones"] == [1, 1]


def test_divergence_is_one_line_a_row_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    def train_on(self, images, labels):
        ordinary(self, images, labels)
        if self.epoch == 1:
            next(self.model.parameters()).data.fill_(float("nan"))

    ordinary = CifarTraining.train_on
    monkeypatch.setattr(CifarTraining, "train_on", train_on)
    folder = tmp_path / "run"
    assert train.main([*TINY, "--epochs", "2", "--out", str(folder)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: failed in epoch 2, after batch ") and message.count("\n") == 1
    assert "not finite" in read_metrics(folder)[-1]["error"]
    state = load_checkpoint(folder / LAST, kind=Cifar.name)
    assert state["epoch"] == 1 and all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    "solver", [["--method", "RK23", "--rtol", "1e-3", "--atol", "1e-3"], ["--method", "euler", "--h", "0.2"], []]
)
def test_a_trained_model_is_tested_with_another_solver(finished, solver, capsys):
    weights = (finished / BEST).read_bytes()
    test.main(["--resume", str(finished), "--device", "cpu", *solver])
    printed = capsys.readouterr().out
    record = json.loads((finished / RECORD).read_text().splitlines()[-1])
    assert f"parameters: {record['parameters']}" in printed
    assert f"Test Acc@1: {record['test_accuracy']:.2%}" in printed
    best = read_run(finished)["summary"]["best_test_accuracy"]
    assert f"Best Acc@1: {best:.2%}" in printed
    assert (finished / BEST).read_bytes() == weights
    if not solver:  # the solver of the training
        assert record["solver"] == {"method": "RK12", "rtol": 9, "atol": 9, "h": 1.0}
        assert record["test_accuracy"] == best
    elif "euler" in solver:
        assert record["solver"] == {"method": "Euler", "rtol": None, "atol": None, "h": 0.2}
        assert record["nfe_per_block"] == [5.0] * 4
    else:
        assert record["solver"]["h"] is None and min(record["nfe_per_block"]) >= 5


def test_all_solvers_are_recorded_once(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / RECORD).unlink(missing_ok=True)
    command = ["--resume", str(folder), "--device", "cpu", "--all-solvers", "--limit", "40"]
    assert test.main(command) == 0
    assert capsys.readouterr().out.count("Test Acc@1") == 21
    lines = (folder / RECORD).read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    cells = {(r["solver"]["method"], r["solver"]["h"] or r["solver"]["rtol"]) for r in records}
    assert len(cells) == len(records) == 21
    assert all(r["images"] == 40 and "the first 40 test images" in r["title"] for r in records)
    nfe = {(r["solver"]["method"], r["solver"]["h"]): r["nfe_per_block"] for r in records if r["solver"]["h"]}
    assert nfe["Euler", 0.1] == [10] * 4 and nfe["RK2", 0.5] == [4] * 4 and nfe["RK4", 0.2] == [20] * 4
    (folder / RECORD).write_text("".join(lines[:18]))
    assert test.main(command) == 0
    again = read_tests(folder)
    assert capsys.readouterr().out.count("Test Acc@1") == 3
    assert [(r["solver"], r["test_accuracy"]) for r in again] == [(r["solver"], r["test_accuracy"]) for r in records]


def test_predictions_are_those_of_the_test(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert test.main(["--resume", str(folder / LAST), "--device", "cpu", "--predictions"]) == 0
    kept, record = predictions.read(folder), read_tests(folder)[-1]
    assert kept.correct.mean() == pytest.approx(record["test_accuracy"]) and len(kept.probability) == record["images"]
    assert kept.epoch == 3
    # both are functions of the same probabilities, kept to half precision
    assert -np.log(kept.probability).mean() == pytest.approx(record["test_loss"], rel=1e-3)


def test_a_checkpoint_from_before_there_were_processes_is_tested_and_resumed(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in (LAST, BEST):
        state = load_checkpoint(folder / name, kind=Cifar.name)
        for setting in ("error_norm", "batch_norm"):
            del state["settings"][setting]
        state["solver"] = state["solver"].long()
        save_checkpoint(folder / name, state, kind=Cifar.name)
    assert test.main(["--resume", str(folder), "--device", "cpu"]) == 0
    assert train.main(["--resume", str(folder), "--epochs", "4"]) == 0
    assert len(read_metrics(folder)) == 4


class Syncs(TorchDispatchMode):
    """Notes which package makes the host wait for the device: reads a number, or has a result of unknown size."""

    WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal}

    def __init__(self):
        super().__init__()
        self.packages = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in self.WAITING:
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            own = [file.relative_to(ROOT).parts[0] for file in files if file.is_relative_to(ROOT)]
            self.packages.add(next(name for name in reversed(own) if name not in (".venv", "tests")))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("flags", "waiting"),
    [(["--model", "discrete"], set()), (["--method", "euler", "--h", "1"], {"torch_ACA"}), ([], {"torch_ACA"})],
)
def test_only_the_solver_waits_for_the_device_in_a_step(flags, waiting):
    settings = Cifar().new_settings("--dataset", "digits", "--width", "2", "--batch-size", "32", *flags)
    training = CifarTraining(settings, data.load("digits"), torch.device("cpu"))
    training.advance()  # the optimiser makes its buffers
    with Syncs() as syncs:
        training.advance()
    assert syncs.packages == waiting


def test_curves_are_drawn(finished, tmp_path):
    plot.main([str(finished), "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for out, said in ((tmp_path, "a file is needed"), (tmp_path / "curves.png" / "x.png", "is not a folder")):
        with pytest.raises(UsageError, match=said):
            plot.main([str(finished), "--out", str(out)])


@pytest.fixture
def foreign(tmp_path):
    path = tmp_path / "foreign.pth.tar"
    save_checkpoint(path, {"epoch": 1}, kind="another experiment")
    return path


def refused(main, argv, capsys):
    """The one line that ``main`` gives for bad input, after checking that it is one, with exit code 2."""
    with pytest.raises(SystemExit) as exit:
        run_main(main, argv)
    message = capsys.readouterr().err
    assert exit.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1, message
    return message


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--method rk99", "'rk99' is not one of"),
        ("--gradient magic", "invalid choice: 'magic'"),
        ("--method euler", "h"),
        ("--method euler --h 0.1 --rtol 1e-3", "--rtol would have no effect"),
        ("--rtol -1", "'-1' is not a number of at least 0"),
        ("--atol -0.5", "'-0.5' is not a number of at least 0"),
        ("--h 0", "'0' is not a number above 0"),
        ("--model discrete --method rk4", "--method would have no effect"),
        ("--schedule onecycle --milestones 3", "--milestones would have no effect"),
        ("--crop 24", "--crop-epochs go together"),
        ("--crop 32 --crop-epochs 1", "invalid choice: 32"),
        ("--data somewhere", "--data would have no effect"),
        ("--dataset cifar10 --data {tmp}", "CIFAR-10 is not in {tmp}"),
        ("--dataset auto --data {tmp}", "CIFAR-10 is not in {tmp}"),
        ("--network sqnxt --width 2", "width"),
        ("--gradient torchdiffeq --method RK4 --h 0.5", "goes with the methods Euler, RK2"),
        ("--gradient naive --error-norm global", "--error-norm global goes with --gradient aca direct mali"),
        ("--method euler --h 0.5 --error-norm global", "--error-norm would have no effect"),
        ("--per-sample --width 2", "func holds BatchNorm2d, which takes its statistics over the batch"),
        ("--per-sample --gradient direct", "per_sample needs gradient='aca', got 'direct'"),
        ("--per-sample --gradient torchdiffeq", "--per-sample would have no effect"),
        ("--per-sample --error-norm global", "--error-norm global does not go with --per-sample"),
        ("--per-sample --model discrete", "--per-sample would have no effect"),
        ("--batch-norm sync", "--batch-norm sync does not go with --error-norm local"),
        ("--batch-norm sync --error-norm global --memory 1GiB", "--batch-norm sync does not go with --memory"),
        ("--profile none", "invalid choice: 'none'"),
        ("--resume {tmp}/none.pth.tar", "none.pth.tar"),
        ("--resume {tmp}", "checkpoint"),
        ("--resume {foreign}", "another experiment"),
        ("--resume {truncated}", "truncated"),
        ("--resume {finished} --lr 3", "--lr 3.0 contradicts"),
        ("--resume {finished} --width 64", "--width 64 contradicts"),
        ("--resume {finished} --epochs 2", "--epochs 2 contradicts"),
        ("--resume {finished} --out elsewhere", "--out would have no effect"),
        pytest.param(
            "--device cuda",
            "--device cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(argv, said, finished, foreign, tmp_path, monkeypatch, capsys):
    truncated = tmp_path / "truncated.pth.tar"
    truncated.write_bytes((finished / LAST).read_bytes()[:1000])
    places = {"tmp": tmp_path, "finished": finished, "foreign": foreign, "truncated": truncated}
    monkeypatch.setattr(Cifar, "results", tmp_path / "results")
    first = [] if "--dataset" in argv or "--resume" in argv else ["--dataset", "digits"]
    message = refused(train.main, [*first, *argv.format(**places).split()], capsys)
    assert said.format(**places) in message
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--resume {tmp}/none", "none"),
        ("--resume {foreign}", "another experiment"),
        ("--resume {finished} --method rk99", "'rk99' is not one of"),
        ("--resume {finished} --method euler", "h"),
        ("--resume {finished} --method euler --h 0.2 --atol 1", "--atol would have no effect"),
        ("--resume {finished} --atol -1", "'-1' is not a number of at least 0"),
        ("--resume {finished} --method RK4 --h 0.5 --per-sample", "per_sample needs an explicit Runge-Kutta"),
        ("--resume {finished} --all-solvers --method RK4", "--method would have no effect"),
        ("--resume {finished} --all-solvers --predictions", "--predictions would have no effect"),
        ("--resume {finished} --limit 0", "'0' is not a whole number of at least 1"),
        ("", "--resume"),
    ],
)
def test_bad_input_to_a_test_is_one_line(argv, said, finished, foreign, tmp_path, capsys):
    places = {"tmp": tmp_path, "finished": finished, "foreign": foreign}
    assert said in refused(test.main, argv.format(**places).split(), capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--batch-size 250", "leaves a last batch of 47 images to 64 processes"),  # 297 test images
        ("--batch-size 700", "leaves a last batch of 100 images to 128 processes"),  # 1500 training images
        ("--batch-norm sync --error-norm global --batch-size 1500", "--batch-norm sync needs CUDA devices"),
    ],
)
def test_what_does_not_go_with_several_processes_is_said(flags, said):
    settings = Cifar().new_settings("--dataset", "digits", "--width", "2", *flags.split())
    size = int(said.split()[-2]) if "processes" in said else 2
    with pytest.raises(UsageError, match=said):
        CifarTraining(settings, data.load("digits"), torch.device("cpu"), Processes(0, size))


def test_few_channels_are_not_laid_out_last():
    """PyTorch's backward pass may write beyond its memory there."""
    made = [Cifar().new_settings("--profile", "quick", "--width", width)["channels_last"] for width in ("1", "7", "8")]
    assert made == [False, False, True]
    with pytest.raises(UsageError, match="--channels-last needs a width of at least 8"):
        Cifar().new_settings("--width", "4", "--channels-last")


def test_a_started_run_is_not_started_over(finished, capsys):
    message = refused(train.main, [*TINY, "--out", str(finished)], capsys)
    assert "already holds a run" in message


def test_a_one_cycle_run_cannot_be_extended():
    saved = settings("--schedule", "onecycle")
    with pytest.raises(UsageError, match="only a multistep schedule"):
        Cifar().settle({"epochs": 100}, saved)


def settings(*flags):
    return Cifar().new_settings("--dataset", "digits", *flags)


def test_a_profile_may_have_settings_of_its_own_for_the_digits():
    assert settings("--profile", "quick")["batch_size"] < PROFILES["quick"]["settings"]["batch_size"]
    assert settings("--profile", "quick", "--batch-size", "64")["batch_size"] == 64


@pytest.mark.parametrize("profile", list(PROFILES))
def test_every_profile_names_options_that_exist(profile):
    assert set(PROFILES[profile]["settings"]) <= set(settings("--profile", profile))
    assert settings("--profile", profile, "--width", "5")["width"] == 5


def test_defaults_are_the_papers():
    settled = settings()
    assert settled == settings("--profile", "paper")
    expected = {"epochs": 90, "milestones": [30, 60], "batch_size": 128, "lr": 0.1, "width": 64}
    expected |= {"method": "RK12", "rtol": 1e-2, "atol": 1e-2, "gradient": "aca"}
    assert expected.items() <= settled.items()
    settled["dataset"] = "cifar10"
    assert Cifar().place(settled).startswith("resnet_RK12_lr_0.1_h_None_")
    assert Cifar().title(settled) == "NODE-18 on CIFAR-10"


def rates(batches_per_epoch, *flags):
    """The learning rate of every batch of a run."""
    options = SimpleNamespace(**settings(*flags))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=options.lr)
    scheduler, seen = make_scheduler(optimizer, options, batches_per_epoch), []
    for _ in range(options.epochs * batches_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_learning_rate_drops_at_the_milestones():
    seen = rates(4, "--epochs", "3", "--lr", "1")
    assert seen == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 4)


def test_one_cycle_rises_to_the_rate_and_falls_to_nothing():
    seen = rates(20, "--epochs", "5", "--lr", "0.4", "--schedule", "onecycle")
    peak = seen.index(max(seen))
    assert seen[peak] == pytest.approx(0.4) and 20 < peak < 40
    assert seen == sorted(seen[: peak + 1]) + sorted(seen[peak + 1 :], reverse=True)
    assert seen[0] < 0.02 and seen[-1] < 1e-5
