"""What is solved: vector fields with their initial states, times, tolerances and losses."""

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from cifar_classification.models.resnet import VectorField
from harness.seeding import seed_everything
from three_body.data import PAPER, System
from three_body.models import NewtonODE
from torch_ACA import methods, solve
from van_der_pol.data import HORIZON, START
from van_der_pol.models import VanDerPol

TRIANGLE = System(  # turns for a while without an encounter, so that its gradient is well conditioned
    "triangle",
    masses=PAPER.masses,
    positions=[[0.5, -0.29, 0.1], [-0.5, -0.29, 0.0], [0.0, 0.58, 0.0]],
    velocities=[[0.11, 0.17, 0.0], [0.1, -0.17, 0.02], [-0.2, 0.0, 0.0]],
)
TIGHT = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12}


@dataclass(frozen=True)
class Problem:
    """y' = func(t, y), y(times[0]) = y0, with an adaptive method, and a loss of the outputs.

    ``times`` [m] are float64 on the CPU; ``fixed_step``: steps of that size instead. ``reference``:
    keywords of the solve that errors are measured against, in float64 where ``reference_in_double``.
    """

    title: str
    func: nn.Module
    y0: torch.Tensor
    times: torch.Tensor
    method: str
    rtol: float
    atol: float
    fixed_step: float | None = None
    reference: dict = field(default_factory=lambda: TIGHT)
    reference_in_double: bool = True

    counts_start = True  # whether the gradient in y0 is a part of the gradient

    def measured(self, ys):
        """Outputs as the loss and the error of the state look at them: torch or JAX, [m - 1, *shape of y0]."""
        return ys

    def loss(self, ys):
        """Sum of the squares of the outputs behind times[0], divided by their number; ys [m - 1, *shape of y0]."""
        return (self.measured(ys) ** 2).sum() / len(ys)

    def to(self, device):
        return replace(self, func=copy.deepcopy(self.func).to(device), y0=self.y0.to(device))

    @property
    def solver(self):
        """Keywords of `torch_ACA.solve`."""
        return {"method": self.method, "rtol": self.rtol, "atol": self.atol, "h": self.fixed_step}

    def n_accepted(self):
        """Number of steps that `torch_ACA` accepts."""
        with torch.no_grad():
            return solve(self.func, self.y0, self.times, **self.solver).stats.n_accepted

    def accepted_evaluations(self):
        """Evaluations that the accepted steps need, NFE_acc: the stages they pay for, and one more at the start."""
        method = methods[self.method]
        return self.n_accepted() * (method.stages - method.fsal) + 1

    def reference_solution(self):
        """States behind times[0], flat, and the gradient of the loss in y0 and the parameters, as one vector; float64
        on the CPU, by ``reference``."""
        func, y0 = copy.deepcopy(self.func), self.y0.detach()
        if self.reference_in_double:
            func, y0 = func.double(), y0.double()
        y0.requires_grad_()
        ys = solve(func, y0, self.times, **self.reference).ys[1:]
        gradients = torch.autograd.grad(self.loss(ys), [y0, *func.parameters()])
        return flat([ys]), flat(gradients)


@dataclass(frozen=True)
class Check:
    """One solve looked at: outputs and gradient (None: has none) as in `Problem.reference_solution`, evaluations of
    func forward and backward, and steps that were tried (None where they cannot be counted)."""

    ys: torch.Tensor
    gradient: torch.Tensor | None
    nfe_forward: int | None
    nfe_backward: int | None
    tries: int | None = None


def flat(tensors):
    """One float64 vector on the CPU."""
    return torch.cat([t.detach().reshape(-1).double().cpu() for t in tensors])


class Perceptron(nn.Sequential):
    """f(t, y) of a small neural ODE: linear, tanh, linear. y [batch, width]."""

    GAIN = 1.5  # of the initial weights; with the usual 1 there is little motion to follow

    def __init__(self, width=64, hidden=128):
        super().__init__(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))
        for layer in (self[0], self[2]):
            nn.init.xavier_normal_(layer.weight, self.GAIN)

    def forward(self, t, y):
        return super().forward(y)


class Oscillators(nn.Module):
    """f(t, y) = tanh(y A), A skew-symmetric: y keeps moving, and so needs steps in proportion to the interval.

    y [batch, width] float32.
    """

    SPEED = 2.0

    def __init__(self, width):
        super().__init__()
        weights = torch.randn(width, width) * self.SPEED / width**0.5
        self.weight = nn.Parameter((weights - weights.T) / 2**0.5)

    def forward(self, t, y):
        return torch.tanh(y @ self.weight)


