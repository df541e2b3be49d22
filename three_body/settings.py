"""What a training run is made of: a dict of the settings below, the preset's unless the command line says otherwise."""

from dataclasses import replace
from pathlib import Path

from harness.cli import UsageError, usage_errors
from three_body.data import POINTS_PER_UNIT, as_dict, find_system, simulate, time_grid
from three_body.models import GIVEN_POINTS, RECURRENT
from torch_ACA.settings import checked_settings

RESULTS = Path(__file__).resolve().parent.parent / "results" / "three_body"
KIND = "three_body"  # of checkpoints
ADAM = {"betas": [0.9, 0.999], "loss_weight": 1.0}
TIGHT, LOOSE = {"rtol": 1e-7, "atol": 1e-7}, {"rtol": 1e-5, "atol": 1e-5}
# The learning rate of epoch 1, 2, ... is lr * decay**epoch. The paper's: section D.4 of its supplement; the released:
# the authors' three_body_problem.py; quick: fewer epochs, the decay such that the last learning rate stays the paper's.
PRESETS = {
    "paper": {
        "recurrent": {"epochs": 5000, "lr": 0.01, "decay": 0.999, **ADAM},
        "ode": {"epochs": 100, "lr": 0.1, "decay": 0.99, **ADAM, **LOOSE},
    },
    "released": {
        "ode": {"epochs": 100, "lr": 0.1, "decay": 0.95, "betas": [0.5, 0.5], "loss_weight": 0.01, **TIGHT},
    },
    "quick": {
        "recurrent": {"epochs": 500, "lr": 0.01, "decay": 0.999**10, **ADAM},
        "ode": {"epochs": 20, "lr": 0.1, "decay": 0.99**5, **ADAM, **LOOSE},
    },
}
SCHEDULE = ("epochs", "lr", "decay", "betas", "loss_weight")
SOLVER = ("gradient", "method", "rtol", "atol", "max_evals")
MAX_EVALS = 50_000  # some hundred suffice at a solution; a vector field gone stiff has to fail, not to fill the memory


def settle(args):
    """The settings of a new run from its parsed command line.

    Raises:
        UsageError: options that contradict each other or describe no possible system.
    """
    family = "recurrent" if args.model in RECURRENT else "ode"
    if family not in PRESETS[args.preset]:
        raise UsageError(f"--preset {args.preset} is for node and ode, not for --model {args.model}")
    preset = PRESETS[args.preset][family]
    if family == "recurrent" and (given := [name for name in SOLVER if getattr(args, name) is not None]):
        raise UsageError(f"--{given[0].replace('_', '-')} would have no effect: --model {args.model} solves no ODE")
    with usage_errors():
        system = find_system(args.system)
        if args.masses:
            system = replace(system, name=f"{system.name}-other-masses", masses=args.masses)
        trained, tested = args.until
        if not 0 < trained < tested:
            raise ValueError(f"--until takes two increasing times above 0, got {trained:g} {tested:g}")
        if round(trained * args.points) < 2 * GIVEN_POINTS:
            raise ValueError(f"--points {args.points} until {trained:g} are fewer than one sequence of 20 points")
        simulate(system, time_grid(tested, args.points))
        if args.betas and max(args.betas) == 1:
            raise ValueError(f"--betas must be below 1, got {args.betas}")
    settings = {
        "model": args.model,
        "preset": args.preset,
        "system": as_dict(system),
        "seed": args.seed,
        "until": args.until,
        "points": args.points,
    }
    if family == "ode":
        settings |= {"gradient": "aca", "max_evals": MAX_EVALS}
    settings |= preset
    settings |= {name: getattr(args, name) for name in (*SCHEDULE, *SOLVER) if getattr(args, name) is not None}
    if family == "ode":
        settings.setdefault("method", "ALF" if settings["gradient"] == "mali" else "Dopri5")
        with usage_errors():
            checked_settings(settings["method"], settings["gradient"], settings["rtol"], settings["atol"], None, None)
    return settings


def solver_of(settings):
    """Keywords of `solve`."""
    return {name: settings[name] for name in SOLVER}


def label(settings):
    """Model and gradient method, such as ode-aca."""
    return "-".join([settings["model"], *([settings["gradient"]] if "gradient" in settings else [])])


def title(settings):
    """What was run, for figures and tables; a scaled-down run says so."""
    family = "recurrent" if settings["model"] in RECURRENT else "ode"
    text = f"{label(settings).upper()}, {settings['system']['name']} system, {settings['preset']} preset"
    full = PRESETS["paper"][family]["epochs"]
    scaled_down = [f"{settings['epochs']} of {full} epochs"] if settings["epochs"] < full else []
    if settings["points"] < POINTS_PER_UNIT:
        scaled_down.append(f"{settings['points']} of {POINTS_PER_UNIT} points")
    return f"{text}, scaled down: {', '.join(scaled_down)}" if scaled_down else text


def run_folder(settings):
    """Where the record of these settings goes by default: preset, system, model, seed."""
    return RESULTS / settings["preset"] / settings["system"]["name"] / label(settings) / f"seed{settings['seed']}"
