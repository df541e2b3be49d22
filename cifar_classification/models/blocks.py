"""The block of an ODE network: torch_ACA's, or for comparison one that torchdiffeq solves and differentiates."""

import torch
from torch import nn

from torch_ACA import GRADIENTS, ODEBlock, Stats

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

PEERS = {"torchdiffeq": "odeint", "torchdiffeq-adjoint": "odeint_adjoint"}
ALL_GRADIENTS = (*GRADIENTS, *PEERS)
# what torchdiffeq calls the methods of the authors' package; its rk4 is the 3/8 rule, so RK4 is not among them
_NAMES = {
    **{"Euler": "euler", "RK2": "midpoint", "RK12": "adaptive_heun", "HeunEuler": "adaptive_heun"},
    **{"RK23": "bosh3", "RK45": "dopri5", "Dopri5": "dopri5"},
}


def make_block(field, *, gradient="aca", **solver):
    """z -> z(1) along z' = field(t, z), z(0) = z.

    Args:
        gradient: one of ALL_GRADIENTS.
        solver: further keywords of ODEBlock.

    Raises:
        ValueError: settings that the solver refuses, or torchdiffeq is wanted and not installed.
    """
    if gradient in PEERS:
        return TorchdiffeqBlock(field, gradient=gradient, **solver)
    return ODEBlock(field, gradient=gradient, **solver)


class TorchdiffeqBlock(nn.Module):
    """The same layer by torchdiffeq: back-propagation through ``odeint``, or ``odeint_adjoint``.

    Rejected tries and, in the adjoint, the backward solve leave their mark on BatchNorm's running statistics here.
    ``stats`` holds the counts of the last call; it does not tell those of fixed steps, which are left at 0.
    """

    def __init__(self, func, *, gradient, method, rtol=None, atol=None, h=None):
        super().__init__()
        if torchdiffeq is None:
            raise ValueError(f"gradient {gradient!r} needs torchdiffeq: pip install torchdiffeq")
        if method not in _NAMES:
            raise ValueError(f"gradient {gradient!r} goes with the methods {', '.join(_NAMES)}; got {method}")
        self._fixed = rtol is None
        if self._fixed and h is None:
            raise ValueError(f"{method} takes fixed steps: give the step size h")
        self._solve = getattr(torchdiffeq, PEERS[gradient])
        self._keywords = {
            "method": _NAMES[method],
            "options": {"step_size" if self._fixed else "first_step": h} if h else {},
        }
        if not self._fixed:
            self._keywords |= {"rtol": rtol, "atol": atol}
        self.func = func
        self._last = ()

    @property
    def stats(self):
        return self._last[0].stats() if self._last else None

    def forward(self, z):
        """z at 0 -> z at 1."""
        counted = _Counted(self.func, z) if self._fixed else _CountedSteps(self.func, z)
        self._last = (counted,)  # in a tuple, which hides it from state_dict: the parameters are func's alone
        z1 = self._solve(counted, z, torch.tensor([0.0, 1.0], device=z.device), **self._keywords)[-1]
        counted.end_forward()
        return z1


class _Counted(nn.Module):
    """A vector field that counts its evaluations, under the autocast it was made in."""

    def __init__(self, func, z):
        super().__init__()
        self.func, self.evaluations, self.forward_evaluations = func, 0, None
        self.accepted = self.rejected = 0
        self._kind, self._enabled = z.device.type, torch.is_autocast_enabled(z.device.type)
        self._dtype = torch.get_autocast_dtype(z.device.type)

    def forward(self, t, z):
        self.evaluations += 1
        # the backward solve of the adjoint runs outside the autocast of the forward pass
        with torch.autocast(self._kind, self._dtype, enabled=self._enabled, cache_enabled=False):
            return self.func(t, z).to(z.dtype)

    def end_forward(self):
        self.forward_evaluations = self.evaluations

    def stats(self):
        return Stats(
            self.forward_evaluations, self.accepted, self.rejected, self.evaluations - self.forward_evaluations
        )


class _CountedSteps(_Counted):
    """The same, counting the solver's steps as well; torchdiffeq reports adaptive ones only."""

    def callback_accept_step(self, t, z, h):
        self.accepted += 1

    def callback_reject_step(self, t, z, h):
        self.rejected += 1
