"""Train and test the runs of a list, then write tables and figures: what scripts/run_*.sh start.

Runs that have ended are skipped, interrupted ones go on. One that fails is a result, with its row in its record; wrong
usage and interruptions end the list.
"""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from harness.cli import FAILED, ArgumentParser, UsageError, non_negative_int, positive_int, run_main
from harness.environment import ROOT
from harness.experiment import LAST

MACHINE = ("--device", "--threads", "--data")  # flags that tests share with training


@dataclass(frozen=True)
class Job:
    """A run: flags of train.py, and its tests.

    Attributes:
        folder: run folder below results/EXPERIMENT; None where train.py is to name it.
        tests: for each the flags of test.py, and the file in the run folder that shows it was made (None: make it
            again, if test.py does not leave out what is recorded).
        script: a measurement instead of train.py, made anew each time.
    """

    flags: tuple
    folder: str | None = None
    tests: tuple = ()
    script: str | None = None


@dataclass(frozen=True)
class Launch:
    """The lists of jobs of an experiment.

    Attributes:
        about: first line of --help.
        lists: functions that return them, by profile; the first is the default.
        machine: values of flags that say where to work, unless the command line does.
        report: scripts to run in the end, with their flags; RUN stands for the folder of the last job.
        jobs: how many at a time, unless the command line says.
        needs: tells what this machine lacks for them, as a line; None if nothing. None: they need nothing.
        several: instead of lists, one training in several processes, by torchrun.
    """

    about: str
    lists: dict = field(default_factory=dict)
    machine: dict = field(default_factory=dict)
    report: tuple = ()
    jobs: int = 1
    needs: Callable | None = None
    several: bool = False


