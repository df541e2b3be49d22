"""An ODE as a layer."""

from torch import nn

from .api import solve_endtime
from .settings import checked_compile, checked_memory, checked_settings


class ODEBlock(nn.Module):
    """z(t0) -> z(t1) along z' = func(t, z), for use inside networks.

    :param func: func(t, z) -> dz/dt, usually a module (its parameters are then the block's)
    :param t0: time of the input
    :param t1: time of the output, after t0 or before it
    :param method: this and all other settings are those of `solve`

    `configure` changes settings on a trained model, for instance to test it with another solver. ``stats`` holds the
    counts of the last call.
    """

    SETTINGS = ("method", "rtol", "atol", "h", "gradient", "options", "max_evals", "memory", "compile")

    def __init__(
        self, func, *, t0=0.0, t1=1.0, method="RK12", rtol=1e-2, atol=1e-2, h=None, gradient="aca", options=None,
        max_evals=50_000, memory=None, compile=False,
    ):  # fmt: skip
        super().__init__()
        self.func, self.t0, self.t1 = func, t0, t1
        self.stats = None
        self._settings = {}
        self.configure(
            method=method, rtol=rtol, atol=atol, h=h, gradient=gradient, options=options, max_evals=max_evals,
            memory=memory, compile=compile,
        )  # fmt: skip

    def configure(self, **settings):
        """Change settings by name; the others stay. Returns the block.

        :raises ValueError: a setting that `solve` would refuse; nothing is changed then
        """
        unknown = sorted(set(settings) - set(self.SETTINGS))
        if unknown:
            raise ValueError(f"unknown setting {', '.join(unknown)}; accepted: {', '.join(self.SETTINGS)}")
        changed = self._settings | settings
        checked_memory(changed["memory"], changed["gradient"])
        checked_compile(changed["compile"], changed["gradient"])
        others = ("max_evals", "memory", "compile")
        checked_settings(**{name: value for name, value in changed.items() if name not in others})
        self._settings = changed
        return self

    @property
    def settings(self):
        """The solver's settings, as a dict."""
        return dict(self._settings)

    def forward(self, z):
        """z at t0, a tensor or nested state -> the same at t1."""
        z1, self.stats = solve_endtime(self.func, z, self.t0, self.t1, **self._settings)
        return z1

    def extra_repr(self):
        shown = {name: value for name, value in self._settings.items() if value is not None}
        return f"[{self.t0}, {self.t1}], " + ", ".join(f"{name}={value}" for name, value in shown.items())
