"""Processor time per batch by gradient method, in one run in which the processes of the methods take turns.

Every method trains in a process of its own, from the same first weights and on the same images, and waits while another
one has its turn. So what slows the machine down for a while slows all of them. What counts is the time of the process;
a turn that took longer by the clock had to wait for a processor, and a run with such turns was not quiet: its times are
shown and decide nothing.
"""

import multiprocessing
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from statistics import median

import torch

from cifar_classification import data
from cifar_classification.data import Images
from cifar_classification.experiment import PROFILES, Cifar
from cifar_classification.launches import LIKE_FOR_LIKE, OWN
from cifar_classification.runs import TIMING
from cifar_classification.training import CifarTraining
from harness import packed
from harness.cli import ArgumentParser, UsageError, positive_int, run_main, seed
from harness.environment import origins
from harness.files import check_folder
from harness.record import Run, read_metrics, read_run
from harness.tables import table

FOLDER = Cifar().results / TIMING
FLAGS = LIKE_FOR_LIKE | {f"{name}-own": flags for name, flags in OWN.items()}
DEFAULT = ("aca", "direct", "naive", "adjoint", "torchdiffeq")
WARM_UP = 2  # turns that are not counted
BATCH = 128  # images that times are given for
QUIET = 0.03  # share of the time that a quiet run waits at most
COLUMNS = ("CPU", "Wall", "Forward", "Backward")


def parser():
    result = ArgumentParser(__doc__.partition("\n\n")[0])
    result.add_argument("--of", nargs="+", choices=list(FLAGS), default=DEFAULT, metavar="NAME",
                        help=f"methods: {', '.join(FLAGS)}")  # fmt: skip
    result.add_argument("--profile", choices=list(PROFILES), default="table", help="settings of the training")
    result.add_argument("--dataset", choices=list(data.CLASSES), default="cifar10", help="images to train on")
    result.add_argument("--width", type=positive_int, help="channels of the first stage; default: the profile's")
    result.add_argument("--rounds", type=positive_int, default=20, metavar="N", help="turns of each method")
    result.add_argument("--images", type=positive_int, default=2 * BATCH, metavar="N", help="in a turn")
    result.add_argument("--seed", type=seed, default=0, help="seed of weights and batches")
    result.add_argument("--threads", type=positive_int, default=1, help="CPU threads of a process")
    folder = "folder of the images; $CIFAR_DATA sets the default"
    result.add_argument("--data", default=os.environ.get("CIFAR_DATA"), metavar="DIR", help=folder)
    result.add_argument("--out", metavar="DIR", help="run folder; the default is named after the profile")
    result.add_argument("--overwrite", action="store_true", help="replace the record that the run folder already holds")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    settings, folder = {name: settings_of(name, args) for name in args.of}, args.out or FOLDER / args.profile
    check_folder(folder)
    some_images(args)  # there are enough
    arguments = {name: value for name, value in vars(args).items() if name != "data"}  # the machine's own folder
    run = Run.start(folder, arguments, settings=settings, overwrite=args.overwrite)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(own, args)) for name, own in settings.items()}
        for number in range(1 - WARM_UP, args.rounds + 1):  # rounds below 1 warm up
            turns = {name: worker.turn() for name, worker in workers.items()}
            if number > 0:
                scalars = {f"{what}/{name}": turn[what] for name, turn in turns.items() for what in COLUMNS}
                run.log(number, scalars, load=os.getloadavg()[0])
    titles = {Cifar().title(own) for own in settings.values()}
    run.finish({"title": ", ".join(sorted(titles)), "images": args.images})
    print(timing_table(run.folder))


def settings_of(name, args):
    """The settings of a method's training. UsageError if a turn does not consist of whole batches."""
    flags = ["--profile", args.profile, "--dataset", args.dataset, "--seed", str(args.seed), *FLAGS[name]]
    settings = Cifar().new_settings(*flags, *(["--width", str(args.width)] if args.width else []))
    if args.images % settings["batch_size"]:
        raise UsageError(f"--images {args.images} are no whole batches of {settings['batch_size']}, which {name} has")
    return settings


