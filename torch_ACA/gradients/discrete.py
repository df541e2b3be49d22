"""`aca` and `direct`: the exact gradient of the discrete solution, its accepted step sizes held constant.

Adaptive checkpoint adjoint (Zhuang et al., ICML 2020, algorithm 2): the forward pass remembers (t_i, y_i) of the
accepted steps only; the backward pass walks them in reverse, evaluates each again with a graph and pulls the
cotangent through. `direct` keeps the graphs of the accepted steps instead, and evaluates nothing twice. A budget of
memory (`storage`) makes it anything between the two, or less than a state per step.

For s stages that a step pays for (FSAL not counted), N accepted and R rejected steps and f of depth N_f:
cost N s + R (s - 1) + 2 evaluations forward (R s where steps are compiled and not FSAL); backward N s evaluations and
VJPs (`direct`: VJPs only).
Memory: one state per step and the graph of one step; `direct`: the graphs of all steps, O(N s N_f).
Depth of any graph that autograd sees: one f.

Times: sizes of interior steps are frozen. A step that ends on a given time (the last one) depends on that time and on
where it starts; an output inside a step contributes the time derivative of the interpolant.
"""

import functools
import math
from dataclasses import dataclass, field

import torch

from ..capture import leaves_behind
from ..errors import SecondDerivativeError
from ..march import Stop
from ..solution import Trajectory
from ..steppers import stepper_kind
from ..transforms import forward_ad_disabled, is_batched
from ..vector_field import GradientSum
from .replay import COMPARED, Replay
from .storage import UNLIMITED, Storage

SMALL = 2**13  # numbers in a buffer that is rather kept than made again


def aca(problem):
    """States at the times of the problem after the first [m - 1, n] and, if it asks for dense output, its `Trajectory`
    (else None); differentiable in ``problem.tensors``."""
    return _integrate(problem, problem.memory)


def direct(problem):
    """As `aca`, with the graphs of the accepted steps kept."""
    return _integrate(problem, UNLIMITED)


def _integrate(problem, memory):
    run = DiscreteSolve(problem, memory)
    remember = problem.differentiable or problem.transformed
    with torch.no_grad(), forward_ad_disabled():
        results = run.forward(remember=remember)
    problem.finish()
    if problem.transformed:
        with problem.backward_pass():
            results = run.traced(problem.y0, problem.times)
    elif remember:
        results = _Function.apply(run, results, *problem.tensors)
    ys, *dense = results
    return ys, Trajectory(problem.tableau.interpolant, *dense) if dense else None


@dataclass(slots=True)
class AcceptedStep:
    """What is remembered of a step besides the state at its start."""

    t: float
    h: float
    t_end: float
    stop: Stop | None
    after_jump: bool
    before_jump: bool
    outputs: list = field(default_factory=list)  # indices of the outputs that its interpolant gives, consecutive
    theta: torch.Tensor | None = None  # where in the step they lie
    weights: torch.Tensor | None = None  # and of what slopes they are made
    evaluations: list | None = None  # kept graphs

    @property
    def given_end(self):
        """Index of the time of the caller that the step ends on, or None."""
        return None if self.stop is None else self.stop.index

    @property
    def output_rows(self):
        return slice(self.outputs[0] - 1, self.outputs[-1])


