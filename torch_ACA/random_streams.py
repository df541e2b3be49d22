"""The random streams that a func may draw from: where they stand, and the same numbers at every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SameNumbers:
    """Context of a few evaluations that are all to draw the same random numbers, if they draw any; behind it the
    streams stand behind whatever an evaluation drew."""

    def __init__(self, device: torch.device) -> None:
        self._streams = RandomStreams(device)
        self._start: Any = None
        self._end: Any = None

    def __enter__(self) -> SameNumbers:
        self._start = self._streams.state()
        return self

    def evaluate(self, func: Callable, *arguments: Any) -> Any:
        """What func returns; noticed if it draws."""
        if self._end is not None:
            self._streams.set(self._start)
        result, state = func(*arguments), self._streams.state()
        if not same(state, self._start):
            self._end = state if self._end is None else self._streams.furthest(self._start, self._end, state)
        return result

    def __exit__(self, *exception: Any) -> None:
        if self._end is not None:
            self._streams.set(self._end)


class RandomStreams:
    """The default random streams of PyTorch that a func on this device may draw from."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._cuda is not None:
            states.append(torch.cuda.get_rng_state(self._cuda))
        return states

    def set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._cuda is not None:
            torch.cuda.set_rng_state(states[1], self._cuda)

    def is_at(self, states: list[Tensor]) -> bool:
        return same(self.state(), states)

    def furthest(self, start: list[Tensor], one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
        """Of two states that lie behind start, stream by stream the one that is further on."""
        found = [_further_on_cpu(start[0], one[0], other[0])]
        if self._cuda is not None:  # a counter stands in the last eight bytes
            found.append(max(one[1], other[1], key=lambda state: int(state[-8:].view(torch.int64))))
        return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether streams stand at the same places. As strings: `torch.equal` takes three times as long for bytes."""
    try:
        return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(one, other))
    except RuntimeError:  # under torch.func PyTorch 2.11 wraps these tensors too
        return all(map(torch.equal, one, other))


# PyTorch's state of the Mersenne twister: seed and flags, the place in the block, 624 words of the block, the rest
_PLACE, _BLOCK = slice(16, 24), slice(24, 24 + 8 * 624)
_MOST_BLOCKS = 100_000


def _further_on_cpu(start: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Which of two states a generator that begins at start comes to last."""
    if torch.equal(one[_BLOCK], other[_BLOCK]):
        return max(one, other, key=lambda state: int(state[_PLACE].view(torch.int64)))
    generator = torch.Generator()
    generator.set_state(start)
    words = torch.empty(624, dtype=torch.int32, device="cpu")  # a block
    for _ in range(_MOST_BLOCKS):
        block = generator.get_state()[_BLOCK]
        if torch.equal(block, one[_BLOCK]):
            return other
        if torch.equal(block, other[_BLOCK]):
            return one
        words.random_(generator=generator)
    return other  # func seeds the stream itself
