"""The cache of trajectories; and the simulator, where it is installed."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch

from harness.cli import UsageError
from latent_ode_mujoco import data

needs_mujoco = pytest.mark.skipif(
    importlib.util.find_spec("dm_control") is None, reason="needs mujoco and dm-control: pip install -e '.[mujoco]'"
)


@pytest.fixture
def simulated(states, monkeypatch):
    """Puts the synthetic trajectories in the simulator's place; a list of what was asked of it."""
    asked = []

    def simulate(count):
        asked.append(count)
        return states[:count]

    monkeypatch.setattr(data, "simulate", simulate)
    return asked


def break_a_bit(folder):
    content = bytearray((folder / "trajectories.npy").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "trajectories.npy").write_bytes(content)


def cut_short(folder):
    content = (folder / "trajectories.npy").read_bytes()
    (folder / "trajectories.npy").write_bytes(content[:-100])


def garble_the_manifest(folder):
    (folder / "manifest.json").write_text("{")


def change(**entries):
    def apply(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return apply


@pytest.mark.parametrize(
    "damage, message",
    [
        (break_a_bit, "checksum"),
        (cut_short, "checksum"),
        (lambda folder: (folder / "manifest.json").unlink(), "incomplete"),
        (lambda folder: (folder / "trajectories.npy").unlink(), "incomplete"),
        (garble_the_manifest, "incomplete"),
        (change(recipe="another"), "another recipe"),
    ],
)
def test_a_damaged_or_half_written_cache_is_noticed_and_built_again(damage, message, simulated, tmp_path, capsys):
    whole = data.load(tmp_path, 10)
    assert simulated == [10]
    damage(tmp_path)
    assert torch.equal(data.load(tmp_path, 10), whole)
    assert simulated == [10, 10]
    assert message in capsys.readouterr().err
    assert torch.equal(data.load(tmp_path, 10), whole)
    assert simulated == [10, 10]


def test_a_cache_serves_smaller_sets_and_grows_for_larger_ones(simulated, states, tmp_path):
    assert torch.equal(data.load(tmp_path, 10)[:4], data.load(tmp_path, 4))
    assert simulated == [10]
    assert len(data.load(tmp_path, 12)) == 12
    assert simulated == [10, 12]


def test_other_versions_of_the_simulator_build_the_cache_again_unless_there_is_none(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_versions", lambda: {"mujoco": "1", "dm-control": "1"})
    data.load(tmp_path, 10)
    monkeypatch.setattr(data, "_versions", lambda: {"mujoco": None, "dm-control": None})
    data.load(tmp_path, 10)
    assert simulated == [10]
    monkeypatch.setattr(data, "_versions", lambda: {"mujoco": "2", "dm-control": "1"})
    data.load(tmp_path, 10)
    assert simulated == [10, 10]


def test_a_missing_simulator_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(UsageError, match="pip install -e") as refusal:
        data.load(tmp_path, 10)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        data.load(tmp_path / "file" / "hopper", 10)


def test_the_statistics_notice_another_simulation(states, monkeypatch, tmp_path):
    path = tmp_path / "reference.json"
    monkeypatch.setattr(data, "REFERENCE", path)
    monkeypatch.setattr(data, "REFERENCE_SIZES", (10, 30))
    monkeypatch.setattr(data, "_versions", lambda: {})
    data.write_reference(states)
    rounded = states * np.float32(1 + 1e-6)
    assert data.disagreement(states) is None
    assert data.disagreement(rounded) is None
    changed = states.copy()
    changed[:, :, 3] += np.float32(0.01)
    assert "of waist differs" in data.disagreement(changed)
    assert data.disagreement(states[:5]) is None


@needs_mujoco
def test_the_simulation_is_the_same_each_time_and_a_prefix_of_larger_ones():
    three = data.simulate(3)
    assert np.array_equal(data.simulate(3), three)
    assert np.array_equal(data.simulate(2), three[:2])


@needs_mujoco
def test_the_simulation_starts_as_the_recipe_says_and_falls():
    states = data.simulate(4)
    draw = np.random.RandomState(data.SIMULATION_SEED).uniform
    for trajectory in states:
        start = np.concatenate([draw(0, 0.5, 2), draw(-2, 2, 5), draw(-5, 5, 7)]).astype(np.float32)
        np.testing.assert_array_equal(trajectory[0], start)
    # semi-implicit Euler in steps of 1/200: positions move by velocity times 0.005
    np.testing.assert_allclose(np.diff(states[:, :, 0], axis=1), 0.005 * states[:, 1:, 7], atol=1e-5)


@needs_mujoco
def test_the_simulation_agrees_with_the_recorded_statistics():
    assert data.disagreement(data.simulate(100)) is None
