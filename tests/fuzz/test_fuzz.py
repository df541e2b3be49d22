"""Random cases, some by each way through the solver, and that the oracle is right and the comparison can fail."""

import math
import warnings

import pytest
import torch

from tests.fuzz import oracle, run, ways
from tests.fuzz.cases import Case, draw
from tests.fuzz.check import check, check_case
from tests.fuzz.states import KINDS, Layout
from torch_ACA.compilation import generate

CASES, QUICK, CHUNK = 200, 100, 10  # all of them with -m slow; scripts/fuzz.sh draws others
LONG = (39,)  # takes as long as a hundred others


def chunks(first, last):
    return [[seed for seed in range(start, start + CHUNK) if seed not in LONG] for start in range(first, last, CHUNK)]


def slow(values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
    "seeds", [*chunks(0, QUICK), *slow([*chunks(QUICK, CASES), LONG])], ids=lambda seeds: str(seeds[0])
)
def test_random_programs(seeds):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        differences = [difference for seed in seeds if (difference := check(seed))]
    assert not differences, "\n".join(["", *map(str, differences)])


@pytest.fixture
def graphs_as_they_are(monkeypatch):
    monkeypatch.setattr(generate, "BACKEND", "aot_eager")


@pytest.mark.parametrize("first", [20, *slow([0, 10])])  # among 20 to 29 every way has a case that suits it
@pytest.mark.parametrize("way", ways.WAYS)
def test_ways_agree(way, first, graphs_as_they_are):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        differences = [apart for seed in range(first, first + 10) if (apart := ways.check(seed, way))]
    assert not differences, "\n".join(["", *map(str, differences)])


@pytest.mark.parametrize("way", ways.WAYS)
def test_a_way_that_is_wrong_is_reported(way, graphs_as_they_are):
    case = ways.WAYS[way].suited(draw(28))
    assert ways.check_case(case, way) is None
    difference = ways.check_case(case, way, lambda outcome: scaled(outcome.gradients, 1 + 1e-5))
    assert difference.kind == "first derivative"
    assert f"scripts/fuzz.sh --way {way} --seed 28" in str(difference)


def test_a_seed_is_one_case():
    assert draw(17) == draw(17)
    assert len({draw(seed).describe() for seed in range(200)}) == 200


