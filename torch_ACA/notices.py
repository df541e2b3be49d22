"""Warnings that point at the caller's line, and values in messages that stay short."""

import os
import reprlib
import sys
import warnings

_PACKAGE = os.path.dirname(__file__) + os.sep
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object) -> str:
    """A value as one short line."""
    return " ".join(_REPR.repr(value).split())


def warn_caller(message: str) -> None:
    """Warn at the line outside this package that led here, and so (by Python's default) once for each such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
