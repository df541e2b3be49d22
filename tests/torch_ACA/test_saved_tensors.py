import weakref

import pytest
import torch

from torch_ACA.evaluation import measured
from torch_ACA.saved_tensors import SavedOnce, SavedTensors
from torch_ACA.state import StateLayout
from torch_ACA.vector_field import VectorField


def test_counts_a_storage_once_and_lets_go_of_it():
    x = torch.ones(10, dtype=torch.float64, requires_grad=True)
    with SavedTensors() as saved:
        y = x * x  # keeps x twice
        assert saved.held == 80
        z = y.exp()  # keeps its own result
        assert saved.held == 160
        z.sum().backward()
        del y, z
    assert saved.held == 0 and saved.peak >= 160
    assert torch.allclose(x.grad, 2 * x.detach() * torch.e)


def test_a_graph_that_is_never_differentiated_is_freed():
    with SavedTensors() as saved:
        y = torch.ones(10, requires_grad=True).tanh()  # keeps its own result
        assert saved.held == 80
        del y
        assert saved.held == 0


def test_what_one_graph_keeps_and_tensors_beside_it():
    x, y, z = (torch.ones(10, requires_grad=True) for _ in range(3))
    with SavedOnce() as saved:
        product = x * y
    assert saved.n_bytes([]) == 160
    assert saved.n_bytes([x.detach(), z], without=[y]) == 160 and product.requires_grad


def test_a_tensor_that_has_changed_in_place_is_noticed():
    """As autograd does, which compares no versions of what hooks have packed."""
    x, w = torch.ones(3, requires_grad=True), torch.ones(3)
    with SavedOnce():
        y = (x * w).sum()
    w.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


class KeepsOnContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.parts = [x, {"again": x}]
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, bar):
        return bar * (1 - torch.tanh(ctx.parts[0]) ** 2)


def test_what_a_custom_function_keeps_on_its_context_is_counted():
    def bytes_of(activation):
        w = torch.ones(2, 1000, requires_grad=True)
        field = VectorField(lambda t, y: activation(y @ w).mean(1, keepdim=True) * y, StateLayout(y))
        with torch.no_grad():
            return measured(lambda: field.record(0.0, y.reshape(-1)))[1]

    y = torch.ones(5, 2)
    assert bytes_of(KeepsOnContext.apply) == pytest.approx(bytes_of(torch.tanh), rel=0.1)


def test_a_graph_that_was_measured_is_freed():
    with SavedOnce():
        y = torch.ones(10, requires_grad=True).tanh()  # keeps its own result
    kept = weakref.ref(y)
    del y
    assert kept() is None
