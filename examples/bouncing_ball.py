"""A ball that bounces: each bounce is an event. Find how elastic it is from the time of its fourth bounce."""

import torch
from matplotlib.figure import Figure

from torch_ACA import solve, solve_event

GRAVITY, BOUNCES, MEASURED = 9.81, 4, 4.0  # the fourth bounce was heard after four seconds


def func(t, y):
    height, speed = y
    return torch.stack([speed, torch.full_like(speed, -GRAVITY)])


def bounces(elasticity):
    """Time of each bounce and the state [2] behind it, the start first."""
    t, y = torch.zeros((), dtype=torch.float64), torch.tensor([5.0, 0.0], dtype=torch.float64)
    found = [(t, y)]
    for _ in range(BOUNCES):
        t, ys = solve_event(func, y, t, lambda t, y: y[0], rtol=1e-8, atol=1e-8)
        y = torch.stack([torch.zeros_like(ys[-1, 0]), -elasticity * ys[-1, 1]])  # on the floor, and up again
        found.append((t, y))
    return found


elasticity = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
for _ in range(6):  # Newton's method: the time of the last bounce is differentiable in the elasticity
    miss = bounces(elasticity)[-1][0] - MEASURED
    (slope,) = torch.autograd.grad(miss, elasticity)
    elasticity = (elasticity - miss / slope).detach().requires_grad_()
print(f"elasticity {elasticity.item():.4f}: the fourth bounce is {abs(miss.item()):.1e} s off")

figure = Figure(figsize=(5, 3), layout="constrained")
axes = figure.subplots(subplot_kw={"xlabel": "time in s", "ylabel": "height in m"})
path = bounces(elasticity.detach())
for (t0, y0), (t1, _) in zip(path, path[1:]):
    arc = torch.linspace(t0.item(), t1.item(), 50, dtype=torch.float64)
    axes.plot(arc, solve(func, y0, arc).ys[:, 0], color="tab:blue")
axes.plot([t for t, _ in path[1:]], [0.0] * BOUNCES, "o", color="tab:orange")
figure.savefig("bouncing_ball.png", dpi=100)
