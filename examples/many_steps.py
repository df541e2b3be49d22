"""Many steps in little memory: at most 20 states are kept of 3,000 steps, and the gradient stays the same."""

import time

import torch

from torch_ACA import solve_endtime

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
y0 = torch.randn(32, 64)


def gradient(memory):
    """The gradient by ACA, and the bytes that autograd keeps between the forward and the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y1, _ = solve_endtime(lambda t, y: net(y), y0, 0.0, 3.0, method="RK2", h=1e-3, memory=memory)
    return torch.autograd.grad(y1.square().mean(), net.parameters()), sum(kept.values())


found = {}
for memory in (None, 20):
    start = time.perf_counter()
    found[memory], n_bytes = gradient(memory)
    seconds = time.perf_counter() - start
    print(f"memory={memory}: {n_bytes / 2**20:.1f} MiB kept, {seconds:.1f} s")
equal = all(torch.equal(one, other) for one, other in zip(*found.values()))
print("the gradients are", "equal to the last bit" if equal else "different")
