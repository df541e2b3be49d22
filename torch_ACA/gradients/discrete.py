"""`aca` and `direct`: the exact gradient of the discrete solution, its accepted step sizes held constant.

Adaptive checkpoint adjoint (Zhuang et al., ICML 2020, algorithm 2): the forward pass remembers (t_i, y_i) of the
accepted steps only; the backward pass walks them in reverse, evaluates each again with a graph and pulls the
cotangent through. `direct` keeps the graphs of the accepted steps instead, and evaluates nothing twice. A budget of
memory (`storage`) makes it anything between the two, or less than a state per step.

For s stages that a step pays for (FSAL not counted), N accepted and R rejected steps and f of depth N_f:
cost N s + R (s - 1) + 2 evaluations forward (compiled, not FSAL: up to R + 1 more); backward N s evaluations and
VJPs (`direct`: VJPs only), one evaluation less for a small state, whose first graph is kept.
Memory: one state per step and the graph of one step; `direct`: the graphs of all steps, O(N s N_f).
Depth of any graph that autograd sees: one f.

Times: sizes of interior steps are frozen. A step that ends on a given time (the last one) depends on that time and on
where it starts; an output inside a step contributes the time derivative of the interpolant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..autocast import dtype_of
from ..inference_mode import outside_inference_mode
from ..march import Stop
from ..private_torch import within_checkpoint
from ..solution import Trajectory
from ..transforms import forward_ad_disabled, is_batched, untraced
from .backward import BackwardPass
from .dense import DenseRecord
from .replay import Replay
from .second_order import differentiable_bars
from .storage import UNLIMITED, Storage
from .times import reached

if TYPE_CHECKING:
    from ..evaluation import Evaluation
    from ..problem import Problem
    from ..steppers.base import Carry, Stepper
    from .storage import Budget

SMALL = 2**16  # numbers in a buffer that is rather kept than made again
_SMALL_STATE = 2**13  # numbers in a state whose first evaluation is kept with its graph


def aca(problem: Problem) -> tuple[Tensor, Trajectory | None]:
    """States at the times of the problem after the first [m - 1, n] and, if it asks for dense output, its `Trajectory`
    (else None); differentiable in ``problem.tensors``."""
    return integrate(problem, problem.compiled_run() or DiscreteSolve(problem, problem.memory))


def direct(problem: Problem) -> tuple[Tensor, Trajectory | None]:
    """As `aca`, with the graphs of the accepted steps kept."""
    return integrate(problem, DiscreteSolve(problem, UNLIMITED))


def integrate(problem: Problem, run: Any) -> tuple[Tensor, Trajectory | None]:
    """What `aca` returns, by a run: a `DiscreteSolve`, or what has its members ``storage``, ``forward``, ``backward``,
    ``traced`` and ``tell_compile_time``."""
    remember = problem.differentiable or problem.transformed
    with torch.no_grad(), forward_ad_disabled():
        results = run.forward(remember=remember)
    problem.finish()
    if problem.transformed:
        with problem.backward_pass():
            results = run.traced(problem.y0, problem.times)
    elif remember:
        results = differentiable(run, results, problem.tensors)
        if problem.recorder is not None:
            problem.recorder.replay, problem.recorder.graph = run.replayed, run.graph
    ys, *dense = results
    return ys, Trajectory(problem.method.interpolant, *dense) if dense else None


def differentiable(run: Any, results: tuple[Tensor, ...], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Results of a run as functions of tensors: the flat initial state, the times, and what func depends on."""
    return _Function.apply(run, results, *tensors)


@dataclass(slots=True)
class AcceptedStep:
    """What is remembered of a step besides the state at its start."""

    t: float
    h: float
    t_end: float
    stop: Stop | None
    after_jump: bool
    before_jump: bool
    method: Any  # that took it
    needs_end_slope: bool  # for its dense output
    outputs: list = field(default_factory=list)  # indices of the outputs that its interpolant gives, consecutive
    theta: torch.Tensor | None = None  # where in the step they lie
    weights: torch.Tensor | None = None  # and of what slopes they are made
    evaluations: list | None = None  # kept graphs
    # at the end, where dense output uses it and no step behind has it: with its graph, else a sample of the slope
    end_evaluation: Any = None
    end_slope: Any = None
    decided: Any = None  # see `steppers.base.Trial`

    @property
    def given_end(self) -> int | None:
        """Index of the time of the caller that the step ends on, or None."""
        return None if self.stop is None else self.stop.index

    @property
    def keywords(self) -> dict[str, Any]:
        """Of `Stepper.replay` and `Stepper.traced`."""
        known = {"after_jump": self.after_jump, "before_jump": self.before_jump}
        return known if self.decided is None else known | {"decided": self.decided}

    @property
    def output_rows(self) -> slice:
        return slice(self.outputs[0] - 1, self.outputs[-1])