class DiscreteSolve:
    """One solve with all that its backward pass needs, but for the tensors that autograd looks after.

    :param memory: `storage.Budget`
    """

    def __init__(self, problem, memory):
        self.problem = problem
        compiled = problem.compile_options is not None
        kind = stepper_kind(problem.tableau)
        graph_bytes = math.inf if compiled else kind.graph_bytes(problem.tableau, problem.field)
        self.storage = Storage(memory, problem.y0.numel() * problem.y0.element_size(), graph_bytes)
        self.end_evaluation = self.end_sample = self.end_slope = None
        self._kept_stepper = None  # of the forward pass, for the backward pass, where its buffer is small
        field = problem.field
        self.replay = Replay(field.layout, field.autocast and field.autocast.keywords["dtype"])

    def forward(self, *, remember=True):
        """March; returns the outputs [m - 1, n] and, for dense output, the tensors of a `Trajectory`.

        :param remember: keep the steps, and of their states and graphs what there is room for
        """
        problem, storage = self.problem, self.storage
        keeps = remember and not problem.transformed
        stepper = self._stepper(keep_graphs=keeps and storage.wants_graph)
        if stepper.slopes.numel() <= SMALL:
            self._kept_stepper = stepper
        evaluation = problem.evaluation if stepper.keep_graphs else None
        carry = stepper.start(
            problem.ts[0], problem.y0.detach(), problem.slope, evaluation, after_jump=problem.starts_at_jump
        )
        problem.slope = problem.evaluation = None
        ys = problem.new_outputs()
        dense = _DenseRecord(problem.tableau.interpolant.slopes) if problem.dense else None
        for step in problem.march(stepper, carry):
            record = AcceptedStep(step.t, step.h, step.t_end, step.stop, step.start.after_jump, step.jump)
            record.outputs = problem.outputs_within(step.t_end)
            if (record.outputs or dense) and stepper.needs_end_slope:
                stepper.end_slope(step.trial.end, before_jump=record.before_jump)
            if record.outputs:
                record.theta = problem.fractions(record.outputs, step)
                record.weights = stepper.interpolation_weights(record.theta)
                ys[record.output_rows] = stepper.interpolate(step.start.y, step.h, record.weights)
            problem.land(ys, step)
            if dense:
                dense.add(step, stepper.slopes)
            if remember:
                storage.add(record, step.start.y, step.trial.evaluations)
                stepper.keep_graphs = keeps and storage.wants_graph
        if not remember and problem.failure is None and problem.tableau.fsal:
            self.end_slope = step.trial.end.slope
        if remember:
            # the last state matters to dense output in the last step alone
            storage.close(step.trial.end.y if storage.steps and (record.outputs or dense) else None)
        if remember and storage.steps:
            if problem.failure is None:
                self.end_evaluation = step.trial.end.evaluation if record.outputs or dense else None
            elif not dense:  # the steps behind the last output ran into the failure
                storage.cut(problem.n_steps_to_last_output)
            if problem.failure is None:
                self.end_sample = self.replay.sample(step.trial.end.y)
        ys = problem.solved(ys)
        return (ys, *dense.tensors()) if dense else (ys,)

    def backward(self, states, ys_bar, dense_bars):
        """Cotangents of y0 [n], of the times [m] (None unless asked) and of the captured tensors.

        :param states: those that the storage kept, as {number of steps before: state}
        :param ys_bar: cotangents of the outputs [m - 1, n]
        :param dense_bars: cotangents of the trajectory's tensors, or ()
        """
        problem, stepper, steps = self.problem, self._kept_stepper or self._stepper(), self.storage.steps
        stepper.keep_graphs = False
        time_grad, count = problem.time_grad, len(steps)
        gradients = GradientSum(len(problem.field.captured.tensors))
        before = problem.field.n_evals
        inside = _OutputCotangents(stepper, ys_bar, dense_bars)
        times_bar = torch.zeros(len(problem.ts), dtype=torch.float64)
        y_bar, t_bar = inside.of_end(problem.y0)

        # another thread may have drawn from the stream in any one step
        compared_every = 1 if problem.field.side_effects.draws else -(-COMPARED // stepper.own_stages)
        states = self.storage.backwards(states, functools.partial(self._advance, stepper))
        end = next(states)
        following = end_slope = None  # the step behind, and its first stage
        start_bar, slope_bars = inside.of_step(count - 1, steps[-1]) if steps else (None, None)
        for i, step, start in zip(range(count - 1, -1, -1), reversed(steps), states):
            if step.given_end is not None:
                y_bar = y_bar + ys_bar[step.given_end - 1]

            # the slope at the end, where dense output uses it: the first stage of the step behind, if there is one
            slope_is_last = following is None or following.after_jump
            if slope_is_last and slope_bars is not None and stepper.needs_end_slope:
                evaluation, self.end_evaluation = self.end_evaluation, None
                if evaluation is None:
                    evaluation = stepper.record(step.t_end, end, side=-int(step.before_jump))
                end_slope = evaluation.value() if time_grad else None
                state_bar, time_bar = evaluation.vjp(slope_bars[-1], gradients)
                y_bar = y_bar if state_bar is None else y_bar + state_bar
                t_bar += 0.0 if time_bar is None else float(time_bar)

            own, step.evaluations = step.evaluations, None
            remembered = None
            if own is None:
                if following is None:
                    remembered = self.end_sample
                elif i % compared_every == 0:
                    remembered = end
                own = stepper.replay(
                    step.t, step.h, start, step.t_end, after_jump=step.after_jump, before_jump=step.before_jump,
                    every=None if remembered is None else self.replay.every,
                )  # fmt: skip
            elif time_grad:
                stepper.reload(own)

            earlier = first_bar = None
            if i > 0:
                earlier = inside.of_step(i - 1, steps[i - 1])
                if earlier[1] is not None and stepper.needs_end_slope and not step.after_jump:
                    first_bar = earlier[1][-1]
            y_bar, stage_t_bar, stage_h_bar = stepper.vjp(step.h, own, y_bar, slope_bars, first_bar, gradients)
            if remembered is not None:
                self.replay.compare_step(stepper, step, start, remembered)
            if start_bar is not None:
                y_bar = y_bar + start_bar
            if time_grad:
                start_t_bar, h_bar = float(stage_t_bar), float(stage_h_bar)
                if slope_bars is not None:
                    if stepper.needs_end_slope:
                        stepper.slopes[-1].copy_(end_slope)
                    inside_t_bar, inside_h_bar = inside.of_times(i, step, times_bar)
                    start_t_bar, h_bar = start_t_bar + inside_t_bar, h_bar + inside_h_bar
                if step.stop is None:
                    t_bar += start_t_bar
                else:  # h = stop - t
                    if step.given_end is not None:
                        times_bar[step.given_end] += t_bar + h_bar
                    t_bar = start_t_bar - h_bar
            start_bar, slope_bars = earlier or (None, None)
            following, end, end_slope = step, start, stepper.slopes[0].clone() if time_grad else None
        self.replay.conclude()
        if steps:
            problem.field.captured.check_reached(gradients.totals)
        times_bar[0] += t_bar
        problem.stats.n_backward_f_evals = problem.field.n_evals - before
        y_bar = y_bar.clone()  # out of the stepper's buffer
        return y_bar, times_bar.to(problem.times) if time_grad else None, gradients.totals

    def traced(self, y0, times):
        """What `forward` returned, again on the accepted grid, as a graph of everything: for second derivatives."""
        problem, stepper = self.problem, self._stepper()
        like, times = times, times.double().unbind()
        ys, t, y, slope = {}, times[0], y0, None
        dense = _DenseRecord(problem.tableau.interpolant.slopes) if problem.dense else None
        for step in self.storage.steps:
            if step.stop is None:
                h, t_end = step.h, t + step.h
            else:
                given = step.given_end
                t_end = like.new_tensor(step.t_end, dtype=torch.float64) if given is None else times[given]
                h = t_end - t
            y1, slopes, _ = stepper.traced(
                t, h, y, t_end, slope, after_jump=step.after_jump, before_jump=step.before_jump
            )
            if (step.outputs or dense) and stepper.needs_end_slope and not problem.tableau.fsal:
                slopes.append(problem.field.traced(t_end, y1, side=-int(step.before_jump)))
            for i in step.outputs:
                ys[i] = stepper.traced_interpolate(t, h, y, slopes, times[i])
            if dense:
                dense.add_traced(t, y, slopes)
            known = problem.tableau.fsal or len(slopes) > problem.tableau.stages
            slope = slopes[-1] if known and not step.before_jump else None
            t, y = t_end, y1
            if step.given_end is not None:
                ys[step.given_end] = y
        if self.end_sample is not None and not problem.transformed:
            self.replay.compare_state(y, self.end_sample, y0.detach(), problem.ts[-1])
            self.replay.conclude()
        ys = torch.stack([ys[i + 1] for i in range(len(ys))]) if ys else y0.new_empty(0, y0.numel())
        return (ys, *dense.traced_tensors(t, y)) if dense else (ys,)

    def _advance(self, stepper, y, first, last):
        """The state after the steps first to last - 1 from y, bit for bit as before."""
        carry = stepper.start(self.storage.steps[first].t, y)
        carry.after_jump = self.storage.steps[first].after_jump
        with torch.no_grad():
            for step in self.storage.steps[first:last]:
                stepper.prepare(carry)
                carry = stepper.step(carry, step.h, step.t_end, before_jump=step.before_jump).end
                if step.before_jump:
                    stepper.refresh(carry)
        return carry.y

    def _stepper(self, keep_graphs=False):
        problem = self.problem
        if problem.compile_options is not None:
            from ..steppers.compiled import CompiledRungeKutta  # here, since Dynamo takes a second to import

            return CompiledRungeKutta(
                problem.tableau, problem.field, with_slopes=problem.interpolates, time_grad=problem.time_grad,
                options=problem.compile_options,
            )
        return stepper_kind(problem.tableau)(
            problem.tableau, problem.field, keep_graphs=keep_graphs, time_grad=problem.time_grad
        )


class _DenseRecord:
    """Collects what dense output needs: times [N + 1] and states [N + 1, n] at the nodes, slopes [N, slopes, n]."""

    def __init__(self, n_slopes):
        self.n_slopes = n_slopes
        self.times, self.states, self.slopes, self.last = [], [], [], None

    def add(self, step, slopes):
        self.times.append(step.t)
        self.states.append(step.start.y)
        self.slopes.append(slopes[: self.n_slopes].clone())
        self.last = step

    def add_traced(self, t, y, slopes):
        self.times.append(t)
        self.states.append(y)
        self.slopes.append(torch.stack(slopes[: self.n_slopes]))

    def tensors(self):
        times = torch.tensor([*self.times, self.last.t_end], dtype=torch.float64)
        return times, torch.stack([*self.states, self.last.trial.end.y]), torch.stack(self.slopes)

    def traced_tensors(self, t, y):
        return torch.stack([*self.times, t]).double(), torch.stack([*self.states, y]), torch.stack(self.slopes)


class _OutputCotangents:
    """What the loss says of values inside the steps: of outputs there, and of the tensors of a `Trajectory`."""

    def __init__(self, stepper, ys_bar, dense_bars):
        self.stepper, self.ys_bar = stepper, ys_bar
        self.node_times, self.nodes, self.node_slopes = dense_bars or (None, None, None)

    def of_end(self, y0):
        """Cotangents of the last state [n] and of its time."""
        if self.nodes is None:
            return torch.zeros_like(y0), 0.0
        return self.nodes[-1], float(self.node_times[-1])

    def of_step(self, i, step):
        """Cotangents of the state at the start of step i [n] and of its slopes [slopes, n]; None for zero."""
        start_bar = slope_bars = None
        if step.outputs:
            start_bar, slope_bars = self.stepper.interpolate_vjp(step.h, step.weights, self.ys_bar[step.output_rows])
        if self.nodes is not None:
            start_bar = self.nodes[i] if start_bar is None else start_bar + self.nodes[i]
            slope_bars = self.node_slopes[i] if slope_bars is None else slope_bars + self.node_slopes[i]
        return start_bar, slope_bars

    def of_times(self, i, step, times_bar):
        """Cotangents of the start time and, but for what goes through its stages, the size of step i, whose slopes are
        in the stepper's buffer; those of output times are added to times_bar.
        """
        t_bar = 0.0 if self.nodes is None else float(self.node_times[i])
        h_bar = 0.0
        if step.outputs:
            rates, h_bar = self.stepper.interpolate_time_vjp(step.theta, self.ys_bar[step.output_rows])
            times_bar[step.outputs] += rates
            t_bar -= float(rates.sum())
        return t_bar, h_bar


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, results, y0, times, *captured):
        ctx.run = run
        ctx.n_inputs = 2 + len(captured)
        # with autograd, so that the states go when the graph goes
        states = run.storage.release()
        ctx.save_for_backward(y0, times, *captured, *states.values())
        ctx.states_at = tuple(states)
        return results

    @staticmethod
    def backward(ctx, *bars):
        run, saved = ctx.run, ctx.saved_tensors
        inputs, states = saved[: ctx.n_inputs], saved[ctx.n_inputs :]
        with run.problem.backward_pass():
            if torch.is_grad_enabled() or any(map(is_batched, bars)):
                return None, None, *_differentiable(run, inputs, bars)
            states = dict(zip(ctx.states_at, states))
            y_bar, times_bar, captured_bars = run.backward(states, bars[0], bars[1:])
        return None, None, y_bar, times_bar, *captured_bars


