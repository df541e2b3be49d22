"""scripts/test.sh: several processes where there is pytest-xdist, and the caller's arguments either way."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("xdist", [True, False])
def test_arguments_reach_pytest_with_xdist_and_without(tmp_path, xdist):
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "test.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text("")
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/bash\n[[ $1 == -c ]] && exit {int(not xdist)}\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@"\n')
    python.chmod(0o755)
    given = ["-m", "slow or not slow", "tests/three_body"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = ["bash", tmp_path / "scripts" / "test.sh", *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    threads, *arguments = done.stdout.splitlines()
    ours = ["--numprocesses", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    assert (threads, arguments) == ("1" if xdist else "", ["-m", "pytest", *(ours if xdist else []), *given])
