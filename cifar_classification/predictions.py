"""What a trained model said about each test image, small enough to keep beside the record of the run."""

import io
from typing import NamedTuple

import numpy as np
import torch

from harness import packed
from harness.files import atomic_write

FILE = "predictions.npz"


class Predictions(NamedTuple):
    """Per test image, in order: the ``probability`` of its true class, to half precision, and whether it was the
    largest; ``epoch`` is that of the model."""

    probability: np.ndarray
    correct: np.ndarray
    epoch: int


class Collector:
    """Gathers them from batches of logits and labels."""

    def __init__(self):
        self._probability, self._correct = [], []

    def __call__(self, logits, labels):
        self._probability.append(logits.softmax(1).gather(1, labels[:, None]).squeeze(1).cpu())
        self._correct.append((logits.argmax(1) == labels).cpu())

    def write(self, folder, epoch):
        """Write FILE into a run folder; returns its path."""
        path = folder / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        probability, correct = (torch.cat(parts).numpy() for parts in (self._probability, self._correct))
        with atomic_write(path) as file:
            np.savez_compressed(
                file, probability=probability.astype(np.float16), correct=np.packbits(correct), epoch=epoch
            )
        return path


def read(folder):
    """The `Predictions` in a run folder; None if they were not kept."""
    content = packed.read(folder, FILE)
    if content is None:
        return None
    with np.load(io.BytesIO(content)) as kept:
        probability = kept["probability"].astype(np.float64)
        correct = np.unpackbits(kept["correct"], count=len(probability)).astype(bool)
        return Predictions(probability, correct, int(kept["epoch"]))
