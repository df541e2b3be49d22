"""Compiled solves: code is generated for the whole loop over steps and its way back, and a solve takes less time."""

import time

import torch

from torch_ACA import solve

rates = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64, requires_grad=True)
y0 = torch.tensor([1.0, 1.0], dtype=torch.float64)
times = torch.linspace(0, 20, 50, dtype=torch.float64)


def predators_and_prey(t, y):
    a, b, c, d = rates
    prey, predators = y
    return torch.stack([a * prey - b * prey * predators, d * prey * predators - c * predators])


def gradient(**settings):
    ys = solve(predators_and_prey, y0, times, rtol=1e-6, atol=1e-8, **settings).ys
    return torch.autograd.grad(ys.square().mean(), rates)[0]


found = {}
for compile in (False, True):
    start = time.perf_counter()
    gradient(compile=compile)  # generates the code
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(5):
        found[compile] = gradient(compile=compile)
    print(f"compile={compile}: first solve {first:.2f} s, then {(time.perf_counter() - start) / 5:.3f} s")
difference = ((found[True] - found[False]).norm() / found[False].norm()).item()
print(f"relative difference of the gradients {difference:.0e}")
