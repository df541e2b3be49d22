"""Generated code by func: made once, kept as long as func, and found again in every solve."""

import collections
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..autocast import dtype_of
from ..notices import warn_caller
from ..reach import Reach
from ..rosenbrock_tableaus import RosenbrockTableau
from ..rows.active import ActiveRows
from ..state import StateLayout
from .func_graph import Differentiable, NotCompilable, Tracer, reason_of
from .generate import Stopwatch, generated
from .private_compiler import one_at_a_time
from .rosenbrock_steps import RosenbrockSteps
from .steps import RungeKuttaSteps

SMALL = 64  # numbers in a tensor that are not worth vector instructions, or memory for every intermediate result
OF_SMALL = {"cpp.simdlen": 1, "force_pointwise_cat": True}  # options of Inductor; the first halves its time
MOST = 16  # kinds of states and options that code is kept for, by func: those used last

_KNOWN = weakref.WeakKeyDictionary()  # by what func is made of: {kind of state and options: _Compiler}


def code_for(
    func: Any,
    layout: StateLayout,
    autocast: Any,
    t: Any,
    y: Tensor,
    options: dict[str, Any],
    controller: Any,
    watched: bool,
    differentiable: Differentiable,
) -> Any:
    """`Code` for func as it is now; None, with a warning once, where there can be none.

    :param layout, autocast: as `VectorField` has them
    :param t, y: a time (a float, or times as func gets those of rows) and the flat state there, without a history
    :param options: of Inductor, a dict
    :param controller, watched, differentiable: as `Code` has them
    """
    compiler = _compiler_for(func, layout, autocast, options)
    if not compiler.usable:
        return None
    try:
        start = time.perf_counter()
        if not isinstance(t, Tensor):
            t = torch.scalar_tensor(t, dtype=layout.dtype, device=layout.device)
        graph, inputs = compiler.tracer(func, t, y, differentiable=differentiable)
        if not graph.functions:  # it was traced now
            compiler.stopwatch.add(time.perf_counter() - start)
        return Code(compiler, graph, inputs, y, controller, watched, differentiable)
    except NotCompilable as failure:
        compiler.give_up(failure)
        return None


