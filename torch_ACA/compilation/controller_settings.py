"""The numbers of a `Controller` as a tensor, so that one code serves all tolerances and sizes."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..controller import Controller, FixedSteps, rms_norm
from ..tensor_controller import TensorController, rms

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


def controller_of(settings: Tensor, error_order: int, norm: Callable[[Tensor], Tensor] = rms) -> TensorController:
    """The controller with these numbers: 0-d tensors, or tolerances [n]."""
    numbers, tolerances = settings[: len(SETTINGS)].unbind(), settings[len(SETTINGS) :].unflatten(0, (2, -1))
    rtol, atol = (value.squeeze(0) for value in tolerances)  # of one number: 0-d
    controller = Controller(rtol, atol, error_order, **dict(zip(SETTINGS, numbers)))  # type: ignore[arg-type]
    return TensorController(controller, norm)
