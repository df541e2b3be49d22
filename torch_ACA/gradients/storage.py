"""What is kept of the accepted steps for the backward pass, within a budget of memory.

Everything can be made again, bit for bit, from what is kept: the graph of a step from the state at its start, a state
from an earlier one. With room to spare the graphs of the first steps are kept as well, with too little of it only every
2nd, 4th, 8th ... state. The backward pass then makes the missing ones segment by segment, with checkpoints in between
where the binomial schedule puts them (Griewank, Walther, ACM TOMS 26, 2000): with c of them and r repetitions of a step
at most, it reaches (c + r)! / (c! r!) steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..private_torch import has_saved_tensors_hooks
from .graph_room import NO_ROOM, SHARED_GRAPHS, GraphRoom

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class Budget:
    """At most ``states`` states, and ``n_bytes`` bytes for states and graphs together; or, with ``spare``, so many
    bytes for graphs beside the states, which are not counted, and behind these what is free of ``room``."""

    states: float = math.inf
    n_bytes: float = math.inf
    spare: float = 0
    room: GraphRoom | None = None

    @classmethod
    def of(cls, memory: Any) -> Budget:
        """None: every state, and graphs where they are small; "states": no graphs; a whole number: so many states;
        "512MiB": so many bytes; "unlimited"."""
        if memory is None:
            return SMALL_GRAPHS
        if isinstance(memory, Budget):
            return memory
        if isinstance(memory, int) and not isinstance(memory, bool) and memory >= 2:
            return cls(states=memory, n_bytes=0)
        text = str(memory).strip().lower()
        if text == "states":
            return STATES_ONLY
        if text in ("unlimited", "inf"):
            return UNLIMITED
        match = re.fullmatch(r"(\d+(?:\.\d*)?) ?([kmg]?i?)b", text)
        if isinstance(memory, str) and match and match[2] in _UNITS:
            return cls(n_bytes=float(match[1]) * _UNITS[match[2]])
        raise ValueError(
            f"memory must be a size ('512MiB', '2GB', 'unlimited'), 'states' or a number of states (at least 2), "
            f"got {memory!r}"
        )

    @property
    def wants_size_of_graphs(self) -> bool:
        """Whether it matters how large a graph is."""
        return self.spare > 0 or self.bounds_bytes

    @property
    def bounds_bytes(self) -> bool:
        """Whether states and graphs share a number of bytes."""
        return 0 < self.n_bytes < math.inf

    def max_states(self, state_bytes: int) -> float:
        """How many states of so many bytes there is room for.

        :raises ValueError: there is no room for two states
        """
        if not self.bounds_bytes:
            return self.states
        found = int(self.n_bytes // max(state_bytes, 1))
        if found < 2:
            raise ValueError(f"memory of {self.n_bytes:.0f} bytes is too little: a state takes {state_bytes}")
        return found


STATES_ONLY = Budget(n_bytes=0)
SMALL_GRAPHS = Budget(n_bytes=0, spare=2**20, room=SHARED_GRAPHS)  # states, and graphs where they are small
UNLIMITED = Budget()


class Storage:
    """The accepted steps, and of them what a `Budget` has room for. Steps themselves (times, sizes) always stay.

    :param state_bytes, graph_bytes: what a state and the graph of a step take (infinite: no graphs)
    :raises ValueError: there is no room for two states
    """

    def __init__(self, budget: Budget, state_bytes: int, graph_bytes: float) -> None:
        self._state_bytes, self._graph_bytes = state_bytes, graph_bytes
        self._n_bytes, self._spare = budget.n_bytes, budget.spare
        self._share = (budget.room or NO_ROOM).share()
        # A checkpoint around the solve counts what is saved, and wants the same when it makes the solve again: that
        # must not depend on what other solves hold.
        self._may_share = budget.room is not None and not has_saved_tensors_hooks()
        self.max_states = budget.max_states(state_bytes)
        self.steps, self._states, self._with_graph, self._stride = [], {}, [], 1

    @property
    def wants_graph(self) -> bool:
        """Whether there is room for the graph of another step."""
        if self._graph_bytes == math.inf:
            return False
        if self._spare:
            return self._in_spare or self._may_share and self._share.fits(self._graph_bytes)
        if self._n_bytes == 0:
            return False
        return self._used + self._state_bytes + self._graph_bytes <= self._n_bytes

    def add(self, step: Any, state: Any, evaluations: Any) -> bool:
        """Take an accepted step, the state at its start and, if they were recorded and still have room, its
        evaluations; returns whether these were taken."""
        taken = evaluations is not None and self._takes_graph()
        if taken:
            step.evaluations = evaluations
            self._with_graph.append(step)
        else:
            self._may_share = False  # the first steps have graphs, and none behind them, even if others give back
        self._take(len(self.steps), state)
        self.steps.append(step)
        return taken

    def close(self, state: Any) -> None:
        """Take the state at the end of the last step."""
        self._states[len(self.steps)] = state
        self.leave_one_to_replay()

    def leave_one_to_replay(self) -> bool:
        """Drop the graph of the last step, if the solve has taken room that is shared: the backward pass of such a
        solve makes this step again, and notices a func that is not what it was. Returns whether it was dropped."""
        dropped = self._share.taken > 0 and self._with_graph[-1] is self.steps[-1]
        if dropped:
            self._with_graph.pop().evaluations = None
        return dropped

    def cut(self, n_steps: int) -> None:
        """Forget all but the first steps."""
        del self.steps[n_steps:]
        while len(self._with_graph) > n_steps:
            self._with_graph.pop().evaluations = None
        self._states = {i: state for i, state in self._states.items() if i <= n_steps}

    def release(self) -> dict[int, Any]:
        """The states kept, as {number of steps before: state}; the storage forgets them."""
        states, self._states = self._states, None
        return states

    def drop_graphs(self) -> None:
        """The backward pass is over, or there will be none: others may take the room."""
        for step in self._with_graph:
            step.evaluations = None
        self._with_graph = []
        self._share.end()

    def backwards(self, kept: dict[int, Any], advance: Callable[[Any, int, int], Any]) -> Iterator[Any]:
        """Yield every state from the last to the first.

        :param kept: what `release` returned
        :param advance: advance(state, first, last) -> the state after steps first to last - 1
        """
        stack = list(kept.items())
        for wanted in range(len(self.steps), -1, -1):
            while stack[-1][0] > wanted:
                stack.pop()
            first, state = stack[-1]
            while first < wanted:
                last = first + _stride_to_next(wanted - first, self.max_states - len(stack))
                state = advance(state, first, last)
                first = last
                if first < wanted:
                    stack.append((first, state))
            yield state

    @property
    def _in_spare(self) -> bool:
        """Whether the graph of another step fits into what the solve has for itself."""
        return (len(self._with_graph) + 1) * self._graph_bytes <= self._spare

    def _takes_graph(self) -> bool:
        if self._may_share and not self._in_spare and self._graph_bytes < math.inf:
            return self._share.take(self._graph_bytes)
        return self.wants_graph

    @property
    def _used(self) -> float:
        return len(self._states) * self._state_bytes + len(self._with_graph) * self._graph_bytes

    def _take(self, index: int, state: Any) -> None:
        if index % self._stride == 0:
            self._states[index] = state
        while self._with_graph and not self._spare and self._used > self._n_bytes:
            self._with_graph.pop().evaluations = None
        while len(self._states) > self.max_states:
            self._stride *= 2
            self._states = {i: state for i, state in self._states.items() if i % self._stride == 0}


def _stride_to_next(length: int, free: Any) -> int:
    """How far to go before the next state is kept, of a way of ``length`` steps with room for ``free`` more states."""
    if free < 1:
        return length
    if free >= length:
        return 1
    checkpoints, repetitions = free + 1, 1  # the state at the start is one of them
    while math.comb(checkpoints + repetitions, repetitions) <= length:
        repetitions += 1
    most = math.comb(checkpoints + repetitions - 1, checkpoints)
    left = math.comb(checkpoints + repetitions - 2, checkpoints - 1)
    return max(1, min(most, length + 1 - left))
