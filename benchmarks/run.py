"""Measure the cases of the benchmark, each into a folder of its own, and draw tables and figures from the records."""

import os
from pathlib import Path

import torch

from benchmarks import solvers
from benchmarks.cases import CASES, Options
from benchmarks.plot import render
from harness.cli import (
    ArgumentParser,
    UsageError,
    positive_float,
    positive_int,
    resolve_device,
    run_main,
    seed,
)
from harness.environment import versions
from harness.record import Run

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
ROUNDS = {"full": (5, 41), "quick": (3, 7)}
SECONDS = {"full": 45.0, "quick": 4.0}


def parser():
    result = ArgumentParser(__doc__)
    result.add_argument("--quick", action="store_true", help="scaled down: smaller problems, fewer rounds")
    result.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="CASE", help=f"what to measure (default: all): {', '.join(CASES)}"
    )
    result.add_argument(
        "--solvers", nargs="+", choices=solvers.SOLVERS, metavar="NAME",
        help=f"what to compare (default: all of the case): {'; '.join(solvers.SOLVERS)}",
    )  # fmt: skip
    result.add_argument(
        "--rounds", type=positive_int, nargs=2, metavar=("MIN", "MAX"),
        help=f"least and most rounds per case (default: {_both(ROUNDS)})",
    )  # fmt: skip
    result.add_argument(
        "--seconds",
        type=positive_float,
        help=f"time per case, after which no new round begins (default: {_both(SECONDS)})",
    )
    result.add_argument(
        "--clock", choices=("wall", "cpu"),
        help="cpu: time of the process, which other programs disturb less (default: cpu for one CPU thread, "
        "wall for more and for CUDA)",
    )  # fmt: skip
    result.add_argument("--seed", type=seed, default=0, help="seed of initial states and weights")
    result.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto (CUDA where there is one)")
    result.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    result.add_argument(
        "--out", metavar="DIR", help="folder of the records (default: results/benchmarks/full or quick, and -cuda)"
    )
    result.add_argument("--overwrite", action="store_true", help="replace the records that the folder already holds")
    result.add_argument(
        "--resume", action="store_true", help="leave out the cases whose record is complete (unless --overwrite)"
    )
    return result


def _both(values):
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def main(argv=None):
    args = parser().parse_args(argv)
    device = resolve_device(args.device)
    if device.type == "mps":
        raise UsageError("--device mps has no float64, which most cases need; use cpu or cuda")
    torch.set_num_threads(args.threads)
    options = options_of(args, device)
    folder = Path(args.out or RESULTS / (("quick" if args.quick else "full") + "-cuda" * (device.type == "cuda")))
    names = args.cases or list(CASES)
    complete = [name for name in names if (folder / name / "summary.json").exists()]
    if complete and not (args.overwrite or args.resume):
        raise UsageError(f"{folder} already holds {', '.join(complete)}: --overwrite, --resume, or another --out")
    for name in names:
        if args.overwrite or name not in complete:
            measure(name, folder / name, args, options)
    render(folder)
    print(f"tables and figures: {folder}")


def options_of(args, device):
    profile = "quick" if args.quick else "full"
    rounds = tuple(args.rounds or ROUNDS[profile])
    if rounds[0] > rounds[1]:
        raise UsageError(f"--rounds {rounds[0]} {rounds[1]}: the first must not exceed the second")
    one_thread = device.type == "cpu" and args.threads == 1
    return Options(
        seed=args.seed,
        quick=args.quick,
        device=str(device),
        threads=args.threads,
        clock=args.clock or ("cpu" if one_thread else "wall"),
        rounds=rounds,
        seconds=args.seconds or SECONDS[profile],
        only=tuple(args.solvers) if args.solvers else None,
    )


def measure(name, folder, args, options):
    """Run one case and record it."""
    case, load = CASES[name], os.getloadavg()
    print(f"{name}: {case.title}", flush=True)
    arguments = vars(args) | {"case": name, "clock": options.clock, "libraries": versions(solvers.LIBRARIES)}
    run = Run.start(folder, arguments, overwrite=True)
    try:
        for number, row in enumerate(case.rows(case, options)):
            run.log(number, **row)
    except KeyboardInterrupt:
        print(f"stopped in {name}; --resume goes on with it and leaves out what is complete")
        raise
    finally:
        run.close()
    run.finish({"load_before": load, "load_after": os.getloadavg()})


if __name__ == "__main__":
    run_main(main)
