import signal
import subprocess
import sys

import pytest

from harness.interrupt import GracefulStop

LOOP = """
import sys, time
from harness.interrupt import GracefulStop
with GracefulStop() as stop:
    print("running", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    if sys.argv[1] == "stuck":
        time.sleep(60)
"""


def start(mode):
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_lets_the_loop_save(number):
    process = start("saves")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out == "saving\n"
    assert process.returncode == 0
    assert "stopping after this step" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_the_process(number):
    process = start("stuck")
    process.send_signal(number)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with GracefulStop() as stop:
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not stop.requested
