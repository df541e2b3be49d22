"""Learn the length and the friction of a pendulum from noisy measurements of its angle."""

import torch

from torch_ACA import solve

torch.manual_seed(0)
GRAVITY = 9.81
truth = {"length": 1.3, "friction": 0.25}
times = torch.linspace(0, 6, 61, dtype=torch.float64)
start = torch.tensor([1.2, 0.0], dtype=torch.float64)  # the angle, and how fast it changes


def swing(length, friction):
    """The angle at all times."""

    def func(t, y):
        angle, speed = y
        return torch.stack([speed, -GRAVITY / length * angle.sin() - friction * speed])

    return solve(func, start, times, rtol=1e-6, atol=1e-8).ys[:, 0]


measured = swing(**truth) + 0.02 * torch.randn(61, dtype=torch.float64)
logarithms = torch.tensor([1.0, 0.1], dtype=torch.float64).log().requires_grad_()  # the guess; keeps both positive
optimizer = torch.optim.LBFGS([logarithms], max_iter=50, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = (swing(*logarithms.exp()) - measured).square().mean()
    loss.backward()
    return loss


optimizer.step(closure)
learnt = dict(zip(truth, logarithms.detach().exp().tolist()))
for name, value in truth.items():
    print(f"{name}: {learnt[name]:.3f}, in truth {value}")
