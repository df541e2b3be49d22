"""`Callbacks`: functions of the user's that a solve calls at its steps."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .errors import SideOutputError
from .option_checks import check_arguments, check_callable, explain_refusal


def _ignore(t: float, y: Any, h: float) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Called with the time, the flat state at the start and the size of a step: before every try, and after an accepted
    or a rejected one. The state may be kept but not changed, and is a constant to autograd.

    What ``step`` makes of it, where the solve has gradients, is no constant: with `naive` it has its gradient, with
    other methods it is refused one. So ``step`` has to detach the state for NumPy.

    What ``step`` changes in func holds from the first evaluation of a fixed step on. A method that takes the slope at
    the end of a step for the start of the next one has evaluated func there before, as adaptive ones do at the first.
    """

    step: Callable = _ignore
    accept: Callable = _ignore
    reject: Callable = _ignore

    def __post_init__(self) -> None:
        for name, callback in vars(self).items():
            check_callable(callback, f"{name}(t, y, h)")
            check_arguments(callback, f"{name}(t, y, h)")

    def guarded(self, *, gradients: bool, sources: Sequence[torch.Tensor] = ()) -> "Callbacks":
        """The same, called with gradients on or off.

        :param sources: what the state depends on, though autograd does not know: what ``step`` makes of it is refused
            their gradients
        :raises ValueError: when called: one changes the state in place
        """
        found = {name: _guarded(name, callback, gradients, sources) for name, callback in vars(self).items()}
        return Callbacks(**found)

    def but_for_first(self) -> "Callbacks":
        """The same, where ``step`` has been called for the first try."""
        return replace(self, step=_but_for_first(self.step))


NO_CALLBACKS = Callbacks()


def _but_for_first(callback: Callable) -> Callable:
    calls = itertools.count()
    return lambda *arguments: next(calls) and callback(*arguments)


def _guarded(name: str, callback: Callable, gradients: bool, sources: Sequence[torch.Tensor]) -> Callable:
    if callback is _ignore:
        return callback

    def call(t: float, y: torch.Tensor, h: float) -> None:
        before = y.clone() if torch.is_inference_mode_enabled() else None  # where writes are not counted
        given = y.detach()
        if name == "step" and gradients:
            if y.requires_grad:
                given = y.view_as(y)  # of autograd's own graph, so that what is made of it has its gradient
            elif sources:
                with torch.enable_grad():
                    given = _Refused.apply(given, *sources)
        version = 0 if before is not None else given._version
        try:
            with torch.set_grad_enabled(gradients):
                callback(t, given, h)
        except RuntimeError as failure:
            explain_refusal(failure, f"the callback {name!r}", " Or let it detach the state.")
            raise
        changed = given._version != version if before is None else not bool(((given == before) | before.isnan()).all())
        if changed:
            raise ValueError(
                f"the callback {name!r} changes the state in place, at t = {t:.6g}, which has no gradient: solve up to "
                "that time, and go on from a changed copy"
            )

    return call


class _Refused(torch.autograd.Function):
    """A state that depends on the sources in a way that is not known to autograd."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, bar: torch.Tensor) -> Any:
        raise SideOutputError()