@pytest.mark.parametrize("precision", ["float64", "float32", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_invert_themselves(kind, precision):
    layout = Layout(kind, precision)
    x = torch.arange(layout.size, dtype=layout.dtype)
    assert torch.equal(layout.join(layout.split(x)), x)


def oracle_of(func, y0, times, steps, method="Euler", **plan):
    """States of the oracle at the times, and its dense output."""
    ts = times.tolist()
    plan = {"given": {ts[-1]}, "constants": set(), "jumps": set()} | plan
    return oracle.solve(func, y0, times, Layout("scalar", "float64"), oracle.Plan(method, **plan), steps)


def test_oracle_is_the_polynomial_of_the_classic_method():
    """For y' = w y two steps of RK4 multiply by p(w h)^2, p the Taylor polynomial of exp of degree 4; the first step
    has a constant size, the second ends on the last time."""
    w, y0, times = (
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 1.3, [0.0, 0.5])
    )
    ys, _ = oracle_of(lambda t, y: w * y, y0, times, [(0.0, 0.3), (0.3, 0.2)], method="RK4")
    p, slope = (lambda x: 1 + x + x**2 / 2 + x**3 / 6 + x**4 / 24), (lambda x: 1 + x + x**2 / 2 + x**3 / 6)
    a, b = 0.7 * 0.3, 0.7 * 0.2
    of_w = 1.3 * (0.3 * slope(a) * p(b) + 0.2 * slope(b) * p(a))
    of_end = 1.3 * 0.7 * p(a) * slope(b)  # the size of the last step is the end time less the start time less 0.3
    grads = torch.autograd.grad(ys[-1], (w, y0, times))
    # a dozen operations in float64
    torch.testing.assert_close(ys[-1].item(), 1.3 * p(a) * p(b), rtol=1e-14, atol=0)
    torch.testing.assert_close(grads[0].item(), of_w, rtol=1e-14, atol=0)
    torch.testing.assert_close(grads[1].item(), p(a) * p(b), rtol=1e-14, atol=0)
    torch.testing.assert_close(grads[2].tolist(), [-of_end, of_end], rtol=1e-14, atol=0)


def test_oracle_follows_the_exact_solution():
    """y' = cos(t) y with many steps of Dopri5: y = y0 exp(sin t - sin t0), by which every derivative is known."""
    times = torch.tensor([0.2, 0.61, 1.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    steps = [(0.2 + 0.02 * i, 0.02) for i in range(40)]
    ys, dense = oracle_of(lambda t, y: torch.cos(t) * y, y0, times, steps, method="Dopri5", dense=True)
    middle, end = (1.5 * math.exp(math.sin(t) - math.sin(0.2)) for t in (0.61, 1.0))
    # steps of 0.02 at order 5, and their interpolant at order 4: 0.02^5 is 3e-9, its constant below 1e-2
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(ys[1:].tolist(), [middle, end], **close)
    of_middle = torch.autograd.grad(ys[1], (y0, times), retain_graph=True)
    torch.testing.assert_close(of_middle[0].item(), middle / 1.5, **close)
    slopes = [-math.cos(0.2) * middle, math.cos(0.61) * middle, 0.0]
    torch.testing.assert_close(of_middle[1].tolist(), slopes, rtol=1e-6, atol=1e-6)  # a derivative: one order less
    between = dense(torch.tensor(0.777, dtype=torch.float64)).item()
    torch.testing.assert_close(between, 1.5 * math.exp(math.sin(0.777) - math.sin(0.2)), **close)


@pytest.mark.parametrize("end", [1.0, 2.0])
def test_oracle_takes_the_slope_before_a_jump_at_an_output(end):
    """y' = 1 before t = 1 and 3 behind: y(1) moves with slope 1, and y(2) not at all with the output at the jump."""
    times = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor(0.0, dtype=torch.float64)
    steps = [(0.0, 0.75), (0.75, 0.25), (1.0, 1.0)]
    ys, _ = oracle_of(
        lambda t, y: y * 0 + (1.0 if t < 1 else 3.0), y0, times, steps, method="RK4", constants={1.0}, jumps={1.0}
    )
    assert ys.tolist() == pytest.approx([0.0, 1.0, 4.0], abs=1e-14)  # of sums of 1/6 and 1/3
    row = {1.0: 1, 2.0: 2}[end]
    wanted = {1.0: [-1.0, 1.0, 0.0], 2.0: [-1.0, 0.0, 3.0]}[end]
    assert torch.autograd.grad(ys[row], times)[0].tolist() == pytest.approx(wanted, abs=1e-14)


def test_oracle_needs_a_step_to_every_stop():
    with pytest.raises(oracle.StepsMissing):
        oracle_of(
            lambda t, y: y, torch.ones((), dtype=torch.float64), torch.tensor([0.0, 1.0]), [(0.0, 1.0)], constants={0.5}
        )


PLAIN = Case(
    seed=3, terms=("network",), y0="leaf", times_from="leaf", times=(0.0, 0.4, 1.0), method="RK4", step_size=0.3,
    order="second", hooks=(("leaf", 0.0, "halve"),), gradient="naive",
)  # fmt: skip


def scaled(tensors, factor):
    for name, tensor in tensors.items():
        tensors[name] = tensor * factor


def test_a_right_solve_passes():
    assert check_case(PLAIN) is None


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda outcome: scaled(outcome.states, 1 + 1e-11), "value"),
        (lambda outcome: scaled(outcome.gradients, 1 + 1e-10), "first derivative"),
        (lambda outcome: outcome.gradients.update({"y0.0, pass 0": None}), "first derivative is None"),
        (lambda outcome: scaled(outcome.second, 1 + 1e-9), "second derivative"),
        (lambda outcome: outcome.hook_calls.clear(), "hook calls"),
    ],
)
def test_what_is_wrong_is_reported(spoil, kind):
    difference = check_case(PLAIN, spoil)
    assert difference.kind == kind
    assert "scripts/fuzz.sh --seed 3" in str(difference)
    assert "step size: 0.3" in str(difference)


def test_an_error_is_reported(monkeypatch):
    monkeypatch.setattr("torch_ACA.solve", lambda *arguments, **keywords: 1 / 0)
    assert check_case(PLAIN).kind == "raises ZeroDivisionError"


def test_command_line(capsys, monkeypatch):
    assert run.main(["--seed", "0"]) in (0, 1)
    monkeypatch.setattr(run, "_many", lambda seeds, jobs, way: {seeds[1]: ("value", "seed 6: value")})
    assert run.main(["--cases", "2", "--start", "5"]) == 1
    assert capsys.readouterr().out.endswith("2 cases, 1 failures\n  1 value\nfailing seeds: 6\n")
