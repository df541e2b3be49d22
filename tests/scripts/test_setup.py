import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def setup(folder, python):
    """Run scripts/setup.sh in a bare copy of the project, with ``python`` as $PYTHON."""
    (folder / "scripts").mkdir(exist_ok=True)
    for name in ("setup.sh", "help.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        (folder / name).write_text("")
    return subprocess.run(
        ["bash", folder / "scripts" / "setup.sh"],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "name", ["setup", "test_matrix", "run_torchdiffeq_suite", "launch", "docs", "spread", "reproduce"]
)
def test_help_is_what_stands_at_the_top(name, tmp_path):
    """Nothing is installed for it."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "scripts" / f"{name}.sh"
    first = script.read_text().splitlines()[1].removeprefix("# ")
    for flag in ("-h", "--help"):
        done = subprocess.run(["bash", script, flag], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"{first}\n")
    assert not (tmp_path / ".venv").exists()


def fake_python(path, body):
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "not found"),
        ('[[ $1 == --version ]] && echo Python 3.8.1 || exit 1', "Python 3.8.1 is too old"),
        ('[[ $2 != *ensurepip* ]]', "has no venv module"),
    ],
)
def test_unusable_python_is_one_line(tmp_path, body, says):
    python = fake_python(tmp_path / "python", body) if body else tmp_path / "python"
    done = setup(tmp_path, python)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_installs_again_only_when_the_requirements_change(tmp_path):
    calls = tmp_path / "calls"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake_python(tmp_path / ".venv" / "bin" / "python", f'echo "$@" >>{calls}')
    for _ in range(2):
        assert setup(tmp_path, "unused").returncode == 0
    assert len(calls.read_text().splitlines()) == 1


def test_failed_install_is_tried_again(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake_python(tmp_path / ".venv" / "bin" / "python", "exit 1")
    for _ in range(2):
        assert setup(tmp_path, "unused").returncode == 1


@pytest.mark.parametrize("status", [0, 1])
def test_output_of_pip_is_shown_only_where_it_fails(tmp_path, status):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake_python(tmp_path / ".venv" / "bin" / "python", f"echo COLLECTING; echo WARNING >&2; exit {status}")
    done = setup(tmp_path, "unused")
    shown = done.stdout + done.stderr
    assert ("COLLECTING" in shown, "WARNING" in shown) == (status == 1, status == 1)


def test_requirements_are_those_of_the_project():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert sorted(listed) == sorted({*project["dependencies"], *extras["experiments"], *extras["dev"]})


def test_the_environment_of_another_checkout_is_left_alone(tmp_path):
    other, own = tmp_path / "other", tmp_path / "own"
    (other / ".venv").mkdir(parents=True)
    own.mkdir()
    (other / ".venv" / "installed").write_text(f"{other}\n1 2 requirements.txt\n")
    (own / ".venv").symlink_to(other / ".venv")
    done = setup(own, "python3")
    assert (done.returncode, done.stdout) == (2, "")
    assert f".venv is a link to the one of {other}" in done.stderr
    assert sorted(path.name for path in (other / ".venv").iterdir()) == ["installed"]
