"""The tasks cut from the trajectories, those set aside, and what is observed."""

import numpy as np
import pytest
import torch

from harness.seeding import generator
from latent_ode_mujoco import data, tasks


def test_normalisation_is_the_recipes(states):
    scaled, minimum, maximum = tasks.normalise(torch.from_numpy(states))
    flat = states.reshape(-1, data.FEATURES)
    np.testing.assert_array_equal(minimum, flat.min(0))
    np.testing.assert_allclose(scaled, (states - flat.min(0)) / flat.max(0), rtol=1e-6)
    assert scaled.min() == 0
    assert torch.isfinite(tasks.normalise(torch.zeros(2, 3, data.FEATURES))[0]).all()


def test_interpolation_cuts_one_window_from_each_trajectory_and_splits_them(states):
    scaled, _, _ = tasks.normalise(torch.from_numpy(states))
    task = tasks.prepare(torch.from_numpy(states), "interpolation", 3, "cpu")
    windows = torch.cat([task.train.targets, task.test.targets])
    assert (len(task.train), len(task.test)) == (32, 8)
    assert windows.shape == (40, tasks.WINDOW, data.FEATURES)
    firsts = []
    for trajectory, window in zip(scaled, windows):
        (first,) = [i for i in range(101) if torch.equal(trajectory[i : i + tasks.WINDOW], window)]
        firsts.append(first)
    assert len(set(firsts)) > 20
    other = tasks.prepare(torch.from_numpy(states), "interpolation", 4, "cpu")
    assert not torch.equal(other.train.targets, task.train.targets)


def test_extrapolation_observes_the_first_third_and_predicts_the_others(states):
    scaled, _, _ = tasks.normalise(torch.from_numpy(states))
    task = tasks.prepare(torch.from_numpy(states), "extrapolation", 0, "cpu")
    batch = task.test.observe(slice(None), 6, generator("cpu", 0))
    assert int(batch.index.max()) < tasks.OBSERVABLE == batch.start == int(batch.target_index[0])
    assert int(batch.target_index[-1]) == data.POINTS - 1
    torch.testing.assert_close(batch.targets, scaled[32:, tasks.OBSERVABLE :], rtol=0, atol=0)


def test_each_trajectory_is_observed_at_points_of_its_own_and_nowhere_else(states):
    task = tasks.prepare(torch.from_numpy(states), "interpolation", 0, "cpu")
    counts = torch.zeros(tasks.WINDOW)
    for i in range(200):
        batch = task.train.observe(slice(0, 32), 10, generator("cpu", 0, i))
        assert (batch.index.diff(dim=1) > 0).all()
        assert len(torch.unique(batch.index, dim=0)) == 32
        counts += torch.bincount(batch.index.flatten(), minlength=tasks.WINDOW)
    for row, index, values in zip(batch.targets, batch.index, batch.values):
        assert torch.equal(row[index], values)
    # each point is observed with probability 0.1: 640 times of 6,400, standard deviation 24
    assert (counts - 640).abs().max() < 5 * 24


def test_some_targets_are_those_of_the_batch_at_times_drawn_evenly(states):
    task = tasks.prepare(torch.from_numpy(states), "interpolation", 0, "cpu")
    counts = torch.zeros(tasks.WINDOW)
    for i in range(400):
        draw = generator("cpu", i)
        batch = task.train.observe(slice(0, 2), 10, draw)
        some = batch.some_targets(20, draw)
        assert torch.equal(some.targets, batch.targets[:, some.target_index])
        counts[some.target_index] += 1
    assert (counts - 80).abs().max() < 5 * 8
    assert batch.some_targets(None, draw) is batch


@pytest.mark.parametrize("task", tasks.TASKS)
def test_what_is_set_aside_is_drawn_from_the_trajectories_to_train_on_alone(task, states):
    """Each trajectory is in one part; those to test on are the same, whatever is set aside and whatever the seed."""
    whole = tasks.prepare(torch.from_numpy(states), task, 0, "cpu")
    assert len(whole.validation) == 0
    split = tasks.prepare(torch.from_numpy(states), task, 0, "cpu", validation=0.25)
    assert (len(split.train), len(split.validation), len(split.test)) == (24, 8, 8)
    for name in ("observable", "targets"):
        assert torch.equal(getattr(split.test, name), getattr(whole.test, name))
    rows = {target.numpy().tobytes(): row for row, target in enumerate(whole.train.targets)}
    train, aside = ([rows[target.numpy().tobytes()] for target in part.targets]
                    for part in (split.train, split.validation))  # fmt: skip
    assert sorted(train + aside) == list(range(32))
    assert train == sorted(train)
    assert torch.equal(split.validation.observable, whole.train.observable[aside])
    again = tasks.prepare(torch.from_numpy(states), task, 0, "cpu", validation=0.25)
    assert torch.equal(again.validation.targets, split.validation.targets)


def test_another_seed_sets_others_aside(states):
    aside = [tasks.prepare(torch.from_numpy(states), "extrapolation", seed, "cpu", 0.25).validation for seed in (0, 1)]
    assert not torch.equal(*(part.targets for part in aside))


def test_at_least_one_trajectory_is_set_aside():
    assert tasks.sizes(2000, 0.125) == (1400, 200, 400)
    assert tasks.sizes(5, 0.125) == (3, 1, 1)
    assert tasks.sizes(5, 0.0) == (4, 0, 1)
