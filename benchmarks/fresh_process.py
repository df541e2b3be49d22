"""What only a fresh process can tell of a solve and its backward pass: peak memory, or seconds of the first call.

Prints a JSON object: peak_bytes, above what the process held before, or seconds, or failure. Memory on the CPU is
resident memory, so anything a library keeps counts; on CUDA it is what PyTorch allocated. The first call begins behind
the imports of the libraries; imports of a compiler, which come with it, count.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import solvers
from benchmarks.measure import one_line
from benchmarks.problems import PROBLEMS, build
from harness.cli import ArgumentParser, add_common_arguments, apply_common_arguments, run_main
from harness.resources import peak_memory_bytes

ROOT = Path(__file__).resolve().parent.parent


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", choices=MEASURES, help="what is measured")
    parser.add_argument("problem", choices=PROBLEMS, help="what is solved")
    parser.add_argument("solver", choices=solvers.SOLVERS, help="by what")
    parser.add_argument("--quick", action="store_true", help="the scaled-down problem")
    add_common_arguments(parser, out=None)
    args = parser.parse_args(argv)
    device = apply_common_arguments(args)
    problem = build(args.problem, seed=args.seed, quick=args.quick, device=device)
    reason = solvers.missing(args.solver, problem)
    try:
        measured = {"failure": reason} if reason else {args.what: MEASURES[args.what](args.solver, problem, device)}
        print(json.dumps(measured))
    except Exception as error:  # a peer may raise anything; the record says what
        print(json.dumps({"failure": one_line(error)}))


def peak_bytes(name, problem, device="cpu"):
    """Peak memory of a solve and its backward pass in this process, above what it held before."""
    prepared = solvers.SOLVERS[name].prepare(problem)
    prepared.warm_up()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
        before = peak_memory_bytes(device)
    result = prepared()
    peak = peak_memory_bytes(device)
    del result
    return peak - before


def seconds(name, problem, device="cpu"):
    """What the first solve and its backward pass take, code to be generated included."""
    prepared = solvers.SOLVERS[name].prepare(problem)
    start = time.perf_counter()
    prepared()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


MEASURES = {"peak_bytes": peak_bytes, "seconds": seconds}


def first_calls(problem, solver, **settings):
    """Seconds of the first call in a process that finds no generated code on disk, and in one that comes later:
    {"no_code", "later"}; or failure."""
    with tempfile.TemporaryDirectory() as folder:
        code = {"TORCHINDUCTOR_CACHE_DIR": folder}
        found = [in_fresh_process("seconds", problem, solver, **settings, environment=code) for _ in range(2)]
    failed = next((row for row in found if "failure" in row), None)
    return failed or {name: row["seconds"] for name, row in zip(("no_code", "later"), found)}


def in_fresh_process(what, problem, solver, *, seed, quick, device, threads, environment=()):
    """What `main` prints, as a dict; ``failure`` also where the process died."""
    flags = ["--seed", str(seed), "--device", str(device), "--threads", str(threads)] + ["--quick"] * quick
    command = [sys.executable, "-m", "benchmarks.fresh_process", what, problem, solver, *flags]
    # memory that is freed goes back to the system at once, so that the peak counts what is in use
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = os.environ | at_once | dict(environment)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failure": f"exit code {done.returncode}: {last}"}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    run_main(main)
