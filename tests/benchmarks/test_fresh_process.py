"""Peak memory and first calls, measured in fresh processes."""

import sys

import pytest

from benchmarks.fresh_process import first_calls, in_fresh_process

STATES = "aca, memory=states"
SETTINGS = {"seed": 0, "quick": True, "device": "cpu", "threads": 1}


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


def test_first_calls_without_code_and_later():
    """Nothing is compiled here: a solve as it is takes no longer at first."""
    found = first_calls("mlp_heun", "aca", **SETTINGS)
    assert set(found) == {"no_code", "later"} and all(0 < seconds < 60 for seconds in found.values())
    assert "failure" in first_calls("no such problem", "aca", **SETTINGS)
