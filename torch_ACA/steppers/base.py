"""What a method and its stepper are to the march and to the gradient methods.

A `Method` says what it is and can, and makes a `Stepper` for one func: that takes steps, evaluates accepted ones again
and pulls cotangents back through them. Nothing else in the package knows what kind of method it deals with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..controller import all_finite
from ..interpolants import Polynomials
from .dense_output import StepInterpolation

if TYPE_CHECKING:
    from ..evaluation import Evaluation, GradientSum
    from ..march import Stats
    from ..vector_field import VectorField

# What a method may be able to do; a gradient method or an option that needs more refuses it by name.
REPLAY = "replay"  # `replay` and `vjp`: for gradient="aca" and "direct"
TRACE = "trace"  # `traced`: for "naive", and for second derivatives
PLAIN = "plain"  # steps of any vector field, without a graph: for the backward solve of "adjoint"
INVERT = "invert"  # `invert` and `pull_back`: for "mali"
JUMPS = "jumps"  # f may jump at the end of a step
COMPILE = "compile"  # `Method.compiled_stepper`
SWITCH = "switch"  # takes each step by one of several methods, as its errors tell: not of a fixed size
ROWS = "rows"  # `Method.row_stepper`: rows of a batch take steps of their own
LINEARISE = "linearise"  # differentiates func to take a step, so that the gradient needs second derivatives of func

Time = float | torch.Tensor  # where steps are traced: a float or a 0-d float64 tensor


@runtime_checkable
class Method(Protocol):
    """A method of integration. `tableau.Tableau` is one.

    ``order`` of the solution that is propagated; ``adaptive``: there is an error estimate, of ``error_order`` in the
    step size; ``stages``: evaluations of func in a step, at most; ``interpolant``: the dense output, of global order
    ``dense_order``; ``abilities``: those of this module's constants that it has. A multistep method also has
    ``kept_rows``: how many vectors [n] are kept of a step, at most; one with `ROWS` also has ``row_steps``, a subclass
    of `rows.stepper.RowStepper`, and row_stepper(field, *, time_grad=False), which makes one for a `RowField`.
    """

    name: str
    order: int
    adaptive: bool
    error_order: int | None
    stages: int
    interpolant: Polynomials | None
    dense_order: int
    abilities: frozenset

    def stepper(self, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False) -> Stepper:
        """The stepper for one func.

        :param vector_field: `VectorField`: func on flat states
        :param keep_graphs: let `Stepper.step` keep the graphs that `Stepper.vjp` needs
        :param time_grad: let `Stepper.vjp` return cotangents of the time and the step size
        """


def no_method(thing: Any) -> str:
    """Why a thing is no `Method`, for messages: the members that it lacks."""
    members = (*Method.__annotations__, "stepper")
    lacks = ", ".join(name for name in members if not hasattr(thing, name))
    return f"{type(thing).__name__} lacks members of torch_ACA.Method: {lacks}"


@dataclass(slots=True, eq=False)
class Carry:
    """What one step hands to the next: time, flat state y [n], and a slope or velocity that belongs to it.

    ``evaluation`` is the `Evaluation` behind the slope where its graph is kept; ``after_jump`` says that f jumped at
    t, so that the slope is to be taken just behind it; ``past`` is what a multistep method knows of earlier steps.
    """

    t: float
    y: torch.Tensor
    slope: torch.Tensor | None = None
    evaluation: Any = None
    after_jump: bool = False
    past: Any = None


@dataclass(slots=True, eq=False)
class Trial:
    """A step that was tried: the carry at its end, its error estimate [n] (None for fixed-step methods), what
    `Stepper.vjp` needs of it where graphs were kept (None: none were), what else it decided that a step taken again is
    to keep (None: nothing), as the keyword ``decided`` of `Stepper.replay` and `Stepper.traced`, and the estimate in
    units of the tolerance (None: the stepper does not know it)."""

    end: Carry
    error: torch.Tensor | None
    evaluations: Any = field(default=None)
    decided: Any = None
    ratio: float | None = None


class TracedStep(NamedTuple):
    """A step as a graph: the state at its end [n], its slopes (list of [n]), its error estimate [n] or None, and the
    slope at its end where that is known (None: not evaluated; a multistep method has what it knows of its steps)."""

    y: torch.Tensor
    slopes: list
    error: torch.Tensor | None
    end_slope: Any = None


class Stepper(StepInterpolation):
    """Takes the steps of one method for one func; the base of every stepper.

    Which methods a subclass must give follows from what its method can do: always `start`, `prepare`, `step`,
    `refresh`; for dense output `interpolate` and what stands beside it; REPLAY: `replay`, `reload`, `replayed_end`,
    `vjp`; TRACE: `traced`; INVERT: `invert` and `pull_back` (see `alf`).

    ``own_stages``: evaluations that an accepted step pays for. ``slopes`` [rows, n]: those of the step last taken or
    replayed, which dense output weighs; where it ``needs_end_slope``, the last row is the slope at the end of the step.
    ``error_sees_end_slope``: the error estimate is infinite or NaN where that slope is.
    ``keep_graphs`` may be changed from step to step. ``hint``: what else a solve that took too many or too small steps
    may try.
    """

    hint = ""

    own_stages: int
    needs_end_slope: bool = False
    error_sees_end_slope: bool = False
    keep_graphs: bool = False
    slopes: torch.Tensor

    def __init__(
        self, method: Any, vector_field: VectorField, *, keep_graphs: bool = False, time_grad: bool = False
    ) -> None:
        self.method, self.field = method, vector_field
        self.keep_graphs, self.time_grad = keep_graphs, time_grad

    @property
    def current(self) -> Method:
        """The method of the step last taken and of the next one: the stepper's, but where that is made of several."""
        return self.method

    def turn_to(self, method: Method) -> None:
        """To be called before an accepted step is taken again, with the method that took it."""

    def accepted(self) -> None:
        """The step that was tried last is accepted, and nothing more will be asked of it."""

    @property
    def n_f_evals(self) -> int:
        return self.field.n_evals

    def report(self, stats: Stats) -> None:
        """Fill in the counts of a forward pass, of `march.Stats`."""
        stats.n_f_evals = self.n_f_evals

    def start(
        self, t: float, y: Tensor, slope: Tensor | None = None, evaluation: Any = None, *, after_jump: bool = False
    ) -> Carry:
        """Carry at the start of a solve; slope and evaluation: f there, if known already; after_jump: f jumps there."""
        return Carry(t, y, slope, evaluation, after_jump)

    def prepare(self, carry: Carry) -> None:
        """To be called before the tries of a step: what they have in common."""

    def step(self, carry: Carry, h: float, t_end: float, *, before_jump: bool = False) -> Trial:
        """Try a step of size h from a prepared carry to t_end (which is t + h but for rounding); before_jump: f jumps
        there, so that it is taken just before.
        """
        raise NotImplementedError

    def refresh(self, carry: Carry) -> None:
        """Forget the slope: f jumps here."""
        carry.slope = carry.evaluation = None
        carry.after_jump = True

    def mark(self) -> Any:
        """State of f's side effects before a try."""
        self.field.side_effects.check_stream()
        return self.field.side_effects.mark()

    def rewind(self, mark: Any) -> None:
        """Undo the side effects of a rejected try."""
        self.field.side_effects.check_stream()
        self.field.side_effects.rewind(mark)

    def is_finite(self, trial: Trial) -> bool:
        return all_finite(trial.end.y)

    # What is kept of the start of a step: the state, and of a multistep method what it knows of earlier steps

    def kept(self, carry: Carry) -> Tensor:
        """One vector, for `replay` and `resumed`, which begins with the state [n]."""
        return carry.y

    def state_of(self, kept: Any) -> Any:
        """The state in what was `kept` (None: None)."""
        return kept

    def resumed(self, step: Any, kept: Tensor) -> Carry:
        """The carry at the start of a `discrete.AcceptedStep`, from what was `kept` there."""
        return self.start(step.t, kept, after_jump=step.after_jump)

    def kept_behind(self, y: Tensor) -> Tensor:
        """What `kept` returns at the end y [n] of the step that was replayed last."""
        return y

    # Gradients

    def record(
        self, t: float, y: Tensor, out: Tensor | None = None, side: int = 0, every: int | None = None
    ) -> Evaluation:
        """One evaluation of f with its graph, as `VectorField.record` makes it."""
        return self.field.record(t, y, out, time_grad=self.time_grad, side=side, every=every)

    def replay(
        self, t: float, h: float, y: Tensor, t_end: float, *, after_jump: bool = False, before_jump: bool = False,
        every: int | None = 1,
    ) -> Any:  # fmt: skip
        """Take an accepted step from y (as `kept`) again with a graph, bit for bit as it was; returns what `vjp` needs.

        :param every: what `replayed_end` will be asked for: one entry in so many (None: nothing)
        """
        raise NotImplementedError

    def know_start(self, slope: Tensor, evaluation: Evaluation) -> None:
        """The slope [n] at the start of the step that is replayed next, and its `Evaluation`: a stepper may use them
        instead of evaluating f there."""

    def reload(self, evaluations: Any) -> None:
        """Put the slopes of a step whose graphs were kept back into the buffer."""
        raise NotImplementedError

    def replayed_end(self, y: Tensor, h: float, every: int = 1) -> Any:
        """The state at the end of a replayed step from y [n]; or one entry in `every`, and the sum of all (float64)."""
        raise NotImplementedError

    def start_back(self) -> None:
        """To be called before `vjp` is called for the steps, from the last one to the first."""

    def vjp(
        self, h: float, evaluations: Any, y_bar: Tensor, slope_bars: Tensor | None, first_bar: Tensor | None,
        gradients: GradientSum,
    ) -> tuple[Tensor, Any, Any]:  # fmt: skip
        """Discrete adjoint of a step.

        :param evaluations: what `replay` returned, or `Trial.evaluations`; used up
        :param y_bar: cotangent of the state at its end [n]
        :param slope_bars: cotangents of its slopes from its dense output [slopes, n], or None
        :param first_bar: a further cotangent of its first slope [n], from the dense output of the step before, or None
        :param gradients: `GradientSum` over what f depends on besides; added to
        :returns: cotangent of the state at its start [n], good until the next call; of its start time and of its size
            (zero unless time_grad)
        """
        raise NotImplementedError

    def traced_start(self, t: Time, y: Tensor, slope: Any = None, *, after_jump: bool = False) -> Any:
        """What the tries of a `traced` step have in common.

        :param slope: f at the start, if known
        """
        return self.field.traced(t, y, side=int(after_jump)) if slope is None else slope

    def traced(
        self, t: Time, h: Time, y: Tensor, t_end: Time, slope: Any = None, *, after_jump: bool = False,
        before_jump: bool = False,
    ) -> TracedStep:  # fmt: skip
        """The step out of place, differentiable in t, h, t_end (0-d float64 tensors or floats), y and all that f
        depends on.

        :param slope: what `traced_start` returned, if it is known
        """
        raise NotImplementedError

    def with_end_slope(self, step: TracedStep, t_end: Time, *, before_jump: bool = False) -> TracedStep:
        """A `traced` step with all that dense output needs."""
        if not self.needs_end_slope or step.end_slope is not None:
            return step
        slope = self.field.traced(t_end, step.y, side=-int(before_jump))
        return step._replace(slopes=[*step.slopes, slope], end_slope=slope)
