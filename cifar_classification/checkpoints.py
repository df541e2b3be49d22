"""Where a run keeps its checkpoints, and how they are read."""

from pathlib import Path

from harness.checkpoint import load_checkpoint

KIND = "cifar_classification"
LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"


def read_checkpoint(path, name):
    """The state in a checkpoint, or in the one called ``name`` (LAST or BEST) of a run folder, and the file's path.

    Raises:
        UsageError: it is not there, damaged, or not of this experiment.
    """
    path = Path(path)
    path = path / name if path.is_dir() else path
    return load_checkpoint(path, kind=KIND), path
