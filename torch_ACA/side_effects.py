"""Makes re-evaluating f harmless: buffers that f updates (BatchNorm statistics) and random streams (dropout).

What counts: each evaluation of an accepted step, once. The probe for the initial step, rejected tries and the
recomputation in the backward pass leave no trace. A random f draws the same numbers at every evaluation of one solve
(one dropout mask per solve): fresh numbers would turn the error estimate into noise. From solve to solve the stream
moves on: after a solve it stands behind whatever an evaluation drew.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .private_torch import batch_norms
from .random_streams import RandomStreams, same
from .reach import reach


def modules_of(func: Any) -> list[nn.Module]:
    """Every `nn.Module` that a callable can reach."""
    return reach(func).modules


class DrawsLate(Exception):
    """f began to draw random numbers after its first evaluation; ``start``: where the stream stood at first."""

    def __init__(self, start: list[Tensor]) -> None:
        super().__init__("func began to draw random numbers after its first evaluation")
        self.start = start


class SideEffects:
    """Knows which buffers f changes and whether it draws random numbers; found by watching the first evaluation.

    :param modules: every module behind f, parts included
    :param device: where the state is
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._modules = modules
        self._streams = RandomStreams(device)
        self._seen = {}
        self._places = []  # (buffers of a module, name) of those that f changes; the module itself is not held
        self.counts = False  # whether f changes a number that it keeps, such as a count of its calls
        self.draws = False  # whether f draws random numbers
        self._start: Any = None
        self._end: Any = None
        self._n_checks, self._next_check = 0, 8
        self._statistics: tuple[Any, Any] = (), None
        self._counters: list[tuple[dict, str]] | None = None  # numbers that modules keep

    def watch(self, evaluate: Callable[[], Any], *, numbers: bool = False) -> Any:
        """Run the first evaluation and note what it changed; returns what it returned.

        :param numbers: look at Python's numbers too
        :raises ValueError: a lazy module has not been called yet, so that its buffers have no shape
        """
        for module, _, name, buffer in self._buffers():
            if isinstance(buffer, nn.UninitializedBuffer):
                owner = type(module).__name__
                raise ValueError(f"{name} of {owner} has no shape yet: call that module once before the solve")
        kept = self._numbers() if numbers else None
        self._seen = {(id(buffers), name): _identity(buffer) for _, buffers, name, buffer in self._buffers()}
        # BatchNorm updates its statistics without telling the version counter
        self._places = [
            (buffers, name)
            for module, buffers, name, _ in self._buffers()
            if isinstance(module, batch_norms) and module.training and module.track_running_stats
        ]
        self._statistics = list(self._places), self.mark()
        with _alone():
            self._start = self._streams.state()
            result = evaluate()
            self._note_draws()
        self._note_changes()
        self.counts = numbers and self._numbers() != kept
        return result

    def restart(self, start: list[Tensor]) -> None:
        """The solve begins anew: f is known to draw random numbers, and the stream stands where it stood."""
        self.draws = True
        self._streams.set(start)

    def check_stream(self, *, last: bool = False) -> None:
        """To be called at every step of the forward pass; looks at the 8th, 16th, 32nd ..., and at the last.

        :raises DrawsLate: f began to draw after its first evaluation, so that its evaluations do not see the same
        numbers
        """
        self._n_checks += 1
        if self.draws or self._start is None or not (last or self._n_checks == self._next_check):
            return
        self._next_check *= 2
        if self._streams.is_at(self._start):
            return
        places, mark = self._statistics
        if mark is not None:
            _put_back(places, *mark)
        raise DrawsLate(self._start)

    def finish(self) -> None:
        """To be called when the forward pass is over: notes what only later evaluations changed, and lets the random
        stream stand behind what f drew.

        :raises DrawsLate: as `check_stream`
        """
        self.check_stream(last=True)
        if self._start is not None:
            self._note_changes()
            if self.draws:
                self._streams.set(self._end if self._end is not None else self._start)
        self._modules, self._seen, self._statistics, self._counters = (), {}, ((), None), []

    def mark(self) -> Any:
        """The buffers that f changes and copies of them, for `rewind`."""
        if not self._places:
            return None
        tensors = [buffers[name] for buffers, name in self._places]
        return tensors, [None if tensor is None else tensor.clone() for tensor in tensors]

    def rewind(self, mark: Any) -> None:
        """Put the buffers back. Through .data: kept graphs must not see a new version of what they saved."""
        if mark is not None:
            _put_back(self._places, *mark)

    @contextlib.contextmanager
    def same_numbers(self) -> Iterator[None]:
        """Context of an evaluation of an f that draws: the random stream begins where it always begins in this solve,
        and how far it goes is remembered. One thread at a time: the stream belongs to all."""
        with _alone():
            self._streams.set(self._start)
            yield
            self._note_draws()

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        """Context of a recomputation: buffers and random streams end as they began."""
        self._note_changes()
        mark, end, stream = self.mark(), self._end, self._streams.state()
        try:
            yield
        finally:
            self.rewind(mark)
            self._end = end
            self._streams.set(stream)

    def replayed(self, evaluate: Callable[[], Any]) -> Any:
        """What an evaluation returns that leaves buffers and random streams as they are."""
        with self.replay():
            return evaluate()

    @contextlib.contextmanager
    def no_trace(self) -> Iterator[None]:
        """As `replay`, for what is no part of the solve: the numbers that modules keep are put back as well."""
        if self._counters is None:
            parts = ((vars(m), name, v) for m in self._modules for name, v in vars(m).items())
            self._counters = [(place, name) for place, name, v in parts if type(v) in (int, float)]
        kept = [place.get(name) for place, name in self._counters]
        with self.replay():
            try:
                yield
            finally:
                for (place, name), value in zip(self._counters, kept):
                    if place.get(name) is not value:
                        place[name] = value

    def _note_draws(self) -> None:
        state = self._streams.state()
        if not same(state, self._start):
            self.draws = True
            if self._end is None:
                self._end = state
            elif not same(state, self._end):
                self._end = self._streams.furthest(self._start, self._end, state)

    def _note_changes(self) -> None:
        """Take in the buffers that changed since the first evaluation; not one that it made out of nothing."""
        known = {(id(buffers), name) for buffers, name in self._places}
        for _, buffers, name, buffer in self._buffers():
            key = id(buffers), name
            before = self._seen.get(key)
            if before is not None and before != _identity(buffer) and key not in known:
                self._places.append((buffers, name))

    def _buffers(self) -> list[tuple[nn.Module, dict, str, Tensor]]:
        return [(m, m._buffers, name, b) for m in self._modules for name, b in m._buffers.items() if b is not None]

    def _numbers(self) -> list[int | float]:
        return [v for module in self._modules for v in vars(module).values() if isinstance(v, (int, float))]


