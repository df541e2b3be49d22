import torch

from torch_ACA.saved_tensors import SavedTensors


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
