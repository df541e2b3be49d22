import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

SCRIPT = """
import sys
if "no tqdm" in sys.argv:
    sys.modules["tqdm"] = None
from harness.progress import progress
bar = progress(range(3), total=3, desc="epoch")
for item in bar:
    bar.set_postfix(loss=1.0)
    print(item)
"""


def on_a_terminal(*arguments):
    """Run the script with stderr on a terminal of 80 columns; returns what it prints on both."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.write(theirs, b"end")  # so that there is something to read if nothing was shown
    return done.stdout, os.read(ours, 10_000).decode()


def test_silent_where_stderr_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n1\n2\n", "")


def test_bar_on_a_terminal():
    pytest.importorskip("tqdm")
    out, shown = on_a_terminal()
    assert out == "0\n1\n2\n"
    assert "epoch" in shown
    assert "loss=1" in shown


def test_silent_without_tqdm():
    assert on_a_terminal("no tqdm") == ("0\n1\n2\n", "end")
