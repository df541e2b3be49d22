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
