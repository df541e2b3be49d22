"""Memory of a forward and a backward pass as depth grows: steps of the ODE block, or residual blocks."""

import json
import multiprocessing
import time

import torch

from harness import environment
from harness.cli import ArgumentParser, add_machine_arguments, apply_common_arguments, run_main
from harness.files import check_file, write_text
from harness.resources import peak_memory_bytes
from neural_ode_2018.mnist.experiment import MNIST
from neural_ode_2018.mnist.models import CHANNELS, Field, ResidualBlock
from torch_ACA import ODEBlock

RECORD = MNIST.results / "memory.json"
DEPTHS = (1, 2, 4, 8, 16, 32)
GRADIENTS = ("direct", "aca", "adjoint", "mali")
RESNET = "resnet"
BATCH, SIDE = 32, 7


def network(name, depth):
    """``depth`` residual blocks, or an ODE block of as many RK4 steps, with MALI of ALF."""
    if name == RESNET:
        return torch.nn.Sequential(*(ResidualBlock() for _ in range(depth)))
    method = {"method": "ALF"} if name == "mali" else {"method": "RK4"}
    return ODEBlock(Field(), gradient=name, options={"step_size": 1 / depth}, **method)


def measure(name, depth, device, answer):
    """Send the peak, in bytes, above that of depth 1; in a process of its own, as it is a peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = network(name, depth).to(device)
    images = torch.rand(BATCH, CHANNELS, SIDE, SIDE, device=device)
    network(name, 1).to(device)(images).sum().backward()  # what is loaded once does not count
    before = peak_memory_bytes(device)
    model(images).sum().backward()
    answer.send(peak_memory_bytes(device) - before)


def rows(device):
    """A row for each network and depth."""
    context = multiprocessing.get_context("fork" if device.type == "cpu" else "spawn")
    for name in (RESNET, *GRADIENTS):
        for depth in DEPTHS:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(name, depth, device, sender))
            process.start()
            sender.close()
            yield {"network": name, "depth": depth, "bytes": receiver.recv()}
            process.join()


def main(argv=None):
    parser = ArgumentParser(__doc__)
    add_machine_arguments(parser)
    device = apply_common_arguments(parser.parse_args(argv))
    check_file(RECORD)
    start = time.perf_counter()
    found = {"rows": [*rows(device)], "state_bytes": 4 * BATCH * CHANNELS * SIDE**2, "device": str(device)}
    found |= {"seconds": time.perf_counter() - start, "environment": environment.describe()}
    write_text(RECORD, json.dumps(found, indent=2) + "\n")
    print(f"memory -> {RECORD}")


if __name__ == "__main__":
    run_main(main)
