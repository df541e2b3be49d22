"""Checks of what the user gives, value by value: numbers, times, options, functions and what these return."""

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from .adams_weights import MAX_ORDER, MIN_ORDER
from .notices import add_note, shown


def _number(accepted: str, good: Callable[[float], bool]) -> Callable[[str, Any], float]:
    """A check of options: a real number (float, int, 0-d tensor or array) for which good(number) holds, as a float."""

    def check(name: str, value: Any) -> float:
        number = as_float(name, value)
        if number is None or not good(number):
            raise ValueError(f"{name} must be a number {accepted}, got {shown(value)}")
        return number

    return check


def whole_number(name: str, value: Any) -> int | float:
    """A check of options: a whole number of at least 1, or infinity."""
    number = as_float(name, value)
    if number is None or not number >= 1 or number % 1 > 0:
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    return int(number) if math.isfinite(number) else number


def as_float(name: str, value: Any) -> float | None:
    """A float; None for what is no real number."""
    if isinstance(value, torch.Tensor | np.ndarray):
        refuse_grad(name, value)
        return float(value.item()) if math.prod(value.shape) == 1 and "complex" not in str(value.dtype) else None
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def _times(name: str, value: Any) -> list[float]:
    """A check of options: finite times, as a list of floats."""
    number = as_float(name, value)
    times = times_of(name, value) if number is None else torch.tensor([number], dtype=torch.float64, device="cpu")
    refuse_grad(name, times)
    found = times.reshape(-1).tolist()
    if not all(math.isfinite(time) for time in found):
        raise ValueError(f"{name} must hold finite times, got {shown(value)}")
    return found


def _adams_order(name: str, value: Any) -> int:
    number = as_float(name, value)
    if number is None or number % 1 or not MIN_ORDER <= number <= MAX_ORDER:
        raise ValueError(f"{name} must be a whole number from {MIN_ORDER} to {MAX_ORDER}, got {shown(value)}")
    return int(number)


def _corrections(name: str, value: Any) -> int:
    number = whole_number(name, value)
    if number == math.inf:
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return int(number)


def _monotone_times(name: str, value: Any) -> list[float]:
    times = _times(name, value)
    if not is_monotone(times):
        raise ValueError(f"{name} must hold times in strict order, got {shown(value)}")
    return times


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return value


def _function(name: str, value: Any) -> Callable:
    if not callable(value):
        raise ValueError(f"{name} must be a function of the state that returns a 0-d tensor, got {shown(value)}")
    return value


def _interpolant_name(name: str, value: Any) -> str:
    if value not in ("linear", "cubic"):
        raise ValueError(f"{name} must be 'linear' or 'cubic' (default: the method's own), got {shown(value)}")
    return value


def refuse_grad(name: str, value: Any) -> None:
    if getattr(value, "requires_grad", False):
        raise ValueError(f"{name} must not require grad: nothing is differentiated in it, so detach it")


positive_size = _number("above 0 (t gives the direction)", lambda x: x > 0)
OPTIONS = {  # names, each with its check
    "safety": _number("above 0, at most 1", lambda x: 0 < x <= 1),
    "ifactor": _number("of at least 1", lambda x: x >= 1),
    "dfactor": _number("above 0, at most 1", lambda x: 0 < x <= 1),
    "beta": _number("from 0 to 1", lambda x: 0 <= x <= 1),
    "min_step": _number("of at least 0, finite", lambda x: 0 <= x < math.inf),
    "max_step": _number("above 0", lambda x: x > 0),
    "norm": _function,
    "first_step": positive_size,
    "step_size": positive_size,
    "grid": _monotone_times,
    "max_num_steps": whole_number,
    "step_t": _times,
    "jump_t": _times,
    "land_on_t": _flag,
    "perturb": _flag,
    "check_finite": _flag,
    "interp": _interpolant_name,
    "max_order": _adams_order,
    "max_iters": _corrections,
}
ADAMS_OPTIONS = ("max_order", "max_iters")
SCIPY_SOLVERS = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
SCIPY_OPTIONS = ("solver", "first_step", "min_step", "max_step")  # of these min_step for LSODA alone


def times_of(name: str, value: Any) -> torch.Tensor:
    """Times as a tensor: a tensor as it is, anything else in float64; entries that require grad keep their graph."""
    if isinstance(value, torch.Tensor):
        return value
    wrong = f"{name} must be a tensor, array or sequence of times, such as [0.0, 1.0], got {shown(value)}"
    # those of digits would pass, and sets have no order
    if isinstance(value, str | bytes | Set | Mapping) or isinstance(value, list | tuple) and str in map(type, value):
        raise TypeError(wrong)
    try:
        if isinstance(value, np.ndarray):
            return torch.as_tensor(value.astype(np.float64), device="cpu")
        entries = [
            entry.double().cpu().reshape(()) if isinstance(entry, torch.Tensor) else float(entry) for entry in value
        ]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(wrong) from None
    if not any(isinstance(entry, torch.Tensor) for entry in entries):
        return torch.tensor(entries, dtype=torch.float64, device="cpu")
    return torch.stack([torch.as_tensor(entry, dtype=torch.float64, device="cpu") for entry in entries])


