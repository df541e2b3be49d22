"""scipy's solvers behind torchdiffeq's method name: detached in odeint, differentiable by the continuous adjoint."""

import math
import sys
import warnings

import pytest
import torch
from torch import nn

from torch_ACA import (
    Callbacks,
    NonFiniteError,
    ODEBlock,
    SolverError,
    TooManyEvaluationsError,
    odeint,
    odeint_adjoint,
    plan,
    solve,
)

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
EXP = math.exp(-1)


@pytest.mark.parametrize("solver", ["RK45", "LSODA", "BDF", "Radau", None])
def test_values(solver):
    ts, options = torch.linspace(0, 1, 4), {"solver": solver}
    ys = odeint(lambda t, y: -y, torch.ones(3, 2), ts, method="scipy_solver", options=options, rtol=1e-8, atol=1e-8)
    assert ys.shape == (4, 3, 2) and torch.equal(ys[0], torch.ones(3, 2))
    assert float((ys - torch.exp(-ts)[:, None, None]).abs().max()) < 1e-6  # a hundred times the tolerance
    backwards = odeint(lambda t, y: -y, ys[-1], ts.flip(0), method="scipy_solver", options=options, **TIGHT)
    assert float((backwards[-1] - 1).abs().max()) < 1e-6


def test_nested_complex_and_single_precision_states():
    y0 = {"z": torch.ones(2, dtype=torch.complex64), "x": torch.ones((), dtype=torch.float32)}
    ys = odeint(lambda t, y: {"x": -y["x"], "z": 1j * y["z"]}, y0, torch.tensor([0.0, 1.0]), method="scipy_solver")
    assert ys["z"].dtype == torch.complex64 and ys["x"].dtype == torch.float32
    assert abs(ys["z"][-1, 0].item() - complex(math.cos(1), math.sin(1))) < 1e-5  # float32
    assert float(ys["x"][-1]) == pytest.approx(EXP, abs=1e-5)


