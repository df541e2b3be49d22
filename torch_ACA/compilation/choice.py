"""Step-size control without branches, for compiled loops: numbers are 0-d float64 tensors, answers are 0-d bool ones.

The formulas are `Controller.factor`, `Controller.limit` and `march.lands` themselves. What branches on Python's numbers
there (`Controller.judge`, `Controller.initial_step`, `march.next_step`, `march.check_limits`) chooses between results
here; the tests hold both together.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..controller import Controller, FixedSteps, Verdict, rms_norm
from ..march import EPS, lands

SETTINGS = ("safety", "ifactor", "dfactor", "beta", "min_step", "max_step")


def is_plain(controller: Any) -> bool:
    """Whether a controller is one that this module knows."""
    if not isinstance(controller, Controller) or controller.norm is not rms_norm:
        return False
    return all(value.numel() for value in (controller.rtol, controller.atol) if isinstance(value, torch.Tensor))


def settings_of(controller: Any) -> Tensor:
    """A `Controller`'s numbers as a float64 tensor on the CPU, which nobody writes to: `SETTINGS` and behind them rtol
    and atol, one number each or as many as the flat state has. None, of fixed steps."""
    if isinstance(controller, FixedSteps):
        return torch.empty(0, device="cpu")
    tolerances = controller.rtol, controller.atol
    if not any(isinstance(value, torch.Tensor) for value in tolerances):
        return _settings_of_floats(controller)
    kind: Any = {"dtype": torch.float64, "device": "cpu"}
    parts = torch.broadcast_tensors(*(torch.as_tensor(value, **kind) for value in tolerances))
    return torch.cat([torch.tensor(_numbers(controller), **kind), *parts])


@functools.lru_cache(64)
def _settings_of_floats(controller: Controller) -> Tensor:
    return torch.tensor([*_numbers(controller), controller.rtol, controller.atol], dtype=torch.float64, device="cpu")


def _numbers(controller: Controller) -> list[float]:
    return [getattr(controller, name) for name in SETTINGS]


def controller_of(settings: Tensor, error_order: int) -> Controller:
    """The `Controller` with these numbers: 0-d tensors, or tolerances [n]."""
    numbers, tolerances = settings[: len(SETTINGS)].unbind(), settings[len(SETTINGS) :].unflatten(0, (2, -1))
    rtol, atol = (value.squeeze(0) for value in tolerances)  # of one number: 0-d
    return Controller(rtol, atol, error_order, **dict(zip(SETTINGS, numbers)))  # type: ignore[arg-type]


def rms(x: Tensor) -> Tensor:
    """As `controller.rms_norm`, in float64."""
    return torch.linalg.vector_norm(x).double() / math.sqrt(max(x.numel(), 1))


def error_ratio(controller: Controller, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
    return rms(error / controller.scale(torch.maximum(y0.abs(), y1.abs())))


def next_step(t: Any, stop: Any, size: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Whether the step lands on the stop; its h, and its end."""
    landing: Any = lands(t, stop, size)
    h = torch.where(landing, stop - t, torch.copysign(size, stop - t))
    return landing, h, torch.where(landing, stop, t + h)


def is_stuck(t: Any, h: Any, span: Any, rejected: Tensor) -> Tensor:
    """Whether a step size has become too small for another try."""
    least = 10 * EPS * torch.maximum(t.abs(), span.clamp(max=1.0))
    return rejected & ((h.abs() <= least) | (t + h == t))


def verdict(
    controller: Controller, ratio: Tensor, previous: Any, size: Any, h: Any, *, landing: Tensor, rejected: Tensor
) -> Verdict:
    """As `Controller.judge`."""
    finite: Any = torch.isfinite(ratio)
    factor = torch.where(ratio == 0.0, controller.ifactor, controller.factor(ratio, previous))
    factor = torch.where(finite, factor, controller.dfactor)
    at_minimum: Any = torch.minimum(size, h.abs()) <= controller.min_step
    accepted: Any = finite & ((ratio <= 1.0) | at_minimum)
    proposed = controller.limit(h.abs() * torch.where(rejected | ~accepted, factor.clamp(max=1.0), factor))
    keeps_size = accepted & landing & ~rejected
    has_memory: Any = controller.beta != 0.0
    remembered = torch.where(has_memory, ratio.clamp(max=1.0), 1.0)
    return Verdict(
        accepted,
        finite,
        at_minimum,
        torch.where(keeps_size, torch.maximum(proposed, size), proposed),
        torch.where(accepted, remembered, previous),
    )


def initial_step(controller: Controller, evaluate: Callable, t0: Any, t1: Any, y0: Tensor, k1: Tensor) -> Tensor:
    """As `Controller.initial_step`."""
    span = (t1 - t0).abs()
    scale = controller.scale(y0.abs())
    d0, d1 = rms(y0 / scale), rms(k1 / scale)
    tiny = 1e-6 * span.clamp(max=1.0)
    unclear = (d0 < 1e-5) | (d1 < 1e-5) | ~torch.isfinite(d0 + d1)
    size = torch.minimum(torch.where(unclear, tiny, 0.01 * d0 / d1), span)
    probe = torch.copysign(size, t1 - t0)
    d2 = rms((evaluate(t0 + probe, y0 + probe * k1) - k1) / scale) / size
    steepest = torch.maximum(d1, d2)
    by_slope = (0.01 / steepest) ** (1 / controller.error_order)
    longer = torch.where(steepest <= 1e-15, torch.maximum(tiny, 1e-3 * size), by_slope)
    found = torch.minimum(torch.minimum(100 * size, longer), span)
    return controller.limit(torch.where(torch.isfinite(steepest), found, size))
