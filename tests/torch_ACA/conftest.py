"""Problems that several tests share, in float64."""

import pytest
import torch


def pytest_runtest_setup(item):
    if item.get_closest_marker("loops"):
        from torch_ACA.compilation.private_compiler import against_loops  # here, since Dynamo takes a second to import

        if reason := against_loops(torch.get_default_device().type):
            pytest.skip(reason)


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


@pytest.fixture
def ungenerated(monkeypatch):
    """compile=True traces and differentiates as for the real thing, but runs the graphs as they are: generating code
    takes minutes."""
    from torch_ACA.compilation import code, generate

    monkeypatch.setattr(generate, "BACKEND", "aot_eager")
    monkeypatch.setattr(code, "_KNOWN", type(code._KNOWN)())


@pytest.fixture
def looped(monkeypatch):
    """The compiled loops that were run, forward and backward."""
    from torch_ACA.compilation import loops

    calls = []
    for name, called in (("begin", "forward"), ("forward", "forward"), ("backward", "backward")):
        method = getattr(loops.Loops, name)
        monkeypatch.setattr(loops.Loops, name, lambda *a, f=method, n=called: (calls.append(n), f(*a))[1])
    return calls


@pytest.fixture
def made(ungenerated, monkeypatch):
    """What code is generated for, as it is: the names of functions."""
    from torch_ACA.compilation import code

    names, generated = [], code.generated

    def noted(function, *arguments, **keywords):
        names.append(function.__name__.strip("_"))
        return generated(function, *arguments, **keywords)

    monkeypatch.setattr(code, "generated", noted)
    return names
