"""A continuous normalising flow: an ODE carries two moons to a Gaussian, and the Gaussian back to two moons."""

import math

import torch
from matplotlib.figure import Figure
from torch import nn

from torch_ACA import solve_endtime

torch.manual_seed(0)
STEPS, BATCH = 250, 256
net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
tolerances = {"rtol": 1e-3, "atol": 1e-3}


def moons(n):
    """n points on two half circles, one inside the other's arms."""
    angle, upper = math.pi * torch.rand(n), torch.rand(n) < 0.5
    sign = torch.where(upper, 1.0, -1.0)
    points = torch.stack([sign * angle.cos() + torch.where(upper, -0.5, 0.5), sign * (angle.sin() - 0.25)], -1)
    return 1.5 * points + 0.08 * torch.randn(n, 2)


def velocity(t, x):
    return net(torch.cat([x, t.expand(len(x), 1)], -1))


def func(t, state):
    """The velocity of the points, and how fast the logarithm of the density changes along with them."""
    x = state[0]
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        v = velocity(t, x)
        trace = sum(torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
    return v, trace


optimizer = torch.optim.Adam(net.parameters(), lr=1.5e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for _ in range(STEPS):
    (z, gained), _ = solve_endtime(func, (moons(BATCH), torch.zeros(BATCH)), 0.0, 1.0, **tolerances)
    loss = (0.5 * z.square().sum(-1) + math.log(2 * math.pi) - gained).mean()  # minus the mean log-likelihood
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
print(f"mean log-likelihood {-loss.item():.2f}")

with torch.no_grad():
    samples, _ = solve_endtime(velocity, torch.randn(2000, 2), 1.0, 0.0, **tolerances)
figure = Figure(figsize=(7, 3), layout="constrained")
for axes, points, title in zip(figure.subplots(1, 2), (moons(2000), samples), ("data", "samples of the flow")):
    axes.plot(*points.T, ".", ms=2)
    axes.set(title=title, xlim=(-3, 3), ylim=(-2, 2))
figure.savefig("normalising_flow.png", dpi=100)
