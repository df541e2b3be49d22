"""Where a private name of PyTorch is gone, a public one takes over: slower, never wrong."""

import pathlib
import re

import pytest
import torch

import torch_ACA
from tests.torch_ACA.programs import assert_close, keywords_of, tolerance_of
from torch_ACA import private_torch, solve, transforms, vector_field


def gradients(kind):
    torch.manual_seed(0)
    field = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    field.double()
    encoder = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    context = encoder.sin() * torch.ones(4, 1, dtype=torch.float64)
    y0, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)
    ys = solve(lambda s, y: field(y) * s.cos() + context, y0, t, **keywords_of(kind)).ys
    ys.sin().sum().backward()
    return [encoder.grad, *(p.grad for p in field.parameters()), *field.buffers()]


@pytest.mark.parametrize("kind", ["aca", "direct", "adjoint", "mali"])
@pytest.mark.parametrize("name", ["_run_backward", "set_grad_enabled", "_dispatch_keys", "_are_transforms_active"])
def test_without_a_name_the_gradients_are_the_same(kind, name, monkeypatch):
    expected = gradients(kind)
    if name == "set_grad_enabled":
        monkeypatch.setattr(vector_field, name, torch.set_grad_enabled)
    else:
        monkeypatch.setattr(private_torch, name, None)
    if name in ("_dispatch_keys", "_are_transforms_active") and kind in ("adjoint", "mali"):
        with pytest.raises(torch_ACA.TransformError):  # a transform may be active, for all that is known
            gradients(kind)
        return
    found = gradients(kind)
    if name == "_are_transforms_active":  # the steps run once more, as ordinary operations: BatchNorm counts them too
        n_buffers = 3
        found, expected = found[:-n_buffers], expected[:-n_buffers]
    assert_close(found, expected, tolerance_of(kind))
    assert torch.is_grad_enabled()


def test_private_names_stand_in_two_modules():
    private = (
        r"torch\._(?!inductor|dynamo|foreach|_version__)"
        r"|_execution_engine|forward_ad\._|import _pytree|parametrize\._"
    )
    root = pathlib.Path(torch_ACA.__file__).parent
    for path in root.rglob("*.py"):
        if path.name not in ("private_torch.py", "private_compiler.py"):
            assert not re.search(private, path.read_text()), path
    assert not transforms.under_transform()
