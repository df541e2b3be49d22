"""`Problem`, what a gradient method is given: one solve, checked and in the solver's own terms."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .autocast import without_autocast
from .callbacks import Callbacks
from .capture import solvers_backward
from .controller import Controller, FixedSteps, all_finite
from .cut import of_outer_solves
from .default_device import default_device, with_default_device
from .errors import NonFiniteError, ReplayError, SolverError, StepSizeUnderflowError, TooManyEvaluationsError
from .evaluation import Evaluation
from .gradients.storage import STATES_ONLY, Budget
from .hidden import moved
from .march import Limits, Stats, Step, Stop, march
from .record import Recorder
from .steppers.base import LINEARISE, Carry, Method, Stepper
from .vector_field import VectorField


class StartOver(Exception):
    """What was to find the slope at the start and the first step size cannot: the problem is to be set up anew."""


@dataclass
class Problem:
    """Integrate ``field`` from ``y0`` at the first of ``times`` through the others.

    ``times`` is the tensor [m] of the caller (it may require grad), ``ts`` the same as floats. ``stops`` are the times
    to land on, the last of ``ts`` among them; the other outputs come from the interpolant. Outputs are the states at
    ``ts[1:]``; what is counted among them counts from 1, as in ``ts``. ``slope`` is f at the start, ``evaluation`` the
    same with its graph, if gradients may be wanted; without a slope, the compiled loop finds it and ``first_step``.
    ``dense``: keep what dense output needs. ``adjoint``: settings of a backward solve. ``memory``: what may be kept for
    the backward pass. ``starts_at_jump``: func jumps at the first time; ``perturb``: and at both ends of every step.
    ``slope_is_traced``: it is part of autograd's own graph (`naive`). ``differentiates_sizes``: gradients go through
    the choice of step sizes; ``may_hide``: func may hide from autograd what they need. ``given_times``: those of the
    caller, of which ``times`` is the constant value where func hides its time (see `hidden`). ``transformed``: under a
    transform of `torch.func` or forward-mode AD. ``compile_options``: of `torch.compile`, for the steps (None: not
    compiled); ``compile_loop``: and for the loop over them, where that can be. ``interpolates``: there will be dense
    output inside steps. After a failure that is to be returned, ``failure`` says what happened and the first
    ``n_solved`` outputs are good; the first ``n_steps_to_last_output`` steps lead there.
    """

    field: VectorField
    y0: torch.Tensor
    times: torch.Tensor
    ts: list
    method: Method
    controller: Controller | FixedSteps
    first_step: float | None
    stops: list
    slope: torch.Tensor | None
    evaluation: Evaluation | None = None
    dense: bool = False
    adjoint: Any = None
    memory: Budget = STATES_ONLY
    compile_options: dict | None = None
    compile_loop: bool = False
    transformed: bool = False
    starts_at_jump: bool = False
    perturb: bool = False
    slope_is_traced: bool = False
    differentiates_sizes: bool = False
    may_hide: bool = False
    given_times: torch.Tensor | None = None
    limits: Limits = Limits()
    callbacks: Callbacks = Callbacks()
    recorder: Recorder | None = None
    return_on_failure: bool = False
    failure: SolverError | None = None
    n_solved: int = 0
    n_steps_to_last_output: int = 0
    stats: Stats = field(default_factory=Stats)  # type: ignore[call-arg, func-returns-value]  # dataclasses.field

    def __post_init__(self) -> None:
        if self.given_times is None:
            self.given_times = self.times
        self._default_device = default_device()
        self._threads_back: set[int] = set()  # in which there is a backward pass
        landed = {stop.index for stop in self.stops}
        self._to_interpolate = deque(i for i in range(1, len(self.ts)) if i not in landed)
        self.n_inside = len(self._to_interpolate)  # outputs that the interpolant gives
        self.interpolates = self.dense or self.n_inside > 0

    @property
    def time_grad(self) -> bool:
        return self.times.requires_grad

    @property
    def times_are_hidden(self) -> bool:
        return self.given_times is not self.times

    @property
    def state_bytes(self) -> int:
        """What a state takes."""
        return self.y0.numel() * self.y0.element_size()

    @property
    def graph_bytes(self) -> float:
        """What the graphs of a step take, and the matrices beside them."""
        n, stages = self.y0.numel(), self.method.stages
        beside = n * (2 * (self.field.jacobian.blocks.width + 1) + stages) if LINEARISE in self.method.abilities else 0
        return stages * self.field.evaluation_bytes + beside * self.y0.element_size()

    @property
    def differentiable(self) -> bool:
        """Whether there may be a backward pass."""
        if self.transformed or not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in (self.y0, self.times, *self.field.captured.candidates))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the result is differentiable in, once the forward pass is over."""
        return of_outer_solves((self.y0, self.times, *self.field.captured.tensors))

    def compiled_run(self) -> Any:
        """A `LoopSolve`, where the loop over steps is to be compiled and can be; or None."""
        if not self.compile_loop or self.field.code is None:
            return None
        from .compilation.runs import loop_run  # here, since Dynamo takes a second to import

        return loop_run(self)

    def finish(self) -> None:
        """To be called when the forward pass is over.

        :raises DrawsLate: func began to draw random numbers in the middle
        """
        self.field.finish()
        self.tell_compile_time()

    def tell_compile_time(self) -> None:
        """Once, of generated code that took long to make."""
        if self.field.code is not None:
            self.field.code.compiler.stopwatch.tell()

    @contextlib.contextmanager
    def backward_pass(self) -> Iterator[None]:
        """Context in which func is evaluated again: nothing that it changes stays changed, hooks of captured tensors
        wait for the whole gradient, autocast is for func alone, and the default device is that of the solve."""
        field = self.field
        field.captured.leave_out_frozen()
        with (
            field.again(),
            field.side_effects.replay(),
            solvers_backward(field.captured.leaves),
            without_autocast(field.layout.device.type),
            with_default_device(self._default_device),
        ):
            yield

    @contextlib.contextmanager
    def not_within_itself(self) -> Iterator[None]:
        """Context of a backward pass, which would never end where func, evaluated again, reads what the solve has made.

        :raises ReplayError: it does
        """
        thread = threading.get_ident()
        if thread in self._threads_back:
            raise ReplayError("it reads what the solve itself has returned")
        self._threads_back.add(thread)
        try:
            yield
        finally:
            self._threads_back.discard(thread)

    def march(self, stepper: Stepper, carry: Carry) -> Iterator[Step]:
        """The accepted steps, closed where there is dense output; where failures are returned, they end early."""
        none = True
        try:
            for step in march(
                stepper,
                self.controller,
                carry,
                self.ts[0],
                self.stops,
                first_step=self.first_step,
                perturb=self.perturb,
                limits=self.limits,
                stats=self.stats,
                callbacks=self.callbacks,
            ):
                if self.recorder is not None:
                    self.recorder.methods.append(step.method)
                if self.dense or self.has_output_within(step.t_end):
                    self.close(stepper, step)
                yield step
                none = False
        except SolverError as error:
            explain(error, stepper)
            if not self.return_on_failure or (self.dense and none):  # no dense output at all
                raise
            self.failure = error
        finally:
            stepper.report(self.stats)

    def close(self, stepper: Stepper, step: Step) -> None:
        """Let the stepper have all that the dense output of the step just taken needs.

        :raises NonFiniteError: the slope at its end is infinite or NaN
        """
        if stepper.needs_end_slope:
            stepper.end_slope(step.trial.end, before_jump=step.jump)
            self.check_end_slope(stepper, step.trial.end.slope, step.t_end, step.h)

    def check_end_slope(self, stepper: Stepper, slope: Any, t: float, h: float) -> None:
        """Raise a `NonFiniteError` if the slope [n] at the end of an accepted step of size h to t, which dense output
        needs, is infinite or NaN and nothing else has looked at it: the state there does not hold it."""
        if self.controller.leaves_unseen(stepper.error_sees_end_slope) and not all_finite(slope):
            n_steps, what = self.stats.n_accepted, NonFiniteError.of_dense_output
            raise NonFiniteError(t, h, n_steps, stepper.n_f_evals, what=what)

    def has_output_within(self, t_end: float) -> bool:
        """Whether the interpolant gives an output up to t_end that was not given out before."""
        sign, waiting = self.field.direction, self._to_interpolate
        return bool(waiting) and sign * self.ts[waiting[0]] <= sign * t_end

    def outputs_within(self, t_end: float) -> list[int]:
        """Indices of the outputs, not given out before, that the interpolant gives up to t_end."""
        found = []
        if t_end == self.ts[-1]:
            found.extend(self._to_interpolate)
            self._to_interpolate.clear()
        while self.has_output_within(t_end):
            found.append(self._to_interpolate.popleft())
        if found:
            self._solved(len(found))
        return found

    def fractions(self, outputs: list[int], step: Step) -> Tensor:
        """Where in a step its outputs lie: theta [k]."""
        return torch.tensor([(self.ts[i] - step.t) / step.h for i in outputs], dtype=torch.float64, device="cpu")

    def new_outputs(self) -> Tensor:
        """Room for the outputs [m - 1, n]."""
        return self.y0.new_empty(len(self.ts) - 1, self.y0.numel())

    def land(self, ys: Tensor, step: Step) -> None:
        """Fill in the output that a step ends on, if it does."""
        if step.stop is not None and step.stop.index is not None:
            ys[step.stop.index - 1] = step.trial.end.y
            self._solved(1)

    def solved(self, ys: Tensor) -> Tensor:
        """The good ones of the outputs; all of them as they are, which the caller may then change in place."""
        return ys if self.failure is None else ys[: self.n_solved]

    def moved_to_times(self, ys: Tensor) -> Tensor:
        """The outputs [k, n] as functions of their times, where func hides its time; else as they are."""
        if not self.times_are_hidden or not len(ys):
            return ys
        field = self.field
        sides = {stop.index: -int(self.perturb or stop.jump) for stop in self.stops}
        with field.again(), field.side_effects.replay(), field.without_cut():
            return torch.stack([
                moved(field, y, time, side=sides.get(i, 0))
                for i, (y, time) in enumerate(zip(ys, self.given_times[1:]), 1)
            ])  # fmt: skip

    def _solved(self, count: int) -> None:
        self.n_solved += count
        self.n_steps_to_last_output = self.stats.n_accepted


def explain(error: SolverError, stepper: Stepper | type[Stepper]) -> None:
    """Add what the stepper knows to an error that says of too many or too small steps."""
    if stepper.hint and isinstance(error, TooManyEvaluationsError | StepSizeUnderflowError):
        error.add_hint(stepper.hint)


def stops_of(
    ts: list[float], *, land_on_outputs: bool = False, step_t: Sequence[float] = (), jump_t: Sequence[float] = ()
) -> list[Stop]:
    """`Stop`s of a solve through ts: its end, the extra times inside the interval and, if wanted, every output."""
    if not (land_on_outputs or step_t or jump_t):
        return [Stop(ts[-1], len(ts) - 1)]
    sign = 1 if ts[-1] >= ts[0] else -1
    jumps = set(jump_t)
    wanted = {t for t in (*step_t, *jumps) if sign * ts[0] < sign * t < sign * ts[-1]}
    wanted.update(ts[1:] if land_on_outputs else ts[-1:])
    # a jump stays where it is when an output time that happens to lie there moves: that output is interpolated
    index = {t: i for i, t in enumerate(ts) if t not in jumps or t == ts[-1]}
    return [Stop(t, index.get(t), jump=t in jumps) for t in sorted(wanted, key=lambda t: sign * t)]
