"""Small files in MNIST's format: bright bars, whose place tells the class."""

import torch


def write_mnist(folder, train=60, test=30):
    """Write images and labels below ``folder``; returns it."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        labels = torch.arange(count) % 10
        pixels = torch.randint(0, 60, (count, 28, 28), generator=torch.Generator().manual_seed(count))
        for image, label in zip(pixels, labels.tolist()):
            image[2 * label + 4 : 2 * label + 6] = 250
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.dim()]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + bytes(array.flatten().tolist()))
    return folder
