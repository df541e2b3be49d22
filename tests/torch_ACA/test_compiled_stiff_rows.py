"""Stiff rows that take their own steps, with the loop over their tries compiled: as without."""

import pytest
import torch

from tests.torch_ACA.test_compiled_loop import slow
from tests.torch_ACA.test_compiled_rows import looped  # noqa: F401
from torch_ACA import StepSizeUnderflowError, solve
from torch_ACA.compilation import generate, loops, rosenbrock_steps

pytestmark = [pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated")]
METHOD = {"method": "Rodas5P", "rtol": 1e-4, "atol": 1e-6, "per_sample": True}
WIDE = rosenbrock_steps.INVERTED + 1
ENDS = torch.tensor([0.0, 2.0], dtype=torch.float64)
OWN = torch.tensor([[0.0, 0.31, 0.32, 2.0], [0.5, 0.6, 1.0, torch.nan], [0.0, 1.9, 1.95, 2.0]], dtype=torch.float64)
DIRECTIONS = torch.tensor([[0.0, 1.0], [1.0, 0.5], [0.0, 0.0]], dtype=torch.float64)


class Relaxing(torch.nn.Module):
    """Rows follow sin t at rates of their own, in the direction of their times, with a part for all that couples the
    entries of a row and depends on the time. y [b, width]."""

    def __init__(self, rates, width, signs=None, dtype=torch.float64):
        super().__init__()
        self.rates = torch.nn.Parameter(torch.tensor(rates, dtype=dtype)[:, None])
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, width * width, dtype=dtype).reshape(width, width))
        self.signs = torch.ones(len(rates), 1, dtype=dtype) if signs is None else signs

    def forward(self, t, y):
        return torch.tanh(y @ self.weight.T) * torch.cos(t) - self.signs * self.rates * (y - torch.sin(t))


def results(func, y0, times, **keywords):
    solution = solve(func, y0, times, **METHOD | keywords)
    weights = torch.linspace(1, 2, solution.ys.numel(), dtype=y0.dtype).reshape(solution.ys.shape)
    inputs = [y0, *func.parameters()] + ([times] if getattr(times, "requires_grad", False) else [])
    return [solution.ys.detach(), *torch.autograd.grad((weights * solution.ys).nansum(), inputs)], solution.stats


def assert_as_eager(*arguments, tolerance=1e-11, **keywords):
    """The two solve with W in different ways: by factors, or by an inverse and one refinement. Here a change of y0 by
    rounding changes gradients by 1e-11 where nothing is compiled."""
    (eager, counts), (found, compiled_counts) = (results(*arguments, **keywords, compile=c) for c in (False, True))
    for a, b in zip(eager, found, strict=True):
        atol = tolerance * max(1.0, float(a.nan_to_num().abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)
    for name in ("n_accepted", "n_rejected"):
        assert getattr(counts, name).tolist() == getattr(compiled_counts, name).tolist()
    assert counts.n_backward_f_evals == compiled_counts.n_backward_f_evals
    assert compiled_counts.n_jacobians == compiled_counts.n_factorizations == counts.n_factorizations
    return compiled_counts


def start(width, dtype=torch.float64):
    return torch.linspace(-1, 2, 3 * width, dtype=dtype).reshape(3, width).requires_grad_()


@pytest.mark.parametrize(("width", "times"), [
    slow(2, OWN), slow(WIDE, OWN), slow(2, ENDS), slow(WIDE, ENDS), slow(2, DIRECTIONS), slow(1, ENDS),
], ids=["inverted, outputs", "factored, outputs", "inverted", "factored", "directions", "numbers"])  # fmt: skip
def test_agrees_with_rows_as_they_are(width, times, looped):  # noqa: F811
    signs = torch.where((times.diff() < 0).any(-1, keepdim=True), -1.0, 1.0).double() if times.dim() == 2 else None
    counts = assert_as_eager(Relaxing([0.3, 30.0, 3000.0], width, signs), start(width), times)
    assert {"run", "backward"} == set(looped)
    assert int(counts.n_accepted.max()) > int(counts.n_accepted.min())


@pytest.mark.slow
@pytest.mark.parametrize("times", [OWN, DIRECTIONS], ids=["outputs", "directions"])
def test_gradients_in_times(times, looped):  # noqa: F811
    """Rounding of y0 changes those of the stiffest row by 3e-10 where nothing is compiled."""
    assert_as_eager(Relaxing([0.3, 30.0, 3000.0], 2), start(2), times.clone().requires_grad_(), tolerance=1e-9)
    assert {"run", "backward"} == set(looped)


@pytest.mark.slow
def test_buffers_that_are_too_small_are_followed_by_others(monkeypatch, looped):  # noqa: F811
    monkeypatch.setattr(loops, "MOST", 5)
    assert_as_eager(Relaxing([0.3, 30.0, 3000.0], 2), start(2), OWN)
    assert looped.count("backward") > 2


class Robertson(torch.nn.Module):
    """Kinetics whose constants differ by row."""

    def __init__(self):
        super().__init__()
        factors = torch.exp(0.2 * torch.linspace(-1, 1, 9, dtype=torch.float64)).reshape(3, 3)
        self.factors = torch.nn.Parameter(factors)

    def forward(self, t, y):
        (a, b, c), (k1, k2, k3) = y.T, self.factors.T
        slow, fast, back = 0.04 * k1 * a, 3e7 * k2 * b * b, 1e4 * k3 * b * c
        return torch.stack([back - slow, slow - back - fast, fast], 1)


@pytest.mark.slow
def test_robertson(looped):  # noqa: F811
    """Stiffness of 1e9: rounding of b, 1e-5 of the others, is multiplied by 1e3 in what is compared."""
    y0 = torch.tensor([[1.0, 0.0, 0.0]] * 3, dtype=torch.float64, requires_grad=True)
    atol = torch.tensor([1e-8, 1e-12, 1e-8], dtype=torch.float64).expand(3, 3)
    counts = assert_as_eager(Robertson(), y0, [0.0, 1e5], rtol=1e-4, atol=atol, tolerance=1e-9)
    assert "run" in looped and int(counts.n_accepted.min()) > 30


@pytest.mark.slow
def test_float32():
    """To the tolerance: a change of y0 by rounding changes the gradient by 5e-3 where nothing is compiled."""
    rates = [0.3, 30.0, 3000.0]
    found = [results(Relaxing(rates, 2, dtype=torch.float32), start(2, torch.float32), [0.0, 2.0], rtol=1e-3, atol=1e-3,
                     compile=c)[0] for c in (False, True)]  # fmt: skip
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-2 * float(a.abs().max()))


