"""Data-parallel training: the processes that torchrun starts, and what they tell each other.

Every process holds the whole model and takes its share of every batch; gradients are added up once the backward pass
is over, in one all-reduce. That is plainer than torch's DistributedDataParallel, whose hooks would run in the middle of
a backward pass that itself solves ODEs, and it is exact for shares of unequal size. Each batch also costs one small
all-reduce of numbers that live on the host, so that no process waits for its device to learn what the others want.
"""

import contextlib
import os

import torch
from torch import distributed
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.rendezvous import rendezvous

from harness.cli import UsageError


class Processes:
    """The processes that train together; a single one outside torchrun, where nothing here costs anything."""

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size

    @property
    def first(self):
        """Whether this is the process that writes records and checkpoints."""
        return self.rank == 0

    def share(self, count):
        """This process's slice of ``count`` things; the shares differ by one at most."""
        smaller, larger = divmod(count, self.size)
        start = self.rank * smaller + min(self.rank, larger)
        return slice(start, start + smaller + (self.rank < larger))

    def add_up(self, tensors):
        """Replace each of the list ``tensors``, of one type and device, by its sum over the processes, in place."""
        self._reduce(tensors, 1)

    def average(self, tensors):
        """Replace each of the list ``tensors``, of one type and device, by its mean over the processes, in place."""
        self._reduce(tensors, self.size)

    def _reduce(self, tensors, divisor):
        if self.size == 1 or not sum(tensor.numel() for tensor in tensors):
            return
        flat = _flatten_dense_tensors(tensors)
        distributed.all_reduce(flat)
        torch._foreach_copy_(tensors, list(_unflatten_dense_tensors(flat.div_(divisor), tensors)))

    def any(self, flag):
        """Whether ``flag`` holds in any process: the same answer everywhere."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag))
        distributed.all_reduce(count)
        return bool(count)

    def rms_norm(self, x):
        """Root mean square over the entries of ``x`` in all processes: an error norm with which all take equal steps.

        Not differentiable. Every process has to ask for it equally often.
        """
        norm = torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)).double()
        sums = torch.stack([norm.square(), torch.full_like(norm, x.numel())])
        self.add_up([sums])
        return (sums[0] / sums[1]).sqrt()


ALONE = Processes()


@contextlib.contextmanager
def processes(device_name):
    """Join the processes that torchrun started, if it did; yields the `Processes` and the name of this one's device.

    Each takes a GPU of its own where ``device_name`` is cuda, or auto and there are GPUs. They talk through NCCL about
    what is on GPUs and through gloo about the rest. Only the first one prints to stdout.

    Raises:
        UsageError: there are not as many GPUs as processes on this machine, or all were to use the same one.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1  # other launchers set the one
    if size == 1:
        yield ALONE, device_name
        return
    device_name = _own_device(device_name, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    on_gpu = device_name.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device_name)
    store, rank, _ = next(rendezvous("env://"))
    # processes that are started again share a store with those before, and would try to connect to their addresses
    store = distributed.PrefixStore(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{size}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        group = Processes(rank, size)
        with contextlib.ExitStack() as stack:
            if not group.first:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield group, device_name
    finally:
        distributed.destroy_process_group()


def _own_device(name, local_rank, local_size):
    gpus = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not gpus):
        return "cpu"
    if name not in ("auto", "cuda"):
        raise UsageError(f"--device {name}: several processes take --device cuda, a GPU for each, or cpu")
    if local_size > gpus:
        raise UsageError(
            f"{local_size} processes and {gpus} CUDA devices on this machine: start fewer, or --device cpu"
        )
    return f"cuda:{local_rank}"
