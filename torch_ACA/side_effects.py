"""Makes re-evaluating f harmless: buffers that f updates (BatchNorm statistics) and random streams (dropout).

What counts: each evaluation of an accepted step, once. The probe for the initial step, rejected tries and the
recomputation in the backward pass leave no trace. A random f draws the same numbers at every evaluation of one solve
(one dropout mask per solve): fresh numbers would turn the error estimate into noise.
"""

import functools
import types

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def modules_of(func):
    """The `nn.Module`s that a callable is, is bound to, closes over, or refers to by a global name."""
    found, seen = [], set()

    def visit(candidate, depth):
        if id(candidate) in seen or depth > 3:
            return
        seen.add(id(candidate))
        if isinstance(candidate, nn.Module):
            found.append(candidate)
        elif isinstance(candidate, functools.partial):
            for part in (candidate.func, *candidate.args, *candidate.keywords.values()):
                visit(part, depth + 1)
        elif isinstance(candidate, types.MethodType):
            visit(candidate.__self__, depth + 1)
            visit(candidate.__func__, depth + 1)
        elif isinstance(candidate, types.FunctionType):
            for cell in candidate.__closure__ or ():
                try:
                    visit(cell.cell_contents, depth + 1)
                except ValueError:  # a cell that is not filled yet
                    continue
            for name in candidate.__code__.co_names:
                visit(candidate.__globals__.get(name), depth + 1)
        elif isinstance(candidate, (list, tuple)):
            for part in candidate:
                visit(part, depth + 1)
        elif callable(candidate) and not isinstance(candidate, type) and hasattr(candidate, "__dict__"):
            for part in vars(candidate).values():
                visit(part, depth + 1)

    visit(func, 0)
    return found


class SideEffects:
    """Knows which buffers f changes and whether it draws random numbers; found by watching the first evaluation."""

    def __init__(self, modules, device):
        self._modules = modules
        self._devices = [device] if device.type == "cuda" else []
        self.buffers = []
        self.counts = False  # whether f changes a number that it keeps, such as a count of its calls
        self._random_start = None

    def watch(self, evaluate, *, numbers=False):
        """Run the first evaluation and note what it changed; returns what it returned.

        :param numbers: look at Python's numbers too
        """
        kept = self._numbers() if numbers else None
        buffers = [b for m in self._modules for b in m.buffers()]
        versions = [b._version for b in buffers]
        start = self._random_state()
        result = evaluate()
        # BatchNorm updates its statistics without telling the version counter
        silent = {
            id(b)
            for module in self._modules
            for m in module.modules()
            if isinstance(m, _NormBase) and m.training and m.track_running_stats
            for b in m.buffers()
        }
        self.buffers = [b for b, v in zip(buffers, versions) if id(b) in silent or b._version != v]
        if any(not torch.equal(a, b) for a, b in zip(start, self._random_state())):
            self._random_start = start
        self.counts = numbers and self._numbers() != kept
        return result

    @property
    def draws(self):
        """Whether f draws random numbers."""
        return self._random_start is not None

    def mark(self):
        """Copies of the buffers as they are now, for `rewind`."""
        return [b.clone() for b in self.buffers]

    def rewind(self, mark):
        """Put the buffers back. Through .data: kept graphs must not see a new version of what they saved."""
        if mark:
            torch._foreach_copy_([b.data for b in self.buffers], mark)

    def before_evaluation(self):
        """Every evaluation of one solve sees the random stream from the same point."""
        if self.draws:
            self._set_random_state(self._random_start)

    def replay(self):
        """Context of a recomputation: buffers and random streams end as they began."""
        return _Replay(self)

    def _numbers(self):
        parts = (part for module in self._modules for part in module.modules())
        return [value for part in parts for value in vars(part).values() if isinstance(value, (int, float))]

    def _random_state(self):
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._devices)]

    def _set_random_state(self, states):
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:]):
            torch.cuda.set_rng_state(state, device)


class _Replay:
    def __init__(self, effects):
        self.effects = effects

    def __enter__(self):
        self.mark = self.effects.mark()
        self.random = self.effects._random_state() if self.effects.draws else None

    def __exit__(self, *exception):
        self.effects.rewind(self.mark)
        if self.random is not None:
            self.effects._set_random_state(self.random)


class _NoSideEffects:
    def mark(self):
        return None

    def rewind(self, mark):
        pass


NO_SIDE_EFFECTS = _NoSideEffects()
