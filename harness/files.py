"""Files that are either complete or not there."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path):
    """Open a binary file that takes the place of ``path`` only once it is written in full and on disk.

    Whatever interrupts the writing, an exception or a power cut, ``path`` keeps its former content.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
