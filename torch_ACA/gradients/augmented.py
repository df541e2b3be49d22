"""The state, its cotangent and those of what func uses as one vector, which the continuous adjoint solves backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..controller import rms_norm
from ..option_checks import norm_of
from ..scipy_solver import Scipy
from ..side_effects import NO_SIDE_EFFECTS
from ..steppers.adams import Adams

if TYPE_CHECKING:
    from ..vector_field import VectorField

_PARTS = "a tuple: a 0-d zero, the leaves of the state, their cotangents, those of what func uses"


@dataclass(frozen=True)
class _FlatLayout:
    size: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def target(flat: Tensor) -> Tensor:
        return flat


class _LargestRMS:
    """The largest of the RMS norms of parts of a vector, in few operations.

    :param sizes: of the parts; what lies behind them does not count
    """

    def __init__(self, *sizes: int) -> None:
        self._sizes, self._counted = sizes, sum(sizes)
        self._weights: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._weights is None:
            self._weights = x.new_tensor([1 / math.sqrt(max(size, 1)) for size in self._sizes])
        parts = x[: self._counted].split_with_sizes(self._sizes)
        return (torch.stack([torch.linalg.vector_norm(part) for part in parts]) * self._weights).amax()


class AugmentedField:
    """Derivative of (y, a, theta_bar) with respect to time, as a vector field for the Runge-Kutta stepper."""

    side_effects = NO_SIDE_EFFECTS

    def __init__(self, field: VectorField) -> None:
        self.field = field
        self.n = field.layout.size
        self.sizes = [t.numel() * (2 if t.is_complex() else 1) for t in field.captured.tensors]
        self._split = (self.n, self.n, *self.sizes)
        self._nothing: Any = (None, (None,) * len(self.sizes), None)
        self.layout = _FlatLayout(2 * self.n + sum(self.sizes), field.layout.dtype, field.layout.device)
        self.n_evals = 0
        self.reached: list[Any] = [None] * len(self.sizes)  # True for the captured tensors that a graph led to
        self.watch_first: Callable | None = None  # called with the slope of the state of the first evaluation [n]

    def __call__(self, t: float, state: Tensor, out: Tensor, side: int = 0) -> None:
        n = self.n
        self.n_evals += 1
        y_slope, a_slope, *captured_slopes = out.split_with_sizes(self._split)
        evaluation = self.field.record(t, state[:n], y_slope, side=-side)
        if self.watch_first is not None:
            self.watch_first(y_slope)
            self.watch_first = None
        states, captured, _ = evaluation.pull(-state[n : 2 * n]) or self._nothing
        if states is None:
            a_slope.zero_()
        else:
            self.field.layout.write(states, a_slope)
        for i, slope in enumerate(captured_slopes):
            found = captured[i]
            if found is None:
                slope.zero_()
            else:
                self.reached[i] = True
                found = found if found.layout is torch.strided else found.to_dense()
                slope.copy_((torch.view_as_real(found) if found.is_complex() else found).reshape(-1))

    def slope(self, t: float, state: Tensor) -> Tensor:
        out = torch.empty_like(state)
        self(t, state, out)
        return out

    def norm(self, chosen: Any, of_state: Callable) -> Callable[[Tensor], Tensor]:
        """The error norm of augmented vectors that `AdjointSettings.norm` asks for; by default the largest of the norms
        of the state, its cotangent (both by of_state) and all captured tensors (RMS).
        """
        n, layout = self.n, self.field.layout

        def of_parts(x: Tensor) -> Tensor:
            state, cotangents = layout.unflatten_leaves(x[:n]), layout.unflatten_leaves(x[n : 2 * n])
            return norm_of(chosen, (x.new_zeros(()), *state, *cotangents, *self.captured_parts(x)), _PARTS)

        def mixed(x: Tensor) -> Tensor:
            norms = [of_state(x[:n]), of_state(x[n : 2 * n])]
            if chosen is None:
                norms.append(rms_norm(x[2 * n :]))
            return torch.stack([torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in norms]).amax()

        if callable(chosen):
            return of_parts
        counted = (n, n, sum(self.sizes)) if chosen is None else (n, n)
        return _LargestRMS(*counted) if of_state is rms_norm else mixed

    def captured_parts(self, x: Tensor) -> list[Tensor]:
        """The part of an augmented vector that belongs to the captured tensors, shaped like them."""
        return [
            torch.view_as_complex(piece.view(*tensor.shape, 2)) if tensor.is_complex() else piece.view(tensor.shape)
            for piece, tensor in zip(x[2 * self.n :].split(self.sizes), self.field.captured.tensors)
        ]

    def widened(self, method: Any) -> Any:
        """The method, its tolerances those of the augmented vector where it has some of its own."""
        if not isinstance(method, Scipy | Adams):
            return method
        return replace(method, rtol=self.tolerance(method.rtol), atol=self.tolerance(method.atol))

    def tolerance(self, value: Any) -> Any:
        """A tolerance of the state as one of the augmented vector: the captured tensors get the least of it."""
        if not isinstance(value, torch.Tensor):
            return value
        return torch.cat([value, value, value.min().expand(sum(self.sizes))])
