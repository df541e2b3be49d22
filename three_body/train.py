"""Train one model on one three-body system."""

from pathlib import Path

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.cli import (
    ArgumentParser,
    UsageError,
    add_common_arguments,
    apply_common_arguments,
    fraction,
    positive_float,
    positive_int,
    run_main,
)
from harness.interrupt import GracefulStop
from harness.progress import progress
from harness.record import Run
from three_body.data import POINTS_PER_UNIT
from three_body.models import MODELS
from three_body.settings import KIND, MAX_EVALS, PRESETS, run_folder, settle, title
from three_body.training import Training, TrainingFailed, masses_of
from torch_ACA import GRADIENTS, METHODS

CHECKPOINT = "checkpoint.pt"
ROWS = 200  # of metrics at most, whatever the number of epochs
KEPT_ON_RESUME = ("resume", "device", "threads", "checkpoint_every")


def parser():
    result = ArgumentParser("Train a model of a three-body trajectory. Defaults are the paper's.")
    result.add_argument("--model", choices=MODELS, default="ode", help="ode: Newton's law with unknown masses")
    result.add_argument("--preset", choices=list(PRESETS), default="paper", help="schedule and tolerances; flags win")
    result.add_argument(
        "--system", default="paper", metavar="NAME", help="paper, seed of a random system, or JSON file (see README)"
    )
    result.add_argument("--masses", type=float, nargs=3, metavar="M", help="(without it: the system's own)")
    result.add_argument(
        "--until", type=float, nargs=2, default=[1.0, 2.0], metavar=("TRAIN", "TEST"), help="ends of training and test"
    )
    result.add_argument("--points", type=positive_int, default=POINTS_PER_UNIT, help="points per unit of time")

    schedule = result.add_argument_group("schedule (without a flag: the preset's)")
    schedule.add_argument("--epochs", type=positive_int, help="steps on the whole trajectory")
    schedule.add_argument("--lr", type=positive_float, help="initial learning rate of Adam")
    schedule.add_argument("--decay", type=fraction, help="factor of the learning rate per epoch")
    schedule.add_argument("--betas", type=fraction, nargs=2, metavar="BETA", help="of Adam, below 1")
    schedule.add_argument("--loss-weight", type=fraction, metavar="W", help="weight W**t of the error at time t")

    solver = result.add_argument_group("solver, for node and ode (without a flag: the preset's)")
    solver.add_argument("--gradient", choices=GRADIENTS, help="gradient method (without it: aca)")
    solver.add_argument("--method", choices=METHODS, help="(without it: Dopri5, with mali: ALF)")
    solver.add_argument("--rtol", type=positive_float, help="relative tolerance")
    solver.add_argument("--atol", type=positive_float, help="absolute tolerance")
    solver.add_argument(
        "--max-evals", type=positive_int, metavar="N", help=f"after which a solve fails (without it: {MAX_EVALS})"
    )

    add_common_arguments(result, out=None)
    result.add_argument("--checkpoint-every", type=positive_int, default=10, metavar="N", help="epochs between them")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    device = apply_common_arguments(args)
    if device.type == "mps":
        raise UsageError("--device mps has no float64, which this experiment needs; use cpu or cuda")
    saved = load_checkpoint(args.resume, kind=KIND, map_location=device) if args.resume else None
    if saved:
        settings, folder = saved["settings"], Path(args.resume).parent
        _refuse_changes(args)
        if saved["status"] != "running":
            raise UsageError(f"{args.resume} holds a run that has ended ({saved['status']}): nothing to resume")
    else:
        settings = settle(args)
        folder = Path(args.out or run_folder(settings))
    training = Training(settings, device)
    if saved:
        training.load(saved)
        run = Run.resume(folder, vars(args), step=training.epoch)
    else:
        run = Run.start(folder, vars(args) | {"settings": settings}, overwrite=args.overwrite)
    return _train(training, run, folder / CHECKPOINT, args.checkpoint_every)


def _refuse_changes(args):
    defaults = vars(parser().parse_args([]))
    changed = [name for name in defaults if name not in KEPT_ON_RESUME and getattr(args, name) != defaults[name]]
    if changed:
        raise UsageError(f"--{changed[0].replace('_', '-')} cannot be changed by --resume, which keeps the settings")


def _train(training, run, checkpoint, checkpoint_every):
    settings, status = training.settings, "finished"
    spacing = max(1, settings["epochs"] // ROWS)
    print(f"{title(settings)} -> {checkpoint.parent}")
    with GracefulStop() as stop:
        for epoch in progress(range(training.epoch + 1, settings["epochs"] + 1), desc=settings["model"]):
            try:
                scalars = training.advance()
            except TrainingFailed as failure:
                status = f"failed in {failure}"
                break
            if epoch % spacing == 0 or epoch in (1, settings["epochs"]):
                run.log(epoch, scalars)
            if stop.requested and epoch < settings["epochs"]:
                save_checkpoint(checkpoint, training.state() | {"status": "running"}, kind=KIND)
                run.close()
                print(f"stopped after epoch {epoch}; go on with: python three_body/train.py --resume {checkpoint}")
                return stop.exit_code
            if epoch % checkpoint_every == 0 and epoch < settings["epochs"]:
                save_checkpoint(checkpoint, training.state() | {"status": "running"}, kind=KIND)
        save_checkpoint(checkpoint, training.state() | {"status": status}, kind=KIND)
        run.finish(_summary(training, status))
    print(f"{status} after {training.epoch} epochs; best training error {training.best['error']:.3g}")
    return 0


def _summary(training, status):
    best = training.best
    return {
        "status": status,
        "epochs": training.epoch,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "evaluations": training.evaluations if "gradient" in training.settings else None,
        "best": {
            "epoch": best["epoch"],
            "error": best["error"] if best["epoch"] else None,
            "masses": masses_of(best["weights"]),
        },
        "last": {"masses": masses_of(training.model.state_dict())},
    }


if __name__ == "__main__":
    run_main(main)
