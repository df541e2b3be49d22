"""A default device of the user's, as by torch.set_default_device("cuda"), is for func and the user's own tensors: what
the solver makes for itself lies where it belongs. Tensors on "meta" hold no numbers, so a wrong one cannot pass."""

import warnings

import pytest
import torch

from torch_ACA import ODEBlock, odeint, odeint_event, odesolve, private_torch, solve, solve_event

TIMES = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, device="cpu")
KEYWORDS = {
    **{gradient: {"gradient": gradient} for gradient in ("aca", "direct", "naive", "adjoint")},
    "mali": {"gradient": "mali", "method": "ALF"},
    "fixed steps": {"method": "RK4", "h": 0.13},
    "adams": {"method": "implicit_adams", "h": 0.1},
    "Rodas5P": {"method": "Rodas5P"},
    "auto": {"method": "auto"},
    "tsit5": {"method": "tsit5"},
    "jumps": {"options": {"jump_t": [0.4]}},
    "tolerances": {"rtol": [1e-3, 1e-4, 1e-5], "atol": torch.full((2, 3), 1e-6, device="cpu")},
    "states": {"memory": 3},
    "bytes": {"memory": "1KiB"},
    "record": {"record": True},
    "rows": {"per_sample": True},
    "rows that land": {"per_sample": True, "options": {"step_t": [0.41], "jump_t": [0.7], "land_on_t": True}},
    "rows, Rodas5P": {"per_sample": True, "method": "Rodas5P"},
    "compiled steps": {"compile": "step"},
    "compiled loop": {"compile": True},
    "compiled fixed steps": {"compile": True, "method": "RK4", "h": 0.3},
    "compiled rows": {"compile": True, "per_sample": True},
    "compiled Rodas5P": {"compile": True, "method": "Rodas5P"},
}


@pytest.fixture
def net():
    return torch.nn.Linear(3, 3)


@pytest.fixture
def y0():
    return torch.linspace(-1, 1, 6).reshape(2, 3)


def gradients(net, y0, with_times, **keywords):
    def func(t, y):
        return torch.tanh(net(y)) * torch.cos(t)

    y, times = y0.clone().requires_grad_(), TIMES.clone().requires_grad_(with_times)
    ys = solve(func, y, times, **keywords).ys
    return ys.detach(), *torch.autograd.grad(ys.square().sum(), [y, *net.parameters(), *[times] * with_times])


@pytest.mark.usefixtures("ungenerated")
@pytest.mark.parametrize(("keywords", "with_times"), [
    pytest.param(
        keywords, with_times, id=f"{name}{', times' * with_times}",
        marks=[pytest.mark.slow] * ("compile" in keywords and (not with_times or "method" in keywords)),
    )
    for name, keywords in KEYWORDS.items() for with_times in (False, True)
])  # fmt: skip
def test_solves(net, y0, keywords, with_times):
    wanted = gradients(net, y0, with_times, **keywords)
    with torch.device("meta"):
        found = gradients(net, y0, with_times, **keywords)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


def test_steps_of_a_nested_state_are_compiled(ungenerated):
    """There is no warning that they are not: PyTorch 2.11 cannot trace each function of tensors under a device."""
    y0 = {"a": torch.ones(2, 3), "z": [torch.ones(2), torch.ones(())]}

    def end(**keywords):
        return solve(lambda t, y: {"a": torch.sin(y["a"]), "z": [-t * z for z in y["z"]]}, y0, TIMES, **keywords).ys

    wanted = end()
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = end(compile="step")
    for a, b in zip((found["a"], *found["z"]), (wanted["a"], *wanted["z"]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def dense(y0):
    return solve(lambda t, y: -y * t, y0, TIMES, dense=True)(0.5)


def dense_at_a_tensor(y0):
    return solve(lambda t, y: -y * t, y0, TIMES, dense=True)(TIMES)


def an_event(y0):
    return solve_event(lambda t, y: torch.ones_like(y), y0, 0.0, lambda t, y: y.sum() - 3)[0]


def an_event_of_torchdiffeq(y0):
    return odeint_event(lambda t, y: torch.ones_like(y), y0, 0.0, event_fn=lambda t, y: y.sum() - 3)[0]


def torchdiffeqs(y0):
    return odeint(lambda t, y: -y, y0, TIMES)


def the_authors(y0):
    return odesolve(lambda t, y: -y, y0, {"t0": 0.0, "t1": 1.0, "method": "RK45"})


def the_authors_dense(y0):
    options = {"t0": 0.0, "t1": 1.0, "method": "RK45", "dense_output": True}
    solver = odesolve(lambda t, y: -y, y0, options, return_solver=True)
    solver.integrate(y0)
    return solver.evaluate_dense_mode([0.2, 0.7])


def a_block(y0):
    return ODEBlock(lambda t, y: -y)(y0)


def dropout(y0):
    torch.manual_seed(0)
    y = y0.clone().requires_grad_()
    ys = solve(lambda t, y: -torch.nn.functional.dropout(y), y, TIMES, method="RK4", h=0.1).ys
    return torch.autograd.grad(ys.sum(), y)[0]


@pytest.mark.parametrize("program", [
    dense, dense_at_a_tensor, an_event, an_event_of_torchdiffeq, torchdiffeqs, the_authors, the_authors_dense, a_block,
    dropout,
])  # fmt: skip
def test_programs(y0, program):
    wanted = program(y0)
    with torch.device("meta"):
        found = program(y0)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("keywords", [
    *({"gradient": gradient} for gradient in ("aca", "direct", "naive", "adjoint")),
    {"gradient": "mali", "method": "ALF"},
    {"memory": "states"}, {"method": "Rodas5P"}, {"per_sample": True, "memory": "states"}, {"memory": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("around", ["the solve", "the backward pass"])
def test_func_sees_that_of_the_solve_in_the_backward_pass_too(y0, keywords, around):
    devices = set()

    def func(t, y):
        devices.add(torch.empty(0).device.type)
        return -y * t

    y = y0.clone().requires_grad_()
    with torch.device("meta" if around == "the solve" else "cpu"):
        ys = solve(func, y, TIMES, **keywords).ys
    with torch.device("cpu" if around == "the solve" else "meta"):
        loss = ys.sum()
        loss.backward(torch.ones((), device="cpu"))
    assert devices == {"meta" if around == "the solve" else "cpu"}


def test_where_pytorch_does_not_say_whether_there_is_one(y0, monkeypatch):
    monkeypatch.setattr(private_torch, "_function_modes", None)
    test_func_sees_that_of_the_solve_in_the_backward_pass_too(y0, {"memory": "states"}, "the solve")
