"""On a GPU: the numbers of the CPU, generators and precisions of its own, and few waits for it. The other tests run
there with ``--default-device cuda``."""

import copy
import warnings

import pytest
import torch
from torch import nn

from torch_ACA import odeint, odeint_event, solve, solve_event

pytestmark = pytest.mark.gpu

GRADIENTS = {
    **{gradient: {"gradient": gradient} for gradient in ("aca", "direct", "naive", "adjoint")},
    "mali": {"gradient": "mali", "method": "ALF"},
}
KEYWORDS = {
    **GRADIENTS,
    **{method: {"method": method} for method in ("RK12", "RK23", "tsit5", "dopri8", "Rodas5P", "auto")},
    "fixed steps": {"method": "RK4", "h": 0.13},
    "adams": {"method": "implicit_adams", "h": 0.1},
    "jumps": {"options": {"jump_t": [0.4]}},
    "states": {"memory": 3},
    "bytes": {"memory": "1KiB"},
    "unlimited": {"memory": "unlimited"},
    "rows": {"per_sample": True},
    "rows, Rodas5P": {"per_sample": True, "method": "Rodas5P"},
}


class Field(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


def found(device, func=None, **keywords):
    """States and gradients in y0, times and weights, on the CPU."""
    func = (func or Field()).to(device)
    y0 = torch.linspace(-1, 1, 6, device=device).reshape(2, 3).requires_grad_()
    times = torch.tensor([0.0, 0.3, 1.0], device=keywords.pop("times_on", "cpu"), requires_grad=True)
    ys = solve(func, y0, times, **{"rtol": 1e-6, "atol": 1e-6} | keywords).ys
    gradients = torch.autograd.grad(ys.square().sum(), [y0, times, *func.parameters()])
    return [value.detach().cpu() for value in (ys, *gradients)]


def assert_agree(one, other, tolerance=1e-12):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("times_on", ["cpu", "cuda"])
@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_numbers_are_those_of_the_cpu(keywords, times_on):
    """The same steps, to the rounding of float64, which step sizes carry on."""
    assert_agree(found("cuda", times_on=times_on, **keywords), found("cpu", **keywords), 1e-9)


@pytest.mark.parametrize("keywords", [
    {"compile": "step"}, {"compile": True}, {"compile": "step", "method": "RK12"},
    {"compile": True, "method": "Rodas5P"}, {"compile": True, "per_sample": True},
], ids=str)  # fmt: skip
def test_compiled(keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may say that less is compiled, or nothing
        compiled = found("cuda", **keywords)
    assert_agree(compiled, found("cuda", **keywords | {"compile": False}), 1e-9)


@pytest.mark.parametrize("kind", ["aca", "direct"])
def test_dropout_draws_one_mask_per_solve_and_moves_on(kind):
    func = Field(dropout=0.5).cuda()
    y0 = torch.linspace(-1, 1, 6, device="cuda").reshape(2, 3).requires_grad_()

    def two_solves(gradient):
        torch.manual_seed(1)
        for _ in range(2):
            ys = solve(func, y0, [0.0, 1.0], method="RK4", h=0.25, gradient=gradient).ys
            yield from (ys.detach(), torch.rand(1, device="cuda"))
            yield from torch.autograd.grad(ys.square().sum(), [y0, *func.parameters()])

    numbers = list(two_solves(kind))
    assert_agree(numbers, list(two_solves("naive")))
    assert not torch.equal(numbers[0], numbers[len(numbers) // 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["aca", "direct"])
def test_autocast_is_for_func_alone(kind, dtype):
    """A sum in another order may turn how func rounds to low precision: gradients agree to one such rounding."""
    func = Field().float().cuda()
    y0 = torch.linspace(-1, 1, 6, device="cuda", dtype=torch.float32).reshape(2, 3).requires_grad_()

    def gradients(gradient, inside):
        with torch.autocast("cuda", dtype):
            ys = solve(func, y0, [0.0, 1.0], method="RK4", h=0.25, gradient=gradient).ys
            assert ys.dtype == torch.float32
            if inside:
                return torch.autograd.grad(ys.square().sum(), [y0, *func.parameters()])
        return torch.autograd.grad(ys.square().sum(), [y0, *func.parameters()])

    expected = gradients("naive", False)
    for inside in (False, True):
        assert_agree(gradients(kind, inside), expected, torch.finfo(dtype).eps)


def test_event():
    def crossing(device):
        y0 = torch.tensor([2.0, 0.0], device=device, requires_grad=True)
        t, ys = solve_event(
            lambda t, y: torch.stack([y[1], -torch.ones_like(y[0])]), y0, 0.0, lambda t, y: y[0], rtol=1e-9, atol=1e-9
        )[:2]
        return [t.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(t, y0))]

    assert_agree(crossing("cuda"), crossing("cpu"), 1e-9)


@pytest.mark.parametrize("times_on", ["cpu", "cuda"])
@pytest.mark.parametrize("keywords", GRADIENTS.values(), ids=GRADIENTS)
def test_func_gets_its_time_where_the_state_is(keywords, times_on):
    """In every evaluation, wherever the times of the solve lie; those for second derivatives, of dense output, too."""
    twice, dense = (keywords["gradient"] in known for known in (("aca", "direct", "naive"), ("aca", "direct")))

    def func(t, y):
        return torch.stack([-y[0] * t, torch.sin(t)])

    def numbers(device):
        y0 = torch.tensor([2.0, 0.5], device=device, requires_grad=True)
        times = torch.tensor([0.0, 0.3, 1.0], device=times_on if device == "cuda" else "cpu", requires_grad=True)
        solution = solve(func, y0, times, dense=dense, rtol=1e-6, atol=1e-6, **keywords)
        total = (solution.ys**2).sum() + (solution([0.1, 0.5]).sum() if dense else 0)
        first = torch.autograd.grad(total, [y0, times], create_graph=twice)
        second = torch.autograd.grad(first[0].sum() + first[1].sum().to(device), [y0, times]) if twice else ()
        return [value.detach().cpu() for value in (total, *first, *second)]

    assert_agree(numbers("cuda"), numbers("cpu"), 1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
def test_event_times_lie_with_t0_or_the_state(per_sample):
    """Those of torchdiffeq's interface with the state, as torchdiffeq has them."""
    y0, t0 = torch.ones(2, 1, device="cuda", requires_grad=True), torch.tensor(0.0, device="cpu")
    keywords = {"event_fn": lambda t, y: y - 0.5}
    for start, interface, device in (
        (0.0, solve_event, "cuda"), (t0, solve_event, "cpu"), (t0.cuda(), solve_event, "cuda"),
        (0.0, odeint_event, "cuda"), (t0, odeint_event, "cuda"),
    ):  # fmt: skip
        t = interface(lambda t, y: -y, y0, start, **keywords, per_sample=per_sample)[0]
        assert t.device.type == device
        torch.autograd.grad(t.sum(), y0)


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint"])
def test_at_most_one_wait_per_tried_step(gradient):
    """And a few per solve, and in the backward pass."""

    def waits(tolerance):
        func, y0 = Field().cuda(), torch.ones(4, 3, device="cuda", requires_grad=True)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                solution = solve(func, y0, [0.0, 2.0], rtol=tolerance, atol=tolerance, gradient=gradient)
                forward = len(caught)
                solution.ys.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stats = solution.stats
        return forward, len(caught) - forward, stats.n_accepted + stats.n_rejected

    (few, few_back, n_few), (many, many_back, n_many) = waits(1e-4), waits(1e-8)
    assert many - few <= n_many - n_few
    assert gradient == "adjoint" or many_back == few_back


def test_memory_of_aca_is_that_of_the_states():
    """64 steps of a state of 1 MiB whose func keeps 16 MiB: naive holds 4 graphs a step, ACA the states and a graph."""

    def peak(gradient, **keywords):
        func = nn.Sequential(nn.Linear(64, 1024), nn.Tanh(), nn.Linear(1024, 64)).float().cuda()
        y0 = torch.zeros(4096, 64, device="cuda", dtype=torch.float32, requires_grad=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ys = solve(lambda t, y: func(y), y0, [0.0, 1.0], method="RK4", h=1 / 64, gradient=gradient, **keywords).ys
        ys[-1].sum().backward()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    aca, naive = peak("aca", memory="states"), peak("naive")
    assert aca < 64 + 4 * 2 * 16 + 64  # the states, a step's graph and its slopes and cotangents, outputs
    assert naive > 64 * 4 * 16


def test_on_a_stream_of_the_users():
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        inside = found("cuda")
    torch.cuda.current_stream().wait_stream(stream)
    assert_agree(inside, found("cuda"))


def test_a_copied_model_and_torchdiffeqs_call():
    func = Field().cuda()
    y0, t = torch.ones(2, 3, device="cuda"), torch.linspace(0, 1, 5, device="cuda")
    ys = odeint(copy.deepcopy(func), y0, t, rtol=1e-8, atol=1e-8)
    assert ys.device.type == "cuda"
    assert_agree([ys.detach().cpu()], [odeint(func.cpu(), y0.cpu(), t.cpu(), rtol=1e-8, atol=1e-8).detach()], 1e-10)
