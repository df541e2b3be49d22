"""`Record`: what a solve did, for figures, measurements and tests of one's own (``solve(..., record=True).record``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .callbacks import Callbacks
from .state import StateLayout

if TYPE_CHECKING:
    from .problem import Problem
    from .steppers.base import Method


@dataclass(frozen=True)
class Record:
    """The accepted steps and the rejected tries of a solve.

    ``times`` [N + 1], float64: where the N accepted steps begin, and where the last one ends; ``states``: the states
    there, leaves [N + 1, *shape], without a graph; ``rejected`` [R, 2], float64: start and size of every rejected try;
    ``methods`` [N]: names of the methods that took the steps.
    After a failure times and states end where the last step begins.
    """

    times: torch.Tensor
    states: Any
    rejected: torch.Tensor
    methods: tuple[str, ...]
    _flat: torch.Tensor = field(repr=False)
    _layout: StateLayout = field(repr=False)
    _replay: Callable | None = field(repr=False)
    _graph: Callable | None = field(repr=False)

    @property
    def sizes(self) -> torch.Tensor:
        """Sizes of the accepted steps [N], negative where time runs backwards."""
        return self.times.diff()

    def replayed(self) -> Any:
        """The states as the backward pass finds them again, leaves [N + 1, *shape]: with "aca" and "direct" the end of
        each step from the stored state at its start; with "mali" the leapfrog run backwards from the end.

        :raises ValueError: another gradient method, or y0, t and func need no gradient
        """
        return self._layout.unflatten(_needed(self._replay, "states to replay")(self._flat))

    def graph(self, y0: Any, t: torch.Tensor) -> Any:
        """The outputs at t[1:] as an ordinary graph of the accepted steps, their sizes constant: the function that
        "aca" and "direct" differentiate, leaves [m - 1, *shape].

        :param y0: as for `solve`, on any graph
        :param t: tensor [m], the times of the solve, on any graph
        :raises ValueError: as `replayed`
        """
        return self._layout.unflatten(_needed(self._graph, "graph")(self._layout.flatten(y0), t))


def _needed(function: Callable | None, what: str) -> Callable:
    if function is None:
        raise ValueError(f"this solve keeps no {what}: use gradient='aca' or 'direct', and let y0 require grad")
    return function


class Recorder:
    """Collects a `Record` while a solve runs. ``replay`` and ``graph`` are set by the gradient method."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.states: list[torch.Tensor] = []
        self.rejected: list[tuple[float, float]] = []
        self.replay: Callable | None = None
        self.graph: Callable | None = None
        self.methods: list[Method] = []

    def around(self, callbacks: Callbacks) -> Callbacks:
        """The callbacks, with those of the recorder before them."""

        def accept(t: float, y: torch.Tensor, h: float) -> None:
            self.starts.append(t)
            self.states.append(y.detach())
            callbacks.accept(t, y, h)

        def reject(t: float, y: torch.Tensor, h: float) -> None:
            self.rejected.append((t, h))
            callbacks.reject(t, y, h)

        return Callbacks(callbacks.step, accept, reject)

    def record(self, problem: Problem, layout: StateLayout, ys: torch.Tensor) -> Record:
        """The `Record`, once the solve is over. It alone knows how to replay then: what does so holds the problem, and
        with it this recorder.

        :param ys: outputs after the first [k, n]
        """
        finished = problem.failure is None
        times = [*self.starts, problem.ts[-1]] if finished else self.starts
        states = [*self.states, ys[-1].detach()] if finished else self.states
        flat = torch.stack(states) if states else problem.y0.new_empty(0, layout.size)
        rejected = torch.tensor(self.rejected, dtype=torch.float64, device="cpu").reshape(-1, 2)
        replay, graph, self.replay, self.graph = self.replay, self.graph, None, None
        return Record(
            torch.tensor(times, dtype=torch.float64, device="cpu"),
            layout.unflatten(flat),
            rejected,
            tuple(method.name for method in self.methods),
            flat,
            layout,
            replay,
            graph,
        )