class DiscreteSolve:
    """One solve with all that its backward pass needs, but for the tensors that autograd looks after.

    :param memory: `storage.Budget`
    """

    def __init__(self, problem: Problem, memory: Budget) -> None:
        self.problem = problem
        self.storage = self._storage(memory)
        self.end_sample = self.end_slope = None  # type: Any
        self.known_start: tuple[Tensor, Evaluation] | None = None  # of the first step
        # of the forward pass, for the backward pass, where its buffer is small
        self._kept_stepper: Stepper | None = None

    @functools.cached_property
    def replay(self) -> Replay:
        field = self.problem.field
        return Replay(field.layout, dtype_of(field.autocast))

    def _storage(self, memory: Budget) -> Storage:
        problem = self.problem
        compiled = problem.compile_options is not None
        graph_bytes = math.inf if compiled else problem.graph_bytes
        return Storage(memory, getattr(problem.method, "kept_rows", 1) * problem.state_bytes, graph_bytes)

    def forward(self, *, remember: bool = True) -> tuple[Tensor, ...]:
        """March; returns the outputs [m - 1, n] and, for dense output, the tensors of a `Trajectory`.

        :param remember: keep the steps, and of their states and graphs what there is room for
        """
        problem, storage = self.problem, self.storage
        # each graph made within a checkpoint would let it run the whole solve again
        keeps = remember and not problem.transformed and not within_checkpoint()
        stepper = self._stepper(keep_graphs=keeps and storage.wants_graph)
        if stepper.slopes.numel() <= SMALL:
            self._kept_stepper = stepper
        slope, evaluation = problem.slope, problem.evaluation
        problem.slope = problem.evaluation = None
        small = len(problem.y0) <= _SMALL_STATE and problem.compile_options is None
        if evaluation is not None and keeps and small and not stepper.keep_graphs:
            self.known_start = slope, evaluation
        carry = stepper.start(
            problem.ts[0], problem.y0.detach(), slope, evaluation if stepper.keep_graphs else None,
            after_jump=problem.starts_at_jump,
        )  # fmt: skip
        ys = problem.new_outputs()
        dense = DenseRecord(problem.method.interpolant.slopes) if problem.dense else None
        for step in problem.march(stepper, carry):
            record = AcceptedStep(
                step.t, step.h, step.t_end, step.stop, step.start.after_jump, step.jump, step.method,
                stepper.needs_end_slope,
            )  # fmt: skip
            record.decided = step.trial.decided
            record.outputs = problem.outputs_within(step.t_end)
            may_be_last = record.before_jump or problem.return_on_failure  # of those that share the slope at its end
            if (record.outputs or dense) and record.needs_end_slope and may_be_last and stepper.keep_graphs:
                self._keep_end_slope(record, step.trial.end)
            if record.outputs:
                record.theta = problem.fractions(record.outputs, step)
                record.weights = stepper.interpolation_weights(record.theta)
                ys[record.output_rows] = stepper.interpolate(step.start.y, step.h, record.weights)
            problem.land(ys, step)
            if dense:
                dense.add(step, stepper.slopes)
            if remember:
                storage.add(record, stepper.kept(step.start), step.trial.evaluations)
                stepper.keep_graphs = keeps and storage.wants_graph
                if problem.return_on_failure and problem.n_steps_to_last_output == problem.stats.n_accepted:
                    self.end_sample = self.replay.sample(step.trial.end.y)
        if not remember and problem.failure is None:
            self.end_slope = step.trial.end.slope
        if remember:
            # the last state matters to dense output in the last step alone
            storage.close(stepper.kept(step.trial.end) if storage.steps and (record.outputs or dense) else None)
        if remember and storage.steps:
            if problem.failure is None:
                inside = (record.outputs or dense) and record.needs_end_slope and not record.before_jump
                if inside and record.evaluations is not None:
                    self._keep_end_slope(record, step.trial.end)
            elif not dense:  # the steps behind the last output ran into the failure
                storage.cut(problem.n_steps_to_last_output)
            if problem.failure is None or dense:
                self.end_sample = self.replay.sample(step.trial.end.y)
        ys = problem.solved(ys)
        return (ys, *dense.tensors()) if dense else (ys,)

    def _keep_end_slope(self, record: AcceptedStep, end: Carry) -> None:
        """Of a step whose graphs are kept: so that nothing of it is evaluated again, or that is compared."""
        record.end_evaluation = end.evaluation
        if end.evaluation is None:
            record.end_slope = self.replay.sample(end.slope)

    def backward(
        self, states: dict[int, Tensor], ys_bar: Tensor, dense_bars: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, list[Any]]:
        """Cotangents of y0, of the times and of the captured tensors, as `BackwardPass` finds them."""
        try:
            with self.problem.backward_pass():
                return BackwardPass(self, self._kept_stepper or self._stepper(), states, ys_bar, dense_bars).walk()
        finally:
            self.storage.drop_graphs()

    def traced(self, y0: Tensor, times: Tensor) -> tuple[Tensor, ...]:
        """What `forward` returned, again on the accepted grid, as a graph of everything: for second derivatives."""
        problem, stepper = self.problem, self._stepper()
        like, given_times = times, times.double().unbind()
        ys: Any = {}
        t, y, slope = given_times[0], y0, None
        dense = DenseRecord(problem.method.interpolant.slopes) if problem.dense else None
        for step in self.storage.steps:
            if step.stop is None:
                h, t_end = step.h, reached(t, step.t, step.h, step.t_end)
            else:
                given = step.given_end
                t_end = like.new_tensor(step.t_end, dtype=torch.float64) if given is None else given_times[given]
                h = t_end - t
            stepper.turn_to(step.method)
            made = stepper.traced(t, h, y, t_end, slope, **step.keywords)
            if step.outputs or dense:
                made = stepper.with_end_slope(made, t_end, before_jump=step.before_jump)
            found = stepper.traced_interpolate(t, h, y, made.slopes, [given_times[i] for i in step.outputs])
            ys |= dict(zip(step.outputs, found))
            if dense:
                dense.add_traced(t, y, made.slopes)
            slope = None if step.before_jump else made.end_slope
            t, y = t_end, made.y
            if step.given_end is not None:
                ys[step.given_end] = y
        if self.end_sample is not None and not problem.transformed:
            self.replay.compare_state(y, self.end_sample, y0.detach(), self.storage.steps[-1].t_end)
            self.replay.conclude()
        ys = torch.stack([ys[i + 1] for i in range(len(ys))]) if ys else y0.new_empty(0, y0.numel())
        return (ys, *dense.traced_tensors(t, y)) if dense else (ys,)

    def graph(self, y0: Tensor, times: Tensor) -> Tensor:
        """The outputs [m - 1, n] as `traced` makes them."""
        with self.problem.backward_pass():
            return self.traced(y0, times)[0]

    @torch.no_grad()
    def replayed(self, states: Tensor) -> Tensor:
        """The states [N + 1, n]: the first, and the ends of all steps, each taken again from the state at its start."""
        stepper, ends = self.problem.method.stepper(self.problem.field), [states[0]]
        with self.problem.backward_pass():
            kept = states[0]
            for step, y, y_end in zip(self.storage.steps, states, states[1:]):
                stepper.turn_to(step.method)
                stepper.replay(step.t, step.h, kept, step.t_end, **step.keywords)
                ends.append(stepper.replayed_end(y, step.h))
                kept = y_end if step.before_jump else stepper.kept_behind(y_end)
        return torch.stack(ends)

    def advance(self, stepper: Stepper, kept: Tensor, first: int, last: int) -> Tensor:
        """What was kept behind the steps first to last - 1, from what was kept before them, bit for bit."""
        carry = stepper.resumed(self.storage.steps[first], kept)
        with torch.no_grad():
            for step in self.storage.steps[first:last]:
                stepper.turn_to(step.method)
                stepper.prepare(carry)
                carry = stepper.step(carry, step.h, step.t_end, before_jump=step.before_jump).end
                if step.before_jump:
                    stepper.refresh(carry)
        return stepper.kept(carry)

    def tell_compile_time(self) -> None:
        self.problem.tell_compile_time()

    def not_within_itself(self) -> AbstractContextManager:
        return self.problem.not_within_itself()

    def _stepper(self, keep_graphs: bool = False) -> Stepper:
        problem = self.problem
        if problem.compile_options is not None:
            return problem.method.compiled_stepper(  # type: ignore[attr-defined]
                problem.field, with_slopes=problem.interpolates, options=problem.compile_options,
                time_grad=problem.time_grad,
            )  # fmt: skip
        return problem.method.stepper(problem.field, keep_graphs=keep_graphs, time_grad=problem.time_grad)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Any, results: tuple[Tensor, ...], y0: Tensor, times: Tensor, *captured: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.n_inputs = 2 + len(captured)
        # with autograd, so that the states go when the graph goes
        states = run.storage.release()
        ctx.save_for_backward(y0, times, *captured, *states.values())
        ctx.states_at = tuple(states)
        return results

    @staticmethod
    @untraced
    @outside_inference_mode
    def backward(ctx: Any, *bars: Tensor) -> Any:
        run, saved = ctx.run, ctx.saved_tensors
        inputs, states = saved[: ctx.n_inputs], saved[ctx.n_inputs :]
        with run.not_within_itself():
            if torch.is_grad_enabled() or any(map(is_batched, bars)):
                with run.problem.backward_pass():
                    return None, None, *differentiable_bars(run, inputs, bars)
            states = dict(zip(ctx.states_at, states))
            y_bar, times_bar, captured_bars = run.backward(states, bars[0], bars[1:])
        run.tell_compile_time()
        return None, None, y_bar, times_bar, *captured_bars
