"""The three-body problem as an experiment: its settings, where its runs go, and how a trained model is tested."""

import math
from dataclasses import replace

import torch

from harness.cli import UsageError, fraction, positive_float, positive_int, refuse, usage_errors
from harness.experiment import Experiment
from harness.files import csv_text
from harness.solvers import SOLVER, add_solver_arguments, settle_solver
from three_body.data import POINTS_PER_UNIT, System, as_dict, find_system, simulate, time_grid
from three_body.evaluation import measures, predict
from three_body.models import GIVEN_POINTS, MODELS, RECURRENT, build
from three_body.training import ThreeBodyTraining, masses_of

ADAM = {"betas": [0.9, 0.999], "loss_weight": 1.0}
TIGHT, LOOSE = {"rtol": 1e-7, "atol": 1e-7}, {"rtol": 1e-5, "atol": 1e-5}
# The learning rate of epoch 1, 2, ... is lr * decay**epoch. The paper's: section D.4 of its supplement; the released:
# the authors' three_body_problem.py; quick: fewer epochs, the decay such that the last learning rate stays the paper's;
# tight: the paper's with the tolerance of the authors' script; valley, valley-tight: their first epochs, for valley.py.
PROFILES = {
    "paper": {
        "recurrent": {"epochs": 5000, "lr": 0.01, "decay": 0.999, **ADAM},
        "ode": {"epochs": 100, "lr": 0.1, "decay": 0.99, **ADAM, **LOOSE},
    },
    "tight": {"ode": {"epochs": 100, "lr": 0.1, "decay": 0.99, **ADAM, **TIGHT}},
    "released": {
        "ode": {"epochs": 100, "lr": 0.1, "decay": 0.95, "betas": [0.5, 0.5], "loss_weight": 0.01, **TIGHT},
    },
    "quick": {
        "recurrent": {"epochs": 500, "lr": 0.01, "decay": 0.999**10, **ADAM},
        "ode": {"epochs": 20, "lr": 0.1, "decay": 0.99**5, **ADAM, **LOOSE},
    },
    "valley": {"ode": {"epochs": 15, "lr": 0.1, "decay": 0.99, **ADAM, **LOOSE}},
    "valley-tight": {"ode": {"epochs": 15, "lr": 0.1, "decay": 0.99, **ADAM, **TIGHT}},
}
OWN_TIME = ("aca", "direct")  # gradient methods with dense output, which it needs
SCHEDULE = ("epochs", "lr", "decay", "betas", "loss_weight")
DRAWN_POINTS = 400  # of the trajectory, kept for the figures


def family(model):
    """Which part of a profile is a model's."""
    return "recurrent" if model in RECURRENT else "ode"


def label(settings):
    """Model and gradient method, such as ode-aca."""
    parts = [settings["model"], *([settings["gradient"]] if "gradient" in settings else [])]
    return "-".join(parts + (["own-time"] if settings.get("own_time") else []))


