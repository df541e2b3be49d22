"""Problems that several tests share, in float64."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Field(torch.nn.Module):
    """A small time-dependent network: f(t, y) = net(y) cos(t)."""

    def __init__(self, size=3, hidden=8):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(size, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, size)
        )

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


@pytest.fixture
def field():
    return Field()
