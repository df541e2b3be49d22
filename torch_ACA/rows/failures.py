"""Rows that fail, and the errors that say so."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError
from ..problem import explain


class RowFailures:
    """Which rows have failed, and why.

    ``failed``: [b], bool. ``errors``: a `SolverError` for each row that has, None for the others.

    :param like: [b], on the device where ``failed`` is to be
    :param method: of the solve
    """

    def __init__(self, like: Tensor, method: Any) -> None:
        self.failed = torch.zeros_like(like, dtype=torch.bool)
        self.errors: list[SolverError | None] = [None] * len(like)
        self._stepper = method.row_steps
        self._reasons = {}  # kinds of errors and their texts, each with its rows

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def add(
        self, kind: type[SolverError], failed: Tensor, t: Tensor, h: Tensor, n_accepted: Tensor, n_evals: int, *,
        what: str | None = None,
    ) -> None:  # fmt: skip
        """Rows (``failed`` [b], bool) have failed.

        :param kind: class of the error
        :param t, h, n_accepted: where, with which step size and after how many steps, each [b]
        :param what: text instead of the kind's own
        """
        self.failed = self.failed | failed
        what = what or kind.what
        for row in failed.nonzero()[:, 0].tolist():
            error = kind(float(t[row]), float(h[row]), int(n_accepted[row]), n_evals, what=f"row {row}: {what}")
            explain(error, self._stepper)
            self.errors[row] = error
            self._reasons.setdefault((kind, what), []).append(row)

    def error(self) -> SolverError | None:
        """One error that names all rows that have failed, with time and step size of the first of them."""
        if not self:
            return None
        reasons = sorted(self._reasons.items(), key=lambda reason: min(reason[1]))
        texts = [f"{_shown(rows)}: {what}" for (_, what), rows in reasons]
        row = next(row for row, error in enumerate(self.errors) if error is not None)
        first = self.errors[row]
        if len(texts) > 1:
            texts.append(f"row {row}")
        what, n_evals = "; ".join(texts), max(error.n_f_evals for error in self.errors if error is not None)
        error = type(first)(first.t, first.h, first.n_steps, n_evals, what=what)
        explain(error, self._stepper)
        return error


def shown_rows(flags: Tensor) -> str:
    """The rows [b] that are flagged, as a message names them: the first ten."""
    return _shown(flags.nonzero()[:, 0].tolist())


def _shown(rows: Collection[int]) -> str:
    """Rows, by their numbers, as a message names them: the first ten."""
    if len(rows) == 1:
        return f"row {min(rows)}"
    return "rows " + ", ".join(map(str, sorted(rows)[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
