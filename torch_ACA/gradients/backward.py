"""The backward pass of `aca` and `direct`: over the accepted steps, from the last to the first."""

import functools

from ..evaluation import GradientSum
from .dense import OutputCotangents
from .replay import COMPARED
from .times import TimeCotangents


class BackwardPass:
    """One walk back over the steps of a `DiscreteSolve`.

    :param run: the `DiscreteSolve`
    :param stepper: its stepper, with room for the slopes of a step
    :param states: those that the storage kept, as {number of steps before: state}
    :param ys_bar: cotangents of the outputs [m - 1, n]
    :param dense_bars: cotangents of the trajectory's tensors, or ()
    """

    def __init__(self, run, stepper, states, ys_bar, dense_bars):
        problem = run.problem
        stepper.keep_graphs = False
        self.run, self.problem, self.stepper, self.ys_bar = run, problem, stepper, ys_bar
        self.steps, self.time_grad = run.storage.steps, problem.time_grad
        self.gradients = GradientSum(len(problem.field.captured.tensors))
        self.inside = OutputCotangents(stepper, ys_bar, dense_bars)
        self.times = TimeCotangents(len(problem.ts))
        self.states = run.storage.backwards(states, functools.partial(run.advance, stepper))
        # another thread may have drawn from the stream in any one step
        self.compared_every = 1 if problem.field.side_effects.draws else -(-COMPARED // stepper.own_stages)
        self.y_bar, self.times.now = self.inside.of_end(problem.y0)
        self.following = self.end = self.end_slope = None  # the step behind, the state there and its slope

    def walk(self):
        """Cotangents of y0 [n], of the times [m] (None unless asked) and of the captured tensors."""
        problem, steps, stepper = self.problem, self.steps, self.stepper
        before, self.end = problem.field.n_evals, next(self.states)
        bars = self.inside.of_step(len(steps) - 1, steps[-1]) if steps else (None, None)
        for i, step, start in zip(range(len(steps) - 1, -1, -1), reversed(steps), self.states):
            if step.given_end is not None:
                self.y_bar = self.y_bar + self.ys_bar[step.given_end - 1]
            start_bar, slope_bars = bars
            if slope_bars is not None:
                self._through_end_slope(step, slope_bars)
            evaluations, remembered = self._evaluations(i, step, start)
            bars = self.inside.of_step(i - 1, steps[i - 1]) if i else (None, None)
            first_bar = None
            if bars[1] is not None and stepper.needs_end_slope and not step.after_jump:
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
        self.times.given[0] += self.times.now
        problem.stats.n_backward_f_evals = problem.field.n_evals - before
        y_bar = self.y_bar.clone()  # out of the stepper's buffer
        return y_bar, self.times.given.to(problem.times) if self.time_grad else None, self.gradients.totals

    def _through_end_slope(self, step, slope_bars):
        """The slope at the end of a step, where dense output uses it and no step behind begins with it."""
        stepper = self.stepper
        if not stepper.needs_end_slope or not (self.following is None or self.following.after_jump):
            return
        evaluation, self.run.end_evaluation = self.run.end_evaluation, None
        if evaluation is None:
            evaluation = stepper.record(step.t_end, self.end, side=-int(step.before_jump))
        self.end_slope = evaluation.value() if self.time_grad else None
        state_bar, time_bar = evaluation.vjp(slope_bars[-1], self.gradients)
        if state_bar is not None:
            self.y_bar = self.y_bar + state_bar
        self.times.now += 0.0 if time_bar is None else float(time_bar)

    def _evaluations(self, i, step, start):
        """Those of step i, kept or made again; and the state that it must end in, if that is to be compared."""
        stepper, every = self.stepper, self.run.replay.every
        kept, step.evaluations = step.evaluations, None
        if kept is not None:
            if self.time_grad:
                stepper.reload(kept)
            return kept, None
        remembered = None
        if self.following is None:
            remembered = self.run.end_sample
        elif i % self.compared_every == self.compared_every // 2:
            remembered = self.end
        if i == 0 and self.run.known_start is not None:
            stepper.know_start(*self.run.known_start)
            self.run.known_start = None
        made = stepper.replay(
            step.t, step.h, start, step.t_end, after_jump=step.after_jump, before_jump=step.before_jump,
            every=None if remembered is None else every,
        )  # fmt: skip
        return made, remembered

    def _through_times(self, i, step, t_bar, h_bar, slope_bars):
        if slope_bars is not None:
            if self.stepper.needs_end_slope:
                self.stepper.slopes[-1].copy_(self.end_slope)
            inside_t_bar, inside_h_bar = self.inside.of_times(i, step, self.times.given)
            t_bar, h_bar = t_bar + inside_t_bar, h_bar + inside_h_bar
        self.times.through(step.stop, t_bar, h_bar)
        self.end_slope = self.stepper.slopes[0].clone()
