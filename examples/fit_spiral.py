"""Fit a neural ODE to noisy points on a spiral, and draw where it goes on from there."""

import torch
from matplotlib.figure import Figure
from torch import nn

from torch_ACA import solve

torch.manual_seed(0)


def spiral(t):
    return torch.exp(-0.15 * t)[:, None] * torch.stack([t.cos(), t.sin()], -1)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t, y):
        return self.net(y)


times = torch.linspace(0, 8, 60)
points = spiral(times) + 0.02 * torch.randn(60, 2)
field, start = Field(), torch.tensor([1.0, 0.0])
optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

for step in range(200):
    horizon = 10 + step // 3  # the first points first: a long trajectory is hard to fit from scratch
    ys = solve(field, start, times[:horizon], rtol=1e-3, atol=1e-4).ys
    loss = (ys - points[:horizon]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
print(f"mean squared error {loss.item():.1e}")

later = torch.linspace(0, 16, 200)
with torch.no_grad():
    learnt = solve(field, start, later, rtol=1e-5, atol=1e-6).ys
figure = Figure(figsize=(5, 4), layout="constrained")
axes = figure.subplots()
axes.plot(*spiral(later).T, "k:", label="truth")
axes.plot(*points.T, ".", color="tab:orange", label="points")
axes.plot(*learnt.T, color="tab:blue", label="learnt, and on from there")
figure.legend(loc="outside upper center", ncols=3)
figure.savefig("fit_spiral.png", dpi=100)
