"""Image data kept whole on the device; whole batches are augmented there, so that loading never holds up training.

`cifar10` and `cifar100` come through torchvision; `digits` are the real 8x8 handwritten digits that scikit-learn ships,
enlarged to 32x32 RGB: a stand-in where CIFAR cannot be had, which says nothing about accuracy on CIFAR.
"""

import contextlib
import math
import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional
from torchvision import datasets

from harness.cli import UsageError
from harness.seeding import generator

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn digits (not CIFAR)"}
AUTHORS_NORMALISATION = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))}
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "data"
DOWNLOAD_TIMEOUT = 30  # seconds without an answer
CROP_PADDING = 4
DIGITS_FOR_TRAINING = 1500  # of 1,797


def whole(count):
    """All of ``count`` images: the share of a process that is alone."""
    return slice(count)


@dataclass(frozen=True)
class Images:
    """``pixels``: uint8 [N, 32, 32, 3]; ``labels``: int64 [N]; on the same device."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """A data set on one device; ``mean`` and ``std`` are per channel, in units of pixel values.

    Batches come as [B, 3, 32, 32] (crops are smaller), of ``mean``'s type and in ``memory_format``, with labels [B].
    ``share`` tells, from a batch's size, which slice of it is wanted: the part of one process.
    """

    train: Images
    test: Images
    mean: torch.Tensor
    std: torch.Tensor
    flip: bool
    memory_format: torch.memory_format

    def training_batches(self, batch_size, *, seed, epoch, first=0, crop=None, share=whole):
        """Augmented batches of one epoch, from batch number ``first`` on; the last one may be smaller.

        What a batch holds depends on (seed, epoch, batch number) alone, so a resumed epoch goes on exactly, with any
        number of processes. With ``crop``, images are random crops of that side.
        """
        device = self.train.labels.device
        order = torch.randperm(len(self.train), generator=generator(device, seed, "order", epoch), device=device)
        for number, chosen in enumerate(order.split(batch_size)[first:], start=first):
            random = generator(device, seed, "augment", epoch, number)
            part = share(len(chosen))
            mine = chosen[part]
            pixels = augment(self.train.pixels[mine], random, self.flip, crop, batch=len(chosen), part=part)
            yield self._normalise(pixels), self.train.labels[mine]

    def test_batches(self, batch_size, share=whole):
        """Batches of the test images, in order."""
        for pixels, labels in zip(self.test.pixels.split(batch_size), self.test.labels.split(batch_size)):
            part = share(len(labels))
            yield self._normalise(pixels[part]), labels[part]

    def with_tests(self, limit):
        """The same with the first ``limit`` test images only; None: with all of them."""
        return replace(self, test=Images(self.test.pixels[:limit], self.test.labels[:limit]))

    def _normalise(self, pixels):
        images = pixels.to(self.mean.dtype).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=self.memory_format)


def augment(pixels, generator, flip, crop=None, *, batch=None, part=slice(None)):
    """Crop every image at random and, with ``flip``, mirror every other one left to right.

    ``pixels``: [B, S, S, C], the slice ``part`` of ``batch`` images (without them: the whole batch). Numbers are drawn
    for all of these, so that an image is treated alike wherever its batch is cut. Distributed like torchvision's
    RandomCrop(S, padding=4) or, with a ``crop`` below S, RandomCrop(crop), and RandomHorizontalFlip().
    """
    batch, size, device = batch or len(pixels), pixels.shape[1], pixels.device
    if crop is None or crop == size:
        crop, pixels = size, functional.pad(pixels, (0, 0, *[CROP_PADDING] * 4))
    corner = torch.randint(pixels.shape[1] - crop + 1, (2, batch, 1), generator=generator, device=device)[:, part]
    rows, columns = corner + torch.arange(crop, device=device)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator, device=device)[part] < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return pixels[torch.arange(len(pixels), device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def resolve_auto(folder=None, download=None):
    """The data set that ``auto`` stands for: cifar10 where it can be had, else digits after one line on stderr."""
    try:
        _cifar("cifar10", folder, download)
    except UsageError as error:
        if folder:  # it was named: training on something else is not what was asked for
            raise
        print(f"{error}; using {TITLES['digits']} instead", file=sys.stderr)
        return "digits"
    return "cifar10"


def missing():
    """What lacks for CIFAR-10, which is downloaded where it can be, as a line; None if nothing."""
    try:
        _cifar("cifar10", os.environ.get("CIFAR_DATA"), None)
    except UsageError as error:
        return str(error)
    return None


def load(name, folder=None, download=None, *, device="cpu", channels_last=False):
    """The data set ``name``, a key of CLASSES, on ``device``.

    Args:
        folder: where CIFAR is or goes; None: DEFAULT_FOLDER.
        download: fetch what is not there; None: only into DEFAULT_FOLDER, never into a folder that was named.
        channels_last: memory format of the batches.

    Raises:
        UsageError: the data is not there and may not or cannot be downloaded.
    """
    train, test = _digits() if name == "digits" else _cifar(name, folder, download)
    if name in AUTHORS_NORMALISATION:
        mean, std = (255 * torch.tensor(values) for values in AUTHORS_NORMALISATION[name])
    else:
        mean, std = _channel_moments(train.pixels)
    flip = name != "digits"  # a mirrored digit is no digit
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return ImageData(train.to(device), test.to(device), mean.to(device), std.to(device), flip, memory_format)


def _cifar(name, folder, download):
    """Training and test images through torchvision, which checks every file's MD5."""
    download = download if download is not None else not folder
    folder = Path(folder or DEFAULT_FOLDER)
    source = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        parts = [_quietly(source, folder, train=train, download=download) for train in (True, False)]
    except RuntimeError:
        hint = "" if download else f"; --data names the folder that holds {source.base_folder}, --download fetches it"
        raise UsageError(f"{TITLES[name]} is not in {folder}, or damaged{hint}") from None
    except OSError as error:  # covers urllib's errors
        raise UsageError(f"{TITLES[name]} is not in {folder} and cannot be downloaded ({error})") from None
    return [Images(torch.from_numpy(part.data), torch.tensor(part.targets)) for part in parts]


def _quietly(source, folder, **keywords):
    """Call a torchvision data set with a limit on waiting for its server, what it prints going to stderr."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return source(folder, **keywords)
    finally:
        socket.setdefaulttimeout(timeout)


def _digits():
    """Training and test images of scikit-learn's digits: a fixed split, enlarged bilinearly to 32x32 grey RGB."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("the digits need scikit-learn: pip install scikit-learn") from None
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] * (255 / 16)
    large = functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    pixels = large.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=generator("cpu", "digits split"))
    return [Images(pixels[part], labels[part]) for part in order.tensor_split([DIGITS_FOR_TRAINING])]


def _channel_moments(pixels):
    """Mean and standard deviation of uint8 pixels [N, H, W, C] per channel, exact: from counts of the 256 values."""
    values = torch.arange(256.0, dtype=torch.float64)
    counts = [torch.bincount(channel, minlength=256).double() for channel in pixels.flatten(0, 2).unbind(1)]
    means = [(values @ count / count.sum()).item() for count in counts]
    stds = [math.sqrt((values - mean).square() @ count / count.sum()) for mean, count in zip(means, counts)]
    return torch.tensor(means), torch.tensor(stds)
