"""What a training run is made of: a dict of the settings below, the preset's unless the command line says otherwise."""

from pathlib import Path

from harness.cli import UsageError, usage_errors
from latent_ode_mujoco.data import FULL_SIZE, OBSERVABLE, WINDOW
from latent_ode_mujoco.models import LATENT_ODES, MODELS, ONE_STEP_AHEAD
from torch_ACA.settings import checked_settings

RESULTS = Path(__file__).resolve().parent.parent / "results" / "latent_ode_mujoco"
KIND = "latent_ode_mujoco"  # of checkpoints
# The command in the README of https://github.com/YuliaRubanova/latent_ode, and that repository's defaults
RECIPE = {
    "trajectories": FULL_SIZE,
    "epochs": 300,
    "test_every": 1,  # epochs; and after the first and the last
    "batch_size": 50,
    "targets": None,  # that each training step predicts; None: all
    "samples": 3,  # of the latent state
    "latent": 15,
    "recognition": 30,
    "units": 300,
    "layers": 3,
    "gru_units": 100,
    "encoder_steps": None,  # Euler steps on each gap; None: over all gaps as many as grid points
    "own_inputs": 0.5,
    "repaired": False,
    "lr": 0.01,
    "lr_decay": 0.999,  # per iteration
    "lr_floor": 0.1,  # of the initial learning rate
    "kl_from": 10,  # epochs without the divergence in the loss; its weight is then 1 - kl_decay ** (epoch - kl_from)
    "kl_decay": 0.99,
    "observation_std": 1e-3,
    "rtol": 1e-3,
    "atol": 1e-4,
}
# Scaled down by what the recipe leaves open. Narrower fields learnt less in the same time, wider ones no more; drawing
# few target times a step costs nothing in the error reached after a number of steps, and spares the adjoint landings.
SMALL = {"units": 200, "layers": 1, "samples": 1, "targets": 5, "encoder_steps": 1}
PRESETS = {
    "paper": RECIPE,
    "table": RECIPE | SMALL | {"trajectories": 2000, "epochs": 90, "test_every": 3},
    "quick": RECIPE | SMALL | {"trajectories": 1000, "epochs": 60, "test_every": 3},
}
SIZES = {  # and the models that have them
    "trajectories": ("trajectories", MODELS),
    "epochs": ("epochs", MODELS),
    "latent": ("latent dimensions", MODELS),
    "recognition": ("recognition dimensions", ("rnn-vae", *LATENT_ODES)),
    "units": ("units", MODELS),
    "layers": ("layers", LATENT_ODES),
    "gru_units": ("GRU units", ("latent-ode",)),
    "samples": ("samples", LATENT_ODES),
}
SOLVER = ("gradient", "method", "rtol", "atol", "max_evals")
MAX_EVALS = 20_000  # a few dozen suffice; a vector field gone stiff has to fail, not to fill the memory


def settle(args):
    """The settings of a new run from its parsed command line.

    Raises:
        UsageError: options that contradict each other or leave nothing to observe, train or test on.
    """
    solves = args.model in LATENT_ODES
    if not solves and (given := [name for name in SOLVER if getattr(args, name) is not None]):
        raise UsageError(f"--{given[0].replace('_', '-')} would have no effect: --model {args.model} solves no ODE")
    if args.model in ONE_STEP_AHEAD and args.task == "extrapolation":
        raise UsageError(f"--model {args.model} predicts one step ahead of the observations: it cannot extrapolate")
    if args.repaired and args.model not in ONE_STEP_AHEAD:
        raise UsageError(f"--repaired is for {' and '.join(ONE_STEP_AHEAD)}, not for --model {args.model}")
    observable = _observable(vars(args))
    observed = int(args.sample * observable + 1e-9)
    if observed < 1:
        raise UsageError(f"--sample {args.sample:g} of {observable} points leaves nothing to observe")
    settings = {
        "model": args.model,
        "preset": args.preset,
        "task": args.task,
        "sample": args.sample,
        "observed": observed,
        "seed": args.seed,
    }
    if solves:
        settings |= {"gradient": "aca", "max_evals": MAX_EVALS}
    settings |= PRESETS[args.preset]
    settings |= {name: value for name in (*RECIPE, *SOLVER) if (value := getattr(args, name)) is not None}
    if settings["trajectories"] < 5:
        raise UsageError(f"--trajectories {settings['trajectories']}: at least 5, of which one is tested on")
    if settings["trajectories"] > FULL_SIZE:
        raise UsageError(f"--trajectories {settings['trajectories']}: the recipe has {FULL_SIZE}")
    if settings["observation_std"] == 0:
        raise UsageError("--observation-std must be above 0")
    if settings["encoder_steps"] is None:
        settings["encoder_steps"] = max(1, round(observable / observed))
    if solves:
        settings.setdefault("method", "ALF" if settings["gradient"] == "mali" else "Dopri5")
        with usage_errors():
            checked_settings(settings["method"], settings["gradient"], settings["rtol"], settings["atol"], None, None)
    return settings


def _observable(settings):
    """Points of a trajectory that may be observed."""
    return OBSERVABLE if settings["task"] == "extrapolation" else WINDOW


def solver_of(settings):
    """Keywords of `solve`; None for a model that solves no ODE."""
    return {name: settings[name] for name in SOLVER} if "gradient" in settings else None


def label(settings):
    """Model and gradient method, such as latent-ode-aca, or a recurrent network that differs from the recipe's."""
    parts = [settings["model"]]
    if "gradient" in settings:
        parts.append(settings["gradient"])
    if settings["repaired"] and settings["model"] in ONE_STEP_AHEAD:
        parts.append("repaired")
    return "-".join(parts)


def scaled_down(settings):
    """How the settings are smaller than the recipe, a few words each; empty where they are not."""
    words = [
        f"{settings[key]} of {RECIPE[key]} {name}"
        for key, (name, models) in SIZES.items()
        if settings["model"] in models and settings[key] < RECIPE[key]
    ]
    if settings["targets"] is not None:
        words.append(f"{settings['targets']} target times a training step")
    steps = settings["encoder_steps"] * settings["observed"]
    if settings["model"] == "latent-ode" and steps < _observable(settings) / 2:
        words.append(f"{settings['encoder_steps']} Euler step{'s' * (settings['encoder_steps'] > 1)} on each gap")
    return words


def title(settings):
    """What was run, for figures and tables; a scaled-down run says so."""
    what = f"{settings['task']}, {settings['sample']:.0%} observed, {settings['preset']} preset"
    text = f"{label(settings).upper()}, {what}"
    return f"{text}, scaled down: {', '.join(words)}" if (words := scaled_down(settings)) else text


def joint_words(rows):
    """How any of the rows, which have the words of `scaled_down`, are scaled down: text that is empty if none is."""
    words = dict.fromkeys(word for row in rows for word in row["scaled_down"])
    return f"scaled down: {', '.join(words)}" if words else ""


def run_folder(settings):
    """Where the record of these settings goes by default: preset, task and fraction, model, seed."""
    what = f"{settings['task']}-{settings['sample'] * 100:g}"
    return RESULTS / settings["preset"] / what / label(settings) / f"seed{settings['seed']}"
