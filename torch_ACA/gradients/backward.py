"""The backward pass of `aca` and `direct`: over the accepted steps, from the last to the first."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..callbacks import NO_CALLBACKS
from ..evaluation import GradientSum
from .dense import OutputCotangents
from .replay import COMPARED
from .times import TimeCotangents

if TYPE_CHECKING:
    from ..steppers.base import Stepper
    from .discrete import AcceptedStep, DiscreteSolve


class BackwardPass:
    """One walk back over the steps of a `DiscreteSolve`.

    :param run: the `DiscreteSolve`
    :param stepper: its stepper, with room for the slopes of a step
    :param states: those that the storage kept, as {number of steps before: state}
    :param ys_bar: cotangents of the outputs [m - 1, n]
    :param dense_bars: cotangents of the trajectory's tensors, or ()
    """

    def __init__(
        self, run: DiscreteSolve, stepper: Stepper, states: dict[int, Tensor], ys_bar: Tensor,
        dense_bars: Sequence[Tensor],
    ) -> None:  # fmt: skip
        problem = run.problem
        stepper.keep_graphs = False
        stepper.start_back()
        self.run, self.problem, self.stepper, self.ys_bar = run, problem, stepper, ys_bar
        self.steps, self.time_grad = run.storage.steps, problem.time_grad
        self.gradients = GradientSum(len(problem.field.captured.tensors))
        self.inside = OutputCotangents(stepper, ys_bar, dense_bars)
        self.times = TimeCotangents(len(problem.ts))
        self.states = run.storage.backwards(states, functools.partial(run.advance, stepper))
        # another thread may have drawn from the stream in any one step, a callback may have changed func
        each = problem.field.may_differ_anywhere() or problem.callbacks.step is not NO_CALLBACKS.step
        self.compared_every = 1 if each else -(-COMPARED // stepper.own_stages)
        self.y_bar, self.times.now = self.inside.of_end(problem.y0)
        self.following: AcceptedStep | None = None  # the step behind
        self.end: Tensor | None = None  # the state there
        self.end_slope: Tensor | None = None
        self.replays = self.reached_all = False

    def walk(self) -> tuple[Tensor, Tensor | None, list[Any]]:
        """Cotangents of y0 [n], of the times [m] (None unless asked) and of the captured tensors."""
        problem, steps, stepper = self.problem, self.steps, self.stepper
        before, self.end = problem.field.n_evals, stepper.state_of(next(self.states))
        bars = self.inside.of_step(len(steps) - 1, steps[-1]) if steps else (None, None)
        for i, step, kept in zip(range(len(steps) - 1, -1, -1), reversed(steps), self.states):
            start = stepper.state_of(kept)
            if step.given_end is not None:
                self.y_bar = self.y_bar + self.ys_bar[step.given_end - 1]
            start_bar, slope_bars = bars
            stepper.turn_to(step.method)
            if slope_bars is not None:
                self._through_end_slope(step, slope_bars)
            evaluations, remembered = self._evaluations(i, step, kept)
            bars = self.inside.of_step(i - 1, steps[i - 1]) if i else (None, None)
            first_bar = None
            if bars[1] is not None and not step.after_jump and steps[i - 1].needs_end_slope:
                first_bar = bars[1][-1]
            try:
                self.y_bar, t_bar, h_bar = stepper.vjp(
                    step.h, evaluations, self.y_bar, slope_bars, first_bar, self.gradients
                )
            except RuntimeError:
                if remembered is not None and problem.compile_options is None:  # func may not be what it was
                    self.run.replay.compare_step(stepper, step, start, remembered)
                    self.run.replay.conclude()
                raise
            if remembered is not None:
                self.run.replay.compare_step(stepper, step, start, remembered)
            if start_bar is not None:
                self.y_bar = self.y_bar + start_bar
            if self.time_grad:
                self._through_times(i, step, float(t_bar), float(h_bar), slope_bars)
            self.following, self.end = step, start
        self.run.replay.conclude()
        if steps:
            problem.field.captured.check_reached(self.gradients.totals)
        problem.stats.n_backward_f_evals = problem.field.n_evals - before
        y_bar = self.y_bar.clone()  # out of the stepper's buffer
        return y_bar, self.times.finished().to(problem.times) if self.time_grad else None, self.gradients.totals

    def _through_end_slope(self, step: AcceptedStep, slope_bars: Tensor) -> None:
        """The slope at the end of a step, where dense output uses it and no step behind begins with it."""
        stepper = self.stepper
        if not step.needs_end_slope or not (self.following is None or self.following.after_jump):
            return
        evaluation, step.end_evaluation = step.end_evaluation, None
        if evaluation is None:
            found = None if step.end_slope is None else self.end.new_empty(self.end.shape)
            evaluation = stepper.record(step.t_end, self.end, found, side=-int(step.before_jump))
            if found is not None:
                self.run.replay.compare_state(found, step.end_slope, found.new_zeros(found.shape), step.t_end)
        self.end_slope = evaluation.value() if self.time_grad else None
        state_bar, time_bar = evaluation.vjp(slope_bars[-1], self.gradients)
        if state_bar is not None:
            self.y_bar = self.y_bar + state_bar
        self.times.now += 0.0 if time_bar is None else float(time_bar)

    def _evaluations(self, i: int, step: AcceptedStep, start: Tensor) -> tuple[Any, Any]:
        """Those of step i, kept or made again; and the state that it must end in, if that is to be compared."""
        stepper, every = self.stepper, self.run.replay.every
        graphs, step.evaluations = step.evaluations, None
        if graphs is not None and self._fits_what_was_replayed():
            if self.time_grad:
                stepper.reload(graphs)
            return graphs, None
        remembered = None
        if self.following is None:
            remembered = self.run.end_sample
        elif i % self.compared_every == self.compared_every // 2:
            remembered = self.end
        self.replays = True
        if i == 0 and self.run.known_start is not None:
            if self._fits_what_was_replayed():
                stepper.know_start(*self.run.known_start)
            self.run.known_start = None
        made = stepper.replay(
            step.t, step.h, start, step.t_end, every=None if remembered is None else every, **step.keywords
        )
        return made, remembered

    def _fits_what_was_replayed(self) -> bool:
        """Whether graphs of the forward pass may be used beside those made since: where these did not come to all that
        func used at first, it may have changed, which graphs from before would hide."""
        if self.replays and not self.reached_all:
            self.reached_all = not self.problem.field.captured.not_reached(self.gradients.totals)
        return self.reached_all or not self.replays

    def _through_times(self, i: int, step: AcceptedStep, t_bar: float, h_bar: float, slope_bars: Tensor | None) -> None:
        if slope_bars is not None:
            if step.needs_end_slope:
                self.stepper.put_end_slope(self.end_slope)
            inside_t_bar, inside_h_bar = self.inside.of_times(i, step, self.times.given)
            t_bar, h_bar = t_bar + inside_t_bar, h_bar + inside_h_bar
        self.times.through(step.stop, t_bar, h_bar)
        self.end_slope = self.stepper.start_slope.clone()
