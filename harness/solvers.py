"""The solver's flags, the same in every experiment, for training and for testing with another solver."""

import argparse

from harness.cli import UsageError, flag, non_negative_float, positive_float, positive_int, refuse, usage_errors
from torch_ACA import FIXED_STEP_METHODS, GRADIENTS, METHODS, SolverOptions

SOLVER = ("gradient", "method", "rtol", "atol", "h", "max_evals", "compile", "per_sample")  # keywords of `solve`
TEST_SOLVER = ("method", "rtol", "atol", "h", "per_sample")
MEMORY = "states"  # what the paper's ACA keeps; small graphs beside them would save evaluations that it counts
MAX_EVALS = 50_000  # some hundred suffice; a vector field gone stiff has to fail, not to fill the memory


def method_name(text):
    """argparse type: one of METHODS, whatever its case (rk4 is the classic RK4, as in the authors' scripts)."""
    for method in METHODS:
        if text.lower() == method.lower():
            return method
    raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(METHODS)}")


def add_solver_arguments(parser, of, *, gradients=GRADIENTS, default_method="Dopri5", rows=None):
    """Add the flags of SOLVER to a parser; returns their group.

    Args:
        of: which models have a solver, for the group's title.
        gradients: what --gradient accepts.
        default_method: what the method is without --method, for the help.
        rows: what has steps of its own with --per-sample; None: there is no such flag.
    """
    group = parser.add_argument_group(f"solver, {of}; the defaults are the profile's")
    group.add_argument("--gradient", choices=gradients, help="gradient method; the default is aca")
    group.add_argument(
        "--method",
        type=method_name,
        metavar="NAME",
        help=f"one of {', '.join(METHODS)}; the default is {default_method}, with mali ALF",
    )
    _add_sizes(group, "")
    group.add_argument(
        "--max-evals", type=positive_int, metavar="N", help="evaluations of func after which a solve fails"
    )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the loop over the steps, which takes up to minutes once; with --gradient aca only",
    )
    _add_per_sample(group, rows, "with --gradient aca only")
    return group


def add_test_solver_arguments(parser, *, rows=None):
    """Add the flags of TEST_SOLVER.

    Args:
        rows: as for `add_solver_arguments`.
    """
    parser.add_argument(
        "--method", type=method_name, metavar="NAME", help=f"one of {', '.join(METHODS)}; the default is training's"
    )
    _add_sizes(parser, "; the default is that of training")
    _add_per_sample(parser, rows, "the default is training's")


def _add_per_sample(parser, rows, condition):
    if rows:
        switch, text = argparse.BooleanOptionalAction, f"every {rows} takes steps of its own; {condition}"
        parser.add_argument("--per-sample", action=switch, help=text)


def _add_sizes(parser, otherwise):
    parser.add_argument("--rtol", type=non_negative_float, help="relative tolerance" + otherwise)
    parser.add_argument("--atol", type=non_negative_float, help="absolute tolerance" + otherwise)
    parser.add_argument(
        "--h", type=positive_float, help="size of fixed steps, or of the first adaptive one; by default Hairer's rule"
    )


def settle_solver(values, chosen, default_method="Dopri5"):
    """The solver's settings of a training run, keywords of `solve`, from all ``values`` and those that were chosen.

    Raises:
        UsageError: a name or combination that the solver refuses, or one of the flags would have no effect.
    """
    solver = {name: values.get(name) for name in SOLVER}
    solver["gradient"] = solver["gradient"] or "aca"
    solver["method"] = solver["method"] or ("ALF" if solver["gradient"] == "mali" else default_method)
    solver["max_evals"] = solver["max_evals"] or MAX_EVALS
    solver["compile"] = bool(solver["compile"])
    _check_steps(solver, chosen)
    if solver["compile"] and solver["gradient"] != "aca":
        raise UsageError(f"--compile goes with --gradient aca, not {solver['gradient']}")
    solver = joint_or_per_sample(solver)
    with usage_errors():
        SolverOptions(**solver).check()
    return solver


def joint_or_per_sample(solver):
    """The same without a word of per_sample where the batch takes joint steps: what records have always said."""
    return {name: value for name, value in solver.items() if name != "per_sample" or value}


def solver_of(settings):
    """Keywords of `solve` among the settings of a run; None for a model that solves no ODE."""
    if settings.get("gradient") is None:
        return None
    solver = {name: settings[name] for name in SOLVER if settings.get(name) is not None}
    return solver | ({"memory": MEMORY} if solver["gradient"] == "aca" else {})


def settle_test_solver(trained, chosen):
    """The solver of a test, keywords of `solve`, of a model that was trained with the solver ``trained``.

    There is no gradient to take, and what was trained with MALI is tested with Dopri5 unless --method says otherwise. A
    step size goes with its method: another method starts without one.

    Raises:
        UsageError: as for `settle_solver`; or there is no solver (``trained`` None) and one of its flags was chosen.
    """
    given = {name: chosen[name] for name in TEST_SOLVER if name in chosen}
    if trained is None:
        refuse(chosen, TEST_SOLVER, "this model solves no ODE")
        return None
    solver = {name: trained.get(name) for name in SOLVER} | {"gradient": "aca", "compile": None}
    if trained["method"] == "ALF":
        solver["method"] = "Dopri5"
    if given.get("method", solver["method"]) != trained["method"]:
        solver["h"] = None
    if solver["method"] in FIXED_STEP_METHODS or given.get("method") in FIXED_STEP_METHODS:
        solver["per_sample"] = None
    solver = joint_or_per_sample(solver | given)
    _check_steps(solver, chosen)
    with usage_errors():
        SolverOptions(**{name: solver.get(name) for name in TEST_SOLVER}).check()
    return solver_of(solver)


def _check_steps(solver, chosen):
    """Fixed steps have no tolerances: UsageError if they were chosen; adaptive ones need both."""
    if solver["method"] in FIXED_STEP_METHODS:
        refuse(chosen, ("rtol", "atol"), f"{solver['method']} has fixed steps")
        solver["rtol"] = solver["atol"] = None
        return
    for name in ("rtol", "atol"):
        if solver[name] is None:
            raise UsageError(f"{flag(name)} is needed: {solver['method']} has steps of varying size")
