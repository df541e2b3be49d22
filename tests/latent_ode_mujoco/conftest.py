import math

import numpy as np
import pytest

from latent_ode_mujoco import data


def swinging(count, seed=0):
    """Trajectories that need no simulator: sines of random phase, frequency and size [count, POINTS, FEATURES]."""
    draw = np.random.default_rng(seed)
    shape = (count, 1, data.FEATURES)
    phase, frequency, size = draw.uniform(0, 2 * math.pi, shape), draw.uniform(1, 8, shape), draw.uniform(0.5, 1, shape)
    times = np.arange(data.POINTS)[:, None] / data.POINTS
    return (2 + size * np.sin(phase + frequency * times)).astype(np.float32)


@pytest.fixture(scope="session")
def states():
    return swinging(40)


@pytest.fixture(scope="session")
def cache(states, tmp_path_factory):
    """A data folder that holds `states`."""
    folder = tmp_path_factory.mktemp("hopper")
    data._store(folder, states)
    return str(folder)
