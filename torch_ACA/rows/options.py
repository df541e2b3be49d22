"""What ``per_sample=True`` goes together with."""

from ..march import Callbacks

_TAKEN = frozenset({
    "safety", "ifactor", "dfactor", "beta", "min_step", "max_step", "first_step", "max_num_steps", "interp", "step_t",
    "jump_t", "land_on_t",
})  # fmt: skip


def check_per_sample(asked, settings):
    """Refuse what rows with steps of their own do not have.

    :param asked: `SolverOptions`
    :param settings: the checked `Settings` of its method
    :raises ValueError: an option or a combination that cannot be used
    """
    from ..tableaus import Tableau  # here, since tableaus need steppers

    method = settings.method
    if asked.gradient != "aca":
        raise ValueError(f"per_sample needs gradient='aca', got {asked.gradient!r}")
    if not isinstance(method, Tableau) or not method.adaptive or settings.controller.error_order is None:
        raise ValueError(f"per_sample needs an explicit Runge-Kutta method with adaptive steps, got {method.name}")
    given = {
        "memory": asked.memory is not None,
        "compile": asked.compile is not False,
        "dense": asked.dense,
        "record": asked.record,
        "callbacks": asked.callbacks not in (None, Callbacks()),
    } | {f"options={{{name!r}: ...}}": name not in _TAKEN for name in settings.options}
    for name, refused in given.items():
        if refused:
            raise ValueError(f"per_sample cannot be combined with {name}")
