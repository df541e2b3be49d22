import pytest
import torch
from torch import nn

from cifar_classification.models import (
    NETWORKS,
    STATS,
    blocks,
    ode_blocks,
    parameter_count,
    scale_branches,
    scale_fields,
    set_solver,
    solver_stats,
)
from cifar_classification.models.blocks import make_block
from cifar_classification.models.resnet import ResNet, VectorField
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
        "n_backward_f_evals": [0] * 4,  # so short a solve keeps its graph
        "n_accepted": [1] * 4,
        "n_rejected": [0] * 4,
    }
    assert solver_stats(ResNet(width=4)).shape == (0, 4)


def test_images_take_their_own_steps_where_batch_norm_does_not_tie_them_together():
    """In evaluation mode: an image has its answer in every batch; counts are those of the image with the most steps."""
    model = ResNet(width=4, solver={"method": "RK12", "rtol": 1e-3, "atol": 1e-3, "per_sample": True})
    images, accepted = torch.randn(3, 3, 32, 32), STATS.index("n_accepted")
    with pytest.raises(ValueError, match="func holds BatchNorm2d"):
        model.train()(images)
    model.eval()
    with torch.no_grad():
        together, most = model(images), solver_stats(model)[:, accepted]
        alone = [(model(image[None]), solver_stats(model)[:, accepted]) for image in images]
    # rounding of other kernels for other batches, in single precision, times what the steps make of it
    torch.testing.assert_close(together, torch.cat([logits for logits, _ in alone]), rtol=1e-3, atol=1e-4)
    assert torch.equal(most, torch.stack([counts for _, counts in alone]).amax(0))


def test_scaling_a_field_scales_its_value():
    block = ode_blocks(ResNet(width=4, solver={}))[0]
    z = torch.randn(2, 4, 8, 8)
    whole = block.func(None, z)
    scale_fields(nn.Sequential(block), 0.25)
    torch.testing.assert_close(block.func(None, z), 0.25 * whole)


@pytest.mark.parametrize("network", NETWORKS.values())
def test_scaling_a_branch_scales_what_is_added(network):
    """The second block is relu(x + scale * branch(x)) then, as the branch ends in its BatchNorm."""
    model = network(width=16, solver=None)
    block = model.stages[0][1]
    x = torch.randn(2, 16, 8, 8)
    whole = block.residual(x)
    scale_branches(model, 0.25)
    torch.testing.assert_close(block.residual(x), 0.25 * whole)


def test_half_precision_agrees_with_single_precision_to_its_rounding():
    torch.manual_seed(0)
    model = ResNet(width=8, solver=ONE_EULER_STEP)
    x = torch.randn(8, 3, 32, 32)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x)
    # bfloat16 keeps 8 bits; about 20 layers of such roundings stay within a few percent of the logits' spread
    assert (rounded.float() - exact).std() < 0.1 * exact.std()


def through_block(gradient, **solver):
    """Value, gradients by name and stats of a block on fixed numbers, in float64."""
    torch.manual_seed(0)
    block = make_block(VectorField(3), gradient=gradient, **solver).double().eval()
    z = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    value = block(z)
    value.square().sum().backward()
    return value, {name: p.grad for name, p in block.named_parameters()} | {"z": z.grad}, block.stats


@pytest.mark.parametrize(
    ("ours", "theirs", "solver", "tolerance"),
    [
        ("direct", "torchdiffeq", {"method": "Euler", "h": 0.5}, 1e-12),
        ("direct", "torchdiffeq", {"method": "RK2", "h": 0.5}, 1e-12),
        # odeint has gradients of its choice of steps too, like naive, which are far off where a ReLU has its kink
        ("direct", "torchdiffeq", {"method": "Dopri5", "rtol": 1e-8, "atol": 1e-8}, 0.1),
        ("direct", "torchdiffeq", {"method": "RK12", "rtol": 1e-6, "atol": 1e-6, "h": 0.1}, 0.1),
        ("adjoint", "torchdiffeq-adjoint", {"method": "RK23", "rtol": 1e-7, "atol": 1e-7}, 1e-3),
    ],
)
def test_torchdiffeqs_block_is_the_same_layer(ours, theirs, solver, tolerance):
    pytest.importorskip("torchdiffeq")
    value, gradients, stats = through_block(theirs, **solver)
    expected_value, expected_gradients, expected_stats = through_block(ours, **solver)
    assert gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=1e-4)
    for name, expected in expected_gradients.items():
        assert (gradients[name] - expected).norm() <= tolerance * expected.norm(), name
    assert (stats.n_backward_f_evals > 0) == theirs.endswith("adjoint")
    if "rtol" in solver:
        assert stats.n_accepted > 1 and stats.n_f_evals > stats.n_accepted
    else:
        assert stats.n_f_evals == expected_stats.n_f_evals


@pytest.mark.parametrize("gradient", ["torchdiffeq", "torchdiffeq-adjoint"])
def test_torchdiffeqs_block_keeps_the_precision_of_the_forward_pass(gradient):
    pytest.importorskip("torchdiffeq")
    seen = []
    field = VectorField(3)
    field[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    block = make_block(field, gradient=gradient, method="RK12", rtol=1e-1, atol=1e-1, h=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        value = block(torch.randn(2, 3, 6, 6, requires_grad=True))
    value.sum().backward()
    assert set(seen) == {torch.bfloat16} and value.dtype == torch.float32
    assert field[0].weight.grad.isfinite().all()


def test_torchdiffeqs_block_has_the_weights_of_ours_and_says_what_it_lacks(monkeypatch):
    pytest.importorskip("torchdiffeq")
    solver = {"method": "RK12", "rtol": 1e-2, "atol": 1e-2}
    model = ResNet(width=4, solver=solver | {"gradient": "torchdiffeq"})
    ResNet(width=4, solver=solver).load_state_dict(model.state_dict())
    model(torch.randn(1, 3, 32, 32))
    assert solver_stats(model)[:, STATS.index("n_f_evals")].min() >= 2
    for settings, said in (({"method": "RK4", "h": 0.5}, "goes with the method"), ({"method": "Euler"}, "step size h")):
        with pytest.raises(ValueError, match=said):
            make_block(VectorField(3), gradient="torchdiffeq", **settings)
    monkeypatch.setattr(blocks, "torchdiffeq", None)
    with pytest.raises(ValueError, match="needs torchdiffeq: pip install torchdiffeq"):
        make_block(VectorField(3), gradient="torchdiffeq", **solver)
