"""What the reports say of the paper's claims, from runs that are made up here."""

import pytest

from neural_ode_2018.cnf import report as cnf
from neural_ode_2018.mnist import report as mnist
from neural_ode_2018.spirals import report as spirals

SEEDS = range(5)


def runs(what, label, field, values, **others):
    return [{"what": what, "label": label, "seed": seed, field: value, "seconds": 36.0} | others
            for seed, value in zip(SEEDS, values)]  # fmt: skip


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_different_networks_are_not_compared_as_pairs():
    """As pairs these spirals would be decided: the models differ alike in each seed, but by less than the seeds do."""
    values = [0.1, 0.4, 0.7, 1.0, 1.3]
    rows = runs("n30", "latent-ode-aca", "rmse_ahead_train", values)
    rows += runs("n30", "rnn", "rmse_ahead_train", [v + d for v, d in zip(values, (0.05, 0.06, 0.04, 0.05, 0.06))])
    rows += runs("n30", "rnn-gaps", "rmse_ahead_train", [v + 5 for v in values])
    near, far = lines(spirals.claims(rows), "| n30")
    assert "n30: latent-ode-aca below rnn |" in near and "undecided" in near and "Welch t" in near
    assert "decided for" in far and "Welch t" in far


def test_the_same_network_is_compared_as_pairs_of_one_seed():
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    rows = runs("mnist", "ode-net-aca", "test_error", values)
    rows += runs(
        "mnist", "ode-net-adjoint", "test_error", [v + d for v, d in zip(values, (0.05, 0.06, 0.04, 0.05, 0.06))]
    )
    rows += runs("mnist", "resnet", "test_error", [v + 0.05 for v in values])
    beside, _, pairs = lines(mnist.claims(rows), "| mnist")
    assert "undecided" in beside and "Welch t" in beside
    assert "decided for" in pairs and "paired t" in pairs


def test_a_planar_flow_that_fits_better_decides_against_the_continuous_one():
    of_flow = {"width": 8, "probability": 1.0004, "inverse_error_tight": 3e-9, "model": "cnf"}
    rows = runs("moons", "cnf-aca-8", "nll", [2.0, 2.1, 2.0, 2.1, 2.0], **of_flow)
    rows += runs("moons", "nf-8", "nll", [1.0, 1.1, 1.0, 1.1, 1.1], width=8, probability=0.9, model="nf")
    rows += runs("crescents", "cnf-aca-8", "kl", [0.1] * 5, **of_flow)
    rows[0] = rows[0] | {"probability": 0.998}
    text = cnf.claims(rows)
    assert "decided against" in lines(text, "| moons")[0]
    assert "undecided: not run" in lines(text, "| crescents")[0]
    assert "- total probability is 1 within 0.001: 9 of 10 continuous flows, at most 2.0e-03" in text
    assert "10 of 10 continuous flows, at most 3.0e-09" in text


@pytest.mark.parametrize("alone", [False, True])
def test_networks_on_images_are_compared_where_there_are_several(alone):
    rows = runs("mnist", "ode-net-aca", "test_error", [0.02, 0.021, 0.019, 0.02, 0.02])
    if alone:
        assert mnist.claims(rows) == ""
        return
    rows += runs("mnist", "resnet", "test_error", [0.01, 0.011, 0.012, 0.01, 0.011])
    found = lines(mnist.claims(rows), "| mnist")
    assert len(found) == 3 and "decided for" in found[0] and "-0.92%" in found[0] and "not run" in found[1]
