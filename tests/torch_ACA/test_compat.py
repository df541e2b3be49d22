"""Programs as people write them for torchdiffeq and for the authors' package, with the import swapped."""

import importlib
import math

import pytest
import torch
from torch import nn

import torch_ACA
from torch_ACA import odeint, odeint_adjoint, odeint_dense, odesolve, odesolve_adjoint, odesolve_endtime
from torch_ACA.compat.torchdiffeq import METHODS

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

with_torchdiffeq = pytest.mark.skipif(torchdiffeq is None, reason="torchdiffeq is not installed")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")


@with_torchdiffeq
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients_of_torchdiffeq(field, method):
    if method not in importlib.import_module("torchdiffeq._impl.odeint").SOLVERS:
        pytest.skip(f"this torchdiffeq has no {method}")
    y0, t = torch.randn(5, 3), torch.linspace(0, 1, 5)
    if method in FIXED:  # the same steps: equal up to rounding, with their interpolant
        options, tolerance, keywords = {"step_size": 0.07, "interp": "linear"}, 1e-12, {}
    else:  # their dopri8 and adaptive_heun stand out by their low-order dense output
        loose = 100 if method == "adaptive_heun" else 1  # of second order: it would take thousands of steps
        options, keywords = {}, {"rtol": loose * 1e-8, "atol": loose * 1e-10}
        tolerance = loose * (1e-4 if method in ("dopri8", "bosh3") else 1e-6)
    results = []
    for library in (torch_ACA, torchdiffeq):
        ys = library.odeint(field, y0, t, method=method, options=dict(options), **keywords)
        results.append([ys.detach(), *torch.autograd.grad((ys**2).sum(), list(field.parameters()))])
    assert all(float((a - b).abs().max()) < tolerance * (1 + float(b.abs().max())) for a, b in zip(*results))


@with_torchdiffeq
@pytest.mark.parametrize("options", [{}, {"interp": "linear"}, {"grid_constructor": True}, {"perturb": True}])
def test_fixed_grids_of_torchdiffeq(field, options):
    """Without step_size the grid is t itself."""
    y0, t = torch.randn(5, 3), torch.tensor([0.0, 0.3, 0.4, 1.0])
    if "grid_constructor" in options:
        options = {"grid_constructor": lambda f, y, t: torch.tensor([0.0, 0.2, 0.3, 0.4, 0.7, 1.0])}
    ours = odeint(field, y0, t, method="rk4", options=dict(options))
    theirs = torchdiffeq.odeint(field, y0, t, method="rk4", options=dict(options))
    # perturbed times differ from the given ones by a unit in the last place
    assert float((ours - theirs).abs().max()) < 1e-14


@with_torchdiffeq
def test_adjoint_of_torchdiffeq(field):
    y0, t = torch.randn(5, 3), torch.linspace(0, 1, 5)
    grads = []
    for library in (torch_ACA, torchdiffeq):
        start, times = y0.clone().requires_grad_(), t.clone().requires_grad_()
        ys = library.odeint_adjoint(field, start, times, rtol=1e-9, atol=1e-9)
        grads.append(torch.autograd.grad((ys**2).sum(), [start, times, *field.parameters()]))
    assert all(float((a - b).abs().max()) < 1e-6 for a, b in zip(*grads))


def test_adjoint_params_restrict_the_gradients(field):
    y = odeint_adjoint(field, torch.randn(2, 3), torch.tensor([0.0, 1.0]), adjoint_params=[field.net[0].weight])
    found = torch.autograd.grad(y.sum(), list(field.parameters()), allow_unused=True)
    assert found[0] is not None and all(g is None for g in found[1:])


def test_missing_methods_are_named():
    with pytest.raises(ValueError, match="'gl4' is not available here; use .* there are: euler"):
        odeint(lambda t, y: y, torch.ones(1), torch.tensor([0.0, 1.0]), method="gl4")
    with pytest.raises(ValueError, match="unknown method 'nonsense'"):
        odeint(lambda t, y: y, torch.ones(1), torch.tensor([0.0, 1.0]), method="nonsense")