class _Compiler:
    """Of one func, for one kind of state. ``usable`` until func turns out not to be; ``against_loops``: why there is no
    code for loops, or None."""

    def __init__(self, func: Any, layout: StateLayout, autocast: Any, options: dict[str, Any]) -> None:
        func = func.func if isinstance(func, ActiveRows) else func
        self.name = getattr(func, "__name__", type(func).__name__)
        self.layout, self.options, self.usable = layout, options, True
        self.tracer = Tracer(layout, autocast)
        self.stopwatch = Stopwatch(self.name)
        self.against_loops, self._told = None, set()

    def give_up(self, reason: Any) -> None:
        self.usable = False
        self.warn(f"compile=True: {self.name} cannot be compiled and runs as it is ({reason})")

    def warn_of_steps(self, reason: Any) -> None:
        self.warn(f"compile=True: for {self.name} steps are compiled, and the loop over them is not ({reason})")

    def warn(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warn_caller(message)


class Code:
    """What is generated around the graph of func, in one solve.

    ``others``: the tensors that func depends on, without histories; ``sources``: those that require grad, as func holds
    them; ``controller``: of the solve; ``watched``: func may change from step to step; ``differentiable``: as for
    `Tracer`.
    """

    by_rows = False  # func is said to act row by row
    against_loop: str | None = None  # why there is no loop over the steps of the solve

    def __init__(
        self,
        compiler: Any,
        graph: Any,
        inputs: Any,
        y: Tensor,
        controller: Any,
        watched: bool,
        differentiable: Differentiable,
    ) -> None:
        self.compiler, self.graph = compiler, graph
        self.controller, self.watched, self.differentiable = controller, watched, differentiable
        tensors = graph.others(inputs)
        self.others = [x.detach() for x in tensors]
        self.sources = [tensors[i] for i in graph.wanted]
        self._places: tuple[Any, list] = (None, [])
        self._size, self._bare = y.numel(), y.device.type == "cpu" and not graph.changed

    @property
    def usable(self) -> bool:
        return self.compiler.usable

    def reach(self) -> Reach:
        """What func depends on, as `reach` finds it."""
        return Reach([], self.sources, [], None)

    def steps(self, tableau: Any) -> Any:
        """The `Steps` of a tableau."""
        if not isinstance(tableau, RosenbrockTableau):
            return self.kept(tableau, lambda: RungeKuttaSteps(self.graph, tableau))
        layout, by_rows = self.compiler.layout, self.by_rows
        return self.kept((tableau, by_rows), lambda: RosenbrockSteps(self.graph, tableau, layout, by_rows=by_rows))

    def function(
        self, key: Any, function: Callable, inputs: Any, *, options: dict[str, Any] = None, cuda_graphs: bool = False
    ) -> Callable:
        """Generated code of function(*inputs, *others): a callable of the list of all of these.

        :param key: by which it is found again
        :param options: of Inductor, where the user has not chosen others
        :param cuda_graphs: the results may be memory of a CUDA graph, if the user has chosen that
        :raises NotCompilable: no code can be generated
        """

        def make() -> Any:
            start, every = time.perf_counter(), [*inputs(), *self.others]
            try:
                small = max([self._size, *(tensor.numel() for tensor in self.others)]) <= SMALL
                chosen = (OF_SMALL if small else {}) | (options or {}) | self.compiler.options
                if not cuda_graphs:
                    chosen.pop("triton.cudagraphs", None)
                return generated(function, every, chosen, bare=self._bare)
            except Exception as failure:  # whatever PyTorch's compiler runs into
                raise NotCompilable(reason_of(failure)) from failure
            finally:
                self.compiler.stopwatch.add(time.perf_counter() - start)

        return self.kept(key, make)

    def start(self, tableau: Any, controller_settings: Any, times: Tensor, y: Tensor) -> Any:
        """Slope at the start, and first step size (float)."""
        steps = self.steps(tableau)
        ends = torch.tensor((times[0], times[-1]), dtype=torch.float64, device=y.device)
        given = [ends, controller_settings.to(y.device), y]

        def start(times: Tensor, settings: Tensor, y: Tensor, *others: Sequence[Tensor]) -> Any:
            return steps.start(times, settings, y, others)

        call = self.function(("start", tableau, len(controller_settings)), start, lambda: given)
        slope, size = call([*given, *self.others])
        return slope, size.item()

    def zeros(self) -> list[Tensor]:
        """Gradients of ``sources`` to begin with."""
        return [torch.zeros_like(self.others[i]) for i in self.graph.wanted]

    def totals(self, captured: Sequence[Tensor], totals: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of ``sources`` so far, from those of the tensors that a solve gives gradients to (None: zero)."""
        found = [None if place is None else totals[place] for place in self._places_in(captured)]
        others = (self.others[i] for i in self.graph.wanted)
        return [torch.zeros_like(other) if total is None else total for total, other in zip(found, others)]

    def gradients(self, captured: Sequence[Tensor], totals: Sequence[Tensor], reached: Any) -> list[Tensor | None]:
        """The way back: gradients of the captured tensors, None for what no graph led to."""
        found: list[Tensor | None] = [None] * len(captured)
        for place, total, is_reached in zip(self._places_in(captured), totals, reached):
            if place is not None and is_reached:
                found[place] = total
        return found

    def _places_in(self, captured: Sequence[Tensor]) -> Any:
        """Where each of ``sources`` stands among the captured tensors; None: not among them."""
        known, places = self._places
        if known is not captured:
            by_id = {id(tensor): i for i, tensor in enumerate(captured)}
            places = [by_id.get(id(tensor)) for tensor in self.sources]
            self._places = captured, places
        return places

    def kept(self, key: Any, make: Callable) -> Any:
        """What ``make`` made when it was first asked for, as long as func stays what it is."""
        functions = self.graph.functions
        found = functions.get(key)
        if found is None:
            with one_at_a_time:
                found = functions.get(key)
                if found is None:
                    found = functions[key] = make()
        return found


def _compiler_for(func: Any, layout: StateLayout, autocast: Any, options: dict[str, Any]) -> Any:
    key = (layout.signature, dtype_of(autocast), repr(sorted(options.items())) if options else "")
    owner = _owner(func)
    known = _KNOWN.get(owner)
    if known is None:
        known = _KNOWN[owner] = collections.OrderedDict()
    if key in known:
        known.move_to_end(key)
        return known[key]
    if len(known) >= MOST:
        known.popitem(last=False)
    compiler = known[key] = _Compiler(func, layout, autocast, options)
    return compiler


def _owner(func: Any) -> Any:
    """What code belongs to: a module, the code of a function or method, the class of another callable."""
    if isinstance(func, ActiveRows):
        func = func.func
    if isinstance(func, torch.nn.Module):
        return func
    return getattr(getattr(func, "__func__", func), "__code__", type(func))
