"""The scripts that list and start runs, with a stand-in for python that only notes what it is to do."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cifar_classification import options, report
from cifar_classification.runs import NAME

SCRIPTS = Path(options.__file__).parent.parent / "scripts"
PYTHON = """#!/bin/bash
# a training leaves a summary and weights in the folder after --out, a test with --predictions its file
echo "$*" >> commands.txt
while (($#)); do
    [[ $1 != --out ]] || { mkdir -p "$2" && touch "$2"/{summary.json,checkpoint.pth.tar,model_best.pth.tar}; }
    [[ $1 != --predictions ]] || touch "$(dirname "$previous")/predictions.npz"
    previous=$1 && shift
done
"""


def run(script, *arguments, folder=SCRIPTS.parent):
    return subprocess.run(["bash", folder / "scripts" / script, *arguments], capture_output=True, text=True)


def listed(scale):
    return [line.split() for line in run("run_cifar_tables.sh", "--list", "--scale", scale).stdout.splitlines()]


@pytest.fixture
def project(tmp_path):
    """A folder with the scripts and the stand-in; its commands, each as a list of words, by calling it."""
    (tmp_path / "scripts").mkdir()
    for name in ("run_cifar_tables.sh", "run_cifar_multigpu.sh"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)

    def commands():
        file = tmp_path / "commands.txt"
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        return [line.split() for line in text.splitlines()]

    commands.folder = tmp_path
    return commands


@pytest.mark.parametrize("scale", ["table", "paper"])
def test_every_line_is_a_run_that_the_report_knows(scale):
    folders = [folder for folder, *_ in listed(scale)]
    assert len(set(folders)) == len(folders)
    known = {*report.LIKE_FOR_LIKE, *report.OWN[scale], "aca-amp", "resnet", "euler"}
    for folder, *flags in listed(scale):
        where, name = folder.split("/")
        assert where in (scale, *report.ROBUST_SCALES[scale])
        place = NAME.fullmatch(name)
        assert place["label"] in known
        settled = options.settle(*options.read(options.training_parser(), flags))
        assert (settled.dataset, settled.seed) == (place["dataset"], int(place["seed"]))
        assert settled.profile == where
    labels = {NAME.fullmatch(folder.split("/")[1])["label"] for folder in folders}
    assert labels == known


def test_what_is_done_is_not_done_again(project):
    script = ("run_cifar_tables.sh", "--shard", "1/17", "--threads", "1")
    assert run(*script, folder=project.folder).returncode == 0
    commands = project()
    trained = [words[words.index("--out") + 1] for words in commands if words[0].endswith("train.py")]
    expected = [f"results/cifar_classification/{folder}" for folder, *_ in listed("table")[::17]]
    assert trained == expected and "--threads" in commands[0]
    tests = [words for words in commands if words[0].endswith("test.py")]
    assert any("--predictions" in words for words in tests)
    assert commands[-1] == ["cifar_classification/report.py"]
    (project.folder / expected[1] / "summary.json").unlink()
    run(*script, "--no-report", folder=project.folder)
    again = project()
    assert [words[words.index("--out") + 1] for words in again if words[0].endswith("train.py")] == [expected[1]]
    assert not any("--predictions" in words and expected[0] in words[2] for words in again)


def test_robust_models_are_tested_with_all_solvers(project):
    position = [folder for folder, *_ in listed("table")].index("cpu/cifar10_euler_seed0")
    shard = f"{position + 1}/{len(listed('table'))}"
    run("run_cifar_tables.sh", "--shard", shard, "--no-report", folder=project.folder)
    train, test = project()
    assert "--method Euler" in " ".join(train)
    assert test[2] == "results/cifar_classification/cpu/cifar10_euler_seed0" and "--all-solvers" in test


def test_torchrun_gets_what_the_flags_say(project):
    done = run("run_cifar_multigpu.sh", "--processes", "4", "--profile", "quick", folder=project.folder)
    assert done.returncode == 0
    look, torchrun = project()
    assert look == ["cifar_classification/train.py", "--resume", "auto", "--profile", "quick", "--print-folder"]
    assert " ".join(torchrun) == (
        "-m torch.distributed.run --standalone --nproc-per-node 4 --max-restarts 3 "
        "cifar_classification/train.py --resume auto --profile quick"
    )
    run("run_cifar_multigpu.sh", "--processes", "8", "--nodes", "1:4", "--endpoint", "a:1", folder=project.folder)
    assert "--nnodes 1:4 --rdzv-backend c10d --rdzv-endpoint a:1" in " ".join(project()[1])


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("run_cifar_tables.sh", "--shard 3/2", "K must not exceed N"),
        ("run_cifar_tables.sh", "--scale huge", "--scale huge: accepted are table and paper"),
        ("run_cifar_tables.sh", "--scale", "the last option needs a value"),
        ("run_cifar_multigpu.sh", "--processes none", "--processes none is not a whole number"),
        ("run_cifar_multigpu.sh", "--nodes 2", "--nodes needs --endpoint HOST:PORT"),
        ("run_cifar_multigpu.sh", "--restarts -1", "--restarts -1 is not a whole number"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(project, script, arguments, said):
    done = run(script, *arguments.split(), folder=project.folder)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert project() == []
