"""`compare_gradients`: all gradient methods on one problem, side by side."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .api import solve
from .errors import SolverError
from .march import Stats
from .methods import methods
from .notices import shown
from .option_checks import as_float, check_callable
from .private_torch import pytree
from .rosenbrock_tableaus import RODAS5P
from .saved_tensors import SavedTensors
from .set_up import problem_of
from .settings import GRADIENTS, checked_params
from .side_effects import without_trace
from .solver_options import SolverOptions, takes_options
from .state import StateLayout
from .steppers.base import LINEARISE

_OF_ONE = {"memory": "aca", "compile": "aca", "adjoint": "adjoint"}  # what one gradient method alone takes


@dataclass(frozen=True)
class Comparison:
    """One gradient method on the problem. Numbers are None where it failed; ``failure`` then says why."""

    gradient: str
    error: float | None = None  # relative, over all gradients as one vector
    n_f_evals: int | None = None
    n_backward_f_evals: int | None = None
    seconds: float | None = None  # forward and backward, the better of two
    saved_bytes: int | None = None  # most that autograd kept between the two; None also where torch.func is inside
    failure: str | None = None


@takes_options(without=("gradient", "dense", "on_failure", "record", "per_sample", "args"))
def compare_gradients(
    func: Callable, y0: Any, t: Any, loss: Callable[[Any], torch.Tensor], *, gradients: Sequence[str] | None = None,
    reference: Mapping[str, Any] | None = None, show: bool = True, **keywords: Any,
) -> list[Comparison]:  # fmt: skip
    """Gradients of loss(ys) with respect to y0 and all that func uses, by every method, against a tight reference.
    Buffers and random streams are afterwards as they were.

    :param loss: ys (what `solve` returns for t) -> 0-d tensor
    :param gradients: names of the gradient methods to compare, or one; default: all, but with a method for stiff
        problems without "adjoint" and "mali", which solve such a problem backwards or by an explicit method
    :param reference: keywords of the reference solve; default: ``aca`` with dopri8 at a tolerance of 1e-12, or ten
        units of rounding of y0's precision if that is more (so use float64 to see small errors). With a method for
        stiff problems: Rodas5P at 1e-10, atol as much smaller as rtol is, with the same Jacobian
    :param show: print the table
    :param keywords: options as in `SolverOptions`; ``memory`` and ``compile`` are for ``aca`` alone, ``adjoint`` for
        ``adjoint``. Without ``memory``, ``aca`` keeps states alone here, as in the paper, so that what it evaluates
        again shows; ``mali`` has its own method, whatever ``method`` is
    :returns: list of `Comparison`, one per method, in order
    :raises SolverError: the reference itself fails
    """
    check_callable(loss, "loss(ys)")
    StateLayout(y0)  # refuses what is no state
    if keywords.get("params") is not None:
        keywords["params"] = checked_params(keywords["params"])  # a generator is good for one solve
    asked = SolverOptions(**keywords)
    leaves = [leaf.detach().requires_grad_() for leaf in pytree.tree_leaves(y0)]
    y0 = pytree.tree_unflatten(leaves, pytree.tree_structure(y0))
    with without_trace(func, leaves[0].device):
        problem, layout = problem_of(func, y0, t, SolverOptions(params=asked.params))
        wanted = [*leaves, *problem.field.captured.candidates]
        stiff = _solves_with_jacobian(asked.method)
        if gradients is None:
            gradients = [name for name in GRADIENTS if not (stiff and name in ("adjoint", "mali"))]
        elif isinstance(gradients, str):
            gradients = [gradients]
        for option in keywords:
            if _OF_ONE.get(option) not in (None, *gradients):
                raise ValueError(f"{option} is for gradient={_OF_ONE[option]!r}, which is not among those compared")
        exact, _ = _gradient(func, y0, t, loss, wanted, {**_reference(asked, stiff, layout), **(reference or {})})
        rows, refusals = [], []
        for name in gradients:
            try:
                rows.append(_compared(name, exact, func, y0, t, loss, wanted, keywords))
            except ValueError as refusal:  # this method cannot do what others can
                rows.append(Comparison(name, failure=f"refused: {refusal}"))
                refusals.append(refusal)
        if refusals and len(refusals) == len(rows):
            raise refusals[0]
    if show:
        print(table(rows))
    return rows


def _solves_with_jacobian(method: Any) -> bool:
    known = methods.get(method) if isinstance(method, str) else method
    return LINEARISE in getattr(known, "abilities", ())


def _reference(asked: SolverOptions, stiff: bool, layout: StateLayout) -> dict[str, Any]:
    """Keywords of the reference solve, beside what was asked."""
    least = 10 * torch.finfo(layout.dtype).eps
    times = {name: value for name, value in (asked.options or {}).items() if name in ("jump_t", "step_t")}
    same = {"params": asked.params, "options": times}
    if not stiff:
        return same | {"method": "dopri8", "rtol": max(1e-12, least), "atol": max(1e-12, least)}
    tight = max(1e-10, least)
    rtol, atol = (as_float(name, getattr(asked, name)) for name in ("rtol", "atol"))
    atol = asked.atol if atol is None else atol
    if rtol and isinstance(atol, float | torch.Tensor):
        atol = atol * (tight / rtol)
    same |= {"jac": asked.jac, "jac_structure": asked.jac_structure}
    return same | {"method": RODAS5P, "rtol": tight, "atol": atol}


def table(rows: Iterable[Comparison]) -> str:
    """The comparisons as text."""
    lines = [f"{'gradient':<9}{'rel. error':>11}{'NFE fwd':>9}{'NFE bwd':>9}{'ms':>9}{'saved KiB':>11}"]
    for row in rows:
        if row.error is None or row.seconds is None:
            lines.append(f"{row.gradient:<9}{row.failure}")
        else:
            saved = "" if row.saved_bytes is None else f"{row.saved_bytes / 1024:.1f}"
            lines.append(
                f"{row.gradient:<9}{row.error:>11.1e}{row.n_f_evals:>9}{row.n_backward_f_evals:>9}"
                f"{1e3 * row.seconds:>9.1f}{saved:>11}"
            )
    return "\n".join(lines)


def _compared(
    name: str, exact: torch.Tensor, func: Callable, y0: Any, t: Any, loss: Callable, wanted: list[torch.Tensor],
    keywords: dict[str, Any],
) -> Comparison:  # fmt: skip
    # aca as the paper has it: states alone, so that what is evaluated and saved shows
    keywords = {option: value for option, value in keywords.items() if _OF_ONE.get(option, name) == name}
    keywords = ({"memory": "states"} if name == "aca" else {}) | keywords | {"gradient": name}
    if name == "mali":
        keywords.pop("method", None)
    seconds = []
    try:
        for _ in range(2):
            start = time.perf_counter()
            found, stats = _gradient(func, y0, t, loss, wanted, keywords)
            seconds.append(time.perf_counter() - start)
    except SolverError as error:
        return Comparison(name, failure=f"failed: {error}")
    try:
        with SavedTensors() as saved:
            _gradient(func, y0, t, loss, wanted, keywords)
        peak = saved.peak
    except RuntimeError:  # transforms of torch.func cannot be watched
        peak = None
    size = max(float(torch.linalg.vector_norm(exact)), torch.finfo(exact.dtype).tiny)
    off = float(torch.linalg.vector_norm(found - exact)) / size
    return Comparison(name, off, stats.n_f_evals, stats.n_backward_f_evals, min(seconds), peak)


def _gradient(
    func: Callable, y0: Any, t: Any, loss: Callable, wanted: list[torch.Tensor], keywords: Mapping[str, Any]
) -> tuple[torch.Tensor, Stats]:
    """All gradients as one vector of complex or real numbers in double precision, and the statistics."""
    solution = solve(func, y0, t, **keywords)
    value = loss(solution.ys)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise TypeError(f"loss must return a tensor of one number, got {shown(value)}")
    found = torch.autograd.grad(value, wanted, allow_unused=True)
    parts = [(torch.zeros_like(w) if g is None else g).reshape(-1) for w, g in zip(wanted, found)]
    kind = torch.complex128 if any(p.is_complex() for p in parts) else torch.float64
    return torch.cat([p.to(kind).cpu() for p in parts]), solution.stats
