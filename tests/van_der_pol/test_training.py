import pytest

from harness.cli import UsageError
from harness.record import read_metrics
from harness.testing import read_tests
from tests.comparing import assert_equal, outcome
from van_der_pol import test as testing
from van_der_pol import train


@pytest.mark.parametrize("problem", ["parameter", "neural"])
def test_a_run_of_more_epochs_is_the_longer_run(tmp_path, problem):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main(["--problem", problem, "--epochs", "4", "--out", str(whole)])
    train.main(["--problem", problem, "--epochs", "2", "--out", str(parts)])
    assert train.main(["--resume", str(parts), "--epochs", "4"]) == 0
    assert_equal(outcome(parts), outcome(whole))
    rows = read_metrics(whole)
    assert rows[-1]["Train/Loss"] < rows[0]["Train/Loss"]


def test_a_trained_field_is_tested_with_another_solver(tmp_path, capsys):
    train.main(["--epochs", "1", "--out", str(tmp_path)])
    for flags in (["--method", "RK23"], ["--method", "RK4", "--h", "0.05"]):
        assert testing.main(["--resume", str(tmp_path), *flags]) == 0
    assert "RK23, rtol 0.001, atol 1e-06" in capsys.readouterr().out
    adaptive, fixed = read_tests(tmp_path)
    assert 0 < adaptive["rmse"] < 1 and adaptive["reconstruction"]["method"] == "RK23"
    assert fixed["rmse"] == pytest.approx(adaptive["rmse"], rel=1e-2) and fixed["solver"]["h"] == 0.05


def test_without_a_run_the_equation_is_rebuilt(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(testing.rebuild, "main", called.append)
    testing.main(["--out", str(tmp_path)])
    assert called == [["--out", str(tmp_path)]]


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="not there"):
        testing.main(["--resume", str(tmp_path / "none.pt")])
