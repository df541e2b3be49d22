"""Dense output: y(t + theta h) = y + h * sum_j w_j(theta) k_j for theta in [0, 1], with polynomial weights w_j.

Every interpolant here is linear in the slopes, so its value, its time derivative and its VJP are three uses of one
small matrix of polynomial coefficients. Rows are the stages; an interpolant that needs the slope at the end of the
step, and whose tableau does not end on it (no FSAL), has one more row for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch

from .transforms import under_transform

Number = Fraction | float | int


@dataclass(frozen=True)
class Polynomials:
    """``rows[j]`` holds the coefficients of theta, theta^2, ... in the weight of slope j."""

    rows: tuple

    def weights(self, theta: torch.Tensor) -> torch.Tensor:
        """w_j(theta) for a column of times: theta [m] float64 -> [m, slopes]."""
        return theta[:, None] ** self._exponents @ self.matrix

    def derivatives(self, theta: torch.Tensor) -> torch.Tensor:
        """dw_j/dtheta: theta [m] float64 -> [m, slopes]."""
        return theta[:, None] ** (self._exponents - 1) * self._exponents @ self.matrix

    def traced_weights(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """The weights as a list, for a tensor theta, entry by entry; differentiable."""
        return [theta * _horner(r, theta) for r in self.rows]

    def exact(self, theta: Fraction) -> tuple[Fraction, ...]:
        """w_j at one fraction, in exact arithmetic."""
        return tuple(sum(c * theta ** (i + 1) for i, c in enumerate(r)) for r in self.rows)

    @property
    def degree(self) -> int:
        return len(self.rows[0])

    @property
    def slopes(self) -> int:
        return len(self.rows)

    @property
    def matrix(self) -> torch.Tensor:
        """The coefficients [degree, slopes], float64, on the CPU."""
        return self._made_matrix() if under_transform() else self._kept_matrix

    @property
    def _exponents(self) -> torch.Tensor:
        return torch.arange(1, self.degree + 1, dtype=torch.float64, device="cpu")

    @cached_property
    def _kept_matrix(self) -> torch.Tensor:
        return self._made_matrix()

    def _made_matrix(self) -> torch.Tensor:
        return torch.tensor([[float(c) for c in r] for r in self.rows], dtype=torch.float64, device="cpu").T


def _horner(coefficients: Sequence[Number], theta: torch.Tensor) -> torch.Tensor | float:
    value: torch.Tensor | float = 0.0
    for c in reversed(coefficients):
        value = value * theta + float(c)
    return value


def linear_between(b: Sequence[Number]) -> Polynomials:
    """The chord from y to y1 of any tableau; global order 1."""
    return Polynomials(tuple((weight,) for weight in b))


def quadratic(b: Sequence[Number]) -> Polynomials:
    """The parabola through y, its slope k_1 and y1: global order 2, no evaluation beyond the stages."""
    rows = [(Fraction(0), weight) for weight in b]
    rows[0] = (Fraction(1), b[0] - 1)
    return Polynomials(tuple(rows))


def cubic_hermite(b: Sequence[Number], *, end_slope_is_last_stage: bool) -> Polynomials:
    """The cubic through both ends and their slopes: global order 3."""
    rows = [[Fraction(0), 3 * weight, -2 * weight] for weight in b]  # (3 theta^2 - 2 theta^3) (y1 - y)
    if not end_slope_is_last_stage:
        rows.append([Fraction(0)] * 3)
    _add(rows[0], (1, -2, 1))  # theta (1 - theta)^2 h k_1
    _add(rows[-1], (0, -1, 1))  # theta^2 (theta - 1) h k_end
    return Polynomials(tuple(tuple(r) for r in rows))


def quartic_through_midpoint(b: Sequence[Number], *, midpoint: Sequence[Number]) -> Polynomials:
    """The cubic Hermite corrected to pass through y + h * sum(midpoint_j k_j) at theta = 1/2 (FSAL tableaus)."""
    hermite = cubic_hermite(b, end_slope_is_last_stage=True)
    half = hermite.exact(Fraction(1, 2))
    rows = []
    for coefficients, target, value in zip(hermite.rows, midpoint, half):
        extended = [*coefficients, Fraction(0)]
        bump = 16 * (target - value)  # times theta^2 (1 - theta)^2, which is 1/16 at the midpoint
        _add(extended, (0, bump, -2 * bump, bump))
        rows.append(tuple(extended))
    return Polynomials(tuple(rows))


def _add(coefficients: list[Number], increments: Sequence[Number]) -> None:
    for i, increment in enumerate(increments):
        coefficients[i] += increment
