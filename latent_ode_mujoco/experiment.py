"""Latent ODEs as an experiment: its settings, where its runs go, and how a trained model is tested."""

from harness.cli import UsageError, fraction, non_negative_int, positive_float, positive_int, refuse
from harness.experiment import Experiment
from harness.files import csv_text
from harness.solvers import SOLVER, add_solver_arguments, settle_solver
from latent_ode_mujoco.data import FOLDER, FULL_SIZE, NAMES, POINTS, load
from latent_ode_mujoco.evaluation import fixed_batch, mean_error
from latent_ode_mujoco.models import LATENT_ODES, MODELS, ONE_STEP_AHEAD, build
from latent_ode_mujoco.tasks import OBSERVABLE, TASKS, WINDOW, prepare, sizes
from latent_ode_mujoco.training import LatentODETraining

# The command in the README of https://github.com/YuliaRubanova/latent_ode, and that repository's defaults
RECIPE = {
    "trajectories": FULL_SIZE,
    "epochs": 300,
    "validation": 0.125,  # of the trajectories to train on; the recipe sets none aside
    "validate_every": 1,  # epochs; and after the first and the last; there it tests
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
}
SOLVED = {"rtol": 1e-3, "atol": 1e-4, "max_evals": 20_000}
# Scaled down by what the recipe leaves open. Narrower fields learnt less in the same time, wider ones no more; drawing
# few target times a step costs nothing in the error reached after a number of steps, and spares the adjoint landings.
SMALL = {"units": 200, "layers": 1, "samples": 1, "targets": 5, "encoder_steps": 1}
PROFILES = {
    "paper": RECIPE | SOLVED,
    "table": RECIPE | SOLVED | SMALL | {"trajectories": 2000, "epochs": 90, "validate_every": 3},
    "quick": RECIPE | SOLVED | SMALL | {"trajectories": 1000, "epochs": 60, "validate_every": 3},
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


def label(settings):
    """Model and gradient method, such as latent-ode-aca, or a recurrent network that differs from the recipe's."""
    parts = [settings["model"]]
    if "gradient" in settings:
        parts.append(settings["gradient"])
    if settings["repaired"] and settings["model"] in ONE_STEP_AHEAD:
        parts.append("repaired")
    if settings.get("per_sample"):
        parts.append("per-sample")
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


def joint_words(rows):
    """How any of the rows, which have the words of `scaled_down`, are scaled down: text that is empty if none is."""
    words = dict.fromkeys(word for row in rows for word in row["scaled_down"])
    return f"scaled down: {', '.join(words)}" if words else ""


def _observable(settings):
    """Points of a trajectory that may be observed."""
    return OBSERVABLE if settings["task"] == "extrapolation" else WINDOW


class LatentODE(Experiment):
    name = "latent_ode_mujoco"
    train_help = "Train a model of the hopper's trajectories. Defaults are those of the paper's recipe."
    test_help = "Test a trained model on the trajectories that it was not trained on."
    profiles = PROFILES
    epochs_help = "passes through the training trajectories"
    data, data_env = FOLDER, "HOPPER_DATA"
    checkpoint_every = 0
    rows = "sample of every trajectory's latent state"
    files = ("reconstructions.csv", "hopper.gif")

    def add_arguments(self, parser):
        parser.add_argument("--model", choices=MODELS, default="latent-ode", help="see the README")
        parser.add_argument("--task", choices=TASKS, default="interpolation", help="what is predicted")
        parser.add_argument("--sample", type=fraction, default=0.1, metavar="F", help="fraction of the points observed")
        parser.add_argument(
            "--repaired",
            action="store_true",
            default=None,
            help="rnn, rnn-decay: without the recipe's mistakes (README)",
        )
        sizes = parser.add_argument_group("sizes; the defaults are the profile's")
        sizes.add_argument("--trajectories", type=positive_int, metavar="N", help="80 %% to train on, 20 %% to test on")
        sizes.add_argument("--latent", type=positive_int, help="size of the latent state, and of the state of the RNNs")
        sizes.add_argument("--recognition", type=positive_int, help="size of the encoder's hidden state")
        sizes.add_argument("--units", type=positive_int, help="hidden units of the vector fields and of RNNs' decoders")
        sizes.add_argument("--layers", type=non_negative_int, help="layers of units x units in each vector field")
        sizes.add_argument("--gru-units", type=positive_int, help="hidden units of the gates of the ODE-RNN encoder")
        sizes.add_argument(
            "--encoder-steps", type=positive_int, metavar="K", help="Euler steps of the encoder on each gap"
        )
        sizes.add_argument("--samples", type=positive_int, help="samples of the latent state of a latent ODE")
        aside = "fraction of the trajectories to train on that is set aside to choose by"
        sizes.add_argument("--validation", type=fraction, metavar="F", help=aside)
        schedule = parser.add_argument_group("schedule; the defaults are the profile's")
        schedule.add_argument("--validate-every", type=positive_int, metavar="N", help="epochs between validations")
        schedule.add_argument("--batch-size", type=positive_int, help="trajectories a step")
        schedule.add_argument(
            "--targets", type=positive_int, metavar="N", help="target times a step, drawn anew each time"
        )
        schedule.add_argument("--lr", type=positive_float, help="initial learning rate of Adamax")
        schedule.add_argument("--lr-decay", type=fraction, help="factor of the learning rate per step")
        schedule.add_argument("--lr-floor", type=fraction, help="least learning rate, as a fraction of the initial one")
        schedule.add_argument(
            "--kl-from", type=non_negative_int, metavar="EPOCH", help="first epoch with the KL divergence in the loss"
        )
        schedule.add_argument(
            "--kl-decay", type=fraction, help="e epochs later the KL divergence has weight 1 - KL_DECAY**e"
        )
        schedule.add_argument(
            "--observation-std", type=positive_float, help="standard deviation of the Gaussian likelihood"
        )
        schedule.add_argument(
            "--own-inputs",
            type=fraction,
            metavar="P",
            help="rnn, rnn-decay: fraction of inputs that are their own predictions",
        )
        add_solver_arguments(parser, "for latent ODEs", rows=self.rows)

    def complete(self, values, chosen):
        if "test_every" in values:
            raise UsageError(
                "the run to resume was begun by an earlier version, which set no trajectories aside for validation: "
                "it can be tested, but not gone on with"
            )
        settings = {name: values[name] for name in ("model", "profile", "task", "sample", "seed", *RECIPE)}
        model, solves = settings["model"], settings["model"] in LATENT_ODES
        if not solves:
            refuse(chosen, SOLVER, f"--model {model} solves no ODE")
        if model in ONE_STEP_AHEAD and settings["task"] == "extrapolation":
            raise UsageError(f"--model {model} predicts one step ahead of the observations: it cannot extrapolate")
        if settings["repaired"] and model not in ONE_STEP_AHEAD:
            raise UsageError(f"--repaired is for {' and '.join(ONE_STEP_AHEAD)}, not for --model {model}")
        observable = _observable(settings)
        settings["observed"] = int(settings["sample"] * observable + 1e-9)
        if settings["observed"] < 1:
            raise UsageError(f"--sample {settings['sample']:g} of {observable} points leaves nothing to observe")
        if settings["trajectories"] < 5:
            raise UsageError(f"--trajectories {settings['trajectories']}: at least 5, of which one is tested on")
        if settings["trajectories"] > FULL_SIZE:
            raise UsageError(f"--trajectories {settings['trajectories']}: the recipe has {FULL_SIZE}")
        train, aside, _ = sizes(settings["trajectories"], settings["validation"])
        if not (train and aside):
            what = f"--validation {settings['validation']:g} of {train + aside} trajectories"
            raise UsageError(f"{what} leaves {train} to train on and {aside} to validate on")
        if settings["encoder_steps"] is None:
            settings["encoder_steps"] = max(1, round(observable / settings["observed"]))
        return settings | settle_solver(values, chosen) if solves else settings

    def title(self, settings):
        what = f"{settings['task']}, {settings['sample']:.0%} observed, {settings['profile']} profile"
        text = f"{label(settings).upper()}, {what}"
        return f"{text}, scaled down: {', '.join(words)}" if (words := scaled_down(settings)) else text

    def place(self, settings):
        what = f"{settings['task']}-{settings['sample'] * 100:g}"
        return f"{settings['profile']}/{what}/{label(settings)}/seed{settings['seed']}"

    def training(self, settings, device, args, processes):
        return LatentODETraining(settings, self._prepared(settings, device, args), device)

    def _prepared(self, settings, device, args):
        states, validation = load(args.data, settings["trajectories"]), settings.get("validation", 0.0)
        return prepare(states, settings["task"], settings["seed"], device, validation)

    def add_test_arguments(self, parser):
        parser.add_argument(
            "--shown", type=non_negative_int, default=3, metavar="N", help="reconstructions that are kept"
        )

    def tester(self, settings, state, device, args):
        task = self._prepared(settings, device, args)
        batch = fixed_batch(task, "test", settings)
        known = {
            "trajectories": len(task.test),
            "minimum": task.minimum.tolist(),
            "maximum": task.maximum.tolist(),
        }

        def measure(solver):
            model = build(settings, solver).to(device)
            model.load_state_dict(state["model"])
            mse, prediction = mean_error(model, batch, "test", settings)
            evaluations = None if prediction.stats is None else prediction.stats.n_f_evals
            text = _reconstructions(batch, prediction, args.shown)
            return {"mse": mse, "evaluations": evaluations}, {"reconstructions.csv": text}

        return known, measure

    def test_line(self, row):
        return f"mse: {row['mse']}\nevaluations: {row['evaluations']}"


def _reconstructions(batch, prediction, shown):
    """CSV: of some trajectories at every grid point, whether it was observed, and the true and the predicted state (the
    mean over samples), normalised; what a task does not have is left empty."""
    rows, predicted, first = [], prediction.mean.mean(1), int(batch.target_index[0])
    for i in range(min(shown, len(batch.targets))):
        observed = dict(zip(batch.index[i].tolist(), batch.values[i].tolist()))
        for point in range(int(batch.target_index[-1]) + 1):
            is_target = point >= first
            true = batch.targets[i, point - first].tolist() if is_target else observed.get(point)
            if true is None:
                continue
            guess = predicted[point - first, i].tolist() if is_target else [float("nan")] * len(NAMES)
            rows.append([i, point / POINTS, int(point in observed), *(f"{x:.5g}" for x in (*true, *guess))])
    return csv_text(["trajectory", "t", "observed", *(f"true_{name}" for name in NAMES), *NAMES], rows)