def three_body(title, system, horizon, outputs=1, tolerance=1e-5):
    """18 dimensions in float64; gradients in the start and in the masses."""
    func = NewtonODE()
    with torch.no_grad():
        func.masses.copy_(torch.tensor(system.masses, dtype=torch.float64))
    times = torch.linspace(0.0, horizon, outputs + 1, dtype=torch.float64)
    return Problem(title, func, system.state, times, "Dopri5", tolerance, tolerance)


def perceptron(title, method, tolerance):
    return Problem(title, Perceptron(), torch.randn(128, 64), UNIT_INTERVAL, method, tolerance, tolerance)


def convolution(title, batch):
    """The field of NODE-18's first stage, 64 channels of 32 x 32, in training mode."""
    reference = {"method": "Dopri5", "rtol": 1e-5, "atol": 1e-5}  # of a field with kinks, beside a tolerance of 1e-2
    return Problem(
        title, VectorField(64), torch.randn(batch, 64, 32, 32), UNIT_INTERVAL, "HeunEuler", 1e-2, 1e-2,
        reference=reference, reference_in_double=False,
    )  # fmt: skip


def oscillators(title, horizon):
    """A state of 128 KiB; the steps that Dopri5 takes are proportional to the horizon."""
    times = torch.tensor([0.0, horizon], dtype=torch.float64)
    return Problem(title, Oscillators(256), torch.randn(128, 256), times, "Dopri5", 1e-5, 1e-5)


def many_steps(title, count):
    """Fixed steps, so many of them, of a state of 4 KiB."""
    times = torch.tensor([0.0, 10.0], dtype=torch.float64)
    func, y0 = Oscillators(64), torch.randn(16, 64)
    return Problem(title, func, y0, times, "RK2", 1e-3, 1e-3, fixed_step=10.0 / count)


def fixed_steps(title, count):
    """So many fixed steps of a small network."""
    func, y0 = Perceptron(16, 64), torch.randn(32, 16)
    return Problem(title, func, y0, UNIT_INTERVAL, "RK2", 1e-3, 1e-3, fixed_step=1.0 / count)


def van_der_pol(title, tolerance):
    times = torch.tensor([0.0, HORIZON], dtype=torch.float64)
    return Problem(title, VanDerPol(), torch.tensor(START, dtype=torch.float64), times, "Dopri5", tolerance, tolerance)


UNIT_INTERVAL = torch.tensor([0.0, 1.0], dtype=torch.float64)
STEPS_PER_HORIZON = {10: 2.2, 40: 10.2, 160: 42.0}

PROBLEMS = {
    "three_body_end": lambda quick: three_body("Three bodies, end point", TRIANGLE, 1.2),
    "three_body_outputs": lambda quick: three_body("Three bodies, 49 outputs", TRIANGLE, 1.2, outputs=49),
    "three_body_close": lambda quick: three_body("Three bodies, close encounters", PAPER, 1.0 if quick else 2.0),
    "mlp_dopri5": lambda quick: perceptron("MLP neural ODE, Dopri5 1e-5", "Dopri5", 1e-5),
    "mlp_heun": lambda quick: perceptron("MLP neural ODE, Heun-Euler 1e-2", "HeunEuler", 1e-2),
    "conv": lambda quick: convolution("Vector field of NODE-18, Heun-Euler 1e-2", 4 if quick else 32),
    **{
        f"memory_{steps}": lambda quick, horizon=horizon, steps=steps: oscillators(
            f"Memory, about {steps} steps", horizon
        )
        for steps, horizon in STEPS_PER_HORIZON.items()
    },
    "fixed_steps": lambda quick: fixed_steps("MLP neural ODE, 100 steps of midpoint", 100),
    "many_steps": lambda quick: many_steps("Many fixed steps", 1000 if quick else 10_000),
    "van_der_pol": lambda quick, tolerance=1e-5: van_der_pol("Van der Pol", tolerance),
    "three_body": lambda quick, tolerance=1e-5: three_body("Three bodies, triangle", TRIANGLE, 1.2, 1, tolerance),
}


def build(name, known=PROBLEMS, *, seed=0, quick=False, device="cpu", **options):
    """The problem of that name, the same for the same seed in any process.

    :param known: problems by name
    :param quick: scaled down where a solve takes seconds
    """
    seed_everything(seed)
    return known[name](quick, **options).to(device)
