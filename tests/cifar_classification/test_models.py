import pytest
import torch
from torch import nn

from cifar_classification.models import (
    STATS,
    ode_blocks,
    parameter_count,
    scale_fields,
    set_solver,
    solver_stats,
)
from cifar_classification.models.resnet import ResNet
from cifar_classification.models.sqnxt import SqueezeNext

ONE_EULER_STEP = {"method": "Euler", "h": 1.0, "gradient": "aca"}


@pytest.mark.parametrize(
    ("network", "solver", "count"),
    [(ResNet, {}, 11_173_962), (ResNet, None, 11_173_962), (SqueezeNext, {}, 461_466), (SqueezeNext, None, 461_466)],
)
def test_parameter_counts_are_the_authors(network, solver, count):
    assert parameter_count(network(solver=solver)) == count


@pytest.mark.parametrize("network", [ResNet, SqueezeNext])
@pytest.mark.parametrize("solver", [None, ONE_EULER_STEP])
def test_images_become_one_logit_per_class(network, solver):
    model = network(width=4, classes=7, solver=solver)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert len(ode_blocks(model)) == (0 if solver is None else 4)


def test_shapes_between_the_stages_are_resnet_18s():
    x = ResNet(width=4).stem(torch.randn(1, 3, 32, 32))
    shapes = []
    for stage in ResNet(width=4, solver=ONE_EULER_STEP).stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]


@pytest.mark.parametrize("network", [ResNet, SqueezeNext])
def test_one_euler_step_adds_the_field_once(network):
    torch.manual_seed(0)
    model = network(width=4, solver=ONE_EULER_STEP).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    by_hand = model.stem(x)
    for first, block in model.stages:
        z = first(by_hand)
        by_hand = z + block.func(torch.zeros(()), z)
    torch.testing.assert_close(model(x), model.head(by_hand), rtol=0, atol=1e-12)


def test_a_field_ends_in_relu_so_the_state_never_decreases():
    block = ode_blocks(ResNet(width=4, solver={"method": "RK12"}))[0]
    z = torch.randn(2, 4, 8, 8)
    assert (block(z) >= z).all() and (block(z) > z).any()


def test_solver_can_be_changed_without_changing_parameters():
    model = ResNet(width=4, solver=ONE_EULER_STEP)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_solver(model, method="RK4", h=0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()(torch.randn(1, 3, 32, 32))
    assert solver_stats(model)[:, STATS.index("n_accepted")].tolist() == [2] * 4


def test_stats_count_forward_and_backward_per_block():
    model = ResNet(width=4, solver=ONE_EULER_STEP)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    stats = dict(zip(STATS, solver_stats(model).T.tolist()))
    assert stats == {
        "n_f_evals": [1] * 4,
        "n_backward_f_evals": [1] * 4,
        "n_accepted": [1] * 4,
        "n_rejected": [0] * 4,
    }
    assert solver_stats(ResNet(width=4)).shape == (0, 4)


def test_scaling_a_field_scales_its_value():
    block = ode_blocks(ResNet(width=4, solver={}))[0]
    z = torch.randn(2, 4, 8, 8)
    whole = block.func(None, z)
    scale_fields(nn.Sequential(block), 0.25)
    torch.testing.assert_close(block.func(None, z), 0.25 * whole)


def test_half_precision_agrees_with_single_precision_to_its_rounding():
    torch.manual_seed(0)
    model = ResNet(width=8, solver=ONE_EULER_STEP)
    x = torch.randn(8, 3, 32, 32)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x)
    # bfloat16 keeps 8 bits; about 20 layers of such roundings stay within a few percent of the logits' spread
    assert (rounded.float() - exact).std() < 0.1 * exact.std()
