"""Callbacks that change what func reads, keep what they are given, or change it: as in torchdiffeq, or an error."""

import pytest
import torch

from tests.torch_ACA.programs import assert_close
from torch_ACA import Callbacks, CaptureError, ReplayError, SideOutputError, odeint, odeint_adjoint, solve

torchdiffeq = pytest.importorskip("torchdiffeq")
FEW, MANY = 1.0, 0.5  # step sizes: one takes its steps as plain operations; both make fewer than are always compared
GRADIENTS = [("aca", {}), ("aca", {"memory": "states"}), ("direct", {}), ("naive", {})]


class Held(torch.nn.Module):
    """A control that is set at the start of every step, and held."""

    def __init__(self, kind):
        super().__init__()
        self.k, self.u = torch.nn.Parameter(torch.tensor([0.7, 0.2]).double()), torch.zeros(2)
        self.kind, self.kept = kind, []

    def forward(self, t, y):
        return self.u - self.k * y

    def callback_step(self, t, y, dt):
        if self.kind == "number":
            self.u = float(torch.sin(3 * t + 0.5))
        elif self.kind == "parameter":
            self.u = 2 * self.k * float(t)
        elif self.kind == "state":
            self.u = torch.sin(y[0]) * torch.ones_like(y)
        elif self.kind == "kept":
            self.kept.append(2 * y)


def values_and_gradients(integrate, kind, step, **keywords):
    func, y0 = Held(kind), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 2.0] if step == FEW else [0.0, 1.0, 2.0])
    ys = integrate(func, y0, times, method="rk4", options={"step_size": step}, **keywords)
    loss = ys[1:].square().sum() + sum(kept.sum() for kept in func.kept)
    return [loss.detach(), *torch.autograd.grad(loss, [func.k, y0])]


@pytest.mark.parametrize("step", [FEW, MANY])
@pytest.mark.parametrize("gradient, keywords", GRADIENTS)
@pytest.mark.parametrize("kind", ["number", "parameter", "state", "kept"])
def test_what_a_step_callback_makes(kind, gradient, keywords, step):
    """The order of calls is torchdiffeq's. Autograd's own graph goes through all, that of a few steps and `naive`."""
    if gradient == "naive" or step == FEW or kind in ("number", "parameter") and not keywords:
        expected = values_and_gradients(torchdiffeq.odeint, kind, step)
        assert_close(values_and_gradients(odeint, kind, step, gradient=gradient, **keywords), expected, 1e-12)
    else:
        with pytest.raises((CaptureError, SideOutputError, ReplayError)):
            values_and_gradients(odeint, kind, step, gradient=gradient, **keywords)


@pytest.mark.parametrize("kind", ["number", "parameter", "state"])
def test_the_adjoint_cannot_go_back_through_changes(kind):
    with pytest.raises(ReplayError):
        values_and_gradients(odeint_adjoint, kind, MANY)


@pytest.mark.parametrize("name", ["step", "accept"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("step", [FEW, MANY])
@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint"])
def test_a_state_that_is_changed_in_place_is_refused(gradient, step, context, name):
    k, y0 = torch.tensor(0.7, requires_grad=True), torch.ones(2)
    callbacks = Callbacks(**{name: lambda t, y, h: y.mul_(0.5)})
    with context(), pytest.raises(ValueError, match=f"the callback '{name}' changes .* in place"):
        solve(lambda t, y: -k * y, y0, [0.0, 1.0], method="RK4", h=step, gradient=gradient, callbacks=callbacks)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint"])
def test_states_for_numpy(gradient):
    k, seen = torch.tensor(0.7, requires_grad=True), []
    solve(
        lambda t, y: -k * y, torch.ones(2), [0.0, 1.0], gradient=gradient,
        callbacks=Callbacks(step=lambda t, y, h: seen.append(y.detach().cpu().numpy()),
                            accept=lambda t, y, h: seen.append(y.cpu().numpy())),
    )  # fmt: skip
    assert len(seen) > 4
    if gradient != "adjoint":
        with pytest.raises(ValueError, match="NumPy.*[Ll]et it detach the state"):
            step = Callbacks(step=lambda t, y, h: y.cpu().numpy())
            solve(lambda t, y: -k * y, torch.ones(2), [0.0, 1.0], gradient=gradient, callbacks=step)


class Controlled(torch.nn.Module):
    """The control at the start of a step, forwards and backwards."""

    def __init__(self):
        super().__init__()
        self.k, self.u = torch.nn.Parameter(torch.tensor([0.7, 0.2]).double()), 5.0

    def forward(self, t, y):
        return torch.tanh(self.k * y) * (1 + self.u)

    def callback_step(self, t, y, dt):
        self.u = float(torch.cos(5 * t))

    def callback_step_adjoint(self, t, y, dt):
        self.u = float(torch.cos(5 * (t - dt)))


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_the_adjoint_has_callbacks_of_its_own(method):
    found = []
    for integrate in (odeint_adjoint, torchdiffeq.odeint_adjoint):
        func, y0 = Controlled(), torch.ones(2, dtype=torch.float64, requires_grad=True)
        ys = integrate(func, y0, torch.tensor([0.0, 1.0]), method=method, options={"step_size": 0.125})
        found.append([ys.detach(), *torch.autograd.grad(ys[-1].sum(), [y0, func.k])])
    assert_close(*found, 1e-12)


class Logged(torch.nn.Module):
    def __init__(self, logs):
        super().__init__()
        self.norm, self.table, self.logs = torch.nn.BatchNorm1d(2), torch.linspace(1, 2, 17).sin(), logs

    def forward(self, t, y):
        return self.table[int(16 * t)] * torch.sin(self.norm(y))


@pytest.mark.parametrize("method", ["euler", "rk4", "heun2", "explicit_adams", "implicit_adams", "bosh3"])
@pytest.mark.parametrize("step", [0.5, 1 / 16])
def test_a_callback_that_only_looks_on_changes_nothing(method, step):
    """No times are moved, no history is lost, no batch statistics are counted twice."""
    found = []
    for logs in ([], None):
        torch.manual_seed(0)
        func, y0 = Logged(logs).double(), torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
        callbacks = None if logs is None else Callbacks(step=lambda t, y, h, logs=logs: logs.append(float(t)))
        keywords = {"method": method, "options": {"step_size": step}}
        ys = solve(func, y0, torch.tensor([0.0, 1.0]).double(), callbacks=callbacks, **keywords).ys
        updates = func.norm.num_batches_tracked - (method == "bosh3") * len(logs or [1] * round(1 / step))
        found.append([ys.detach(), *torch.autograd.grad(ys[-1].sum(), [y0]), func.norm.running_mean, updates])
        assert logs is None or len(logs) == round(1 / step)
    if method == "bosh3":  # its last stage is not taken for the first of the next step, where func may have changed
        found = [[*parts[:2]] for parts in found]
    assert_close(*found, 1e-12)