@pytest.mark.parametrize("what", ["y0", "t", "parameter", "closure", "nothing"])
def test_odeint_detaches_what_requires_grad_with_a_warning(what):
    module = nn.Linear(1, 1, bias=False)
    module.requires_grad_(what in ("parameter", "closure"))
    y0 = torch.ones(2, 1, requires_grad=what == "y0")
    t = torch.tensor([0.0, 1.0], requires_grad=what == "t")
    func = (lambda t, y: module(y)) if what == "closure" else _ignoring_time(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ys = odeint(func, y0, t, method="scipy_solver")
    assert not ys.requires_grad
    assert [str(w.message)[:40] for w in caught] == ["scipy_solver in odeint gives no gradient"] * (what != "nothing")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        odeint(func, y0, t, method="scipy_solver")


class _ignoring_time(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, t, y):
        return self.module(y)


PAIRS = [
    ("scipy_solver", None, None), ("scipy_solver", "scipy_solver", {"solver": "LSODA"}),
    ("scipy_solver", None, {"solver": "Radau"}), ("scipy_solver", "dopri5", None), ("dopri5", "scipy_solver", None),
    ("rk4", "scipy_solver", {"solver": "RK45"}),
]  # fmt: skip


@pytest.mark.parametrize("method,adjoint_method,adjoint_options", PAIRS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_the_continuous_adjoint(field, method, adjoint_method, adjoint_options, reverse):
    """Those of ACA at tight tolerances, in y0, the times and the parameters."""
    results = []
    times = torch.linspace(0, 1, 4).flip(0) if reverse else torch.linspace(0, 1, 4)
    options = {"step_size": 0.01} if method == "rk4" else None
    for interface, keywords in (
        (odeint, {"rtol": 1e-12, "atol": 1e-12}),
        (odeint_adjoint, {"method": method, "adjoint_method": adjoint_method, "adjoint_options": adjoint_options,
                          "options": options}),
    ):  # fmt: skip
        torch.manual_seed(0)
        y0, t = torch.randn(5, 3).requires_grad_(), times.clone().requires_grad_()
        ys = interface(field, y0, t, **TIGHT | keywords)
        weights = torch.linspace(1, 2, ys.numel()).reshape(ys.shape)
        results.append([ys, *torch.autograd.grad((weights * ys).sum(), [y0, t, *field.parameters()])])
    # errors of some ten times the tolerance in a sum over 60 entries
    assert all(float((a - b).abs().max()) < 1e-6 for a, b in zip(*results))


@pytest.mark.skipif(torchdiffeq is None, reason="torchdiffeq is not installed")
@pytest.mark.parametrize("solver", ["LSODA", "RK45"])
def test_gradients_of_torchdiffeq(field, solver):
    keywords = {"method": "scipy_solver", "options": {"solver": solver}, "rtol": 1e-8, "atol": 1e-8}
    results = []
    for library in (torchdiffeq.odeint_adjoint, odeint_adjoint):
        torch.manual_seed(0)
        y0, t = torch.randn(5, 3).requires_grad_(), torch.linspace(0, 1, 3).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they hand min_step to methods that have none
            ys = library(field, y0, t, **keywords)
            results.append([ys, *torch.autograd.grad((ys**2).sum(), [y0, t, *field.parameters()])])
    assert all(float((a - b).abs().max()) < 1e-5 for a, b in zip(*results))


def test_gradient_of_a_nested_state_with_tolerances_of_its_own():
    scale = torch.tensor(0.5, requires_grad=True)
    y0 = (torch.ones(2, requires_grad=True), torch.ones((), dtype=torch.complex128, requires_grad=True))
    ys = odeint_adjoint(
        lambda t, y: (-scale * y[0], 1j * scale * y[1]), y0, torch.tensor([0.0, 1.0]), method="scipy_solver",
        rtol=[1e-9, 1e-8], atol=(1e-9, 1e-8),
    )  # fmt: skip
    loss = ys[0][-1].sum() + ys[1][-1].real
    found = torch.autograd.grad(loss, [*y0, scale])
    decay, turn = math.exp(-0.5), complex(math.cos(0.5), -math.sin(0.5))
    assert float((found[0] - decay).abs().max()) < 1e-6 and abs(found[1].item() - turn) < 1e-6
    assert float(found[2]) == pytest.approx(-2 * decay - math.sin(0.5), abs=1e-6)


def test_settings_are_those_of_scipy():
    """A pulse of width 0.02 at 0.5 is seen with steps of 0.02 at most, and missed by longer ones."""
    def pulse(t, y):
        return torch.exp(-(((t - 0.5) / 0.02) ** 2)) * torch.ones_like(y)

    found = [
        float(odeint(pulse, torch.zeros(1), torch.tensor([0.0, 1.0]), method="scipy_solver", options=options)[-1])
        for options in ({"solver": "RK45", "max_step": 0.02}, {"solver": "RK45", "first_step": 0.4})
    ]
    assert found[0] == pytest.approx(0.02 * math.sqrt(math.pi), abs=1e-7) and found[1] < 0.01 * found[0]


def test_what_scipy_cannot_do_is_refused():
    t = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="scipy_solver finds no events"):
        odeint(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", event_fn=lambda t, y: y - 0.5)
    with pytest.raises(ValueError, match="scipy_solver finds no events"):
        odeint_adjoint(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", event_fn=lambda t, y: y - 0.5)
    with pytest.raises(TypeError, match="nonsense"):
        odeint(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", nonsense=1)
    with pytest.raises(ValueError, match="unknown gradient 'bogus'"):
        odeint(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", gradient="bogus")
    with pytest.raises(ValueError, match="method 'scipy_solver' needs gradient='adjoint', got 'aca'"):
        solve(lambda t, y: -y, torch.ones(1), t, method="scipy_solver")
    with pytest.raises(ValueError, match="solver must be one of scipy's RK23, .* LSODA, got 3"):
        solve(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", gradient="adjoint", options={"solver": 3})
    with pytest.raises(ValueError, match="unknown option jump_t of scipy_solver; accepted: solver, first_step"):
        solve(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", gradient="adjoint", options={"jump_t": [0.5]})
    callbacks = Callbacks(step=print)
    for keywords, message in (
        ({"callbacks": callbacks}, "callbacks: for steps of torch_ACA's own"),
        ({"record": True}, "record: for steps of torch_ACA's own"),
        ({"adjoint": {"callbacks": callbacks}}, "callbacks of the adjoint: for steps of torch_ACA's own"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(lambda t, y: -y, torch.ones(1), t, method="scipy_solver", gradient="adjoint", **keywords)


@pytest.mark.parametrize("solver", ["RK45", "LSODA", "Radau"])
def test_failures_are_typed(solver):
    options = {"solver": solver}
    t = torch.tensor([0.0, 0.5, 2.0])
    keywords = {"method": "scipy_solver", "options": options}
    with pytest.raises(SolverError) as caught:
        odeint(lambda t, y: y**2, torch.ones(1), t, max_evals=2000, **keywords)
    assert caught.value.n_f_evals > 0
    with pytest.raises(TooManyEvaluationsError, match="max_evals = 10 was reached"):
        odeint(lambda t, y: torch.cos(30 * t) * y, torch.ones(1), t, max_evals=10, **keywords)
    with pytest.raises(NonFiniteError, match="y0 holds"):
        odeint(lambda t, y: y * math.nan, torch.ones(1), t, **keywords)
    solution = solve(
        lambda t, y: y**2, torch.ones(1), t, gradient="adjoint", on_failure="return", max_evals=2000, **keywords
    )
    assert isinstance(solution.error, SolverError) and len(solution.ys) == len(solution.ts)
    if solver == "RK45":  # the others try on until max_evals ends all, and with it what scipy has solved
        assert solution.ts.tolist() == [0.0, 0.5] and float(solution.ys[1]) == pytest.approx(2.0, abs=1e-2)


@pytest.mark.parametrize(
    "solve_by_scipy",
    [
        lambda func, y0, t: solve(func, y0, t, method="scipy_solver", gradient="adjoint"),
        lambda func, y0, t: solve(func, y0, t, gradient="adjoint", adjoint={"method": "scipy_solver"}),
        lambda func, y0, t: odeint(func, y0, t, method="scipy_solver"),
        lambda func, y0, t: odeint_adjoint(func, y0, t, adjoint_method="scipy_solver"),
        lambda func, y0, t: ODEBlock(func, method="scipy_solver", gradient="adjoint"),
    ],
    ids=["solve", "backward", "odeint", "odeint_adjoint", "ODEBlock"],
)
def test_without_scipy_one_line_says_what_needs_it(solve_by_scipy, monkeypatch):
    for name in ["scipy", "scipy.integrate", *(name for name in sys.modules if name.startswith("scipy."))]:
        monkeypatch.setitem(sys.modules, name, None)
    plan._known.cache_clear()  # what was checked while there was a scipy
    calls = []
    with pytest.raises(ImportError, match=r"^method 'scipy_solver' needs scipy, .*: pip install scipy$"):
        solve_by_scipy(lambda t, y: calls.append(t) or -y, torch.ones(2, requires_grad=True), torch.tensor([0.0, 1.0]))
    assert not calls
    solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], gradient="adjoint")  # needs no scipy
