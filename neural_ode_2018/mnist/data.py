"""MNIST through torchvision, kept whole on the device."""

import torch
from torchvision import datasets

from cifar_classification.data import DEFAULT_FOLDER, ImageData, Images
from harness.cli import UsageError

CLASSES = 10


def load(folder, train_images, test_images, device):
    """The first so many images of each part; batches come as [B, 1, 28, 28] with pixels from 0 to 1.

    Args:
        folder: holds MNIST/raw; None: DEFAULT_FOLDER, where MNIST is downloaded to if it is not there.

    Raises:
        UsageError: MNIST is not there, and may not or cannot be downloaded, or has fewer images.
    """
    where = folder or DEFAULT_FOLDER
    try:
        parts = [datasets.MNIST(where, train=train, download=not folder) for train in (True, False)]
    except (RuntimeError, ValueError):
        raise UsageError(f"MNIST is not in {where}, or damaged; --data names the folder that holds MNIST/raw") from None
    except OSError as error:  # covers urllib's errors
        raise UsageError(f"MNIST is not in {where} and cannot be downloaded ({error})") from None
    for part, wanted in zip(parts, (train_images, test_images)):
        if len(part) < wanted:
            raise UsageError(f"{wanted} images are wanted, and MNIST in {where} has {len(part)}")
    train, test = (Images(part.data[:wanted, :, :, None], part.targets[:wanted]).to(device)
                   for part, wanted in zip(parts, (train_images, test_images)))  # fmt: skip
    mean, std = torch.zeros(1, device=device), torch.full((1,), 255.0, device=device)
    return ImageData(train, test, mean, std, flip=False, memory_format=torch.contiguous_format)
