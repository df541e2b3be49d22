import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.cli import UsageError
from harness.files import atomic_write


def test_round_trip(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9)
    save_checkpoint(tmp_path / "new" / "c.pt", {"epoch": 3, "optimizer": optimizer.state_dict()}, kind="toy")
    assert load_checkpoint(tmp_path / "new" / "c.pt", kind="toy") == {"epoch": 3, "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        pytest.param(np.float64(1.0), TypeError, id="refused by weights_only"),
        pytest.param(lambda: None, Exception, id="cannot be pickled"),
    ],
)
def test_failing_save_keeps_the_former_checkpoint(tmp_path, bad, error):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"epoch": 1}, kind="toy")
    with pytest.raises(error):
        save_checkpoint(path, {"epoch": 2, "bad": bad}, kind="toy")
    assert load_checkpoint(path, kind="toy") == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_keeps_the_former_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "c.pt"
    script = (
        "import sys, itertools, torch\n"
        "from harness.checkpoint import save_checkpoint\n"
        "for epoch in itertools.count():\n"
        "    save_checkpoint(sys.argv[1], {'epoch': epoch, 'w': torch.full((100_000,), float(epoch))}, kind='toy')\n"
        "    print(epoch, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 5:
                process.send_signal(signal.SIGKILL)
    state = load_checkpoint(path, kind="toy")
    assert state["epoch"] >= 5
    assert (state["w"] == state["epoch"]).all()


class Executes:
    """A pickle that would write a file when loaded without weights_only."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def bad_files(folder):
    save_checkpoint(folder / "other", {"epoch": 1}, kind="three_body")
    whole = (folder / "other").read_bytes()
    (folder / "truncated").write_bytes(whole[: len(whole) // 2])
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("epoch 1\n")
    torch.save({"state_dict": {}}, folder / "foreign")
    torch.save([1, 2], folder / "list")
    torch.save(Executes(folder / "executed"), folder / "malicious")
    (folder / "folder").mkdir()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "not there"),
        ("folder", "a folder"),
        ("truncated", "truncated"),
        ("empty", "truncated, or not one"),
        ("text", "truncated, or not one"),
        ("malicious", "cannot be read"),
        ("foreign", "not a checkpoint of toy"),
        ("list", "not a checkpoint of toy"),
        ("other", "not a checkpoint of toy, but of three_body"),
    ],
)
def test_unusable_file_is_refused_in_one_line(tmp_path, name, says):
    bad_files(tmp_path)
    with pytest.raises(UsageError, match=says) as caught:
        load_checkpoint(tmp_path / name, kind="toy")
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
