import subprocess
import sys
import time

import pytest
import torch

from harness.resources import Stopwatch, peak_memory_bytes

MEBIBYTE = 2**20


def test_peak_counts_memory_that_was_given_back():
    script = (
        "from harness.resources import peak_memory_bytes as peak\n"
        "before = peak(); block = bytearray(b'x') * (300 * 2**20); del block; print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 290 * MEBIBYTE < int(done.stdout) < 400 * MEBIBYTE


@pytest.mark.gpu
def test_peak_on_cuda():
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory_bytes("cuda")
    torch.empty(64 * MEBIBYTE, dtype=torch.uint8, device="cuda")
    assert peak_memory_bytes("cuda") - before >= 64 * MEBIBYTE


def test_stopwatch_goes_on_from_earlier_time():
    watch = Stopwatch(already=100.0)
    time.sleep(0.02)
    assert 100.02 <= watch.seconds < 110