class ThreeBody(Experiment):
    name = "three_body"
    train_help = "Train a model of a three-body trajectory. Defaults are the paper's."
    test_help = "Test a trained model on the trajectory it was trained on the first part of."
    profiles = PROFILES
    epochs_help = "steps on the whole trajectory"
    files = ("trajectory.csv",)

    def add_arguments(self, parser):
        parser.add_argument("--model", choices=MODELS, default="ode", help="ode: Newton's law with unknown masses")
        parser.add_argument(
            "--system",
            default="paper",
            metavar="NAME",
            help="paper, the seed of a random system, or a JSON file (see the README)",
        )
        parser.add_argument("--masses", type=float, nargs=3, metavar="M", help="true masses; default: the system's")
        parser.add_argument(
            "--until",
            type=float,
            nargs=2,
            default=[1.0, 2.0],
            metavar=("TRAIN", "TEST"),
            help="ends of training and test",
        )
        parser.add_argument("--points", type=positive_int, default=POINTS_PER_UNIT, help="points per unit of time")
        own = "for node and ode: solve in a time that passes slowly in encounters, in training (not the paper's)"
        parser.add_argument("--own-time", action="store_true", help=own)
        schedule = parser.add_argument_group("schedule; the defaults are the profile's")
        schedule.add_argument("--lr", type=positive_float, help="initial learning rate of Adam")
        schedule.add_argument("--decay", type=fraction, help="factor of the learning rate per epoch")
        schedule.add_argument("--betas", type=fraction, nargs=2, metavar="BETA", help="decay rates of Adam, below 1")
        schedule.add_argument("--loss-weight", type=fraction, metavar="W", help="weight W**t of the error at time t")
        add_solver_arguments(parser, "for node and ode")

    def profile(self, values):
        of_family = self.profiles[values["profile"]]
        if family(values["model"]) not in of_family:
            raise UsageError(f"--profile {values['profile']} is for node and ode, not for --model {values['model']}")
        return of_family[family(values["model"])]

    def complete(self, values, chosen):
        settings = {name: values[name] for name in ("model", "profile", "seed", "until", "points", *SCHEDULE)}
        if settings["model"] in RECURRENT:
            refuse(chosen, (*SOLVER, "own_time"), f"--model {settings['model']} solves no ODE")
        with usage_errors():
            system = values["system"]
            system = System(**system) if isinstance(system, dict) else find_system(system)
            if "masses" in chosen:
                system = replace(system, name=f"{system.name}-other-masses", masses=chosen["masses"])
            trained, tested = settings["until"]
            if not 0 < trained < tested:
                raise ValueError(f"--until takes two increasing times above 0, got {trained:g} {tested:g}")
            if round(trained * settings["points"]) < 2 * GIVEN_POINTS:
                raise ValueError(
                    f"--points {settings['points']} until {trained:g} are fewer than one sequence of 20 points"
                )
            simulate(system, time_grid(tested, settings["points"]))
            if max(settings["betas"]) == 1:
                raise ValueError(f"--betas must be below 1, got {settings['betas']}")
        settings["system"] = as_dict(system)
        if settings["model"] in RECURRENT:
            return settings
        settings |= {"own_time": values["own_time"], **settle_solver(values, chosen)}
        if settings["own_time"] and settings["gradient"] not in OWN_TIME:
            raise UsageError(f"--own-time goes with --gradient {' or '.join(OWN_TIME)}, not {settings['gradient']}")
        return settings

    def title(self, settings):
        text = f"{label(settings).upper()}, {settings['system']['name']} system, {settings['profile']} profile"
        full = PROFILES["paper"][family(settings["model"])]["epochs"]
        scaled_down = [f"{settings['epochs']} of {full} epochs"] if settings["epochs"] < full else []
        if settings["points"] < POINTS_PER_UNIT:
            scaled_down.append(f"{settings['points']} of {POINTS_PER_UNIT} points")
        return f"{text}, scaled down: {', '.join(scaled_down)}" if scaled_down else text

    def place(self, settings):
        return f"{settings['profile']}/{settings['system']['name']}/{label(settings)}/seed{settings['seed']}"

    def training(self, settings, device, args, processes):
        _refuse_mps(device)
        return ThreeBodyTraining(settings, device)

    def tester(self, settings, state, device, args):
        _refuse_mps(device)
        model = build(settings["model"]).to(device)
        model.load_state_dict(state["model"])
        system, masses = System(**settings["system"]), masses_of(state["model"])
        times = time_grid(settings["until"][1], settings["points"])
        truth = simulate(system, times)[:, None].to(device)
        true_masses = torch.tensor(system.masses, dtype=torch.float64, device=device)

        def measure(solver):
            predicted, status = predict(model, truth, times, solver)
            found = measures(predicted, truth, times, true_masses, settings["until"][0])
            error = masses and max(abs(m - true) for m, true in zip(masses, system.masses))
            row = {"prediction": status, **found, "masses": masses, "mass_error": error}
            return row, {"trajectory.csv": _trajectory(times, truth, predicted)}

        return {}, measure

    def test_line(self, row):
        return "\n".join(
            f"{name}: {row[name]}" for name in ("prediction", "mse", "mse_trained", "masses", "mass_error")
        )


def _refuse_mps(device):
    if device.type == "mps":
        raise UsageError("--device mps has no float64, which this experiment needs; use cpu or cuda")


def _trajectory(times, truth, predicted):
    """CSV: at some of the times, the true and predicted positions and their distance."""
    axes = [f"{axis}{body}" for body in (1, 2, 3) for axis in "xyz"]
    rows = []
    for i in torch.linspace(0, len(times) - 1, min(len(times), DRAWN_POINTS)).round().long().tolist():
        true, shown = truth[i, 0, :3].flatten(), predicted[i : i + 1, 0, :3].flatten()  # empty where it has failed
        error = [float((shown - true).norm())] if len(shown) else [math.nan]
        positions = shown.tolist() or [math.nan] * 9
        rows.append([f"{number:.5g}" for number in [float(times[i]), *error, *true.tolist(), *positions]])
    return csv_text(["t", "error", *(f"true_{name}" for name in axes), *axes], rows)