def time_of(t: float | torch.Tensor) -> torch.Tensor:
    """A time, or several, in float64: a tensor on its own device, numbers on the CPU."""
    device = t.device if isinstance(t, torch.Tensor) else "cpu"
    if isinstance(t, torch.Tensor) and t.is_complex():
        raise TypeError(f"a time must be real, got {t.dtype}")
    try:
        return torch.as_tensor(t, dtype=torch.float64, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"a time must be a number, or a tensor or a sequence of numbers, got {shown(t)}") from None


def closest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that a wrong one may stand for; nothing where none is near."""
    found = difflib.get_close_matches(name.lower(), [str(one).lower() for one in known], 1)
    return next((f" (is {one!r} meant?)" for one in known if found and one.lower() == found[0]), "")


def is_monotone(ts: Sequence[float]) -> bool:
    return all(a < b for a, b in zip(ts, ts[1:])) or all(a > b for a, b in zip(ts, ts[1:]))


def as_tensor(numbers: Any) -> torch.Tensor:
    """Numbers, or an array of them, as a tensor on the CPU: of floats in float64, whatever PyTorch's default is."""
    return torch.as_tensor(np.asarray(numbers), device="cpu")


def tensor_of(returned: Any, name: str) -> torch.Tensor:
    """What a function of the user returned, as a tensor.

    :raises TypeError: it is neither a tensor nor numbers
    """
    if isinstance(returned, list | tuple) and any(isinstance(part, torch.Tensor) for part in returned):
        kind = type(returned).__name__
        raise TypeError(f"{name} must return a tensor or a number, got a {kind} of tensors: use torch.stack")
    try:
        return returned if isinstance(returned, torch.Tensor) else as_tensor(returned)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must return a tensor or a number, got {type(returned).__name__}") from None


def check_callable(func: Any, call: str) -> None:
    """To be called before any work.

    :param call: how it will be called, with the name that the user knows it by, such as "func(t, y)"
    :raises TypeError: it cannot be
    """
    if not callable(func):
        raise TypeError(f"{call.partition('(')[0]} must be callable as {call}, got {type(func).__name__}")
    if isinstance(func, type) and issubclass(func, torch.nn.Module):
        raise TypeError(f"{call.partition('(')[0]} must be a module, got the class {func.__name__}")


def check_arguments(func: Callable, call: str, args: Any = None) -> None:
    """To be called where a call raised a TypeError: was it that func takes other arguments?

    :param call: as of `check_callable`
    :param args: of the solve, whatever they are, which the call gets besides
    :raises TypeError: it does
    """
    if not isinstance(args, tuple | list | None):  # that was wrong
        return
    count = call.count(",") + 1 + len(args or ())
    if args:
        call = call.replace(")", ", *args)")
    try:  # what a decorator takes, not what it wraps
        signature = inspect.signature(func.forward if isinstance(func, torch.nn.Module) else func, follow_wrapped=False)
    except (TypeError, ValueError):  # not callable, or without a signature
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        name = call.partition("(")[0]
        raise TypeError(f"{name} is called as {call}, which {type(func).__name__} does not take: {error}") from None


_IN_PLACE = ("being modified inplace", "is being modified in-place", "used in an in-place operation")


def explain_refusal(failure: RuntimeError, name: str, hint: str = "") -> None:
    """To be called where a function of the user's raised an error: was it PyTorch, which refused something?

    :param hint: what else can be done where NumPy is in the way
    :raises ValueError: it was; says what, in the user's terms
    """
    said = str(failure)
    if any(words in said for words in _IN_PLACE):
        raise ValueError(f"{name} changes its argument, or what else has a gradient, in place") from failure
    if said.strip().endswith("change requires_grad flags of leaf variables."):  # of more words where it is unset
        raise ValueError(
            f"{name} sets requires_grad of its state, or of what else is part of a graph: write y = y.requires_grad_() "
            "instead, or differentiate by torch.func.grad"
        ) from failure
    if "Can't call numpy()" in said:
        raise ValueError(
            f"{name} takes its time, its state, or what else has a gradient, as an array of NumPy, which has no "
            f"derivatives: write {name} with operations of torch.{hint}"
        ) from failure


def called(func: Callable, call: str, *arguments: Any) -> Any:
    """What a function of the user's returns.

    :param call: as of `check_callable`
    :raises TypeError: it takes other arguments
    :raises ValueError: PyTorch refuses what it does
    """
    try:
        return func(*arguments)
    except TypeError:
        check_arguments(func, call)
        raise
    except RuntimeError as failure:
        explain_refusal(failure, call.partition("(")[0])
        raise


def norm_of(norm: Callable, state: Any, gets: str) -> Any:
    """What a norm of the user's says of a state: a number, or a tensor of one.

    :param gets: what the state is, for messages
    :raises TypeError, ValueError: the norm takes other arguments, or returns something else
    """
    try:
        size = called(norm, "norm(state)", state)
    except Exception as failure:
        add_note(failure, f"norm gets {gets}, and must return one number of at least 0.")
        raise
    if isinstance(size, torch.Tensor):
        is_number = size.numel() == 1 and not size.is_complex()
    else:
        is_number = isinstance(size, numbers.Real)
    if not is_number:
        raise TypeError(f"norm must return one number, or a tensor of one, got {shown(size)}: it gets {gets}")
    if size < 0:
        raise ValueError(f"norm must return a number of at least 0, got {shown(size)}: it gets {gets}")
    return size
