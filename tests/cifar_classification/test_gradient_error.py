"""The error of gradients on a batch: a record, its table and its figure."""

import pytest

from cifar_classification import gradient_error
from cifar_classification.experiment import Cifar
from harness.cli import UsageError
from harness.record import read_metrics
from harness.training import train


def trained(tmp_path, *flags):
    words = ["--profile", "quick", "--dataset", "digits", "--width", "1", "--epochs", "1", "--stop-after", "1"]
    folder = tmp_path / "run"
    train(Cifar(), [*words, *flags, "--device", "cpu", "--out", str(folder)])
    return str(folder)


@pytest.mark.slow
def test_errors_fall_with_the_tolerance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradient_error, "TOLERANCES", (1e-2, 1e-4))
    monkeypatch.setattr(gradient_error, "REFERENCE", {"method": "Dopri5", "rtol": 1e-6, "atol": 1e-6})
    out = tmp_path / "gradient_error" / "quick"
    gradient_error.main(["--resume", trained(tmp_path), "--images", "2", "--out", str(out)])
    errors = {(row["method"], row["gradient"], row["tolerance"]): row["errors"]["all"] for row in read_metrics(out)}
    assert len(errors) == 2 * 3 * 2
    assert all(errors["RK12", name, 1e-4] < errors["RK12", name, 1e-2] for name in ("aca", "naive", "adjoint"))
    assert "Heun-Euler | aca" in capsys.readouterr().out
    assert gradient_error.render(tmp_path) == [out] and (out / "gradient_error.png").exists()


def test_a_discrete_network_is_refused(tmp_path):
    folder = trained(tmp_path, "--model", "discrete")
    with pytest.raises(UsageError, match="a discrete network: there is no solver to compare"):
        gradient_error.main(["--resume", folder, "--images", "2"])