_DRAWING = threading.RLock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Context in which no other thread has a func draw. One that waits in vain, since func itself waits for it, goes
    on.
    """
    held = _DRAWING.acquire(timeout=10.0)
    try:
        yield
    finally:
        if held:
            _DRAWING.release()


@contextlib.contextmanager
def without_trace(func: Callable, device: torch.device) -> Iterator[None]:
    """Context after which every buffer of the modules behind func, and the random streams, are as before."""
    streams = RandomStreams(device)
    stream = streams.state()
    places = [(m._buffers, name) for m in modules_of(func) for name in m._buffers]
    tensors = [buffers[name] for buffers, name in places]
    copies = [None if tensor is None else tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        _put_back(places, tensors, copies)
        streams.set(stream)


def _put_back(places: Any, tensors: Any, copies: Any) -> None:
    for (buffers, name), tensor in zip(places, tensors):
        buffers[name] = tensor
    pairs: list[Any] = [(tensor.data, copy) for tensor, copy in zip(tensors, copies) if tensor is not None]
    if pairs:
        torch._foreach_copy_(*map(list, zip(*pairs)))  # type: ignore[arg-type]


def _identity(buffer: Tensor) -> tuple[int, int | None]:
    return id(buffer), None if buffer.is_inference() else buffer._version


class _NoSideEffects:
    def check_stream(self) -> None:
        pass

    def mark(self) -> None:
        return None

    def rewind(self, mark: None) -> None:
        pass


NO_SIDE_EFFECTS = _NoSideEffects()
