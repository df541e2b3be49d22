"""Data-parallel training in two processes. Each solves its half of the batch, with steps of its own.

Starts its processes itself, or is started in each of them by torchrun:  torchrun --nproc-per-node 2 examples/ddp.py
"""

import os
import socket

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torch_ACA import ODEBlock

PROCESSES, STEPS = 2, 60


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t, z):
        return self.net(z)


def train(rank):
    dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    points = torch.randn(256, 2)[rank :: dist.get_world_size()]  # the share of this process
    rotated = points @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # what the flow shall learn: a quarter turn
    block = ODEBlock(Field(), rtol=1e-3, atol=1e-3)
    model = DistributedDataParallel(block)  # averages the gradients over the processes
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(STEPS):
        loss = (model(points) - rotated).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    line = f"process {rank}: loss {loss.item():.3f}, {block.stats.n_f_evals} evaluations in the last solve\n"
    print(line, end="", flush=True)
    dist.barrier()  # none leaves while another one needs it
    dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


if __name__ == "__main__":
    if "RANK" in os.environ:  # set by torchrun
        train(int(os.environ["RANK"]))
    else:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(PROCESSES)}
        torch.multiprocessing.spawn(train, nprocs=PROCESSES)
