"""The animation of the hopper."""

import json

import numpy as np
import pytest

from harness.cli import UsageError
from latent_ode_mujoco import data, render


def test_a_folder_without_a_test_is_refused(tmp_path):
    with pytest.raises(UsageError, match="run test.py --resume"):
        render.main([str(tmp_path)])
    with pytest.raises(UsageError, match="is a folder; a file is needed"):
        render.main([str(tmp_path), "--out", str(tmp_path)])


def test_the_skeleton_is_rigid_and_follows_the_joints():
    pytest.importorskip("dm_control", reason="needs mujoco and dm-control")
    states = data.simulate(1)[0]
    ends = render.skeleton(states)
    lengths = np.linalg.norm(ends[:, :, 1] - ends[:, :, 0], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), atol=1e-6)
    moved = states.copy()
    moved[:, :2] += [0.3, 0.2]  # rootx, rootz
    np.testing.assert_allclose(render.skeleton(moved), ends + [0.3, 0.2], atol=1e-5)


def test_an_animation_is_written(tmp_path):
    pytest.importorskip("dm_control", reason="needs mujoco and dm-control")
    states = data.simulate(1)[0][:3]
    header = ",".join(["trajectory", "t", "observed", *data.NAMES, *data.NAMES])
    lines = [",".join(map(str, [0, i / data.POINTS, i % 2, *state, *state])) for i, state in enumerate(states)]
    (tmp_path / "reconstructions.csv").write_text("\n".join([header, *lines]))
    test = {"minimum": [0.0] * data.FEATURES, "maximum": [1.0] * data.FEATURES, "title": "a title"}
    (tmp_path / "tests.jsonl").write_text(json.dumps(test) + "\n")
    render.main([str(tmp_path)])
    assert (tmp_path / "hopper.gif").read_bytes().startswith(b"GIF8")
    with pytest.raises(UsageError, match="--trajectory 1 is not in"):
        render.main([str(tmp_path), "--trajectory", "1"])
