import os
import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as transforms

from cifar_classification import data
from harness.cli import UsageError
from harness.seeding import generator

CIFAR = os.environ.get("CIFAR_DATA")
needs_cifar = pytest.mark.skipif(not CIFAR, reason="needs CIFAR: set CIFAR_DATA to its folder")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def slow_augment(pixels, generator, flip, crop):
    """One image at a time, through torchvision, with the same draws."""
    pad, size = (0, crop) if crop else (data.CROP_PADDING, pixels.shape[1])
    corners = torch.randint(pixels.shape[1] + 2 * pad - size + 1, (2, len(pixels), 1), generator=generator)
    mirrored = torch.rand(len(pixels), 1, generator=generator) < 0.5 if flip else torch.zeros(len(pixels), 1)
    images = []
    for image, top, left, mirror in zip(pixels, corners[0], corners[1], mirrored):
        image = transforms.pad(image.permute(2, 0, 1), [pad] * 4)
        image = transforms.crop(image, int(top), int(left), size, size)
        images.append((transforms.hflip(image) if mirror else image).permute(1, 2, 0))
    return torch.stack(images)


@pytest.mark.parametrize("crop", [None, 24])
@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_equals_one_image_at_a_time(flip, crop):
    pixels = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8, generator=generator("cpu", "pixels"))
    whole = data.augment(pixels, generator("cpu", 1), flip, crop)
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, slow_augment(pixels, generator("cpu", 1), flip, crop))


def test_augmentation_reaches_every_offset_and_both_mirrorings():
    marked = torch.zeros(4000, 9, 9, 1, dtype=torch.uint8)
    marked[:, 4, 3] = 255
    seen = data.augment(marked, generator("cpu", 0), flip=True).squeeze(-1).flatten(1)
    # the mark moves to 9 rows and, with and without mirroring, to columns that cover all 9; some crops lose it
    assert (seen.amax(0) == 255).all()


def test_same_keys_give_the_same_batches_and_others_do_not(digits):
    def batches(**keys):
        return list(digits.training_batches(400, **keys))

    first, again = batches(seed=0, epoch=3), batches(seed=0, epoch=3)
    assert [len(labels) for _, labels in first] == [400, 400, 400, 300]
    assert all(torch.equal(a, b) for one, other in zip(first, again) for a, b in zip(one, other))
    for keys in ({"seed": 1, "epoch": 3}, {"seed": 0, "epoch": 4}):
        assert not torch.equal(batches(**keys)[0][1], first[0][1])


def test_an_epoch_entered_in_the_middle_goes_on_with_the_same_batches(digits):
    whole = list(digits.training_batches(400, seed=0, epoch=1))
    rest = list(digits.training_batches(400, seed=0, epoch=1, first=2))
    assert len(rest) == 2
    assert all(torch.equal(a, b) for one, other in zip(whole[2:], rest) for a, b in zip(one, other))


def test_an_epoch_sees_every_image_once(digits):
    labels = torch.cat([labels for _, labels in digits.training_batches(128, seed=0, epoch=0)])
    assert torch.equal(labels.sort().values, digits.train.labels.sort().values)


def test_digits_are_split_without_overlap_and_normalised(digits):
    assert (len(digits.train), len(digits.test)) == (1500, 297)
    images = torch.cat([images for images, _ in digits.test_batches(100)])
    assert images.shape == (297, 3, 32, 32) and images.dtype == torch.float32
    # statistics are those of the training images; the test images come close
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.05
    assert not digits.flip
    together = torch.cat([digits.train.pixels, digits.test.pixels]).flatten(1).numpy()
    assert len(np.unique(together, axis=0)) == 1797


def test_memory_format_is_the_one_asked_for(digits):
    images, _ = next(digits.training_batches(8, seed=0, epoch=0))
    assert images.is_contiguous()
    images, _ = next(data.load("digits", channels_last=True).training_batches(8, seed=0, epoch=0))
    assert images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def test_moments_are_numpys():
    pixels = torch.randint(256, (10, 4, 4, 3), dtype=torch.uint8, generator=generator("cpu", "moments"))
    mean, std = data._channel_moments(pixels)
    np.testing.assert_allclose(mean, pixels.numpy().mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.numpy().std((0, 1, 2)), rtol=1e-6)


def test_a_named_folder_without_the_data_is_refused_and_not_downloaded_to(tmp_path):
    with pytest.raises(UsageError, match="CIFAR-10 is not in .*--data names"):
        data.load("cifar10", tmp_path)
    with pytest.raises(UsageError, match="CIFAR-100 is not in"):
        data.load("cifar100", tmp_path)
    with pytest.raises(UsageError):
        data.resolve_auto(tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_data_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({}))
    with pytest.raises(UsageError, match="damaged"):
        data.load("cifar10", tmp_path)


def test_without_any_cifar_the_digits_stand_in_and_say_so(tmp_path, monkeypatch, capsys):
    def unreachable(*args, **keywords):
        raise OSError("no network")

    monkeypatch.setattr(data.datasets, "CIFAR10", unreachable)
    monkeypatch.setattr(data, "DEFAULT_FOLDER", tmp_path)
    assert data.resolve_auto() == "digits"
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "no network" in message and "digits (not CIFAR)" in message


@needs_cifar
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_complete(name, classes):
    images = data.load(name, CIFAR)
    assert images.train.pixels.shape == (50_000, 32, 32, 3) and images.test.pixels.shape == (10_000, 32, 32, 3)
    assert images.train.labels.bincount().tolist() == [50_000 // classes] * classes
    assert data.CLASSES[name] == classes


@needs_cifar
def test_normalisation_is_torchvisions():
    images = data.load("cifar10", CIFAR)
    ours, _ = next(images.test_batches(16))
    scaled = images.test.pixels[:16].permute(0, 3, 1, 2) / 255
    theirs = transforms.normalize(scaled, *data.AUTHORS_NORMALISATION["cifar10"])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # float32 rounding of differently ordered operations
