"""How the Jacobian of func is had: as one matrix or a block for every row of a batch, from func or from the user.

Where func acts row by row, df/dy is block diagonal: VJPs with the same unit vector in every row give a row of all
blocks at once, m of them for rows of m numbers. What they cannot tell row from row is df/dt: it is the derivative of a
VJP with respect to its cotangent, in which a VJP is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .autocast import coarsest_rounding
from .errors import JacobianError, SecondDerivativeError
from .kept_func import KeptFunc
from .rows.layout import RowLayout

if TYPE_CHECKING:
    from .linearisation import Linearisation
    from .state import StateLayout

NO_TIME_DERIVATIVE = (
    "df/dt could not be found: func's own backward pass has no derivative. Write the backward of its custom "
    "autograd.Function with differentiable operations of PyTorch, or leave jac and jac_structure out"
)


class Derivative(NamedTuple):
    """df/dy [n, n], or [b, m, m] of b rows of m numbers, and df/dt [n]."""

    of_state: torch.Tensor
    of_time: torch.Tensor

    def bound(self) -> float:
        """A number that no eigenvalue of df/dy exceeds: the smaller of its largest row and column sums."""
        sizes = self.of_state.detach().abs()
        if sizes.numel() == 0:
            return 0.0
        return float(torch.minimum(*(sizes.sum(dim).amax(-1) for dim in (-1, -2))).max())


class OneBlock:
    """The flat state as one system, with the members of `RowLayout` that `Jacobian` and its users need."""

    def __init__(self, layout: StateLayout) -> None:
        self.count, self.width = 1, layout.size

    def rows(self, flat: torch.Tensor) -> torch.Tensor:
        """[..., n] as it is."""
        return flat

    flat = rows


class Jacobian:
    """Of func.

    :param layout: `StateLayout`
    :param function: the user's jac(t, y), or None
    :param by_rows: func acts row by row
    :raises ValueError: a state that does not go with it
    """

    asked = "jac_structure='rows'"

    def __init__(self, layout: StateLayout, function: Callable | None = None, *, by_rows: bool = False) -> None:
        if function is not None and not layout.is_a_tensor:
            raise ValueError("jac needs a state that is one real tensor, not nested, not of half precision")
        self.layout, self._function = layout, function
        self._kept: KeptFunc | None = None
        self.blocks: Any = RowLayout(layout) if by_rows else OneBlock(layout)
        self.by_rows, self._n_found = by_rows, 0

    @property
    def is_given(self) -> bool:
        """Whether the user says something of it that may be wrong."""
        return self.by_rows or self.is_users

    @property
    def is_users(self) -> bool:
        return self._function is not None or self._kept is not None

    def finish(self, unused: Callable) -> None:
        """To be called when the forward pass is over: as `VectorField.finish`."""
        if self._function is not None:
            self._kept, self._function = KeptFunc(self._function, unused), None

    def of(self, at: Linearisation, *, create_graph: bool = False) -> Derivative:
        """At a `Linearisation`; create_graph: differentiable in what f depends on, which the user's function may not
        be: then from f."""
        if self.is_users and not create_graph:
            found = Derivative(self._by_user(at), at.of_time())
        else:
            found = self.from_func(at, create_graph=create_graph)
        with torch.no_grad():
            eps = coarsest_rounding(at.field, at.value if self._is_due(self._n_found + 1) else None)
            self.check(at.products, at.leaf, at.time, found, eps)
        return found

    def from_func(self, at: Linearisation, *, create_graph: bool = False) -> Derivative:
        """As `of`, but what the user says is not looked at, nor checked."""
        products = at.products(self.units(at.leaf), create_graph=create_graph)
        of_time = self.of_time(at, products, create_graph=create_graph)
        return Derivative(self.matrices(products[:, : at.leaf.numel()]), of_time)

    def of_time(self, at: Linearisation, products: torch.Tensor, *, create_graph: bool) -> torch.Tensor:
        """df/dt [n], which the products with `units` may tell."""
        return at.of_time(create_graph=create_graph) if self.by_rows else products[:, -1]

    def units(self, like: torch.Tensor) -> torch.Tensor:
        """Unit vectors, the same in every row: [m, n]."""
        units = torch.eye(self.blocks.width, dtype=like.dtype, device=like.device)
        return self.blocks.flat(units[:, None].expand(-1, self.blocks.count, -1)) if self.by_rows else units

    def matrices(self, products: torch.Tensor) -> torch.Tensor:
        """df/dy from its products [m, n] with `units`."""
        return self.blocks.rows(products).transpose(0, 1) if self.by_rows else products

    def state_products(self, cotangents: torch.Tensor, of_state: torch.Tensor) -> torch.Tensor:
        """Products of cotangents [k, n] with df/dy: [k, n]."""
        return self.blocks.flat((self.blocks.rows(cotangents)[..., None, :] @ of_state).squeeze(-2))

    def time_products(self, cotangents: torch.Tensor, of_time: torch.Tensor) -> torch.Tensor:
        """Products of cotangents [k, n] with df/dt, as those of func: [k, 1]."""
        return (cotangents @ of_time)[:, None]

    def wrong_times(self, wrong: torch.Tensor, where: str) -> Exception:
        """The error of products with df/dt that are not those of func.

        :param wrong: of which of the times, flags
        """
        return SecondDerivativeError(NO_TIME_DERIVATIVE)

    def cotangents(self, lambdas: torch.Tensor, slopes: torch.Tensor, weights: torch.Tensor) -> Derivative:
        """The `Derivative` with which sum_i lambda_i (J k_i + d_i f_t) is a scalar product.

        :param lambdas, slopes: [s, n]
        :param weights: d [s]
        """
        left, right = (self.blocks.rows(x) for x in (lambdas, slopes))
        return Derivative(left.movedim(0, -1) @ right.movedim(0, -2), weights @ lambdas)

    def check(
        self, products: Callable, y: torch.Tensor, t: torch.Tensor, found: Derivative, eps: float
    ) -> None:  # fmt: skip
        """Compare with VJPs of func, the first time and then ever more rarely; what is infinite or NaN there is left
        to the solver.

        :param products: cotangents [k, n] -> their products with df/dy and, last, df/dt at t, y: [k, n + 1], where each
            row has its time [k, n + b]
        :param eps: rounding of func's arithmetic, relative
        :raises JacobianError: the user's function is not its Jacobian, or func does not act row by row
        """
        self._n_found += 1
        if not self._is_due(self._n_found) or not y.numel():
            return
        found = Derivative(*(part.detach() for part in found))
        cotangents, inside = self._probes(y)
        expected, (made, sizes) = products(cotangents).detach(), (
            torch.cat([self.state_products(c, m), self.time_products(c, f_t)], 1)
            for c, m, f_t in ((cotangents, *found), (cotangents.abs(), *map(torch.abs, found)))
        )  # fmt: skip
        largest = torch.maximum(expected, made).nan_to_num(0.0, 0.0, 0.0).abs().max()
        excess = (expected - made).abs() - eps**0.5 * sizes - min(1e3 * eps, eps**0.5) * largest
        excess = torch.where(expected.isfinite(), excess, torch.zeros_like(excess))
        if bool(excess.max() <= 0):
            return
        wrong, where = ~(excess <= 0), f"at t = {float(t.detach().reshape(-1)[0]):.6g}"
        of_state, of_time = wrong.split([y.numel(), t.numel()], 1)
        outside = of_state & ~inside
        if bool(outside.any()):
            raise JacobianError(f"{self.asked}, but {where} func couples rows: {_first(outside)}")
        if self.is_users and bool(of_state.any()):
            raise JacobianError(f"jac(t, y) is not df/dy as autograd finds it, {where}: {_first(of_state)}")
        if bool(of_time.any()):
            raise self.wrong_times(of_time.any(0), where)
        raise JacobianError(f"df/dy, {where}, is not what VJPs of func say, {_first(of_state)}: is func deterministic?")

    def _is_due(self, number: int) -> bool:
        return self.is_given and not number & (number - 1)

    def _probes(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cotangents [k, n], and which entries a func that acts row by row pulls them back to.

        Rows with a zero, and then with a one, at one binary place of their numbers: any two rows are told apart.
        """
        # no pattern that func may have as well
        weights = torch.cos(torch.arange(1, len(like) + 1, device=like.device)).to(like)[None]
        if not self.by_rows or self.blocks.count == 1:
            return weights, torch.ones_like(weights, dtype=torch.bool)
        numbers = torch.arange(self.blocks.count, device=like.device)
        places = range((self.blocks.count - 1).bit_length())
        inside = torch.stack([self.blocks.spread((numbers >> place) % 2 == bit) for place in places for bit in (0, 1)])
        return weights * inside, inside

    def _by_user(self, at: Linearisation) -> torch.Tensor:
        """[n, n] or [b, m, m]."""
        layout, function = self.layout, self._function or self._kept()
        t, y = at.time.detach(), layout.unflatten(at.leaf.detach())
        with torch.no_grad(), at.field.side_effects.replay():
            matrix = function(t, y)
        if not isinstance(matrix, torch.Tensor) or matrix.is_complex():
            raise TypeError(f"jac must return a real tensor, got {getattr(matrix, 'dtype', type(matrix).__name__)}")
        count, width, shape = self.blocks.count, self.blocks.width, tuple(y.shape)
        accepted = {(count, width, width), (count, *shape[1:], *shape[1:])} if self.by_rows else {
            (width, width), shape + shape
        }  # fmt: skip
        if tuple(matrix.shape) not in accepted:
            raise ValueError(f"jac must return shape {min(accepted, key=len)}, got {tuple(matrix.shape)}")
        matrix = matrix.detach().to(at.leaf)
        return matrix.reshape((count, width, width) if self.by_rows else (width, width))


def _first(wrong: torch.Tensor) -> str:
    """In words: the first column of the Jacobian in which what is said is wrong."""
    column = int(wrong.any(0).nonzero()[0])
    return f"column {column}, the derivative by y.reshape(-1)[{column}]"