def shard(text):
    """argparse type: K/N as (K, N)."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form K/N with K from 1 to N")
    return int(first), int(count)


def make_parser(launch):
    """The command line of a launcher."""
    parser = ArgumentParser(f"{launch.about} Other flags go to train.py.")
    if launch.several:
        processes = "on this machine; the default is one for each GPU, or 2 on a CPU"
        parser.add_argument("--processes", type=positive_int, metavar="N", help=processes)
        again = "how often to start all processes again from the last checkpoint when one dies"
        parser.add_argument("--restarts", type=non_negative_int, default=3, metavar="N", help=again)
        nodes = "machines that take part, or MIN:MAX; run this same command on each of them"
        parser.add_argument("--nodes", default="1", metavar="N", help=nodes)
        parser.add_argument("--endpoint", metavar="HOST:PORT", help="where they meet: one of them, with a free port")
        return parser
    names = list(launch.lists)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--profile", "--scale", choices=names, default=names[0], help="which list of runs")
    for name in names[1:]:
        which.add_argument(f"--{name}", action="store_const", dest="profile", const=name, help=f"--profile {name}")
    parser.add_argument("--list", action="store_true", help="print the runs, a line each, and stop")
    part = "only every N-th run, from the K-th on; the default is all"
    parser.add_argument("--shard", type=shard, metavar="K/N", help=part)
    seeds = "only runs of the first N seeds; the default is all"
    parser.add_argument("--seeds", type=positive_int, metavar="N", help=seeds)
    parser.add_argument("--jobs", type=positive_int, default=launch.jobs, metavar="N", help="runs at a time")
    parser.add_argument("--no-report", action="store_true", help="leave out tables and figures")
    return parser


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    name, _, which = argv[0].partition(":")
    launch = importlib.import_module(f"{name.replace('/', '.')}.launches").LAUNCHES[which]
    args, flags = make_parser(launch).parse_known_args(argv[1:])
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # large memory pages: PyTorch spends less time on page faults
    if launch.several:
        return torchrun(name, args, flags)
    given = {word.partition("=")[0] for word in flags}
    for name_of_flag, value in launch.machine.items():
        flags += [name_of_flag, value] if name_of_flag not in given else []
    first, count = args.shard or (1, 1)
    jobs = [job for job in launch.lists[args.profile]() if args.seeds is None or seed_of(job) < args.seeds]
    jobs = jobs[first - 1 :: count]
    if args.list:
        for job in jobs:
            print(" ".join(filter(None, (job.folder or job.script, *job.flags))))
        return 0
    codes, folders = make_all(name, jobs, flags, args.jobs)
    if max(codes, default=0) > 1:
        return max(codes)
    if failed := [str(folder) for code, folder in zip(codes, folders) if code]:
        print(f"ended early, see their records: {' '.join(failed)}", file=sys.stderr)
    for script, *words in () if args.no_report else launch.report:
        if code := python(f"{name}/{script}", *(str(folders[-1]) if word == "RUN" else word for word in words)):
            return code
    return FAILED if failed else 0


def seed_of(job):
    """The seed among the flags of a job; 0, the default, where they have none."""
    return int(job.flags[job.flags.index("--seed") + 1]) if "--seed" in job.flags else 0


def make_all(name, jobs, flags, at_a_time):
    """`make` all jobs; after wrong usage or an interruption no further ones. Returns exit codes and run folders."""
    ended = []

    def make_unless_ended(job):
        if any(code > 1 for code, _ in ended):
            return
        ended.append(make(name, job, flags))

    pool = ThreadPoolExecutor(at_a_time)
    try:
        for future in [pool.submit(make_unless_ended, job) for job in jobs]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C reaches those under way too, which save what they have
    return [code for code, _ in ended], [folder for _, folder in ended]


def make(name, job, flags):
    """Train and test a job as far as that is not done; returns the exit code and the run folder."""
    if job.script:
        return python(f"{name}/{job.script}", *job.flags), job.script
    train, code = [f"{name}/train.py", *job.flags, *flags], 0
    folder = Path("results", name, job.folder) if job.folder else None
    if folder:
        train += ["--out", str(folder)]
    if not (folder and (folder / "summary.json").exists()):
        code = python(*train, "--resume", "auto")
    if code > 1:
        return code, folder
    if folder is None:
        folder = Path(output(*train, "--print-folder"))
        print(f"record, tests, checkpoints: {folder}\nlive curves: tensorboard --logdir {folder}", flush=True)
    for test, made in job.tests:
        # weights are no part of the record: where they are no longer there, what was tested stays
        if (folder / LAST).exists() and not (made and (folder / made).exists()):
            tested = python(f"{name}/test.py", "--resume", str(folder), *test, *machine_flags(flags))
            if tested > 1:
                return tested, folder
            code = max(code, tested)
    return code, folder


def machine_flags(flags):
    """Those of the flags for train.py that test.py takes too."""
    kept = []
    for i, word in enumerate(flags):
        if word in MACHINE:
            kept += flags[i : i + 2]
        elif word.partition("=")[0] in MACHINE:
            kept.append(word)
    return kept


def python(*words):
    """Run a script, or a module; returns its exit code, which is above 128 where a signal ended it."""
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    return code if code >= 0 else 128 - code


def output(*words):
    """What a script prints to stdout."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def torchrun(name, args, flags):
    """Train one network in several processes, of one machine or several; returns torchrun's exit code.

    Raises:
        UsageError: the machines, or where they meet, cannot be read.
    """
    meeting = ["--standalone"]
    if args.nodes != "1":
        if not all(part.isdecimal() and int(part) for part in args.nodes.split(":", 1)):
            raise UsageError(f"--nodes {args.nodes} is neither N nor MIN:MAX")
        if not (args.endpoint and args.endpoint.rpartition(":")[2].isdecimal() and ":" in args.endpoint):
            raise UsageError("--nodes needs --endpoint HOST:PORT")
        meeting = ["--nnodes", args.nodes, "--rdzv-id", name]
        meeting += ["--rdzv-backend", "c10d", "--rdzv-endpoint", args.endpoint]
    train = [f"{name}/train.py", "--resume", "auto", *flags]
    if code := python(*train, "--print-folder"):  # a mistake in the flags ends here, in a line
        return code
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun would set it, without its warning
    processes = args.processes or torch.cuda.device_count() or 2
    counts = ["--nproc-per-node", str(processes), "--max-restarts", str(args.restarts)]
    return python("-m", "torch.distributed.run", *meeting, *counts, *train)


if __name__ == "__main__":
    run_main(main)