def test_names_that_collide():
    """RK4 is the classic method, rk4 the 3/8 rule of torchdiffeq; in the options dict any case is the classic one."""
    f, y0, t = lambda t, y: y * torch.cos(3 * t), torch.ones(1), torch.tensor([0.0, 1.0])
    classic = odeint(f, y0, t, method="RK4", options={"step_size": 0.5})[-1]
    rule = odeint(f, y0, t, method="rk4", options={"step_size": 0.5})[-1]
    assert not torch.equal(classic, rule)
    assert torch.equal(odesolve(f, y0, {"method": "rk4", "h": 0.5}), classic)


def test_callbacks_of_torchdiffeq():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, t, y):
            return -y

        def callback_step(self, t, y, dt):
            self.seen.append((t.shape, y.shape, float(dt) > 0))

        def callback_accept_step_adjoint(self, t, y, dt):
            self.seen.append((t.shape, y.shape, float(dt) > 0))

    module = Counting()
    odeint(module, torch.ones(2, 2), torch.tensor([0.0, 1.0]))
    forward = len(module.seen)
    y = odeint_adjoint(module, torch.ones(2, 2, requires_grad=True), torch.tensor([0.0, 1.0]))
    y[-1].sum().backward()
    assert forward > 0 and len(module.seen) > 2 * forward and set(module.seen) == {((), (2, 2), True)}


def test_dense_output_of_torchdiffeq():
    dense = odeint_dense(lambda t, y: y, torch.ones(2), torch.tensor(0.0), torch.tensor(2.0))
    assert float((dense(torch.tensor(1.234)) - math.exp(1.234)).abs().max()) < 1e-6


def test_fitting_a_spiral():
    """The demo of torchdiffeq: a network learns y' = y^3 A."""
    torch.manual_seed(0)
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    start, t = torch.tensor([[2.0, 0.0]]), torch.linspace(0, 5, 50)
    with torch.no_grad():
        truth = odeint(lambda t, y: y**3 @ matrix, start, t)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    func = lambda t, y: net(y**3)  # noqa: E731
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (odeint(func, start, t[:10], rtol=1e-4, atol=1e-4) - truth[:10]).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]


