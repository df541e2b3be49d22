"""Functions of tensors around the graph of func, for one method: what code is generated for.

Times are float64 tensors: (t, h, end) of a step. ``others`` are the tensors that func depends on, in the order of
`FuncGraph.others`; slopes are rows [n].
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..steppers.dense_output import combine
from ..steppers.runge_kutta import taken
from .controller_settings import controller_of


class Steps(ABC):
    """What methods have in common.

    :param graph: `FuncGraph`
    :param tableau: the method
    """

    def __init__(self, graph: Any, tableau: Any) -> None:
        self.graph, self.tableau = graph, tableau
        self.key: tuple = (tableau,)  # by which code made of this is found
        self.own, self.evaluations = self.counts()
        self.reached: list[bool] | None = None  # per wanted tensor: whether `vjp` found a gradient, once traced

    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """How many slopes a step pays for, and how many evaluations of func a `trial`."""

    def within(self, window: Tensor) -> "Steps":
        """These steps of a func that sees no times outside of a window [2], where it jumps."""
        steps = copy.copy(self)
        steps.graph = _Within(self.graph, window)
        return steps

    @abstractmethod
    def step(self, times: Sequence[Tensor], y: Tensor, slope: Any, others: Sequence[Tensor]) -> Any:
        """State at the end, slopes, error estimate (None: fixed steps); differentiable where gradients are on.

        :param slope: the first one, if it is known
        """

    @abstractmethod
    def trial(self, times: Sequence[Tensor], y: Tensor, slope: Tensor, others: Sequence[Tensor]) -> Any:
        """As `step`, and the slope that the next trial is to know."""

    def start(self, times: Tensor, settings: Tensor, y: Tensor, others: Sequence[Tensor]) -> Any:
        """Slope and first step size of a solve.

        :param times: its first and its last
        :param settings: `settings_of` its controller
        """
        t0, t1 = times
        slope = self.graph(t0, y, others)
        controller = controller_of(settings, self.tableau.error_order)
        size = controller.initial_step(lambda t, x: self.graph(t, x, others), t0, t1, y, slope)
        return slope.clone(), size

    def vjp(
        self,
        times: Tensor,
        y: Tensor,
        y_bar: Tensor,
        slopes_bar: Any,
        totals: Sequence[Tensor],
        others: Sequence[Tensor],
        time_grad: bool,
    ) -> Any:
        """An accepted step again, and cotangents pulled back through it.

        :param slopes_bar: cotangents of the slopes that the step pays for [own, n], or of the slope at its end too
            [own + 1, n]; None for nothing
        :param totals: gradients so far of the wanted ones of ``others``
        :returns: cotangent of y, new totals, cotangent of times [3] or None, state at the end, slopes [own, n]
        """
        with torch.enable_grad():
            leaves = self._leaves(others)
            times, y = times.detach().requires_grad_(time_grad), y.detach().requires_grad_()
            y1, slopes, _ = self.step(times.unbind(), y, None, leaves)
            outputs, bars = [y1], [y_bar]
            if slopes_bar is not None:
                if len(slopes_bar) > len(slopes):
                    slopes.append(self.graph(times[2], y1, leaves))
                outputs += slopes[: len(slopes_bar)]
                bars += slopes_bar.unbind()
            slopes = slopes[: self.own]
            found = self._pulled_back(outputs, bars, [y, *self._wanted(leaves), *([times] if time_grad else [])])
        self.reached = [g is not None for g in found[1 : 1 + len(totals)]]
        times_bar = None
        if time_grad:
            times_bar = torch.zeros_like(times) if found[-1] is None else found[-1]
        return (
            torch.zeros_like(y_bar) if found[0] is None else found[0],
            [total if g is None else total + g for total, g in zip(totals, found[1:])],
            times_bar,
            y1.detach(),
            [slope.detach() for slope in slopes],
        )

    def slope_vjp(
        self, t: Any, y: Tensor, bar: Tensor, totals: Sequence[Tensor], others: Sequence[Tensor], time_grad: bool
    ) -> Any:
        """As `vjp`, through one evaluation of func: cotangent of y, new totals, cotangent of t or None, the slope."""
        with torch.enable_grad():
            leaves = self._leaves(others)
            t, y = t.detach().requires_grad_(time_grad), y.detach().requires_grad_()
            slope = self.graph(t, y, leaves)
            found = self._pulled_back([slope], [bar], [y, *self._wanted(leaves), *([t] if time_grad else [])])
        t_bar = None
        if time_grad:
            t_bar = torch.zeros_like(t) if found[-1] is None else found[-1]
        return (
            torch.zeros_like(bar) if found[0] is None else found[0],
            [total if g is None else total + g for total, g in zip(totals, found[1:])],
            t_bar,
            slope.detach(),
        )

    def _leaves(self, others: Sequence[Tensor]) -> Any:
        wanted = set(self.graph.wanted)
        return [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(others)]

    def _wanted(self, leaves: Sequence[Tensor]) -> Any:
        return [leaves[i] for i in self.graph.wanted]

    @staticmethod
    def _pulled_back(outputs: Sequence[Tensor], bars: Sequence[Tensor], wanted: Sequence[Tensor]) -> Any:
        pairs = [(output, bar) for output, bar in zip(outputs, bars) if output.requires_grad]
        if not pairs:
            return [None] * len(wanted)
        outputs, bars = zip(*pairs)
        return torch.autograd.grad(outputs, wanted, bars, allow_unused=True)


class _Within:
    """The graph of func at the times of a window, with derivatives by those that it is asked for."""

    def __init__(self, graph: Any, window: Tensor) -> None:
        self._graph, self._window, self.wanted = graph, window, graph.wanted

    def __call__(self, t: Tensor, y: Tensor, others: Sequence[Tensor]) -> Tensor:
        now = t.detach()
        return self._graph(t + (now.clamp(*self._window.unbind()) - now), y, others)


class RungeKuttaSteps(Steps):
    """Of an explicit method.

    :param tableau: `Tableau`
    """

    def counts(self) -> tuple[int, int]:
        stages, fsal = self.tableau.stages, self.tableau.fsal
        return stages - fsal, stages - 1 if fsal else stages

    def step(self, times: Sequence[Tensor], y: Tensor, slope: Any, others: Sequence[Tensor]) -> Any:
        t, h, end = times
        y1, slopes = taken(self.tableau, lambda t, x, at_end: self.graph(t, x, others), t, h, y, end, slope)
        error = h * combine(self.tableau.b_error, slopes) if self.tableau.adaptive else None
        return y1, slopes, error

    def trial(self, times: Sequence[Tensor], y: Tensor, slope: Tensor, others: Sequence[Tensor]) -> Any:
        y1, slopes, error = self.step(times, y, slope, others)
        if not self.tableau.fsal:
            slopes.append(self.graph(times[2], y1, others))
        return y1, slopes, error, slopes[-1]
