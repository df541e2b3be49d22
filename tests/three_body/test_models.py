"""Shapes, batches and what each model knows."""

import pytest
import torch

from three_body import data, models, physics
from torch_ACA import solve


@pytest.fixture
def states():
    """Initial states of two systems [2, 6, 3]."""
    return torch.stack([data.PAPER.state, data.random_system(4).state])


def test_augmented_input_holds_the_pairs_over_powers_of_their_distance(states):
    augmented = models.augment(states[:, :3])
    assert augmented.shape == (2, models.AUGMENTED)
    first, second = states[1, 0], states[1, 1]
    distance = (second - first).norm()
    torch.testing.assert_close(augmented[1, 36:39], (second - first) / distance**3)


@pytest.mark.parametrize("model", ["node", "ode"])
def test_vector_fields_take_batches_and_know_the_velocity(model, states):
    func = models.build(model)
    together = func(torch.tensor(0.0), states)
    torch.testing.assert_close(together[:, :3], physics.K2 * states[:, 3:])
    for i in range(2):
        torch.testing.assert_close(together[i], func(torch.tensor(0.0), states[i]), rtol=1e-12, atol=1e-12)


def test_systems_of_a_batch_can_have_masses_of_their_own(states):
    func = models.NewtonODE(systems=(2,))
    with torch.no_grad():
        func.masses.copy_(torch.tensor([data.PAPER.masses, data.random_system(4).masses]))
    times = torch.linspace(0, 0.5, 5, dtype=torch.float64)
    solution = solve(func, states, times, rtol=1e-9, atol=1e-9)
    for i, system in enumerate((data.PAPER, data.random_system(4))):
        # local errors of 1e-9 grow over the two encounters before t = 0.5
        torch.testing.assert_close(solution.ys[:, i], data.simulate(system, times), atol=1e-5, rtol=0)
    solution.ys[:, 0].sum().backward()
    assert func.masses.grad[0].abs().min() > 0
    assert (func.masses.grad[1] == 0).all()


def test_all_points_cost_no_evaluation_more_than_the_last(states):
    func = models.build("ode")
    counts = [solve(func, states[0], torch.linspace(0, 1, n)).stats.n_f_evals for n in (2, 1000)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("model", models.RECURRENT)
def test_inference_starts_with_the_given_points_and_feeds_back_its_own(model):
    positions = data.simulate(data.PAPER, data.time_grid(0.02))[:, None, :3]
    network = models.build(model)
    with torch.no_grad():
        inferred = network.infer(positions[:10], 13)
        assert inferred.shape == (13, 1, 3, 3)
        torch.testing.assert_close(inferred[:10], positions[:10], rtol=0, atol=0)
        expected, _ = network(inferred[:-1])
    torch.testing.assert_close(inferred[10:], expected[9:])


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="unknown model 'gru'; accepted: lstm, lstm-aug, node, ode"):
        models.build("gru")
