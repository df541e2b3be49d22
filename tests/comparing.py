"""What tests compare runs by."""

import torch

from harness.experiment import LAST
from harness.record import read_metrics

CLOCKS = ("seconds", "training_seconds", "peak_memory_bytes")  # these may differ between equal runs


def outcome(folder):
    """What must not depend on interruptions: rows of metrics, and the last checkpoint, without the clocks."""
    rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in read_metrics(folder)]
    state = torch.load(folder / LAST, weights_only=True)
    return rows, {key: value for key, value in state.items() if key not in CLOCKS}


def assert_equal(a, b):
    """Bit for bit, in nested dicts, lists and tensors."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
