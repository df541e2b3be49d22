"""Loss and accuracy of a model over batches of images, summed up where the images are."""

from typing import NamedTuple

import torch
from torch.nn import functional

from cifar_classification.models import solver_stats
from harness.distributed import ALONE


class Evaluation(NamedTuple):
    """Mean ``loss``, ``accuracy`` in [0, 1], and ``solver``: `solver_stats` per batch."""

    loss: float
    accuracy: float
    solver: torch.Tensor


def autocast(device, enabled):
    """bfloat16 where it is safe, on the device's type."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def tally(loss, logits, labels):
    """[summed loss, correct answers, images] of a batch whose mean loss is ``loss``: a tensor to add up."""
    correct = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])


@torch.no_grad()
def evaluate(model, batches, device, *, amp=False, processes=ALONE, each=None):
    """The `Evaluation` of ``model``, in evaluation mode, over all ``batches`` of images and labels.

    Args:
        processes: those that share the batches, each with its part of every one.
        each: called with logits and labels of every batch.
    """
    model.eval()
    sums, solver, count = torch.zeros(3, device=device), 0, 0
    for images, labels in batches:
        with autocast(device, amp):
            logits = model(images).to(images.dtype)
        sums += tally(functional.cross_entropy(logits, labels), logits, labels)
        solver, count = solver + solver_stats(model).double(), count + 1
        if each:
            each(logits, labels)
    processes.add_up([sums])
    processes.average([solver])
    loss, correct, total = sums.tolist()
    return Evaluation(loss / total, correct / total, solver / count)