class Exploding(Relaxing):
    def forward(self, t, y):
        return self.rates * y * y + 1e-3 * y @ self.weight


@pytest.mark.slow
def test_rows_that_fail_are_told_as_by_rows_as_they_are():
    """Row 2 goes to infinity at t = 1/2."""
    y0, errors = start(1), []
    for compile in (False, True):
        with pytest.raises(StepSizeUnderflowError, match="row 2") as caught:
            solve(Exploding([0.1, 0.1, 1.0], 1), y0, [0.0, 1.0], compile=compile, **METHOD)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    found = [results(Exploding([0.1, 0.1, 1.0], 1), y0, [0.0, 0.2, 1.0], compile=c, on_failure="return")[0]
             for c in (False, True)]  # fmt: skip
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.slow
def test_second_derivatives_take_the_accepted_steps_again():
    func, y0, found = Relaxing([0.3, 30.0, 300.0], 2), start(2), []
    for compile in (False, True):
        ys = solve(func, y0, OWN, compile=compile, **METHOD).ys
        (first,) = torch.autograd.grad(ys[1:].nan_to_num().square().sum(), y0, create_graph=True)
        found.append([first.detach(), *torch.autograd.grad(first.sum(), (y0, *func.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("default:compile=True")
def test_with_a_jacobian_of_ones_own_rows_run_as_they_are():
    y0, rate = start(1), torch.tensor(3.0, dtype=torch.float64)

    def jac(t, y):
        return -rate * torch.ones_like(y)[:, None]

    keywords = METHOD | {"jac": jac, "compile": True}
    with pytest.warns(UserWarning, match="rows are solved as they are .*jac was given"):
        ys = solve(lambda t, y: -rate * y, y0, [0.0, 1.0], **keywords).ys
    torch.testing.assert_close(ys[1], y0 * torch.exp(-rate), rtol=1e-4, atol=1e-4)


def test_rows_that_are_coupled_are_refused():
    for compile in (False, True):
        with pytest.raises(ValueError, match="whose rows do not depend on each other"):
            solve(lambda t, y: -y + y.mean(0), start(2), [0.0, 1.0], compile=compile, **METHOD)


@pytest.mark.slow
def test_generated_loops(monkeypatch, looped):  # noqa: F811
    monkeypatch.setattr(generate, "BACKEND", "inductor")
    for width in (2, WIDE):
        assert_as_eager(Relaxing([0.3, 30.0, 3000.0], width), start(width), OWN)
    assert "backward" in looped
