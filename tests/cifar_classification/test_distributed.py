"""Several processes train like one: gloo processes on synthetic images, in float64."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from harness.checkpoint import load_checkpoint
from harness.experiment import LAST
from harness.record import read_metrics, read_run

WORKER = Path(__file__).with_name("distributed_worker.py")
# 24 images in batches of 9, 9 and 6: shares of 5 and 4 in two processes; of 3, 2, 2, 2 and of 2, 2, 1, 1 in four
SMALL = "--width 2 --batch-size 9 --epochs 2 --lr 0.05 --checkpoint-every 1 --threads 1"
ADAPTIVE = "--rtol 1e-3 --atol 1e-3 --h 1"  # a first step so long that it is tried again
INDEPENDENT = {
    "aca": f"{ADAPTIVE} --error-norm global",
    "discrete": "--model discrete",
    "euler": "--method Euler --h 0.5",
    "direct": f"--method RK23 --gradient direct {ADAPTIVE} --error-norm global",
    "mali": "--method ALF --gradient mali --rtol 1e-2 --atol 1e-2 --error-norm global",
    "adjoint": "--method RK4 --h 0.5 --gradient adjoint",
}
DEPENDENT = {"local": f"{ADAPTIVE} --error-norm local"}
OF_FOUR = 2  # runs, the first ones: what gives the gradients does not ask how many processes there are
RUNS = [f"{name}={SMALL} {options}" for name, options in (INDEPENDENT | DEPENDENT).items()]


def start(folder, runs, **environment):
    return subprocess.Popen(
        [sys.executable, WORKER, folder, *runs],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    """What it printed, as (stdout, stderr)."""
    out, err = process.communicate(timeout=500)
    assert process.returncode == code, err
    return out, err


def weights(folder):
    return load_checkpoint(folder / LAST, kind="cifar_classification")["model"]


def distance(folder, other):
    """The largest difference of a weight."""
    ours, theirs = weights(folder), weights(other)
    return max(float((value - theirs[name]).abs().max()) for name, value in ours.items())


def rows(folder):
    """The metrics without what the clock and the machine say."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_memory_bytes")} for row in read_metrics(folder)]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the same runs by 1, 2 and 4 processes printed, all in all."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, finish(start(folder, RUNS, SIZES=f"1 2 4:{OF_FOUR}"))[0]


@pytest.fixture(scope="module")
def folders(printed):
    """Where the runs of 1, 2 and 4 processes are."""
    return {size: printed[0] / str(size) for size in (1, 2, 4)}


@pytest.mark.parametrize(("name", "size"), [
    *((name, 2) for name in INDEPENDENT), *((name, 4) for name in list(INDEPENDENT)[:OF_FOUR]),
])  # fmt: skip
def test_processes_train_to_the_weights_of_one_with_the_whole_batch(folders, name, size):
    assert weights(folders[1] / name)["head.2.weight"].dtype == torch.float64
    assert distance(folders[size] / name, folders[1] / name) < 1e-10
    for ours, theirs in zip(rows(folders[size] / name), rows(folders[1] / name), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["Test/Accuracy"] == theirs["Test/Accuracy"] and ours["Train/Accuracy"] == theirs["Train/Accuracy"]
        assert ours["Test/Loss"] == pytest.approx(theirs["Test/Loss"], rel=1e-9)
        assert ours.get("solver_per_block") == theirs.get("solver_per_block")


def test_steps_are_tried_again_and_so_depend_on_the_norm(folders):
    assert sum(row["Solver/n_rejected"] for row in rows(folders[1] / "aca")) > 0
    assert distance(folders[1] / "aca", folders[1] / "local") == 0  # one process: its images are all images
    assert distance(folders[2] / "local", folders[1] / "local") > 1e-10


def test_the_first_process_alone_speaks_and_records(printed, folders):
    assert printed[1].count("epoch 2/2") == 2 * len(RUNS) + OF_FOUR
    assert read_run(folders[4] / "aca")["environment"]["processes"] == 4
    assert read_run(folders[1] / "aca")["environment"]["processes"] == 1
    assert [row["step"] for row in read_metrics(folders[4] / "aca")] == [1, 2]


def test_a_signal_to_one_process_stops_all_of_them_with_a_checkpoint(tmp_path):
    run = f"run={SMALL} {INDEPENDENT['aca']}".replace("--epochs 2", "--epochs 1000")
    parent = start(tmp_path, [run], SIZES="2")
    folder = tmp_path / "2" / "run"
    deadline = time.monotonic() + 300
    while not (folder / LAST).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    _, other = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    os.kill(int(other), signal.SIGINT)
    _, message = finish(parent, 130)
    assert f"--resume {folder}" in message
    state = load_checkpoint(folder / LAST, kind="cifar_classification")
    assert 0 < 3 * state["epoch"] + state["batch"] < 3000


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_torchrun_starts_a_killed_process_again_and_the_run_ends_the_same(tmp_path, folders, rank):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    run = f"aca={SMALL} {INDEPENDENT['aca']}"
    environment = os.environ | {"KILL": f"{rank} 4", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, WORKER, tmp_path, run], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [part["step"] for part in read_run(tmp_path / "aca")["resumed"]] == [1]
    assert rows(tmp_path / "aca") == rows(folders[2] / "aca")
    assert distance(tmp_path / "aca", folders[2] / "aca") == 0
