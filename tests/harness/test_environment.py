import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import environment


def test_description_is_json_and_says_what_matters():
    description = json.loads(json.dumps(environment.describe()))
    assert description["python"] == ".".join(map(str, sys.version_info[:3]))
    assert description["packages"]["torch"].startswith("2.")
    assert description["cores"] >= 1
    assert description["threads"] >= 1
    assert description["memory_bytes"] > 2**28
    assert isinstance(description["gpus"], list)


def test_no_machine_specific_path(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(environment.ROOT / "cifar_classification" / "train.py"), "--data", "my data"])
    description = environment.describe()
    assert description["command"] == "python cifar_classification/train.py --data 'my data'"
    assert str(environment.ROOT) not in json.dumps(description)
    assert str(Path.home()) not in json.dumps(description)


def test_command_inside_a_folder_is_recorded_from_the_root(monkeypatch):
    monkeypatch.chdir(environment.ROOT / "harness")
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    assert environment.command_line() == "python harness/cli.py"


def test_paths_inside_the_repository_are_recorded_from_its_root(monkeypatch):
    run = environment.ROOT / "results" / "a=b"
    monkeypatch.setattr(sys, "argv", ["test.py", "--resume", str(run), f"--data={run}", "--out=/elsewhere", "--h=0.2"])
    typed = "--resume results/a=b --data=results/a=b --out=/elsewhere --h=0.2"
    assert environment.command_line() == f"python test.py {typed}"
    assert environment.portable(run) == "results/a=b" and environment.portable(3) == 3


def test_script_outside_the_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "mine.py"), "-x"])
    assert environment.command_line() == "python mine.py -x"


def test_commit_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.describe()["commit"] is None
    assert environment.describe()["dirty"] is None


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A git repository with one commit, taken for the project's."""

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run.json").write_text("{}")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    return tmp_path, git("rev-parse", "HEAD").stdout.strip()


def test_commit_and_dirty_flag(checkout):
    folder, commit = checkout
    (folder / "untracked").write_text("results do not make a checkout dirty")
    (folder / "results" / "run.json").write_text("nor do those that replace recorded ones")
    assert (environment.describe()["commit"], environment.describe()["dirty"]) == (commit, False)
    (folder / "code.py").write_text("2\n")
    assert environment.describe()["dirty"] is True
    assert environment.describe()["commit"] == commit


def test_no_git_program(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.describe()["commit"] is None


def test_hardware_in_words():
    machine = {"gpus": [], "cpu": "some CPU", "threads": 1}
    assert environment.hardware(machine) == "some CPU, 1 thread"
    assert environment.hardware(machine | {"threads": 2}) == "some CPU, 2 threads"
    assert environment.hardware(machine | {"gpus": ["some GPU", "some GPU"]}) == "some GPU"
