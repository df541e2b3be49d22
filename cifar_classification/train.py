"""Train NODE-18 on CIFAR, or another network, with another solver or gradient method: --help lists what there is."""

import signal
import sys
from types import SimpleNamespace

from cifar_classification import data, options
from cifar_classification.checkpoints import BEST, KIND, LAST, read_checkpoint
from cifar_classification.models import parameter_count
from cifar_classification.training import Diverged, Training
from harness.checkpoint import save_checkpoint
from harness.cli import apply_common_arguments, run_main
from harness.distributed import processes
from harness.interrupt import GracefulStop
from harness.progress import progress
from harness.record import NoRun, Run, read_run
from harness.seeding import seed_everything
from torch_ACA import SolverError

STOPPED_BY_ANOTHER = 128 + signal.SIGINT  # exit code where a signal had reached another process only
LOOK_EVERY = 50  # batches between looks at the loss, which wait for the device


def main(argv=None):
    defaults, chosen = options.read(options.training_parser(), argv)
    with processes(chosen.get("device", defaults["device"])) as (group, device_name):
        return run(*find_run(defaults, chosen), group, device_name)


def run(chosen, folder, checkpoint, group, device_name):
    """Train what `find_run` has found, as one of the processes ``group``; returns the exit code."""
    if chosen.print_folder:
        print(folder)
        return 0
    group.any(False)  # nobody writes before all have looked at what is there
    device = apply_common_arguments(SimpleNamespace(device=device_name, threads=chosen.threads))
    if checkpoint and checkpoint["epoch"] >= chosen.epochs and (summary := read_run(folder)["summary"]):
        print(f"finished already: {folder}")
        report(summary)
        return 0
    seed_everything(chosen.seed)
    images = data.load(chosen.dataset, chosen.data, chosen.download, device=device, channels_last=chosen.channels_last)
    training = Training(chosen, images, device, group)
    if checkpoint:
        training.load_state_dict(checkpoint)
    record = open_record(chosen, folder, training if checkpoint else None) if group.first else NoRun(folder)
    with GracefulStop() as stop:
        try:
            train(training, record, stop)
        except (SolverError, Diverged) as error:
            record.log(training.epoch + 1, error=str(error), batch=training.batch)
            record.close()
            print(f"error: epoch {training.epoch + 1}, after batch {training.batch}: {error}", file=sys.stderr)
            return 1
    if training.finished:
        summary = summarise(training)
        record.finish(summary)
        report(summary)
        return 0
    record.close()
    if group.first:
        print(f"stopped in epoch {training.epoch + 1}; go on with --resume {folder}", file=sys.stderr)
    return stop.exit_code or STOPPED_BY_ANOTHER


def open_record(chosen, folder, resumed):
    """The `Run` of a new run, or of the `Training` that was ``resumed``."""
    if resumed:
        return Run.resume(folder, options.recorded(chosen), step=resumed.epoch)
    return Run.start(folder, options.recorded(chosen), overwrite=chosen.overwrite or chosen.resume == "auto")


def find_run(defaults, chosen):
    """What the command line asks for: options, run folder and, where a run is to go on, its checkpoint.

    Raises:
        UsageError: the options contradict each other or the checkpoint, or it cannot be read.
    """
    if chosen.get("resume", "auto") != "auto":
        options.refuse(chosen, ("out", "overwrite"), "a resumed run stays in its folder")
        checkpoint, path = read_checkpoint(chosen["resume"], LAST)
        return options.settle_resumed(defaults, checkpoint["settings"], chosen), path.parent, checkpoint
    new = options.settle(defaults, chosen)  # before anything is downloaded
    if new.dataset == "auto":
        found = data.resolve_auto(new.data, new.download)
        new = options.settle(defaults, {**chosen, "dataset": found})
    folder = options.run_folder(new)
    if new.resume and (folder / LAST).exists():
        checkpoint, path = read_checkpoint(folder, LAST)
        return options.settle_resumed(defaults, checkpoint["settings"], chosen), folder, checkpoint
    return new, folder, None


def train(training, record, stop):
    """Train to the end, or until ``stop`` is requested in any process; a checkpoint holds all that was done."""
    every, group = training.options.checkpoint_every, training.processes
    while not training.finished:
        bar = progress(
            training.batches(),
            total=training.batches_per_epoch - training.batch,
            desc=f"epoch {training.epoch + 1}/{training.options.epochs}",
            shown=group.first,
        )
        for images, labels in bar:
            training.step(images, labels)
            if training.batch % LOOK_EVERY == 0:
                bar.set_postfix(loss=f"{training.mean_loss:.3f}")
            stopping = group.any(stop.requested)
            if stopping or (every and training.batch % every == 0):
                save(training, record.folder, LAST)
            if stopping:
                return
        training.check()
        scalars, extra = training.finish_epoch()
        record.log(training.epoch, scalars, **extra)
        print_row(training, scalars)
        if training.best_epoch == training.epoch:
            save(training, record.folder, BEST)
        save(training, record.folder, LAST)


def save(training, folder, name):
    """Write a checkpoint, unless the model has diverged: then the last good one stays. For all processes to call."""
    training.check()
    training.average_statistics()
    if training.processes.first:
        save_checkpoint(folder / name, training.state_dict(), kind=KIND)


def print_row(training, scalars):
    """One line on a finished epoch."""
    parts = [f"epoch {training.epoch}/{training.options.epochs}"]
    for part in ("Train", "Test"):
        if f"{part}/Loss" in scalars:
            loss, accuracy = scalars[f"{part}/Loss"], scalars[f"{part}/Accuracy"]
            parts.append(f"{part.lower()} loss {loss:.3f} accuracy {accuracy:.2%}")
    if "Solver/n_f_evals" in scalars:
        parts.append(f"NFE {scalars['Solver/n_f_evals']:.1f} + {scalars['Solver/n_backward_f_evals']:.1f}")
    print("  ".join(parts), flush=True)


def summarise(training):
    """What came out of a finished run."""
    return {
        "title": options.title(training.options),
        "parameters": parameter_count(training.model),
        "test_accuracy": training.accuracy,
        "best_test_accuracy": training.best_accuracy,
        "best_epoch": training.best_epoch,
        "best_selected_on": "the test images, as the authors did",
    }


def report(summary):
    """One line on a finished run."""
    print(
        f"{summary['title']}: test accuracy {summary['test_accuracy']:.2%} after the last epoch; "
        f"{summary['best_test_accuracy']:.2%} after epoch {summary['best_epoch']}, the best one, "
        f"selected on {summary['best_selected_on']}"
    )


if __name__ == "__main__":
    run_main(main)
