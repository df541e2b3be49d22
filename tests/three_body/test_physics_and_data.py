"""Physics against what is known without it, and the systems' checks."""

import json

import numpy as np
import pytest
import torch

from three_body import data, physics


def test_constants_are_those_of_the_authors_script():
    assert pytest.approx(0.200484, abs=1e-6) == physics.K1
    assert pytest.approx(7.239324, abs=1e-6) == physics.K2


def test_two_bodies_on_a_circle_return_after_keplers_period():
    # the third body is too light and too far away to matter at the tolerance below
    separation, mass = 0.5, 1.0
    speed = (physics.K1 * mass / (2 * physics.K2 * separation)) ** 0.5  # of each about the common centre
    system = data.System(
        "circle",
        masses=[mass, mass, 1e-12],
        positions=[[-separation / 2, 0, 0], [separation / 2, 0, 0], [0, 0, 1e3]],
        velocities=[[0, -speed, 0], [0, speed, 0], [0, 0, 0]],
    )
    period = 2 * np.pi * (separation**3 / (physics.K1 * physics.K2 * 2 * mass)) ** 0.5
    states = data.simulate(system, [0.0, period / 2, period])
    torch.testing.assert_close(states[1, :2], -states[0, :2], atol=1e-8, rtol=0)
    torch.testing.assert_close(states[2, :2], states[0, :2], atol=1e-8, rtol=0)


def test_slope_of_a_batch_is_that_of_each_system_alone():
    systems = [data.PAPER, data.random_system(4)]
    masses = torch.tensor([system.masses for system in systems], dtype=torch.float64)
    states = torch.stack([system.state for system in systems])
    together = physics.slope(masses, states)
    for i in range(2):
        torch.testing.assert_close(together[i], physics.slope(masses[i], states[i]), rtol=1e-14, atol=0)


def test_truth_conserves_energy_and_momentum():
    masses = torch.tensor(data.PAPER.masses, dtype=torch.float64)
    states = data.simulate(data.PAPER, data.time_grid(2.0))
    energies, momenta = physics.energy(masses, states), physics.momentum(masses, states)
    # local errors of 1e-12 are amplified by the close encounters
    torch.testing.assert_close(energies, energies[:1].expand_as(energies), rtol=1e-6, atol=0)
    torch.testing.assert_close(momenta, momenta[:1].expand_as(momenta), rtol=0, atol=1e-11)


def test_paper_grids_have_the_papers_points():
    assert len(data.time_grid(1.0)) == 1000
    assert len(data.time_grid(2.0)) == 2000
    assert data.time_grid(2.0)[-1] == 2.0


def test_random_systems_are_repeatable_and_stay_apart():
    system = data.random_system(2)
    assert system == data.random_system(2) != data.random_system(4)
    assert len(set(system.masses)) == 3
    positions = data.simulate(system, data.time_grid(2.0))[:, :3]
    assert physics.distances(positions).min() > data.MIN_DISTANCE


def test_a_collision_is_noticed():
    fall = data.System("fall", [1, 1, 1], [[0, 0, 0], [0.2, 0, 0], [5, 5, 5]], [[0, 0, 0]] * 3)
    assert not data.stays_apart(fall)


GOOD = {"masses": [1, 1, 1], "positions": [[0, 0, 0], [1, 0, 0], [0, 1, 0]], "velocities": [[0, 0, 0]] * 3}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"masses": [1, -1, 1]}, "masses must be positive"),
        ({"masses": [1, 1]}, "masses of a system"),
        ({"masses": [1, 1, float("nan")]}, "masses of a system"),
        ({"positions": [[0, 0, 0], [1, 0, 0], [1, 0, 0]]}, "bodies 2 and 3 coincide"),
        ({"velocities": "fast"}, "velocities of a system"),
    ],
)
def test_impossible_systems_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        data.System("bad", **(GOOD | change))


@pytest.mark.parametrize("times", [[0.0, 0.5, 0.4], [0.0, 0.5, 0.5], [0.1, 0.2], [0.0]])
def test_times_out_of_order_are_refused(times):
    with pytest.raises(ValueError, match="times must begin at 0 and increase"):
        data.simulate(data.PAPER, times)


def test_systems_are_found_by_name_seed_and_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GOOD))
    assert data.find_system("paper") is data.PAPER
    assert data.find_system("4") == data.random_system(4)
    assert data.find_system(str(path)).positions == GOOD["positions"]
    path.write_text("{}")
    for text, message in ((str(path), "is not a JSON object with"), ("moon", "neither 'paper', nor a seed")):
        with pytest.raises(ValueError, match=message):
            data.find_system(text)
