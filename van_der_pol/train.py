"""Fit the equation's parameter, or a small neural field, to a trajectory observed late: one run of one method."""

import math
from pathlib import Path

import torch

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.cli import (
    ArgumentParser,
    UsageError,
    add_common_arguments,
    apply_common_arguments,
    positive_float,
    positive_int,
    run_main,
)
from harness.interrupt import GracefulStop
from harness.progress import progress
from harness.record import Run
from torch_ACA import GRADIENTS, SolverError
from torch_ACA.saved_tensors import SavedTensors
from van_der_pol import records
from van_der_pol.data import ODE45, observations
from van_der_pol.training import KIND, NOISE, OBSERVED, PROBLEMS, new_field, predict, run_name, trajectory_error

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 10
SETTINGS = ("problem", "gradient", "seed", "rtol", "atol", "lr")  # what a resumed run keeps


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--problem", choices=PROBLEMS, default="parameter", help="what is fitted")
    parser.add_argument(
        "--gradient", choices=GRADIENTS, default="aca", help="gradient method (mali: ALF, others: Dopri5)"
    )
    parser.add_argument("--rtol", type=positive_float, default=ODE45["rtol"], help="relative tolerance")
    parser.add_argument("--atol", type=positive_float, default=ODE45["atol"], help="absolute tolerance")
    parser.add_argument("--lr", type=positive_float, default=0.05, help="learning rate of Adam")
    parser.add_argument("--iterations", type=positive_int, default=40, help="steps of Adam")
    add_common_arguments(parser, out=None)
    args = parser.parse_args(argv)
    device = apply_common_arguments(args)
    settings = {name: getattr(args, name) for name in SETTINGS}
    state = load_checkpoint(args.resume, kind=KIND) if args.resume else None
    if state:
        check_resumed(state, settings, args.iterations)
    folder = Path(args.out or records.RESULTS / "train" / run_name(**settings))

    field = new_field(args.problem, args.seed).to(device)
    optimizer = torch.optim.Adam(field.parameters(), lr=args.lr)
    done = 0
    if state:
        field.load_state_dict(state["field"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["iteration"]
        run = Run.resume(folder, vars(args), step=done)
    else:
        run = Run.start(folder, vars(args), overwrite=args.overwrite)

    def save(iteration):
        state = {"settings": settings, "field": field.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(folder / CHECKPOINT, state | {"iteration": iteration}, kind=KIND)

    observed = observations(OBSERVED, NOISE, args.seed).to(device)
    solver = {name: getattr(args, name) for name in ("gradient", "rtol", "atol")}
    status, iteration = "finished", done
    with GracefulStop() as stop:
        for iteration in progress(range(done + 1, args.iterations + 1), desc=folder.name):
            try:
                row = step(field, optimizer, observed, solver)
            except SolverError as error:
                status = f"did not finish: {error}"
                break
            run.log(iteration, row)
            if iteration % CHECKPOINT_EVERY == 0 or iteration == args.iterations or stop.requested:
                save(iteration)
            if stop.requested:
                run.close()
                print(f"stopped after iteration {iteration}: go on with these flags and --resume {folder / CHECKPOINT}")
                return stop.exit_code
    test = trajectory_error(field.cpu(), method="Dopri5", rtol=1e-8, atol=1e-8)
    run.finish({"status": status, "iterations": iteration, "test": test})
    print(f"{folder.name}: {status}; RMSE to the true trajectory: {test['rmse']}")


def step(field, optimizer, observed, solver):
    """One step of Adam: a row of metrics of the state before it.

    :raises SolverError: the forward or the backward solve gave up
    """
    optimizer.zero_grad()
    with SavedTensors() as saved:
        solution = predict(field, OBSERVED, **solver)
        loss = (solution.ys[1:] - observed).square().mean()
        saved.peak = saved.held
        loss.backward()
    gradients = [parameter.grad for parameter in field.parameters()]
    row = {
        "Train/Loss": loss.item(),
        "Train/GradientNorm": math.sqrt(sum(float(g.square().sum()) for g in gradients)),
        "Solver/Evaluations": solution.stats.n_f_evals,
        "Solver/BackwardEvaluations": solution.stats.n_backward_f_evals,
        "Solver/SavedBytes": saved.peak,
    }
    if hasattr(field, "mu"):
        row["Train/Parameter"] = field.mu.item()
    optimizer.step()
    return row


def check_resumed(state, settings, iterations):
    """UsageError if the command line contradicts the checkpoint, or it has nothing left to do."""
    for name, saved in state["settings"].items():
        if settings[name] != saved:
            raise UsageError(f"--{name} {settings[name]} contradicts the run to resume, which has {saved}")
    if state["iteration"] >= iterations:
        raise UsageError(f"--iterations {iterations}: the checkpoint already has {state['iteration']}")


if __name__ == "__main__":
    run_main(main)
