"""Spirals: the data, and what the models may look at."""

import pytest
import torch

from harness.cli import UsageError
from neural_ode_2018.spirals.data import NOISE, PITCH, TIMES, make_spirals
from neural_ode_2018.spirals.experiment import SPIRALS, predicted, rmse
from neural_ode_2018.spirals.models import build
from torch_ACA import solve

SOLVER = {"rtol": 1e-6, "atol": 1e-6}


def test_spirals_turn_both_ways_and_are_seen_with_noise():
    data = make_spirals(400, 30, 0, "train")
    assert data.values.shape == (400, 30, 2) and data.truth.shape == (400, TIMES, 2)
    assert (data.index.diff(dim=1) > 0).all() and (data.times.diff() > 0).all() and (data.ahead.diff() > 0).all()
    assert data.times[0] == 0 and data.times[-1] < data.ahead[0] and (data.behind.diff() < 0).all()
    path = torch.cat([data.truth, data.truth_ahead], dim=1).double()
    angle = torch.atan2(path[..., 1], path[..., 0])
    turned = torch.remainder(angle[:, -1] - angle[:, 0], 2 * torch.pi)
    expected = torch.remainder(torch.tensor([1.0, -1.0]).repeat(200) * data.ahead[-1], 2 * torch.pi)
    torch.testing.assert_close(turned, expected.double(), atol=1e-5, rtol=0)
    radius = path.norm(dim=2)  # grows evenly
    grown = PITCH * data.ahead[-1].expand(400)
    torch.testing.assert_close(radius[:, -1] - radius[:, 0], grown, atol=1e-5, rtol=0)
    noise = data.values - data.truth.gather(1, data.index[..., None].expand(-1, -1, 2))
    assert abs(noise.std() / NOISE - 1) < 0.03 and abs(noise.mean()) < 0.03 * NOISE  # 24,000 numbers
    assert radius.max() <= 1


def test_parts_are_different_draws_at_the_same_times():
    train, again, new = (make_spirals(5, 9, 0, part) for part in ("train", "train", "new"))
    assert torch.equal(train.values, again.values) and not torch.equal(train.values, new.values)
    assert torch.equal(train.times, new.times)


@pytest.mark.parametrize("model", ["rnn", "rnn-gaps", "latent-ode"])
def test_no_prediction_depends_on_what_was_not_seen(model):
    torch.manual_seed(0)
    data, network = make_spirals(6, 8, 0, "train"), build(model)
    solver = SOLVER if model == "latent-ode" else None
    before = predicted(network, data, solver)
    for truth in (data.truth, data.truth_ahead, data.truth_behind):
        truth.zero_()
    after = predicted(network, data, solver)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(before, after))
    assert before[1].shape == (6, TIMES, 2) and rmse(before[1], before[1]) == 0
    data.values[0] += 1
    assert not torch.equal(predicted(network, data, solver)[1], before[1])


def test_only_the_model_with_gaps_looks_at_them():
    torch.manual_seed(0)
    values, gaps = torch.randn(3, 4, 2), torch.rand(3, 4)
    for model, looks in (("rnn", False), ("rnn-gaps", True)):
        network = build(model)
        assert torch.equal(network(values, gaps)[0], network(values, 2 * gaps)[0]) != looks


def test_feeding_back_is_what_the_recurrent_network_says_next():
    torch.manual_seed(0)
    data, network = make_spirals(4, 6, 0, "train"), build("rnn-gaps")
    times = data.seen_times()
    points = network.continued(data.values, times, data.ahead[:3])
    gaps = torch.cat([times, data.ahead[:3].float().expand(4, -1)], dim=1).diff(dim=1)
    whole, _ = network(torch.cat([data.values, points[:, :2]], dim=1), gaps)
    torch.testing.assert_close(points, whole[:, 5:])


def test_the_latent_solution_forward_then_back_returns():
    torch.manual_seed(0)
    network, z = build("latent-ode"), torch.randn(3, 4)
    with torch.no_grad():
        forth, _ = network.decode(z, [0.0, 1.0, 2.0], SOLVER)
        back, _ = network.decode(z, [0.0, -1.0], SOLVER)
        there = solve(network.field, z, [0.0, 1.0], **SOLVER).ys[-1]
        again = solve(network.field, there, [1.0, 0.0], **SOLVER).ys[-1]
    assert forth.shape == (3, 3, 2) and torch.equal(forth[:, 0], back[:, 0])
    assert not torch.equal(forth[:, 1], back[:, 1])
    torch.testing.assert_close(again, z, atol=1e-4, rtol=0)  # a hundred times the tolerance of a step


@pytest.mark.parametrize("points", ["1", "101"])
def test_points_that_cannot_be_seen(points):
    with pytest.raises(UsageError, match="from 2 to 100"):
        SPIRALS.new_settings("--points", points)