def test_continuous_normalising_flow():
    """The instantaneous change of variables: d log p / dt = -tr(df/dz); a density that is pushed forward and pulled
    back integrates to itself, and both directions train."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

        def forward(self, t, state):
            z, _ = state
            with torch.enable_grad():
                z = z.requires_grad_() if not z.requires_grad else z
                dz = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
                trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
            return dz, -trace

    flow = Flow()
    x = torch.randn(6, 2)
    zero = torch.zeros(6)
    keywords = {"rtol": 1e-7, "atol": 1e-7}
    z, dlogp = (part[-1] for part in odeint(flow, (x, zero), torch.tensor([1.0, 0.0]), **keywords))
    x_again, dlogp_again = (part[-1] for part in odeint(flow, (z, dlogp), torch.tensor([0.0, 1.0]), **keywords))
    assert float((x_again - x).abs().max()) < 1e-5 and float(dlogp_again.abs().max()) < 1e-5
    # the trace integral equals the log-determinant of the map
    jacobian = torch.autograd.functional.jacobian(
        lambda p: odeint(flow, (p[None], zero[:1]), torch.tensor([1.0, 0.0]), **keywords)[0][-1, 0], x[0]
    )
    assert float(dlogp[0]) == pytest.approx(-float(torch.linalg.slogdet(jacobian)[1]), abs=1e-5)
    (-dlogp.mean()).backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_latent_ode():
    """Encoder, ODE in latent space over shared times, decoder: a step of training lowers the loss."""
    torch.manual_seed(0)
    t = torch.linspace(0, 3, 20)
    data = torch.sin(t[:, None, None] + torch.randn(1, 8, 1))
    encoder, decoder = nn.GRU(1, 6), nn.Linear(4, 1)
    head, func = nn.Linear(6, 4), nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    modules = nn.ModuleList([encoder, decoder, head, func])
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        _, hidden = encoder(data.flip(0))
        latent = odeint(lambda t, z: func(z), head(hidden[0]), t, rtol=1e-3, atol=1e-4)
        loss = ((decoder(latent) - data) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


# the authors' README


@pytest.mark.defect("shapes")
def test_modes_of_the_readme(field):
    x = torch.randn(2, 3)
    options = {"method": "RK45", "h": None, "t0": 0.0, "t1": 1.0, "rtol": 1e-6, "atol": 1e-6, "neval_max": 5000}
    end = odesolve_endtime(field, x, options)
    assert torch.equal(end, odesolve_adjoint(field, x, options)) and end.shape == x.shape
    out = odesolve(field, x, options | {"t_eval": [0.0, 0.5, 1.0]})
    assert out.shape == (3, 2, 3) and torch.equal(out[0], x) and float((out[-1] - end).abs().max()) < 1e-12
    assert odesolve(field, x, options | {"t_eval": [1.0]}).shape == (1, 2, 3)
    assert odesolve(field, x, options | {"t_eval": [0.4]}).shape == (1, 2, 3)
    assert odesolve(field, x, options).shape == x.shape


@pytest.mark.defect("solver-reuse")
def test_solver_object_can_be_used_twice(field):
    x = torch.randn(2, 3, requires_grad=True)
    options = {"method": "RK23", "t_eval": [0.2, 0.9], "dense_output": True}
    solver = odesolve(field, x, options, return_solver=True)
    out = solver.integrate(x, t_eval=options["t_eval"])
    again = solver.integrate(x)
    assert torch.equal(out, again)
    dense = solver.evaluate_dense_mode(t_eval=options["t_eval"])
    assert float(((dense - out) ** 2).sum()) < 1e-20
    at_end = solver.evaluate_dense_mode([1.0])
    (g,) = torch.autograd.grad((at_end**2).sum(), x)
    (expected,) = torch.autograd.grad((odesolve_adjoint(field, x, {"method": "RK23"}) ** 2).sum(), x)
    assert float((g - expected).abs().max()) < 1e-10


def test_options_dict_reverse_time_and_time_gradients(field):
    x = torch.randn(2, 3)
    forward = {"method": "Dopri5", "t0": 0.0, "t1": 1.0, "rtol": 1e-9, "atol": 1e-9}
    end = odesolve_endtime(field, x, forward)
    back = odesolve(field, end, forward | {"t0": 1.0, "t1": 0.0, "t_eval": [0.7, 0.0]})
    assert float((back[-1] - x).abs().max()) < 1e-7
    t1 = torch.tensor(1.0, requires_grad=True)
    (g,) = torch.autograd.grad(odesolve_adjoint(field, x, forward | {"t1": t1}).sum(), t1)
    assert float(g) == pytest.approx(float(field(torch.tensor(1.0), end).sum()), abs=1e-6)


def test_unknown_keys_of_the_options_dict_are_left_out(field):
    """The authors' packages pass over them, so that a dict may serve several solvers."""
    x = torch.randn(2, 3)
    for solved in (odesolve, odesolve_endtime, odesolve_adjoint):
        with pytest.warns(UserWarning, match="unknown option n_layers, step_size is left out; accepted: method"):
            found = solved(field, x, {"method": "dopri5", "step_size": 0.01, "n_layers": 2})
        assert torch.equal(found, solved(field, x, {"method": "dopri5"}))


@pytest.mark.defect("times-outside", "bad-arguments")
def test_options_dict_refuses_what_it_cannot_use(field, capsys):
    x = torch.randn(2, 3)
    with pytest.raises(TypeError, match="unknown keyword tol; accepted: method"):
        odesolve(field, x, {}, tol=1e-3)
    with pytest.raises(ValueError, match="t_eval must not lie before t0 = 0, got -1 on the way to t1 = 1"):
        odesolve(field, x, {"t0": 0.0, "t1": 1.0, "t_eval": [-1.0, 2.0]})
    with pytest.warns(UserWarning, match="t_eval reaches to 2, beyond t1 = 1: solved on to it"):
        odesolve(field, x, {"t0": 0.0, "t1": 1.0, "t_eval": [0.0, 2.0]})
    with pytest.raises(ValueError, match="strictly"):
        odesolve(field, x, {"t_eval": [0.5, 0.2]})
    with pytest.raises(torch_ACA.TooManyEvaluationsError):
        odesolve_endtime(field, x, {"neval_max": 3, "rtol": 1e-9, "atol": 1e-9})
    with pytest.warns(UserWarning, match="'regenerate_graph' has no effect"):
        odesolve(field, x, {"regenerate_graph": False})
    odesolve(field, x, {"print_neval": True})
    assert capsys.readouterr().out.startswith("Number of evaluations: ")


def test_import_paths_of_the_readme():
    from torch_ACA.odesolver import odesolve as one
    from torch_ACA.odesolver_mem import odesolve_adjoint as two

    assert one is odesolve and two is odesolve_adjoint
