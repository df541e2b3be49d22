"""Fitting a field to a late observation as an experiment: its settings, and how a trained field is tested."""

from harness.cli import UsageError, positive_float
from harness.experiment import Experiment
from harness.solvers import add_solver_arguments, settle_solver
from van_der_pol.data import ODE45, START, STEP_CONTROL
from van_der_pol.rebuild import start_error
from van_der_pol.training import HORIZON, PROBLEMS, VanDerPolTraining, new_field, trajectory_error

# a solve that needs more evaluations did not finish
PROFILES = {"standard": {"epochs": 40, "lr": 0.05, "max_evals": 5_000} | ODE45}
NAMES = {"parameter": "the equation's parameter", "neural": "a neural field"}


class VanDerPol(Experiment):
    name = "van_der_pol"
    train_help = "Fit the equation's parameter, or a small neural field, to a trajectory observed late."
    test_help = "Test a fitted field: its distance to the true trajectory, and how well its start is rebuilt backwards."
    profiles = PROFILES
    epochs_help = "steps of Adam"

    def add_arguments(self, parser):
        parser.add_argument("--problem", choices=PROBLEMS, default="parameter", help="what is fitted")
        parser.add_argument("--lr", type=positive_float, help="learning rate of Adam; the default is the profile's")
        add_solver_arguments(parser, "of the field")

    def complete(self, values, chosen):
        settings = {name: values[name] for name in ("profile", "problem", "seed", "epochs", "lr")}
        return settings | settle_solver(values, chosen)

    def title(self, settings):
        return f"{NAMES[settings['problem']]}, fitted with {settings['gradient']}, seed {settings['seed']}"

    def place(self, settings):
        return f"train/{settings['problem']}_{settings['gradient']}_seed{settings['seed']}"

    def training(self, settings, device, args, processes):
        if device.type == "mps":
            raise UsageError("--device mps has no float64, which this experiment needs; use cpu or cuda")
        return VanDerPolTraining(settings, device)

    def tester(self, settings, state, device, args):
        if device.type != "cpu" and args.device != "auto":
            raise UsageError(f"--device {args.device}: a test is made on the CPU; leave it out")
        field = new_field(settings["problem"], settings["seed"])
        field.load_state_dict(state["model"])

        def measure(solver):
            options = {"options": STEP_CONTROL} if "rtol" in solver else {}
            forward = {name: value for name, value in solver.items() if name != "gradient"} | options
            row = trajectory_error(field, **forward)
            del forward["max_evals"]  # of which `start_error` has its own
            return row | {"reconstruction": start_error(field, START, HORIZON, "adjoint", forward)}, {}

        return {}, measure

    def test_line(self, row):
        return (
            f"{row['status']} on [0, {HORIZON:g}]\nRMSE to the true trajectory: {row['rmse']}\n"
            f"distance of the start rebuilt in reverse time from y(0): {row['reconstruction']['error']}"
        )
