"""What a solve raises: where it cannot reach its end, and where a gradient would be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class SolverError(RuntimeError, AssertionError):
    """A solve that stopped short of its end time. (An AssertionError as well, since that is what torchdiffeq raises.)

    Attributes: ``t`` (time reached), ``h`` (step size of the last try), ``n_steps`` (accepted steps), ``n_f_evals``
    (evaluations of the vector field). The message carries all four and a hint.
    """

    what = "the solve failed"
    hint = ""

    def __init__(
        self, t: float, h: float, n_steps: int, n_f_evals: int, *, what: str | None = None, hint: str | None = None
    ) -> None:
        self.t, self.h, self.n_steps, self.n_f_evals = t, h, n_steps, n_f_evals
        self._where = (
            f"{what or self.what} at t = {t:.6g} with step size {h:.3g}, after {n_steps} accepted steps and "
            f"{n_f_evals} evaluations of func."
        )
        super().__init__(f"{self._where} {hint or self.hint}".rstrip())

    def __reduce__(self) -> tuple[Any, ...]:  # pickle would call the class with the message alone
        return _restored, (type(self), self.args, vars(self))

    def add_hint(self, hint: str) -> None:
        """Append a sentence to the message."""
        self.args = (f"{self.args[0]} {hint}",)

    def replace_hint(self, hint: str) -> None:
        """Give this hint in the place of all others."""
        self.args = (f"{self._where} {hint}",)


def _restored(kind: type[SolverError], args: tuple[Any, ...], attributes: dict[str, Any]) -> SolverError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


class NonFiniteError(SolverError):
    """func returned NaN or infinity, and smaller steps did not avoid it."""

    what = "the derivative or the state became infinite or NaN"
    hint = "Check func near this time and state, bound its output, or shorten the interval."
    of_first_slope = "y0 holds infinity or NaN, or func returned infinity or NaN for it"
    of_dense_output = "the derivative that dense output needs became infinite or NaN"


class StepSizeUnderflowError(SolverError):
    """The step size needed for the tolerance is below the resolution of time."""

    what = "the step size became too small to advance time"
    hint = (
        "The problem is stiff or has a singularity or jump here: loosen rtol and atol, use float64, "
        "or name the jump in options={'jump_t': ...}."
    )


class TooManyEvaluationsError(SolverError):
    """The limit on evaluations of func, or on steps, was reached."""

    what = "the limit on evaluations or steps was reached"
    hint = "The problem may be stiff: loosen rtol and atol, take method='auto', or raise the limit."
    no_event = (
        "No event was met so far: look at event_fn and its sign, or lower max_evals to give up sooner. If an event "
        "lies ahead, the problem may be stiff: loosen rtol and atol, or take method='auto'."
    )


class NoEventError(SolverError, ValueError):
    """The search for an event came to its end and met none."""

    what = "no event was met"
    hint = (
        "Check event_fn along the solution; if it crosses zero twice within a step, bound the steps with "
        "options={'max_step': ...}; if the event lies the other way, give reverse_time."
    )

    @classmethod
    def since(cls, start: float) -> str:
        """What the message says of a search from this time on."""
        return f"{cls.what} from t = {start:.6g} on: event_fn did not change its sign, and the search came to its end"


class SecondDerivativeError(RuntimeError):
    """The gradient method has no derivative of its gradient."""


class JacobianError(RuntimeError):
    """The derivative of func is not what jac or jac_structure say it is."""


_AS_IT_WAS = (
    "call backward() before that, or keep the graphs of the forward pass: by gradient='direct' or memory='unlimited', "
    "without compile, or, for a gradient that is differentiated itself (create_graph=True), by gradient='naive'. "
    "torch.func.functional_call is no change where func itself calls it"
)


class CaptureError(RuntimeError):
    """func depends on a tensor that requires grad and that was not found beforehand."""

    def __init__(self, tensor: torch.Tensor, t: float, *, replayed: bool) -> None:
        since = "since the forward pass func has come to use" if replayed else "func uses"
        where = "" if t != t else f", at t = {t:.6g},"
        super().__init__(
            f"{since}{where} a tensor of shape {tuple(tensor.shape)} that requires grad and that could not be found "
            "from func beforehand. If it is a state that func was given and kept, let func close over y0 instead, and "
            "if a callback made it of one, take gradient='naive'; else name it in params, or keep it where func's "
            f"attributes, closure or globals lead to it. If another was in its place, {_AS_IT_WAS}"
        )


class ReplayError(RuntimeError):
    """The backward pass evaluated func again, and func was not what it had been in the forward pass."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"func is not what it was in the forward pass: {what}. Something that func reads has changed in between: "
            "an attribute, a buffer or parameter put in the place of another, train() or eval(), numbers drawn from "
            f"elsewhere than torch's own stream. To help it, {_AS_IT_WAS}"
        )


class SideOutputError(RuntimeError):
    """The loss uses a tensor that func stored while it was evaluated, or func or the loss one that a callback made of a
    state: its gradient would be wrong without a word."""

    def __init__(self) -> None:
        super().__init__(
            "a tensor is used that func or a callback made of a state while the solver was at work; its gradient is "
            "not that of the solution. Make it part of the state (its integral is a further component of y), or use "
            "gradient='naive'"
        )


class TransformError(RuntimeError):
    """torch.func, forward-mode AD, `torch.jit.trace` or `torch.export` asks for what a solve does not go through."""
