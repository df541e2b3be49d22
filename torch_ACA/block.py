"""`ODEBlock`: an ODE as a layer."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from .api import solve_endtime
from .march import Stats
from .notices import shown
from .option_checks import as_float, check_callable
from .solver_options import SolverOptions, takes_options

_WITHOUT = ("dense", "on_failure", "record", "args")  # a layer returns the state at t1 alone, and args with each batch


class ODEBlock(nn.Module):
    """z(t0) -> z(t1) along z' = func(t, z), for use inside networks.

    :param func: func(t, z) -> dz/dt, usually a module (its parameters are then the block's)
    :param t0: time of the input
    :param t1: time of the output, after t0 or before it
    :param settings: options as in `SolverOptions`, those in ``SETTINGS``. By default those of the paper's networks:
        Heun-Euler (RK12), tolerances of 1e-2, at most 50,000 evaluations

    `configure` changes settings on a trained model, for instance to test it with another solver. ``stats`` holds the
    counts of the last call.
    """

    SETTINGS = tuple(field.name for field in fields(SolverOptions) if field.name not in _WITHOUT)

    @takes_options(without=_WITHOUT, method="RK12", rtol=1e-2, atol=1e-2, max_evals=50_000)
    def __init__(
        self, func: Callable, *, t0: float | torch.Tensor = 0.0, t1: float | torch.Tensor = 1.0, **settings: Any
    ) -> None:
        super().__init__()
        check_callable(func, "func(t, y)")
        for name, time in (("t0", t0), ("t1", t1)):
            if not isinstance(time, torch.Tensor) and as_float(name, time) is None:
                raise TypeError(f"{name} must be a number or a tensor, got {shown(time)}")
        if not any(isinstance(time, torch.Tensor) for time in (t0, t1)) and (t0 == t1 or not math.isfinite(t1 - t0)):
            raise ValueError(f"t0 and t1 must be finite and differ, got {shown(t0)} and {shown(t1)}")
        self.func, self.t0, self.t1 = func, t0, t1
        self.stats: Stats | None = None
        asked = SolverOptions(**settings)
        self._settings: dict[str, Any] = {}
        self.configure(**{name: getattr(asked, name) for name in self.SETTINGS})

    def configure(self, **settings: Any) -> "ODEBlock":
        """Change settings by name; the others stay. Returns the block.

        :raises ValueError: a setting that `solve` would refuse; nothing is changed then
        """
        unknown = sorted(set(settings) - set(self.SETTINGS))
        if unknown:
            raise ValueError(f"unknown setting {', '.join(unknown)}; accepted: {', '.join(self.SETTINGS)}")
        changed = self._settings | settings
        SolverOptions(**changed).check()
        self._settings = changed
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The solver's settings, as a dict."""
        return dict(self._settings)

    def forward(self, z: Any, args: Any = None) -> Any:
        """z at t0, a tensor or nested state -> the same at t1.

        :param args: with per_sample: data of the rows of this batch, tensors [b, ...]; as for `solve`
        """
        z1, self.stats = solve_endtime(self.func, z, self.t0, self.t1, args=args, **self._settings)
        return z1

    def extra_repr(self) -> str:
        shown = {name: value for name, value in self._settings.items() if value is not None}
        return f"[{self.t0}, {self.t1}], " + ", ".join(f"{name}={value}" for name, value in shown.items())
