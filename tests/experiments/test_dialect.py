"""Every experiment speaks the same dialect: flags, files, exit codes, resuming."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from cifar_classification import plot as cifar_plot
from cifar_classification import report as cifar_report
from cifar_classification import test as cifar_test
from cifar_classification import train as cifar_train
from harness.cli import run_main
from harness.environment import ROOT
from harness.record import Run
from latent_ode_mujoco import plot as latent_plot
from latent_ode_mujoco import report as latent_report
from latent_ode_mujoco import test as latent_test
from latent_ode_mujoco import train as latent_train
from latent_ode_mujoco.data import _store
from neural_ode_2018.cnf import plot as cnf_plot
from neural_ode_2018.cnf import report as cnf_report
from neural_ode_2018.cnf import test as cnf_test
from neural_ode_2018.cnf import train as cnf_train
from neural_ode_2018.mnist import plot as mnist_plot
from neural_ode_2018.mnist import report as mnist_report
from neural_ode_2018.mnist import test as mnist_test
from neural_ode_2018.mnist import train as mnist_train
from neural_ode_2018.spirals import plot as spirals_plot
from neural_ode_2018.spirals import report as spirals_report
from neural_ode_2018.spirals import test as spirals_test
from neural_ode_2018.spirals import train as spirals_train
from tests.comparing import assert_equal, outcome
from tests.latent_ode_mujoco.conftest import swinging
from tests.neural_ode_2018.mnist_files import write_mnist
from three_body import plot as three_body_plot
from three_body import report as three_body_report
from three_body import test as three_body_test
from three_body import train as three_body_train
from van_der_pol import plot as van_der_pol_plot
from van_der_pol import test as van_der_pol_test
from van_der_pol import train as van_der_pol_train

MACHINE = "--device cpu --threads 1 "
# a few steps each; {data} is a folder of synthetic trajectories and images
EXPERIMENTS = {
    "cifar_classification": (
        cifar_train.main,
        cifar_test.main,
        "--dataset digits --width 2 --batch-size 500 --epochs 2 --rtol 9 --atol 9 --h 1 --crop 16 --crop-epochs 1",
        "",
    ),
    "latent_ode_mujoco": (
        latent_train.main,
        latent_test.main,
        "--trajectories 30 --batch-size 10 --latent 3 --recognition 4 --units 6 --layers 0 --gru-units 5 --samples 1 "
        "--targets 5 --epochs 2 --data {data}",
        "--data {data}",
    ),
    "neural_ode_2018/cnf": (
        cnf_train.main,
        cnf_test.main,
        "--profile quick --width 2 --batch-size 8 --epochs 2 --rtol 1e-2 --atol 1e-2",
        "",
    ),
    "neural_ode_2018/mnist": (
        mnist_train.main,
        mnist_test.main,
        "--profile quick --train-images 12 --test-images 4 --batch-size 4 --epochs 2 --data {data}",
        "--data {data}",
    ),
    "neural_ode_2018/spirals": (
        spirals_train.main,
        spirals_test.main,
        "--profile quick --spirals 30 --batch-size 10 --points 5 --epochs 2",
        "",
    ),
    "three_body": (
        three_body_train.main,
        three_body_test.main,
        "--points 100 --until 0.35 0.4 --rtol 1e-3 --atol 1e-3 --epochs 4",
        "",
    ),
    "van_der_pol": (van_der_pol_train.main, van_der_pol_test.main, "--epochs 4", ""),
}
REPORTS = {  # and what they write of a run that is tested
    "cifar_classification": {cifar_report: "tables.md"},
    "latent_ode_mujoco": {latent_report: "runs.csv", latent_plot: "paper/figures/interpolation-curves.png"},
    "neural_ode_2018/cnf": {cnf_report: "runs.csv", cnf_plot: "quick/circles/densities.png"},
    "neural_ode_2018/mnist": {mnist_report: "runs.csv", mnist_plot: "quick/solves.png"},
    "neural_ode_2018/spirals": {spirals_report: "runs.csv", spirals_plot: "quick/n5/predictions.png"},
    "three_body": {three_body_report: "runs.csv", three_body_plot: "paper/paper/figures/comparison.png"},
    "van_der_pol": {van_der_pol_plot: "train/train.png"},
}
FILES = {"run.json", "metrics.jsonl", "summary.json", "checkpoint.pt", "best.pt"}
SHARED = [
    *("--profile", "--epochs", "--seed", "--out", "--overwrite", "--resume", "--checkpoint-every", "--stop-after"),
    *("--print-folder", "--device", "--threads", "--gradient", "--method", "--rtol", "--atol", "--h", "--max-evals"),
    "--compile",
]
SHARED_BY_TESTS = ["--resume", "--weights", "--method", "--rtol", "--atol", "--h", "--out", "--device", "--threads"]


class Experiment:
    def __init__(self, name, data):
        self.name = name
        self.train_main, self.test_main, self.flags, self.test_flags = EXPERIMENTS[name]
        self.flags, self.test_flags = (
            (MACHINE + flags).format(data=data).split() for flags in (self.flags, self.test_flags)
        )

    def train(self, *flags):
        return exit_code(self.train_main, [*self.flags, *map(str, flags)])

    def resume(self, where, *flags):
        words = self.flags[: self.flags.index("--threads") + 2] + self._data()
        return exit_code(self.train_main, [*words, "--resume", str(where), *flags])

    def test(self, where, *flags):
        return exit_code(self.test_main, ["--resume", str(where), *self.test_flags, *map(str, flags)])

    def _data(self):
        return self.flags[-2:] if "--data" in self.flags else []


def exit_code(main, argv):
    with pytest.raises(SystemExit) as end:
        run_main(main, argv)
    return end.value.code or 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hopper")
    _store(folder, swinging(40))
    return write_mnist(folder)


@pytest.fixture(scope="module", params=EXPERIMENTS)
def experiment(request, data):
    return Experiment(request.param, data)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp(experiment.name.replace("/", "-")) / "whole"
    assert experiment.train("--out", folder) == 0
    return folder


def test_the_files_of_a_run(experiment, whole):
    assert {path.name for path in whole.iterdir()} >= FILES
    run, summary = (json.loads((whole / name).read_text()) for name in ("run.json", "summary.json"))
    assert {"arguments", "settings", "seed", "environment", "resumed"} <= run.keys()
    assert {"profile", "seed", "epochs", "gradient", "method"} <= run["settings"].keys()
    assert run["kind"] == experiment.name
    assert summary["status"] == "finished" and summary["epochs"] == run["settings"]["epochs"]
    assert {"title", "parameters", "seconds", "peak_memory_bytes"} <= summary.keys()
    for name in ("checkpoint.pt", "best.pt"):
        state = torch.load(whole / name, weights_only=True)
        assert {"settings", "epoch", "model", "kind"} <= state.keys() and state["kind"] == experiment.name


def test_an_interrupted_run_goes_on_to_the_same_bits(experiment, whole, tmp_path, capsys):
    """Interrupted three times, and each time gone on with in another way."""
    folder = tmp_path / "parts"
    assert experiment.train("--out", folder, "--stop-after", 1) == 130
    assert f"python {experiment.name}/train.py --resume {folder}" in capsys.readouterr().err
    assert experiment.resume(folder, "--stop-after", "2") == 130
    assert experiment.resume(folder / "checkpoint.pt", "--stop-after", "3") == 130
    assert experiment.train("--out", folder, "--resume", "auto") == 0
    assert_equal(outcome(whole), outcome(folder))
    assert_equal(*(torch.load(run / "best.pt", weights_only=True)["model"] for run in (whole, folder)))
    assert experiment.resume(folder) == 0 and "finished already" in capsys.readouterr().out


def test_a_failure_is_exit_code_1_with_its_row(experiment, tmp_path, capsys):
    assert experiment.train("--out", tmp_path / "run", "--max-evals", 1) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: failed in epoch 1") and message.count("\n") == 1
    (row,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "max_evals" in row["error"] and summary["status"] == f"failed in {row['error']}"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--resume {tmp}/nowhere", "nowhere is not there"),
        ("--resume {tmp}", "checkpoint.pt is not there"),
        ("--resume {whole} --epochs 1", "--epochs 1 contradicts"),
        ("--resume {whole} --seed 7", "--seed 7 contradicts"),
        ("--resume {whole} --out {tmp}", "--out would have no effect"),
        ("--profile none", "invalid choice: 'none'"),
        ("--method rk99", "'rk99' is not one of"),
        ("--gradient magic", "invalid choice: 'magic'"),
        ("--gradient naive --compile", "compile"),
        ("--epochs 0", "'0' is not a whole number of at least 1"),
        ("--rtol -1", "'-1' is not a number of at least 0"),
        ("--no-such-flag", "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(experiment, whole, flags, said, tmp_path, capsys):
    flags = flags.format(tmp=tmp_path, whole=whole).split()
    out = [] if "--resume" in flags else ["--out", str(tmp_path / "run")]
    dataset = ["--dataset", "digits"] if experiment.name == "cifar_classification" and out else []
    assert exit_code(experiment.train_main, [*dataset, *flags, *out]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and said in message and message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_tests_go_into_the_record(experiment, whole, tmp_path, capsys):
    assert experiment.test(whole, "--out", tmp_path) == 0
    assert experiment.test(whole, "--method", "RK23", "--rtol", "1e-2", "--atol", "1e-2", "--out", tmp_path) == 0
    assert experiment.test(whole / "checkpoint.pt", "--method", "rk4", "--h", "0.1", "--out", tmp_path) == 0
    rows = [json.loads(line) for line in (tmp_path / "tests.jsonl").read_text().splitlines()]
    assert [row["checkpoint"] for row in rows] == ["best.pt", "best.pt", "checkpoint.pt"]
    assert [row["as_trained"] for row in rows] == [True, False, False]
    assert [row["solver"]["method"] for row in rows[1:]] == ["RK23", "RK4"]
    assert all({"title", "epoch", "training", "solver", "seconds", "environment"} <= row.keys() for row in rows)
    capsys.readouterr()
    for flags, said in (
        (["--method", "rk4"], "h"),
        (["--method", "rk4", "--h", "0.1", "--rtol", "1"], "--rtol would have no effect"),
        (["--weights", "worst"], "invalid choice: 'worst'"),
    ):
        assert experiment.test(whole, *flags) == 2
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1


def test_help_explains_every_shared_flag(experiment, capsys):
    for main, argv, flags in (
        (experiment.train_main, ["--help"], SHARED),
        (experiment.test_main, ["--resume", "x", "--help"], SHARED_BY_TESTS),
    ):
        assert exit_code(main, argv) == 0
        text = capsys.readouterr().out
        assert all(f"{flag} " in text for flag in flags)
        assert "None" not in text


@pytest.fixture(scope="module")
def start():
    """Starts a script from a folder, and returns its exit code, stdout and stderr."""
    command, pipe = [sys.executable, Path(__file__).with_name("start_scripts.py")], subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:

        def start(folder, *words):
            print(json.dumps([*map(str, (folder, *words))]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield start
        process.stdin.close()


def test_scripts_start_from_the_root_and_from_inside_the_folder(experiment, whole, start, tmp_path):
    folder = experiment.name in ("cifar_classification", "three_body")  # one way each: a start takes seconds
    where = ROOT / experiment.name if folder else ROOT
    script = "test.py" if folder else f"{experiment.name}/test.py"
    words = [script, "--method", "RK23", "--rtol", "1e-2", "--atol", "1e-2", "--resume", whole, "--out", tmp_path]
    code, out, err = start(where, *words, *experiment.test_flags)
    assert code == 0, err
    assert "RK23, rtol 0.01, atol 0.01" in out


def test_overwriting_leaves_nothing_of_the_former_run(experiment, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert experiment.test(folder) == 0
    (folder / "notes.csv").touch()
    assert experiment.train("--out", folder, "--overwrite") == 0
    names = [{path.name for path in run.iterdir() if "tfevents" not in path.name} for run in (whole, folder)]
    assert names[1] == {*names[0], "notes.csv"}


def test_what_cannot_be_written_to_is_refused_before_the_work(experiment, whole, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        for work in (experiment.train, partial(experiment.test, whole)):
            assert work("--out", out) == 2
            message = capsys.readouterr()
            assert message.err.startswith("error: nothing can be written to") and not message.out
            assert message.err.count("\n") == 1


def test_reports_find_runs_at_any_depth_and_no_others(experiment, whole, tmp_path, capsys):
    root = tmp_path / "some"
    shutil.copytree(whole, root / "deep/folder/run")
    Run.start(root / "other", {}, kind="another").finish({"status": "finished"})
    for out in ((), ("--weights", "last")):  # reports differ in which test they are of
        assert experiment.test(root / "deep/folder/run", *out) == 0
    for report, written in REPORTS[experiment.name].items():
        assert exit_code(report.main, ["--results", str(root)]) == 0
        assert (root / written).exists()
    before = sorted(tmp_path.glob("**/*"))
    capsys.readouterr()
    for report in REPORTS[experiment.name]:
        for name, said in (("mistyped", "mistyped is not there"), ("some/other", "other holds no record of")):
            assert exit_code(report.main, ["--results", str(tmp_path / name)]) == 2
            message = capsys.readouterr().err
            assert message.startswith(f"error: --results {tmp_path / name}") and said in message
            assert message.count("\n") == 1
    assert sorted(tmp_path.glob("**/*")) == before


@pytest.mark.parametrize(("kind", "said"), [("another", "holds no training of cifar"), (None, "holds no training")])
def test_curves_are_of_this_experiments_runs(kind, said, tmp_path, capsys):
    Run.start(tmp_path / "run", {}, kind=kind, settings={"epochs": 1}).close()
    before = sorted(tmp_path.glob("**/*"))
    assert exit_code(cifar_plot.main, [str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert sorted(tmp_path.glob("**/*")) == before