def _differentiable(run, inputs, bars):
    """The same cotangents as functions of everything (create_graph=True): the accepted grid runs again with a graph.

    It runs on aliases of all inputs: what an input shares with others, or with func, lies behind the aliases, where
    this pass does not go.
    """
    field = run.problem.field
    before = field.n_evals
    with torch.enable_grad():
        y0, times, *captured = aliases = [tensor.view_as(tensor) for tensor in inputs]
        with field.standing_in(captured):
            results = run.traced(y0, times)
        pairs = [(result, bar) for result, bar in zip(results, bars) if result.requires_grad]
        outputs, cotangents = zip(*pairs) if pairs else ((), ())
        targets = _targets(field.captured, inputs, aliases, outputs)
    wanted = [t for t in targets if t.requires_grad]
    found = iter(())
    if outputs:
        found = iter(torch.autograd.grad(
            outputs, wanted, cotangents, create_graph=torch.is_grad_enabled(), allow_unused=True
        ))  # fmt: skip
    run.problem.stats.n_backward_f_evals = field.n_evals - before
    return [next(found, None) if t.requires_grad else None for t in targets]


def _targets(captured, inputs, aliases, outputs):
    """What to differentiate outputs by: the aliases, but for leaves that func used past them (in TorchScript or in an
    `autograd.Function` of its own).

    :raises SecondDerivativeError: an alias has such a leaf in its history
    """
    edges = [alias.grad_fn for alias in aliases]
    direct = leaves_behind([output.grad_fn for output in outputs], until=edges)
    if not direct:
        return aliases
    captured.accept(direct, inputs)
    direct = {id(leaf) for leaf in direct}
    rest = [alias.grad_fn for alias, source in zip(aliases, inputs) if id(source) not in direct]
    if any(id(leaf) in direct for leaf in leaves_behind(rest)):
        raise SecondDerivativeError(
            "func uses a tensor inside an operation that cannot be looked into (TorchScript, a custom "
            "autograd.Function), and the initial state, the times or another tensor of func depends on it as well: use "
            "gradient='naive'"
        )
    return [source if id(source) in direct else alias for alias, source in zip(aliases, inputs)]
