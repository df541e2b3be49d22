import json

import pytest

from harness.cli import UsageError
from harness.record import read_metrics
from van_der_pol import test as testing
from van_der_pol import train


def rows_of(folder):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_metrics(folder)]


@pytest.mark.parametrize("problem", ["parameter", "neural"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, problem):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main(["--problem", problem, "--iterations", "4", "--out", str(whole)])
    train.main(["--problem", problem, "--iterations", "2", "--out", str(parts)])
    checkpoint = str(parts / train.CHECKPOINT)
    train.main(["--problem", problem, "--iterations", "4", "--out", str(parts), "--resume", checkpoint])
    assert rows_of(parts) == rows_of(whole)
    assert rows_of(whole)[-1]["Train/Loss"] < rows_of(whole)[0]["Train/Loss"]


def test_resuming_with_other_settings_is_refused(tmp_path):
    train.main(["--iterations", "1", "--out", str(tmp_path / "run")])
    checkpoint = str(tmp_path / "run" / train.CHECKPOINT)
    with pytest.raises(UsageError, match="gradient"):
        train.main(["--gradient", "naive", "--out", str(tmp_path / "run"), "--resume", checkpoint])
    with pytest.raises(UsageError, match="iterations"):
        train.main(["--iterations", "1", "--out", str(tmp_path / "run"), "--resume", checkpoint])


def test_a_trained_field_is_tested_with_another_solver(tmp_path, capsys):
    train.main(["--iterations", "1", "--out", str(tmp_path / "run")])
    checkpoint = str(tmp_path / "run" / train.CHECKPOINT)
    testing.main(["--method", "RK23", "--resume", checkpoint, "--out", str(tmp_path / "test")])
    assert "tested with RK23" in capsys.readouterr().out
    (row,) = read_metrics(tmp_path / "test")
    assert 0 < row["rmse"] < 1 and row["reconstruction"]["method"] == "RK23"
    assert json.loads((tmp_path / "test" / "run.json").read_text())["arguments"]["method"] == "RK23"


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="not there"):
        testing.main(["--resume", str(tmp_path / "none.pt")])
