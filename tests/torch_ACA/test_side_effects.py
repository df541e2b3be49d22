"""BatchNorm and dropout inside f: what counts once, and what leaves no trace."""

import pytest
import torch
from torch import nn

from torch_ACA import ODEBlock, solve


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, t, y):
        return torch.tanh(self.norm(self.linear(y)))


def statistics(module):
    return [b.clone() for b in module.buffers()]


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.parametrize("method", ["HeunEuler", "Dopri5"])
@pytest.mark.defect("batchnorm-counts-twice")
def test_running_statistics_count_accepted_evaluations_once(gradient, method):
    """Against a recorder of the evaluations that count: probe, rejected tries and the backward pass change nothing."""
    if gradient == "mali" and method == "Dopri5":
        pytest.skip("mali has one method")
    module = Normalised()
    torch.manual_seed(1)
    y = torch.randn(16, 4)
    method = "ALF" if gradient == "mali" else method
    tolerance = 1e-7 if method == "Dopri5" else 1e-3
    block = ODEBlock(module, method=method, rtol=tolerance, atol=tolerance, h=1.0, gradient=gradient)
    reference = Normalised()
    reference.load_state_dict(module.state_dict())
    out = block(y)
    stats = block.stats
    assert stats.n_rejected > 0  # the first step of 1.0 is too long: the test would show nothing otherwise
    after_forward = statistics(module)
    per_step = {"HeunEuler": 2, "Dopri5": 6, "ALF": 1}[method]
    counted = per_step * stats.n_accepted + (0 if method == "HeunEuler" else 1)
    assert int(module.norm.num_batches_tracked) == counted
    out.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(after_forward, statistics(module)))


def test_statistics_equal_a_hand_unrolled_forward():
    """HeunEuler with two fixed steps: four evaluations, in order."""
    module, reference = Normalised(), Normalised()
    reference.load_state_dict(module.state_dict())
    y = torch.randn(16, 4)
    solve(module, y, [0.0, 1.0], method="HeunEuler", options={"step_size": 0.5})
    with torch.no_grad():
        z = y
        for _ in range(2):
            k1 = reference(0.0, z)
            k2 = reference(0.0, z + 0.5 * k1)
            z = z + 0.25 * (k1 + k2)
    for a, b in zip(module.buffers(), reference.buffers()):
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("gradient", ["aca", "direct"])
@pytest.mark.defect("endtime-backward-raises")
def test_gradient_through_batch_norm(gradient):
    module = Normalised()
    y = torch.randn(16, 4, requires_grad=True)
    out = solve(module, y, [0.0, 1.0], method="HeunEuler", options={"step_size": 0.5}, gradient=gradient).ys[-1]
    found = torch.autograd.grad((out**2).sum(), [y, *module.parameters()])
    z = y
    for _ in range(2):
        k1 = module(0.0, z)
        z = z + 0.25 * (k1 + module(0.0, z + 0.5 * k1))
    expected = torch.autograd.grad((z**2).sum(), [y, *module.parameters()])
    assert all(float((f - e).abs().max()) < 1e-12 for f, e in zip(found, expected))


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive"])
@pytest.mark.defect("dropout-replay")
def test_dropout_draws_one_mask_per_solve(gradient):
    """Gradients equal plain autograd's with the same mask, and the random stream moves on by one draw."""
    linear, dropout = nn.Linear(4, 4), nn.Dropout(0.5)
    func = lambda t, y: dropout(linear(y))  # noqa: E731
    y = torch.randn(8, 4, requires_grad=True)
    torch.manual_seed(3)
    out = solve(func, y, [0.0, 1.0], method="RK4", h=0.25, gradient=gradient).ys[-1]
    after = torch.rand(3)
    found = torch.autograd.grad((out**2).sum(), [y, *linear.parameters()])
    after_backward = torch.rand(3)

    torch.manual_seed(3)
    mask = dropout(torch.ones(8, 4))
    assert torch.equal(after, torch.rand(3)) and torch.equal(after_backward, torch.rand(3))
    masked = lambda t, y: mask * linear(y)  # noqa: E731
    expected_out = solve(masked, y, [0.0, 1.0], method="RK4", h=0.25).ys[-1]
    expected = torch.autograd.grad((expected_out**2).sum(), [y, *linear.parameters()])
    assert all(float((f - e).abs().max()) < 1e-12 for f, e in zip(found, expected))


def test_modules_are_found_behind_functions():
    import functools

    from torch_ACA.side_effects import modules_of

    module = Normalised()

    class Holder:
        def __init__(self):
            self.inner = module

        def slope(self, t, y):
            return self.inner(t, y)

        def __call__(self, t, y):
            return self.inner(t, y)

    candidates = [
        module,
        module.forward,
        lambda t, y: module(t, y),
        functools.partial(lambda m, t, y: m(t, y), module),
        Holder(),
        Holder().slope,
    ]
    everything = set(module.modules())
    assert all(set(modules_of(candidate)) == everything for candidate in candidates)


def test_eval_mode_touches_nothing():
    module = Normalised().eval()
    before = statistics(module)
    block = ODEBlock(module, rtol=1e-4, atol=1e-4)
    block(torch.randn(16, 4)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(module)))


def test_a_lazy_module_that_was_never_called_is_refused():
    """Its statistics have no shape that they could be put back to."""
    func = nn.Sequential(nn.Linear(3, 3), nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="running_mean of LazyBatchNorm1d has no shape yet: call that module once"):
        solve(lambda t, y: func(y), torch.ones(4, 3), [0.0, 1.0])
    func(torch.ones(4, 3))
    solve(lambda t, y: func(y), torch.ones(4, 3), [0.0, 1.0]).ys.sum().backward()
    assert func[0].weight.grad is not None
