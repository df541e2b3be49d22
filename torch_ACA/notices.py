"""Warnings that point at the caller's line, and values in messages that stay short."""

import contextlib
import inspect
import os
import reprlib
import sys
import warnings

import torch

# no code of a caller's is there: this package, and what calls it on a caller's behalf
_BETWEEN = (*(os.path.dirname(module) + os.sep for module in (__file__, inspect.getfile(torch))), contextlib.__file__)
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object) -> str:
    """A value as one short line."""
    return " ".join(_REPR.repr(value).split())


def add_note(failure: BaseException, note: str) -> None:
    """Let an exception of a caller's own end with a line of ours, once; before Python 3.11 it has no notes."""
    if sys.version_info >= (3, 11) and note not in getattr(failure, "__notes__", ()):
        failure.add_note(note)


def warn_caller(message: str) -> None:
    """Warn at the line of the caller's that led here, and so (by Python's default) once for each such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
