import numpy as np
import pytest
import torch

from harness.record import read_run
from latent_ode_mujoco import baselines
from latent_ode_mujoco.data import FEATURES, POINTS
from latent_ode_mujoco.evaluation import fixed_batch
from latent_ode_mujoco.experiment import LatentODE
from latent_ode_mujoco.report import QUOTED, means
from latent_ode_mujoco.tasks import TRAINED_FRACTION, WINDOW, normalise, prepare
from latent_ode_mujoco.untrained import by_size, compared, errors
from tests.latent_ode_mujoco.conftest import swinging


def settings(task, sample=0.1):
    return LatentODE().new_settings("--profile", "quick", "--task", task, "--sample", str(sample))


def test_straight_lines_are_exact_on_straight_trajectories_between_the_observed_points():
    states = torch.linspace(1, 2, POINTS)[None, :, None] * torch.rand(10, 1, FEATURES) + 1
    batch = fixed_batch(prepare(states, "interpolation", 0, "cpu"), "test", settings("interpolation"))
    found = baselines.lines(batch)
    points = batch.target_index
    for index, guess, true in zip(batch.index, found, batch.targets):
        inside = (points >= index[0]) & (points <= index[-1])
        torch.testing.assert_close(guess[inside], true[inside], rtol=0, atol=1e-6)  # a few roundings of float32
        assert torch.equal(guess[points < index[0]], true[index[0]].expand(int((points < index[0]).sum()), -1))
        assert torch.equal(guess[points > index[-1]], true[index[-1]].expand(int((points > index[-1]).sum()), -1))


def test_straight_lines_go_through_what_is_observed():
    task = prepare(torch.from_numpy(swinging(20)), "interpolation", 0, "cpu")
    batch = fixed_batch(task, "test", settings("interpolation"))
    found = baselines.lines(batch)
    assert torch.equal(found.gather(1, batch.index[..., None].expand(-1, -1, FEATURES)), batch.values)


def test_extrapolation_goes_on_with_the_last_observed_point():
    task = prepare(torch.from_numpy(swinging(20)), "extrapolation", 0, "cpu")
    batch = fixed_batch(task, "test", settings("extrapolation"))
    assert torch.equal(baselines.lines(batch), batch.values[:, -1:].expand(-1, len(batch.target_index), -1))


def test_the_constant_knows_the_training_trajectories_alone(states):
    """From 40 sines; its error is the variance of the test targets and the square of how far their mean is off."""
    found = [row for row in baselines.rows(torch.from_numpy(states), ["quick"], 1) if row["label"] == "constant"]
    (row,) = (row for row in found if (row["task"], row["sample"]) == ("extrapolation", 0.5))
    scaled = normalise(torch.from_numpy(states))[0][:, POINTS // 3 :].double().numpy()
    cut = int(TRAINED_FRACTION * len(scaled))
    train, test = scaled[:cut].reshape(-1, FEATURES), scaled[cut:].reshape(-1, FEATURES)
    expected = (test.var(0) + (test.mean(0) - train.mean(0)) ** 2).mean()
    assert row["mse"] == pytest.approx(expected, rel=1e-5)  # means in float32
    assert len({row["mse"] for row in found if row["task"] == "interpolation"}) == 1  # whatever is observed


def test_a_measurement_is_found_by_the_report(states, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "load", lambda folder, count: torch.from_numpy(states))
    baselines.main(["--profiles", "quick", "--out", str(tmp_path / "baselines")])
    assert "data" not in read_run(tmp_path / "baselines")["arguments"]
    found = errors(tmp_path, "quick", "interpolation")
    assert [len(found["straight"][fraction]) for fraction in baselines.FRACTIONS] == [3, 3, 3]
    assert errors(tmp_path, "table", "interpolation") == {}
    constant, straight = (np.mean(found[name][0.1]) / 100 for name in ("constant", "straight"))
    rows = [{"label": name, "sample": 0.1, "seed": 0, "mse": mse}
            for name, mse in (("rnn", 2 * constant), ("rnn-vae", 3 * straight))]  # fmt: skip
    said = compared(means(rows), found)
    assert "straight lines between the observed points: 3 at 10% (rnn-vae)." in said
    assert said.endswith("worse than the constant: rnn.\n")
    assert compared(means(rows), {}) == compared({}, found) == by_size(tmp_path / "elsewhere", QUOTED) == ""
    text = by_size(tmp_path, QUOTED)
    assert f"| 1,000 (`--profile quick`) | {np.mean(found['constant'][0.1]):.2g} ± " in text
    assert "| 10,000 | 0.31 | 0.27 | 0.26 |" in text  # the least of what is quoted


def test_windows_have_the_length_of_the_task():
    task = prepare(torch.from_numpy(swinging(10)), "interpolation", 0, "cpu")
    assert baselines.lines(fixed_batch(task, "test", settings("interpolation"))).shape == (2, WINDOW, FEATURES)
