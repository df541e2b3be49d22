"""Where PyTorch has no loops to compile (before 2.14): the same numbers, with less compiled and one warning of that."""

import warnings

import pytest
import torch

from torch_ACA import solve
from torch_ACA.compilation import private_compiler

METHODS = {
    "steps": ({"method": "RK23"}, "for Field steps are compiled, and the loop over them is not", {"step", "vjp"}),
    "Rodas5P": ({"method": "Rodas5P"}, "for Field Rodas5P runs as it is", set()),
    "rows": ({"method": "RK23", "per_sample": True}, "for Field rows are solved as they are", set()),
}


@pytest.mark.parametrize(("keywords", "message", "compiled"), METHODS.values(), ids=METHODS)
def test_less_is_compiled_and_told_once(field, keywords, message, compiled, made, monkeypatch):
    monkeypatch.setattr(private_compiler, "loops_may_write", lambda: False)

    def results(compile):
        y0 = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
        ys = solve(field, y0, [0.0, 0.4, 1.0], rtol=1e-4, atol=1e-4, compile=compile, **keywords).ys
        return [ys.detach(), *torch.autograd.grad(ys.square().sum(), [y0, *field.parameters()])]

    expected = results(False)
    with pytest.warns(UserWarning, match=rf"compile=True: {message} \(PyTorch .* has no loops") as told:
        found = results(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = results(True)
    assert len(told) == 1 and set(made) - {"start"} == compiled
    for a, b, c in zip(expected, found, again, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(c, a, rtol=1e-12, atol=1e-12)


def test_pytorch_has_loops_from_2_14_on():
    """Were they not found there, the tests of loops would all be skipped."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert private_compiler.loops_may_write() == (release >= (2, 14))
