"""A progress bar where somebody is watching, nothing elsewhere."""

import sys

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


class _Silent:
    """Iterates and shows nothing."""

    def __init__(self, iterable):
        self._iterable = iterable

    def __iter__(self):
        return iter(self._iterable)

    def set_postfix(self, **values):
        pass


def progress(iterable, *, total=None, desc="", shown=True):
    """Iterate with a tqdm bar if tqdm is installed and stderr is a terminal; ``.set_postfix(loss=1)`` works anyway."""
    if tqdm is None or not shown or not sys.stderr.isatty():
        return _Silent(iterable)
    return tqdm(iterable, total=total, desc=desc, leave=False, dynamic_ncols=True)
