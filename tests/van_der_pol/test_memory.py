import torch

from van_der_pol.memory import SavedTensors, graph_depth


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


def test_depth_is_that_of_the_longest_path():
    x = torch.ones((), requires_grad=True)
    short, long = x.exp(), x.exp().exp().exp()
    assert graph_depth(short) == 1
    assert graph_depth(short + long) == 4
    y = x * 2
    for _ in range(5_000):  # deeper than Python's recursion
        y = y + y
    assert graph_depth(y) == 5_001
