"""One process of a data-parallel training in float64 on a few synthetic images, with BatchNorm's statistics frozen.

usage: distributed_worker.py FOLDER NAME=OPTIONS ...    runs train.py with OPTIONS in FOLDER/NAME, one after the other
$SIZES="1 2 4:3": instead of taking part in one group, become groups of these sizes, which train in FOLDER/SIZE/NAME;
that of 4 the first 3 runs alone.
$KILL="RANK BATCH": that process kills itself after so many batches, unless torchrun has started it again.
"""

import contextlib
import os
import signal
import socket
import sys

import torch
import torch._dynamo  # every optimizer imports it, which takes seconds: here, once for all processes
from torch import nn

from cifar_classification import data, train, training
from harness import training as loop
from harness.cli import run_main
from harness.distributed import processes
from harness.seeding import generator

IMAGES, SIDE = 24, 8


class FrozenBatchNorm(nn.BatchNorm2d):
    """Nothing that it computes depends on the batch."""

    def train(self, mode=True):
        return super().train(False)


def few_images(*args, **keywords):
    draw = generator("cpu", "few images")
    pixels = torch.randint(256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8, generator=draw)
    images = data.Images(pixels, torch.randint(10, (IMAGES,), generator=draw))
    mean, std = torch.tensor([128.0] * 3), torch.tensor([64.0] * 3)
    return data.ImageData(images, images, mean, std, flip=True, memory_format=torch.contiguous_format)


def kill_at(rank, batch):
    """Let the process of that rank die after so many batches of the first start."""
    train_on = training.CifarTraining.train_on

    def train_or_die(self, images, labels):
        train_on(self, images, labels)
        if self.processes.rank == rank and self.step == batch:
            os.kill(os.getpid(), signal.SIGKILL)

    training.CifarTraining.train_on = train_or_die


def fork(size):
    """Become a group of so many processes, which costs less than starting them; returns True in each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = free.getsockname()[1]
    for rank in range(size):
        if os.fork() == 0:
            os.environ.update(
                {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            )
            return True
    return False


def main(argv):
    folder, *runs = argv
    groups = [group.partition(":") for group in os.environ.get("SIZES", "").split()]
    for size, _, first in groups:
        if fork(int(size)):
            folder, runs = f"{folder}/{size}", runs[: int(first or len(runs))]
            break
    else:
        if groups:
            codes = [os.waitstatus_to_exitcode(os.wait()[1]) for size, *_ in groups for _ in range(int(size))]
            return max(codes, key=abs)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    nn.BatchNorm2d = FrozenBatchNorm
    data.load = few_images
    if os.environ.get("KILL") and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        kill_at(*map(int, os.environ["KILL"].split()))
    with processes("cpu") as joined:
        loop.processes = lambda name: contextlib.nullcontext(joined)  # one group for all runs
        for run in runs:
            name, _, options = run.partition("=")
            out = ["--out", f"{folder}/{name}", "--resume", "auto", "--dataset", "digits", "--device", "cpu"]
            code = train.main([*out, *options.split()])
            if code:
                return code
    return 0


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
