"""Peak memory and first calls, measured in fresh processes."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks import fresh_process
from benchmarks.fresh_process import in_fresh_process

STATES = "aca, memory=states"
SETTINGS = {"seed": 0, "quick": True, "device": "cpu", "threads": 1}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is reset and read through /proc")
def test_graphs_kept_take_more_than_states():
    peaks = [in_fresh_process("peak_bytes", "memory_40", name, **SETTINGS)["peak_bytes"] for name in (STATES, "naive")]
    state = 128 * 256 * 4
    assert 40 * state * 0.7 < peaks[0] < peaks[1] / 3  # about 40 states and one step's graph; the graphs of all steps


@pytest.mark.gpu
def test_on_cuda_what_pytorch_allocated_counts():
    peaks = [
        in_fresh_process("peak_bytes", "memory_40", name, **SETTINGS | {"device": "cuda"})["peak_bytes"]
        for name in (STATES, "naive")
    ]
    assert 0 < peaks[0] < peaks[1] / 3


def test_a_process_that_dies_says_so():
    assert "failure" in in_fresh_process("peak_bytes", "no such problem", "aca", **SETTINGS)


def test_first_calls_without_code_and_later(monkeypatch):
    """Two processes, one behind the other, with one folder for code that is empty at first."""
    folders = []

    def process(what, problem, solver, *, environment, **settings):
        folders.append(environment["TORCHINDUCTOR_CACHE_DIR"])
        there = os.listdir(folders[-1])
        (Path(folders[-1]) / "code").touch()
        return {"failure": "exit code 1"} if solver == "fails" else {what: 2.0 if there else 30.0}

    monkeypatch.setattr(fresh_process, "in_fresh_process", process)
    assert fresh_process.first_calls("mlp_heun", "aca, compile", **SETTINGS) == {"no_code": 30.0, "later": 2.0}
    assert folders[0] == folders[1] and not os.path.exists(folders[0])
    assert fresh_process.first_calls("mlp_heun", "fails", **SETTINGS) == {"failure": "exit code 1"}
