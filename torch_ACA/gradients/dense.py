"""Dense output in the forward and in the backward pass: what a `Trajectory` is made of, and what a loss says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..march import Step
    from ..steppers.base import Stepper
    from .discrete import AcceptedStep


class DenseRecord:
    """Collects what dense output needs: times [N + 1] and states [N + 1, n] at the nodes, slopes [N, slopes, n]."""

    def __init__(self, n_slopes: int) -> None:
        self.n_slopes = n_slopes
        self.times, self.states, self.slopes = [], [], []
        self.last: Step | None = None

    def add(self, step: Step, slopes: Tensor) -> None:
        self.times.append(step.t)
        self.states.append(step.start.y)
        self.slopes.append(slopes[: self.n_slopes].clone())
        self.last = step

    def add_traced(self, t: Tensor, y: Tensor, slopes: list[Tensor]) -> None:
        self.times.append(t)
        self.states.append(y)
        self.slopes.append(torch.stack(slopes[: self.n_slopes]))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        times = torch.tensor([*self.times, self.last.t_end], dtype=torch.float64, device="cpu")
        return times, torch.stack([*self.states, self.last.trial.end.y]), torch.stack(self.slopes)

    def traced_tensors(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.stack([*self.times, t]).double().cpu(), torch.stack([*self.states, y]), torch.stack(self.slopes)


class OutputCotangents:
    """What the loss says of values inside the steps: of outputs there, and of the tensors of a `Trajectory`."""

    def __init__(self, stepper: Stepper, ys_bar: Tensor, dense_bars: Sequence[Tensor]) -> None:
        self.stepper, self.ys_bar = stepper, ys_bar
        self.node_times, self.nodes, self.node_slopes = dense_bars or (None, None, None)

    def of_end(self, y0: Tensor) -> tuple[Tensor, float]:
        """Cotangents of the last state [n] and of its time."""
        if self.nodes is None:
            return torch.zeros_like(y0), 0.0
        return self.nodes[-1], float(self.node_times[-1])

    def of_step(self, i: int, step: AcceptedStep) -> tuple[Tensor | None, Tensor | None]:
        """Cotangents of the state at the start of step i [n] and of its slopes [slopes, n]; None for zero."""
        start_bar = slope_bars = None
        if step.outputs:
            start_bar, slope_bars = self.stepper.interpolate_vjp(step.h, step.weights, self.ys_bar[step.output_rows])
        if self.nodes is not None:
            start_bar = self.nodes[i] if start_bar is None else start_bar + self.nodes[i]
            slope_bars = self.node_slopes[i] if slope_bars is None else slope_bars + self.node_slopes[i]
        return start_bar, slope_bars

    def of_times(self, i: int, step: AcceptedStep, times_bar: Tensor) -> tuple[float, float]:
        """Cotangents of the start time and, but for what goes through its stages, the size of step i, whose slopes are
        in the stepper's buffer; those of output times are added to times_bar.
        """
        t_bar = 0.0 if self.nodes is None else float(self.node_times[i])
        h_bar = 0.0
        if step.outputs:
            rates, h_bar = self.stepper.interpolate_time_vjp(step.theta, self.ys_bar[step.output_rows])
            times_bar[step.outputs] += rates
            t_bar -= float(rates.sum())
        return t_bar, h_bar
