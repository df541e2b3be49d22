"""The gradient on the way of a recorded run."""

import pytest
import torch

from harness.cli import UsageError
from harness.record import Run
from three_body import first_gradient, later_gradients
from three_body.first_gradient import Problem


@pytest.fixture(scope="module")
def _truth_once():
    """The true trajectory of every problem here is the same, and takes seconds."""
    simulate, known = first_gradient.simulate, {}

    def remembered(system, times):
        key = system.name, *times.tolist()
        if key not in known:
            known[key] = simulate(system, times)
        return known[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_gradient, "simulate", remembered)
        yield


@pytest.fixture
def record(tmp_path, monkeypatch, _truth_once):
    """A run that began at the masses of seed 0, and went on to others."""
    run, first = Run.start(tmp_path / "seed0", {"seed": 0}), Problem(0).model.masses.tolist()
    for epoch, masses in ((1, first), (2, [1.0, 1.0, 1.0])):
        run.log(epoch, **{f"Masses/{i}": mass for i, mass in enumerate(masses, 1)})
    run.finish({"status": "finished"})
    monkeypatch.setattr(later_gradients, "RUNS", tmp_path)
    monkeypatch.setattr(later_gradients, "AT", (1, 2, 3))
    monkeypatch.setattr(later_gradients, "EXACT", {"rtol": 1e-6, "atol": 1e-6})  # quick
    return first


def test_a_row_for_each_method_at_each_epoch_that_the_run_came_to(record):
    rows = list(later_gradients.rows(0))
    assert [(row["epoch"], row["method"]) for row in rows] == [(e, m) for e in (1, 2) for m in later_gradients.METHODS]
    assert rows[0]["masses"] == record and rows[-1]["masses"] == [1.0, 1.0, 1.0]
    # the masses are those that the gradient was asked for: that of the first iterate is the training's own
    gradient, *_ = Problem(0).gradient()
    torch.testing.assert_close(torch.tensor(rows[0]["gradient"], dtype=torch.float64), gradient, rtol=0, atol=0)
    assert rows[0]["exact"] != rows[-1]["exact"]


def test_runs_that_are_not_on_record_are_asked_for(record, tmp_path):
    with pytest.raises(UsageError, match="seed1 is not on record: run scripts/run_three_body.sh --claims"):
        later_gradients.main(["--out", str(tmp_path / "out")])
