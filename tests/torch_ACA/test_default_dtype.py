"""What the solver makes for itself has the precision that it needs, whatever `torch.set_default_dtype` says."""

import pytest
import torch

from tests.torch_ACA.test_default_device import KEYWORDS, gradients, net, y0  # noqa: F401
from torch_ACA import solve, solve_event

CASES = [
    pytest.param(keywords, with_times, id=name + ", times" * with_times,
                 marks=[pytest.mark.slow] if "compile" in keywords and (with_times or "method" in keywords) else [])
    for name, keywords in KEYWORDS.items() for with_times in (False, True)
]  # fmt: skip


@pytest.fixture
def single():
    """To be called: what follows has float32 for its default, which it is for users."""

    def begin():
        torch.set_default_dtype(torch.float32)

    yield begin
    torch.set_default_dtype(torch.float64)


@pytest.mark.usefixtures("ungenerated")
@pytest.mark.parametrize(("keywords", "with_times"), CASES)
def test_solves(net, y0, keywords, with_times, single):  # noqa: F811
    """Bit for bit: all that the user gives is in double precision."""
    wanted = gradients(net, y0, with_times, **keywords)
    single()
    found = gradients(net, y0, with_times, **keywords)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "rows"])
@pytest.mark.parametrize("number", [False, True], ids=["a tensor", "a number"])
def test_events(per_sample, number, single):
    """y' = 1 from 0 reaches 1/3 at 1/3."""
    if per_sample and number:
        pytest.skip("rows have a value each")

    def value(t, y):
        return float(y[0].detach()) - 1 / 3 if number else y[..., 0] - 1 / 3

    single()
    start = torch.zeros([1, 1] if per_sample else 1, dtype=torch.float64)
    found, states = solve_event(
        lambda t, y: torch.ones_like(y), start, 0.0, event_fn=value, per_sample=per_sample
    )[:2]
    assert found.dtype == states.dtype == torch.float64
    assert abs(float(found) - 1 / 3) <= 1e-15 and abs(float(states[-1]) - 1 / 3) <= 1e-15


@pytest.mark.parametrize("options", [{"step_t": [1 / 3]}, {"jump_t": [1 / 3]}, {"land_on_t": True}], ids=str)
def test_rows_land_where_they_are_told(options, single):
    """y' = 1: the state is the time, at every output and at the end, in double precision."""
    single()
    times = torch.tensor([0.0, 1 / 3, 0.7], dtype=torch.float64)
    ys = solve(lambda t, y: torch.ones_like(y), torch.zeros(2, 1, dtype=torch.float64), times, per_sample=True,
               options=options).ys  # fmt: skip
    assert float((ys[:, :, 0] - times[:, None]).abs().max()) <= 2e-16
