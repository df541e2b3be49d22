"""What can be said of processes without starting any; training by several: tests/cifar_classification."""

import pytest
import torch

from harness import distributed
from harness.cli import UsageError
from harness.distributed import ALONE, Processes, processes
from harness.record import NoRun
from torch_ACA.controller import rms_norm


@pytest.mark.parametrize("count", [0, 1, 3, 8, 80, 129])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_everything_once_and_differ_by_one_at_most(count, size):
    shares = [list(range(count))[Processes(rank, size).share(count)] for rank in range(size)]
    assert sum(shares, []) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone_changes_nothing():
    numbers = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)]
    ALONE.add_up(numbers)
    ALONE.average(numbers)
    assert numbers[0].tolist() == [1.0, 2.0] and numbers[1] == 3.0
    assert ALONE.first and ALONE.any(True) and not ALONE.any(False)
    x = torch.randn(7, dtype=torch.float64)
    torch.testing.assert_close(ALONE.rms_norm(x), rms_norm(x), rtol=1e-14, atol=0)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as other launchers set it
    with processes("auto") as (group, device):
        assert group is ALONE and device == "auto"


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [distributed._own_device("auto", rank, 2) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert distributed._own_device("cpu", 1, 4) == "cpu"
    with pytest.raises(UsageError, match="4 processes and 2 CUDA devices"):
        distributed._own_device("cuda", 0, 4)
    with pytest.raises(UsageError, match="--device cuda:1: several processes"):
        distributed._own_device("cuda:1", 0, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed._own_device("auto", 0, 4) == "cpu"


def test_the_record_of_another_process_is_left_alone(tmp_path):
    run = NoRun(tmp_path / "run")
    run.log(1, {"Test/Accuracy": 0.5}, note="x")
    run.finish({})
    run.close()
    assert run.folder == tmp_path / "run" and not list(tmp_path.iterdir())
