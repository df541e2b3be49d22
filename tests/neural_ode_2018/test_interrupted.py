"""Runs that a signal ends go on to the same bits, whichever signal it is; bad input gets a line."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.cli import run_main
from neural_ode_2018.cnf import train as cnf
from neural_ode_2018.mnist import train as mnist
from neural_ode_2018.spirals import train as spirals
from tests.comparing import assert_equal, outcome

# a second or two each, with tens of steps behind the first checkpoint
RUNS = {
    "spirals": (spirals, "--profile quick --points 20 --spirals 40 --batch-size 10 --epochs 12 --checkpoint-every 3"),
    "cnf": (
        cnf,
        "--profile quick --density moons --width 4 --trace hutchinson --batch-size 16 --epochs 2 --checkpoint-every 7",
    ),
    "mnist": (
        mnist,
        "--profile quick --model ode-net --train-images 60 --test-images 20 --batch-size 6 --epochs 8 "
        "--checkpoint-every 3",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, mnist_folder):
    """Command lines of the runs, and how they end without an interruption."""
    found = {}
    for name, (train, flags) in RUNS.items():
        flags = [*flags.split(), "--device", "cpu", "--threads", "1"]
        flags += ["--data", str(mnist_folder)] if name == "mnist" else []
        folder = tmp_path_factory.mktemp("whole") / name
        assert train.main([*flags, "--out", str(folder)]) == 0
        found[name] = flags, outcome(folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_a_signal_ends_goes_on_to_the_same_bits(whole, tmp_path, name, number):
    (train, _), (flags, expected) = RUNS[name], whole[name]
    command = [sys.executable, "-m", f"neural_ode_2018.{name}.train", *flags, "--out", str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while not (tmp_path / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[number]
    assert not (tmp_path / "summary.json").exists() and 0 < outcome(tmp_path)[1]["step"] < expected[1]["step"]
    machine = flags[flags.index("--device") :]  # no part of the settings, which the run keeps
    assert train.main(["--resume", str(tmp_path), *machine]) == 0
    assert_equal(outcome(tmp_path), expected)


@pytest.mark.parametrize(
    ("train", "flags", "said"),
    [
        (spirals, "--points 1", "--points 1: from 2 to 100 can be seen"),
        (spirals, "--decay 2", "argument --decay: "),
        (spirals, "--model rnn --gradient aca", "--gradient would have no effect: --model rnn solves no ODE"),
        (spirals, "--method explicit_adams", "takes fixed steps: give the step size h"),
        (cnf, "--density squares", "argument --density: invalid choice: 'squares'"),
        (cnf, "--model nf --trace hutchinson", "--trace hutchinson is for cnf, not for --model nf"),
        (cnf, "--gradient mali --method RK23", "go together"),
        (cnf, "--resume /nowhere", "/nowhere"),
        (mnist, "--data /nowhere", "MNIST is not in /nowhere, or damaged; --data names the folder"),
        (mnist, "--train-images 0", "argument --train-images: "),
        (mnist, "--lr -1", "argument --lr: "),
    ],
)
def test_bad_input_gets_a_line(train, flags, said, capsys, tmp_path):
    words = flags.split() if "--resume" in flags else [*flags.split(), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        run_main(train.main, [*words, "--device", "cpu"])
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "run" / "run.json").exists()
