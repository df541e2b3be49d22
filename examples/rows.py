"""Learn the stiffness of many oscillators at once, each with steps of its own."""

import torch

from torch_ACA import solve

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
truth = torch.logspace(-1, 1.3, 16)[:, None]  # of each oscillator, a row of the batch
y0 = torch.tensor([2.0, 0.0]).expand(16, 2)
times = torch.rand(16, 6).cumsum(1)  # each is measured at times of its own


def trajectories(stiffness):
    """States [6, 16, 2] of van der Pol's oscillators."""

    def func(t, y):
        x, v = y[:, :1], y[:, 1:]
        return torch.cat([v, stiffness * (1 - x * x) * v - x], 1)

    return solve(func, y0, times, per_sample=True, rtol=1e-4, atol=1e-4)


solution = trajectories(truth)
measured = solution.ys
print("accepted steps of each row:", solution.stats.n_accepted.tolist())
logarithms = (truth.log() + 0.3 * torch.randn(16, 1)).requires_grad_()
optimizer = torch.optim.Adam([logarithms], lr=0.07)
for _ in range(60):
    optimizer.zero_grad()
    ys = trajectories(logarithms.exp()).ys
    loss = ((ys - measured) / measured.abs().mean(0)).square().mean()
    loss.backward()
    optimizer.step()
error = (logarithms.exp() / truth - 1).abs().max()
print(f"largest relative error of a stiffness: {error:.2g}")
