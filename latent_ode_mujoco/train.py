"""Train one model on the hopper's trajectories."""

from pathlib import Path

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.cli import (
    ArgumentParser,
    UsageError,
    add_common_arguments,
    apply_common_arguments,
    fraction,
    non_negative_int,
    positive_float,
    positive_int,
    run_main,
)
from harness.interrupt import GracefulStop
from harness.progress import progress
from harness.record import Run
from latent_ode_mujoco.data import FOLDER, TASKS, load, prepare
from latent_ode_mujoco.models import MODELS
from latent_ode_mujoco.settings import KIND, MAX_EVALS, PRESETS, run_folder, settle, title
from latent_ode_mujoco.training import Training, TrainingFailed
from torch_ACA import GRADIENTS, METHODS

CHECKPOINT = "checkpoint.pt"
KEPT_ON_RESUME = ("resume", "device", "threads", "data", "checkpoint_every", "stop_after")


def parser():
    result = ArgumentParser("Train a model of the hopper's trajectories. Defaults are those of the paper's recipe.")
    result.add_argument("--model", choices=MODELS, default="latent-ode", help="see the README")
    result.add_argument("--preset", choices=list(PRESETS), default="paper", help="sizes and schedule; flags win")
    result.add_argument("--task", choices=TASKS, default="interpolation", help="what is predicted")
    result.add_argument("--sample", type=fraction, default=0.1, metavar="F", help="fraction of the points observed")
    result.add_argument(
        "--repaired", action="store_true", default=None, help="rnn, rnn-decay: without the oddities of the recipe"
    )

    sizes = result.add_argument_group("sizes (without a flag: the preset's)")
    sizes.add_argument("--trajectories", type=positive_int, metavar="N", help="80 %% to train on, 20 %% to test on")
    sizes.add_argument("--latent", type=positive_int, help="size of the latent state, and of the state of the RNNs")
    sizes.add_argument("--recognition", type=positive_int, help="size of the encoder's state")
    sizes.add_argument("--units", type=positive_int, help="hidden units of the vector fields, and of decoders of RNNs")
    sizes.add_argument("--layers", type=non_negative_int, help="layers of units x units in each vector field")
    sizes.add_argument("--gru-units", type=positive_int, help="hidden units of the gates of the ODE-RNN encoder")
    sizes.add_argument("--encoder-steps", type=positive_int, metavar="K", help="Euler steps of the encoder on each gap")
    sizes.add_argument("--samples", type=positive_int, help="samples of the latent state of a latent ODE")

    schedule = result.add_argument_group("schedule (without a flag: the preset's)")
    schedule.add_argument("--epochs", type=positive_int, help="passes through the training trajectories")
    schedule.add_argument("--test-every", type=positive_int, metavar="N", help="epochs between tests")
    schedule.add_argument("--batch-size", type=positive_int, help="trajectories a step")
    schedule.add_argument("--targets", type=positive_int, metavar="N", help="target times a step, drawn anew each time")
    schedule.add_argument("--lr", type=positive_float, help="initial learning rate of Adamax")
    schedule.add_argument("--lr-decay", type=fraction, help="factor of the learning rate per step")
    schedule.add_argument("--lr-floor", type=fraction, help="least learning rate, as part of the initial one")
    schedule.add_argument("--kl-from", type=non_negative_int, metavar="EPOCH", help="divergence joins the loss here")
    schedule.add_argument("--kl-decay", type=fraction, help="1 - KL_DECAY**e is its weight e epochs later")
    schedule.add_argument("--observation-std", type=positive_float, help="of the Gaussian likelihood")
    schedule.add_argument("--own-inputs", type=fraction, metavar="P", help="rnn, rnn-decay: part of inputs replaced")

    solver = result.add_argument_group("solver, for latent ODEs (without a flag: the preset's)")
    solver.add_argument("--gradient", choices=GRADIENTS, help="gradient method (without it: aca)")
    solver.add_argument("--method", choices=METHODS, help="(without it: Dopri5, with mali: ALF)")
    solver.add_argument("--rtol", type=positive_float, help="relative tolerance")
    solver.add_argument("--atol", type=positive_float, help="absolute tolerance")
    solver.add_argument(
        "--max-evals", type=positive_int, metavar="N", help=f"after which a solve fails (without it: {MAX_EVALS})"
    )

    add_common_arguments(result, out=None, data=FOLDER, data_env="HOPPER_DATA")
    result.add_argument("--checkpoint-every", type=positive_int, default=1, metavar="N", help="epochs between them")
    result.add_argument(
        "--stop-after", type=positive_int, metavar="N", help="stop, as after Ctrl-C, after this many steps in all"
    )
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    device = apply_common_arguments(args)
    saved = load_checkpoint(args.resume, kind=KIND, map_location=device) if args.resume else None
    if saved:
        settings, folder = saved["settings"], Path(args.resume).parent
        _refuse_changes(args)
        if saved["status"] != "running":
            raise UsageError(f"{args.resume} holds a run that has ended ({saved['status']}): nothing to resume")
    else:
        settings = settle(args)
        folder = Path(args.out or run_folder(settings))
    states = load(args.data, settings["trajectories"])
    training = Training(settings, prepare(states, settings["task"], settings["seed"], device), device)
    if saved:
        training.load(saved)
        run = Run.resume(folder, vars(args), step=training.epoch)
    else:
        run = Run.start(folder, vars(args) | {"settings": settings}, overwrite=args.overwrite)
    return _train(training, run, folder / CHECKPOINT, args)


def _refuse_changes(args):
    defaults = vars(parser().parse_args([]))
    changed = [name for name in defaults if name not in KEPT_ON_RESUME and getattr(args, name) != defaults[name]]
    if changed:
        raise UsageError(f"--{changed[0].replace('_', '-')} cannot be changed by --resume, which keeps the settings")


def _train(training, run, checkpoint, args):
    settings, status = training.settings, "finished"
    total = settings["epochs"] * training.batches
    print(f"{title(settings)} -> {checkpoint.parent}")

    def save(status):
        save_checkpoint(checkpoint, training.state() | {"status": status}, kind=KIND)

    with GracefulStop() as stop:
        for iteration in progress(range(training.iteration + 1, total + 1), desc=settings["model"]):
            try:
                scalars = training.advance()
                if scalars is not None:
                    _log(training, run, scalars)
            except TrainingFailed as failure:
                status = f"failed in {failure}"
                break
            if (stop.requested or iteration == args.stop_after) and not training.finished:
                save("running")
                run.close()
                print(f"stopped after {iteration} of {total} steps; go on with: "
                      f"python latent_ode_mujoco/train.py --resume {checkpoint}")  # fmt: skip
                return stop.exit_code
            if scalars is not None and training.epoch % args.checkpoint_every == 0 and not training.finished:
                save("running")
        save(status)
        run.finish(_summary(training, status))
    print(f"{status} after {training.epoch} epochs of {training.seconds / max(training.epoch, 1):.3g} s")
    return 0


def _log(training, run, scalars):
    """A row of metrics for the epoch that has just ended, every so often with the test error."""
    if training.epoch % training.settings["test_every"] == 0 or training.epoch == 1 or training.finished:
        scalars["Test/MSE"] = training.test()
    run.log(training.epoch, scalars, training_seconds=training.seconds)


def _summary(training, status):
    return {
        "status": status,
        "epochs": training.epoch,
        "iterations": training.iteration,
        "training_seconds": training.seconds,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "evaluations": training.evaluations if "gradient" in training.settings else None,
    }


if __name__ == "__main__":
    run_main(main)
