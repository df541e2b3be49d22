"""What a backward pass has of func's lists and objects, and that what was left out of them is not used in silence."""

import concurrent.futures
import weakref

import pytest
import torch
from torch import Tensor, nn

from torch_ACA import CaptureError, ReplayError, solve
from torch_ACA.copies import Copies, LeftOut

WAYS = [{"memory": "states"}, {"gradient": "adjoint"}, {"gradient": "mali"}, {"per_sample": True, "memory": "states"}]


def with_history():
    return torch.ones(2, 3, dtype=torch.float64, requires_grad=True) * 2


VALUES = [
    Tensor.detach, lambda a: a > 1, torch.zeros_like, Tensor.argmax, lambda a: X * float(a[0, 0].detach()),
    lambda a: (torch.sin(a) + 1).mean().detach(), lambda a: torch.where(a.sum() > 1, X, -X), lambda a: X.expand_as(a),
]  # fmt: skip
USES = [lambda a: X * a, lambda a: torch.cat([X, a]), lambda a: X + torch.sin(a)[0], lambda a: torch.dot(X[0], a[0])]
X = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("values", VALUES)
def test_what_is_left_out_has_values(values):
    tensor = with_history()
    left_out = LeftOut.of(tensor)
    assert left_out.shape == (2, 3) and len(left_out) == 2 and left_out.dtype == tensor.dtype
    assert not left_out.requires_grad and left_out.grad_fn is None
    found = values(left_out)
    assert type(found) is Tensor
    torch.testing.assert_close(found, values(tensor), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("use", USES)
def test_what_is_left_out_has_no_gradient(use):
    tensor = with_history()
    with pytest.raises(ReplayError, match="it has come to use a tensor that it did not use"):
        use(LeftOut.of(tensor))
    with torch.no_grad():
        torch.testing.assert_close(use(LeftOut.of(tensor)), use(tensor), rtol=0.0, atol=0.0)


def test_what_func_uses_is_itself_and_its_list_a_copy():
    used, unused, number = with_history(), with_history(), 1.0
    copies = Copies(lambda tensor: tensor is unused)
    for container in ([used, unused, number], (used, unused), {"used": used}, [[used]]):
        copied = copies(container)
        assert copied is not container and type(copied) is type(container)
    assert copies([used, unused])[0] is used and type(copies([used, unused])[1]) is LeftOut


@pytest.mark.parametrize("thing", [1.0, "text", [1, 2.0], {"a": [torch.ones(2)]}, (), None, nn.Linear(2, 2)], ids=str)
def test_what_leads_to_no_history_is_not_copied(thing):
    assert Copies(lambda tensor: True)(thing) is thing


def test_what_leads_back_to_itself_and_what_is_large():
    around = [with_history()]
    around.append(around)
    assert type(Copies(lambda tensor: True)(around)[0]) is LeftOut
    large = [with_history()] * 2000
    assert Copies(lambda tensor: True)(large) is large


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_tensor_that_a_thread_comes_to_use_is_not_lost_in_silence(way):
    """What another thread does is not seen when the first evaluation is looked at."""
    torch.manual_seed(0)
    net, w = nn.Linear(3, 3), torch.ones(3, requires_grad=True)
    y0 = torch.ones(2, 3)

    def gradient(way):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            late = torch.sin(w)

            def slope(t, y):
                with torch.enable_grad():
                    is_late = (t > 0.5).reshape(-1, *[1] * (t.dim() and 1))
                    return torch.tanh(net(y)) * w * torch.where(is_late, late, 1.0)

            def func(t, y):
                late_use = bool((t > 0.5).any())
                return pool.submit(slope, t, y).result() if late_use else torch.tanh(net(y)) * w

            ys = solve(func, y0, [0.0, 0.5, 1.0], **way).ys
            return torch.autograd.grad(ys[-1].sum(), w)[0]

    expected = gradient({"gradient": "naive"})
    try:
        found = gradient(way)
    except (CaptureError, ReplayError):
        return
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_an_object_that_is_cleaned_up_when_it_is_gone_is_held():
    """func may need it in the backward pass, where nobody else holds it any more."""
    cleaned = []

    class Resource:
        def __init__(self):
            self.w, self.open = nn.Parameter(torch.ones(3)), [True]
            weakref.finalize(self, cleaned.append, self.open.clear() or 1)

        def __call__(self, t, y):
            assert not cleaned
            return -self.w * y

    y = solve(Resource(), torch.ones(3), [0.0, 1.0], memory="states").ys[-1]
    y.sum().backward()
    assert not cleaned
    del y
    assert cleaned
