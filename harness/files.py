"""Files that are either complete or not there, and whether they can be written."""

import contextlib
import csv
import io
import os
from pathlib import Path

from harness.cli import UsageError


def check_folder(path):
    """UsageError unless files can be written to this folder, or it can be made. Makes nothing."""
    path = Path(path)
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UsageError(f"nothing can be written to {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"nothing can be written to {path}: {there} is read-only")


def check_file(path):
    """UsageError unless this file can be written, or written anew. Makes nothing."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a file is needed")
    check_folder(path.parent)


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


def write_text(path, text):
    """Write a text file as a whole, or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def csv_text(header, rows):
    """The text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
