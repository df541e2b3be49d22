"""Peak memory of one solve and its backward pass, above what the process held before it. Run it in a fresh process.

Prints a JSON object: peak_bytes, or failure. On the CPU it is resident memory, so anything a library keeps counts; on
CUDA it is what PyTorch allocated.
"""

import json
import os
import subprocess
import sys
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
    parser.add_argument("problem", choices=PROBLEMS, help="what is solved")
    parser.add_argument("solver", choices=solvers.SOLVERS, help="by what")
    parser.add_argument("--quick", action="store_true", help="the scaled-down problem")
    add_common_arguments(parser, out=None)
    args = parser.parse_args(argv)
    device = apply_common_arguments(args)
    problem = build(args.problem, seed=args.seed, quick=args.quick, device=device)
    reason = solvers.missing(args.solver, problem)
    try:
        print(json.dumps({"failure": reason} if reason else {"peak_bytes": peak_bytes(args.solver, problem, device)}))
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


def in_fresh_process(problem, solver, *, seed, quick, device, threads):
    """What `main` prints, as a dict; ``failure`` also where the process died."""
    flags = ["--seed", str(seed), "--device", str(device), "--threads", str(threads)] + ["--quick"] * quick
    command = [sys.executable, "-m", "benchmarks.memory", problem, solver, *flags]
    # memory that is freed goes back to the system at once, so that the peak counts what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failure": f"exit code {done.returncode}: {last}"}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    run_main(main)
