"""The user's func as the solver sees it: on flat real vectors, counted, its side effects under control."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .capture import LOOKED_AT_EVERY, Captured
from .cut import Cut, UseWatch, outer_cuts, within
from .errors import SolverError
from .evaluation import Evaluation, measured
from .graph import age_mark, leads_to
from .inference_mode import recording
from .jacobian import Jacobian
from .kept_func import KeptFunc
from .linearisation import Linearisation
from .notices import add_note
from .option_checks import check_callable, explain_refusal
from .output_memory import OutputMemory
from .private_torch import is_transformed, pytree, set_grad_enabled
from .reach import Reach, reach
from .settled import Settled
from .side_effects import SideEffects
from .side_outputs import SideOutputs
from .state import StateLayout
from .transforms import under_transform


class VectorField:
    """f(t, y) on flat states: the one place that calls the user's func.

    ``n_evals`` counts the calls. ``captured`` (`capture.Captured`) knows the tensors besides the state and the time
    that f depends on, once `first_evaluation` has looked; ``evaluation_bytes`` is what the graph of one evaluation
    takes, where it was to find out. ``direction`` is the sign in which time runs. ``jumps``: the times on whose
    sides f differs as a function of time (None: all that it is asked for with a ``side``).

    :param params: only these of the captured tensors get gradients (None: all)
    :param autocast: context in which func is called (None: none), as `ambient_autocast` makes it
    :param found: `Reach` of a func that changes nothing and uses all of these tensors: no `first_evaluation` then
    :param code: `compilation.code.Code`, where steps are compiled
    :param jacobian: `Jacobian` (None: from func, one block)
    """

    def __init__(
        self, func: Any, layout: StateLayout, direction: int = 1, params: Sequence[Tensor] | None = None,
        autocast: Any = None, *, found: Reach | None = None, code: Any = None,
        jacobian: Jacobian | None = None,
    ) -> None:  # fmt: skip
        check_callable(func, "func(t, y)")
        self.func, self.layout, self.direction = func, layout, direction
        self.jacobian = Jacobian(layout) if jacobian is None else jacobian
        self.n_evals = self._n_recorded = 0
        self.evaluation_bytes: float = 0
        known, found = found is not None, reach(func) if found is None else found
        self._outer_cuts = outer_cuts()
        self.captured = Captured(found.tensors, params, constants=found.constants)
        self._side_outputs, self._is_scripted = SideOutputs(found, self.captured), found.is_scripted
        self._settled = Settled(found.places) if torch.is_grad_enabled() and not known else None
        self.side_effects = SideEffects(found.modules, layout.device)
        self.autocast, self.code = autocast, code
        self._cut: Cut | None = self.captured.use_all() if known else None
        self._knows_captured = known  # not so where graphs are autograd's own (`naive`)
        self._as_it_is = False  # whether there is nothing to do around a call
        self._is_again = False  # whether this is a backward pass
        self._counts_writes = not torch.is_inference_mode_enabled()  # in which tensors do not count them
        self._memory = OutputMemory(watch=not under_transform())
        self._changes_its_argument = self._needs_gradients = False
        self.jumps: frozenset[float] | None = None
        self.vectorises = True  # whether f's backward pass goes through vmap, as far as is known

    def time(self, t: Any, side: int = 0) -> Tensor:
        """0-d tensor of a time given as float, in the state's precision.

        :param side: 1 or -1: the next representable time in or against the direction of integration (f jumps at t)
        """
        time = torch.scalar_tensor(t, dtype=self.layout.dtype, device=self.layout.device)
        return self._nudged(time, side) if side and self._jumps_at(t) else time

    def __call__(self, t: Any, y: Tensor, out: Tensor, side: int = 0) -> None:
        """Write f(t, y) into out [size]; t a float. To be called with gradients off."""
        layout = self.layout
        if self._needs_gradients:
            outputs = self._with_gradients(self.time(t, side), y)
        else:
            version = self._counts_writes and y._version
            time = self.time(t, side)
            try:
                outputs = layout.tensors(self.call(time, layout.unflatten(y)))
            except RuntimeError as failure:
                outputs = self._after_failure(failure, time, y)
            if self._counts_writes and y._version != version:
                t = self._shown(t)
                raise ValueError(f"func changes its argument y in place, at t = {t:.6g}: return a new tensor instead")
        layout.write(outputs, out)

    def _shown(self, t: Any) -> float:
        """A time as messages name it: a float."""
        return t

    def traced(self, t: Any, y: Tensor, *, side: int = 0) -> Tensor:
        """f(t, y) as a new vector, differentiable in everything; t a 0-d tensor."""
        t = self._traced_time(t, side)
        slope = self.layout.flatten(self.call(t, self.layout.unflatten(y)))
        return slope.clone() if self._memory.comes_again else slope

    def _traced_time(self, t: Tensor, side: int) -> Tensor:
        nudges = side and self._jumps_at(t)
        t = t.to(self.layout.device, self.layout.dtype)
        return t + (self._nudged(t.detach(), side) - t.detach()) if nudges else t

    def record(
        self, t: Any, y: Tensor, out: Tensor | None = None, *, time_grad: bool = False, side: int = 0,
        every: int | None = None,
    ) -> Evaluation:  # fmt: skip
        """Evaluate f at float t with a graph of its own: an `Evaluation`; the value goes into out. To be called with
        gradients off.

        :param time_grad: let `Evaluation.vjp` return the cotangent of the time, which takes the value: it is kept
        :param every: let the evaluation keep one entry in so many of the value, and the sum of all (None: nothing)
        """
        evaluation = self._recorded(t, y, out, time_grad, side, every)
        self._look_at(evaluation, t)
        return evaluation

    def _look_at(self, evaluation: Any, t: Any) -> None:
        self._n_recorded += self._knows_captured
        if self._knows_captured and self._n_recorded % LOOKED_AT_EVERY == 1:
            self.captured.check(evaluation, self._shown(t))

    def linearise(self, t: Any, y: Tensor, side: int = 0) -> Linearisation:
        """f at float t as a `Linearisation`, with a graph that can be differentiated twice."""
        time = self.time(t, side)
        with recording():
            leaf, time = (x.detach().clone().requires_grad_() for x in (y, time))
            found = Linearisation(self, self.traced(time, leaf), leaf, time)
        self._look_at(found, t)
        return found

    def first_evaluation(
        self, t: Any, y: Tensor, *, differentiable: bool, asked: bool = True, time_grad: bool = False,
        measure: bool | str = False, numbers: bool = False, side: int = 0,
    ) -> tuple[Tensor, Evaluation | None]:  # fmt: skip
        """f(t0, y0), while watching what f changes and draws and, if differentiable, what it depends on. To be called
        with gradients off.

        :param asked: the initial state or a time requires grad; else func may take its state as numbers, unless it
            depends on something that does
        :param time_grad: as for `record`
        :param measure: also find out what the graph of one evaluation takes; "graph": without its value
        :param numbers: also find out whether f changes numbers that it keeps
        :param side: as for `time`
        :returns: slope [size], and the `Evaluation` with its graph (None unless differentiable)
        """
        k = torch.empty_like(y, requires_grad=False)
        if not differentiable:
            self.side_effects.watch(lambda: self._try_on_a_copy(t, y, k, side), numbers=numbers)
            self._as_it_is = False  # f may draw random numbers, as is known by now
            return k, None
        since = age_mark()
        watch: Callable = functools.partial(self.side_effects.watch, numbers=numbers)
        if not (asked or self.captured.candidates):
            with torch.enable_grad():
                watch(lambda: self._try_on_a_copy(t, y, k, side))
            if not k.requires_grad:
                return k, None
            # it depends on a tensor that could not be found from func: again, with all of the graph
            k, watch, self.n_evals = k.detach(), self.side_effects.replayed, 0
        evaluation = watch(lambda: self._first_recorded(t, y, k, time_grad, side, measure))
        captured, self._knows_captured = self.captured, True
        edges, inputs = evaluation.edges(), evaluation.inputs
        has_history, unknown = captured.meet(edges, inputs, since, lambda: self._recorded_again(t, y, time_grad, side))
        has_history |= self._side_outputs.meet(self.func, inputs)
        self._cut, self._as_it_is = captured.cut(), False
        if has_history:  # again, with the cut
            with self.side_effects.replay():
                if unknown:
                    captured.meet_history(unknown, lambda: self._recorded(t, y, None, False, side))
                    self._cut = captured.cut()
                since = age_mark()
                evaluation = self._recorded(t, y, k, time_grad, side)
                captured.meet_hidden(evaluation.edges(), evaluation.inputs, since)
        return k, evaluation

    def _recorded_again(self, t: Any, y: Tensor, time_grad: bool, side: int) -> list[GradientEdge]:
        with self.side_effects.replay():
            return self._recorded(t, y, None, time_grad, side).edges()

    def _first_recorded(self, t: Any, y: Tensor, k: Tensor, time_grad: bool, side: int, measure: Any) -> Evaluation:
        if not measure:
            return self._recorded(t, y, k, time_grad, side)
        with_value = measure != "graph"
        evaluation, self.evaluation_bytes = measured(lambda: self._recorded(t, y, k, time_grad, side), with_value)
        return evaluation

    def first_traced(self, t: Tensor, y: Tensor, side: int = 0, *, watch: bool = False) -> tuple[Tensor, bool]:
        """The first evaluation as `traced` makes it, for a graph that is autograd's own (`naive`): slope [size], and
        whether func may hide something of its time or its state from autograd.

        :param watch: whether it may is to be found out
        """
        cut, use = self.captured.restriction(), None
        if watch:
            t, y = (x if x.requires_grad else x.detach().requires_grad_() for x in (t, y))
        time, state = self._traced_time(t, side), self.layout.unflatten(y)
        if watch:
            use = UseWatch(time, cut, pytree.tree_leaves(state))
        with self._cut_by(use or cut):
            # a copy: func may return the same memory again, which nobody knows yet
            slope = self.side_effects.watch(lambda: self.layout.flatten(self.call(time, state))).clone()
        if use is None:
            return slope, False
        hides_all = use.sees_use and not side and not (slope.requires_grad and leads_to([slope.grad_fn], t))
        return slope, use.sees_way_out or hides_all

    def uses_time(self, t: Any, y: Tensor) -> bool:
        """Whether func hands its time to any operation or reads it as a number. To be called with gradients off."""
        time = self.time(t)
        use = UseWatch(time, self.captured.restriction())
        with self._cut_by(use):
            try:
                self.call(time, self.layout.unflatten(y.clone()))
            except RuntimeError as failure:
                self._after_failure(failure, time, y)
        return use.sees_use or self._is_scripted and is_transformed()  # where nothing is seen within TorchScript

    def makes_numbers(self, t: Any, y: Tensor, *, of_state: bool = False) -> bool:
        """Whether func makes numbers of its time that autograd knows nothing of. To be called with gradients off.

        :param of_state: of its state or its time
        """
        leaves = [leaf.requires_grad_(of_state) for leaf in self.layout.unflatten_leaves(y.clone())]
        time = self.time(t).detach().requires_grad_()
        use = UseWatch(time, self.captured.restriction(), leaves if of_state else (), below=self._is_scripted)
        with self._cut_by(use), torch.enable_grad():
            self.call(time, self.layout.assemble(leaves))
        return use.sees_way_out

    def pullback(self, t: Any, y: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Any, Any]]]:
        """f at float t [size], and what pulls cotangents of it [size] back, as often as wanted: those of the time and
        of the state [size], None for what f does not depend on. To be called with gradients off; goes through
        transforms."""
        if is_transformed():
            with torch.enable_grad(), self.without_cut():
                value, pull, *_ = torch.func.vjp(self.traced, self.time(t), y)
            return value.detach(), pull
        value = torch.empty_like(y)
        evaluation = self.record(t, y, value, time_grad=True)

        def pull_back(cotangent: Tensor) -> tuple[Any, Any]:
            found = evaluation.pull(cotangent, keep_graph=True)
            states, _, time = (None, (), None) if found is None else found
            return time, None if states is None else self.layout.join(states)

        return value, pull_back

    def without_cut(self) -> AbstractContextManager:
        """Context in which func gets its own tensors, for a graph that is autograd's own: only that what is not among
        ``params`` is a constant."""
        return self._cut_by(self.captured.restriction())

    def standing_in(self, replacements: Sequence[Tensor]) -> AbstractContextManager:
        """Context in which these take the place of the captured tensors."""
        return self._cut_by(self.captured.stands_in(replacements))

    @contextlib.contextmanager
    def _cut_by(self, cut: Cut | None) -> Iterator[None]:
        before, self._cut, self._as_it_is = self._cut, cut, False
        try:
            yield
        finally:
            self._cut, self._as_it_is = before, False

    def _recorded(
        self, t: Any, y: Tensor, out: Tensor | None, time_grad: bool, side: int, every: int | None = None
    ) -> Evaluation:
        layout = self.layout
        leaves = [leaf.requires_grad_() for leaf in layout.unflatten_leaves(y)]
        time = self.time(t, side)
        if time_grad:
            time.requires_grad_()
        set_grad_enabled(True)  # a context of it takes as long as an operation
        try:
            outputs = layout.tensors(self.call(time, layout.assemble(leaves)))
        finally:
            set_grad_enabled(False)
        if out is not None:
            layout.write(outputs, out)
        evaluation = Evaluation(self, leaves, time if time_grad else None, outputs)
        if every is not None:
            evaluation.sample = layout.sample(outputs, every)
        return evaluation

    def _with_gradients(self, time: Tensor, y: Tensor) -> list[Tensor]:
        """For a func that differentiates something itself: leaves [*shape] of f(t, y), at a time as func gets it."""
        layout = self.layout
        leaves = [leaf.requires_grad_() for leaf in layout.unflatten_leaves(y.detach())]
        with torch.enable_grad():
            return layout.tensors(self.call(time, layout.assemble(leaves)))

    def _after_failure(self, failure: RuntimeError, time: Tensor, y: Tensor) -> list[Tensor]:
        """Evaluate f once more with gradients on: it may differentiate something itself."""
        if isinstance(failure, SolverError):  # of a solve inside func
            raise failure
        try:
            outputs = self._with_gradients(time, y)
        except RuntimeError:
            raise failure from None
        self.n_evals -= 1
        self._needs_gradients = True
        return outputs

    def _try_on_a_copy(self, t: Any, y: Tensor, out: Tensor, side: int) -> None:
        """The first evaluation without gradients: func may change its argument, which is the caller's y0."""
        copy = y.clone()
        version = self._counts_writes and copy._version
        try:
            self(t, copy, out, side)
        except ValueError:
            if not self._counts_writes or copy._version == version:
                raise
            self._changes_its_argument, self._as_it_is = True, False
            self(t, y, out, side)
            self.n_evals -= 1

    def finish(self) -> None:
        """To be called when the forward pass is over: no more tensors will be captured.

        :raises DrawsLate: as `SideEffects.finish`
        """
        self.side_effects.finish()
        self.captured.seal()
        self._side_outputs.finish(self.func)
        self._kept, self.func = KeptFunc(self.func, self.captured.has_left_out), None
        if self._settled is not None:
            self._settled.leave_out_changed()
        self.jacobian.finish(self.captured.has_left_out)

    def may_differ_anywhere(self) -> bool:
        """Whether func, evaluated again, may be another one in any one step: another thread may have drawn from the
        stream that it draws from, or something was written to a tensor that it can reach."""
        return self.side_effects.draws or self.captured.constants_have_changed()

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Context in which f is evaluated again, after `finish`."""
        with contextlib.nullcontext() if self._settled is None else self._settled.put_back():
            self.func, self._is_again = self._kept(), True
            try:
                # a backward pass runs outside of the solve around this one
                with within([*self._outer_cuts, *self._side_outputs.watches()]):
                    yield
                self._side_outputs.look_back(self.func)
            finally:
                self.func = None

    def _jumps_at(self, t: Any) -> bool:
        return self.jumps is None or float(t) in self.jumps

    def _nudged(self, time: Tensor, side: int) -> Tensor:
        return torch.nextafter(time, torch.full_like(time, side * self.direction * float("inf")))

    def call(self, t: Tensor, state: Any) -> Any:
        self.n_evals += 1
        try:
            return self.func(t, state) if self._as_it_is else self._call_with_care(t, state)
        except RuntimeError as failure:
            explain_refusal(failure, "func", " Where no derivatives are needed, solve under torch.no_grad().")
            self._add_note(failure, t, state)
            raise
        except (TypeError, AttributeError, LookupError, ValueError) as failure:
            self._add_note(failure, t, state)
            raise

    def _add_note(self, failure: Exception, t: Tensor, state: Any) -> None:
        if self._is_again:
            add_note(failure, "This is the backward pass, which evaluates func again: what it needs must be there.")
        elif self.n_evals == 1 and not isinstance(failure, SolverError):
            given = f"y of shape {list(state.shape)}" if isinstance(state, Tensor) else "y nested as y0 is"
            add_note(failure, f"func is called as func(t, y), with t of shape {list(t.shape)} and {given}.")

    def _call_with_care(self, t: Tensor, state: Any) -> Any:
        effects, cut = self.side_effects, self._cut
        if self._changes_its_argument:
            state = pytree.tree_map(torch.clone, state)
        with contextlib.ExitStack() as stack:
            if effects.draws:
                stack.enter_context(effects.same_numbers())
            if self.autocast is not None:
                stack.enter_context(self.autocast())
            if cut is not None:
                stack.enter_context(cut)
            state = self.func(t, state)
        if cut is not None:
            state = pytree.tree_map(cut.of, state)
        if self._memory.unknown:
            self._memory.look_at(state)
        special = effects.draws or self._changes_its_argument or self._memory.unknown
        self._as_it_is = not special and self.autocast is None and self._cut is None
        return state
