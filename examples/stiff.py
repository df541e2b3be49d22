"""Learn the three rate constants of a stiff reaction, Robertson's, whose rates span nine powers of ten."""

import torch

from torch_ACA import solve

torch.manual_seed(0)
truth = torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64)
times = torch.cat([torch.zeros(1), torch.logspace(-5, 5, 41)]).double()
# the state and the loss are in units of what each concentration reaches: the second one would not count otherwise
scale = torch.tensor([1.0, 3.65e-5, 1.0], dtype=torch.float64)
start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)


def concentrations(rates):
    """The concentrations of the three species at all times, in units of scale."""

    def func(t, scaled):
        y = scaled * scale
        first, second, third = rates[0] * y[0], rates[1] * y[1] ** 2, rates[2] * y[1] * y[2]
        return torch.stack([third - first, first - second - third, second]) / scale

    return solve(func, start / scale, times, method="Rodas5P", rtol=1e-4, atol=1e-6).ys


measured = concentrations(truth)
measured = measured * (1 + 0.01 * torch.randn_like(measured))
logarithms = (truth * torch.tensor([3.0, 0.2, 4.0])).log().requires_grad_()  # the guess; keeps all of them positive
optimizer = torch.optim.LBFGS([logarithms], max_iter=60, line_search_fn="strong_wolfe")
evaluations = 0


def closure():
    global evaluations
    evaluations += 1
    optimizer.zero_grad()
    loss = (concentrations(logarithms.exp()) - measured).square().mean()
    loss.backward()
    return loss


optimizer.step(closure)
print(f"{evaluations} solves with their gradients")
for rate, value in zip(logarithms.detach().exp().tolist(), truth.tolist()):
    print(f"rate constant: {rate:.4g}, in truth {value:.4g}")
