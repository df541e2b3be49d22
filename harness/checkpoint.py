"""Checkpoints: written atomically, read without executing anything, refused in one clear line."""

import pickle
from pathlib import Path

import torch

from harness.cli import UsageError
from harness.files import atomic_write


def save_checkpoint(path, state, *, kind):
    """Write ``state``, a dict of tensors, numbers, strings and containers of them, atomically to ``path``.

    ``kind`` names what wrote it (e.g. "cifar_classification") and is checked on loading.

    Raises:
        TypeError: ``state`` holds something that ``torch.load(weights_only=True)`` refuses; ``path`` stays as it was.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save({**state, "kind": kind}, file)
        file.flush()
        try:  # reading back now, memory-mapped and so nearly free, beats finding out after hours of training
            torch.load(file.name, weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise TypeError(f"{path}: not loadable with weights_only=True: {error}") from error


def load_checkpoint(path, *, kind, map_location="cpu"):
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        UsageError: the file is missing, truncated, not a checkpoint, or of another ``kind``.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"checkpoint {path} is {'a folder' if path.is_dir() else 'not there'}; a file is needed")
    try:
        state = torch.load(path, weights_only=True, map_location=map_location)
    except Exception as error:  # torch.load raises half a dozen types for a file that is cut short or foreign
        raise UsageError(f"{path} cannot be read as a checkpoint: it is truncated, or not one") from error
    found = state.pop("kind", None) if isinstance(state, dict) else None
    if found != kind:
        raise UsageError(f"{path} is not a checkpoint of {kind}" + (f", but of {found}" if found else ""))
    return state
