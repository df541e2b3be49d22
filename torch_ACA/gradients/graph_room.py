"""The room that all solves of a process share for the graphs of their steps.

A solve takes of it step by step and gives all back when its backward pass is over, or when nothing refers to it any
more. Many solves that wait for one backward pass, as those of an ODE-RNN, thus hold no more than one alone could.
"""

from __future__ import annotations

import os
from collections import deque
from threading import Lock


class GraphRoom:
    """So many bytes, to be shared. Threads may take of it at once; a process that is forked off has a room like it."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._free, self._lock = float(n_bytes), Lock()
        # What was given back is counted when someone takes again: garbage collection, which may come at any time, even
        # while the lock is held, must not wait for it.
        self._returned: deque[float] = deque()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._new_lock)

    def _new_lock(self) -> None:
        self._lock = Lock()  # a thread that is not here may have held the old one

    @property
    def free(self) -> float:
        """How many bytes nobody holds."""
        with self._lock:
            while self._returned:
                self._free += self._returned.popleft()
            return self._free

    def share(self) -> RoomShare:
        """A share, empty as yet."""
        return RoomShare(self)

    def take(self, n_bytes: float) -> bool:
        """Take so many bytes, if they are free."""
        if n_bytes > self.free:
            return False
        with self._lock:
            if n_bytes > self._free:  # another thread was faster
                return False
            self._free -= n_bytes
        return True

    def give_back(self, n_bytes: float) -> None:
        """Return what `take` took."""
        self._returned.append(n_bytes)


class RoomShare:
    """What one solve holds of a `GraphRoom`; given back with `end`, or when the share is forgotten."""

    __slots__ = ("_room", "taken")

    def __init__(self, room: GraphRoom) -> None:
        self._room, self.taken = room, 0.0

    def take(self, n_bytes: float) -> bool:
        """Take so many bytes more, if they are free."""
        if not self._room.take(n_bytes):
            return False
        self.taken += n_bytes
        return True

    def fits(self, n_bytes: float) -> bool:
        """Whether so many bytes more would be free now."""
        return n_bytes <= self._room.free

    def end(self) -> None:
        """Give all back."""
        taken, self.taken = self.taken, 0.0
        if taken:
            self._room.give_back(taken)

    __del__ = end


NO_ROOM = GraphRoom(0)
SHARED_GRAPHS = GraphRoom(64 * 2**20)