def some_images(args):
    """The data, with as many training images as all turns of a process need. UsageError if there are not enough."""
    images, count = data.load(args.dataset, args.data), args.images * (args.rounds + WARM_UP)
    if count > len(images.train):
        raise UsageError(
            f"{args.rounds} rounds of {args.images} images and {WARM_UP} more to warm up are {count} images, "
            f"but {args.dataset} has {len(images.train)} to train on"
        )
    return replace(images, train=Images(images.train.pixels[:count].clone(), images.train.labels[:count].clone()))


class Worker:
    """A process that trains with some settings, a turn whenever it is asked to; to be entered with ``with``."""

    def __init__(self, settings, args):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, settings, args), daemon=True)

    def __enter__(self):
        self._process.start()
        return self

    def turn(self):
        """What its next turn took: see `turn`. RuntimeError if the process has died."""
        try:
            self._pipe.send(True)
            while not self._pipe.poll(1):
                if not self._process.is_alive():
                    raise EOFError
            return self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("the process of a method has died; it says above why") from None

    def __exit__(self, *exception):
        self._process.terminate()
        self._process.join()


def _work(pipe, settings, args):
    """What the process of a method does: a turn for each message."""
    torch.set_num_threads(args.threads)
    training = CifarTraining(settings, some_images(args), torch.device("cpu"))
    batches = training.training_batches()
    while pipe.recv():
        pipe.send(turn(training, list(islice(batches, args.images // settings["batch_size"]))))


def turn(training, batches):
    """Train on some batches: seconds of the process and of the clock for BATCH images, and evaluations of the vector
    field per block and batch, forward and backward."""
    before, wall, cpu = training.solver.clone(), time.perf_counter(), time.process_time()
    for images, labels in batches:
        training.train_on(images, labels)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    evaluations = (training.solver - before).mean(0)[:2] / len(batches)
    scale = BATCH / sum(len(labels) for _, labels in batches)
    return dict(zip(COLUMNS, (cpu * scale, wall * scale, *evaluations.tolist())))


def seconds(folder):
    """{method: {round: seconds of the process for BATCH images}} of a run that was quiet; empty otherwise."""
    if not finished(folder) or waiting(folder) > QUIET:
        return {}
    return {name: {row["step"]: row[f"CPU/{name}"] for row in read_metrics(folder)} for name in methods(folder)}


def finished(folder):
    return packed.read(folder, "summary.json") is not None


def methods(folder):
    return list(read_run(folder)["settings"])


def waiting(folder):
    """The share of the time that turns waited for a processor."""
    times = [sum(row[f"{what}/{name}"] for row in read_metrics(folder) for name in methods(folder))
             for what in ("CPU", "Wall")]  # fmt: skip
    return max(0.0, 1 - times[0] / times[1])


def timing_table(folder):
    """The table of a run, as text."""
    rows, metrics, run = [], read_metrics(folder), read_run(folder)
    for name in methods(folder):
        cpu, ours = ([row[f"CPU/{one}"] for row in metrics] for one in (name, methods(folder)[0]))
        ratios = [a / b for a, b in zip(cpu, ours)]
        cells = [f"{median(cpu):.2f}", f"{min(cpu):.2f} to {max(cpu):.2f}", f"{median(ratios):.2f}"]
        cells += [f"{sum(row[f'{what}/{name}'] for row in metrics) / len(metrics):.1f}" for what in COLUMNS[2:]]
        rows.append([name.replace("-own", ", the paper's solver and batch"), *cells])
    first = methods(folder)[0]
    header = ["method", f"s for {BATCH} images", "range", f"over {first}'s", "NFE forward", "NFE backward"]
    shared = waiting(folder)
    verdict = "it was quiet" if shared <= QUIET else "it was not quiet, and its times decide nothing"
    return (
        f"{table(header, rows)}\nProcessor time in the first batches of a training, median over {len(metrics)} rounds "
        f"in which the methods' processes take turns; over {first}'s: median of the ratios within a round; NFE: per "
        f"block and batch. The processes waited {shared:.1%} of the time for a processor: {verdict}. "
        f"{origins([('all', run['environment'])])}\n"
    )


if __name__ == "__main__":
    run_main(main)
