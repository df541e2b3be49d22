import weakref

import torch

from torch_ACA.saved_tensors import SavedOnce, SavedTensors


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


def test_a_graph_that_was_measured_is_freed():
    with SavedOnce():
        y = torch.ones(10, requires_grad=True).tanh()  # keeps its own result
    kept = weakref.ref(y)
    del y
    assert kept() is None
