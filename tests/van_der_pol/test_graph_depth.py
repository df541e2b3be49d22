import torch

from van_der_pol.graph_depth import graph_depth


def test_depth_is_that_of_the_longest_path():
    x = torch.ones((), requires_grad=True)
    short, long = x.exp(), x.exp().exp().exp()
    assert graph_depth(short) == 1
    assert graph_depth(short + long) == 4
    y = x * 2
    for _ in range(5_000):  # deeper than Python's recursion
        y = y + y
    assert graph_depth(y) == 5_001
