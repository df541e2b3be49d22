"""Compare random programs around a solve with plain autograd over the same accepted steps, as many as asked for; or
another way through the solver with the plain one."""

import collections
import concurrent.futures
import multiprocessing
import signal
import traceback
import warnings

import torch

from harness.cli import ArgumentParser, UsageError, non_negative_int, positive_int, run_main
from harness.progress import progress
from torch_ACA.compilation import generate

from . import check, ways
from .cases import draw

_CHUNK = 20  # cases that a process is given at a time


def parser():
    result = ArgumentParser(__doc__)
    result.add_argument("--cases", type=positive_int, default=20_000, help="how many seeds, one case each")
    result.add_argument("--start", type=non_negative_int, default=0, help="the first seed")
    result.add_argument("--seed", type=non_negative_int, help="only this one, and say what its case is")
    way = "what is compared: steps with plain autograd, or another with the plain way, of the seeds that suit it"
    result.add_argument("--way", choices=("steps", *ways.WAYS), default="steps", help=way)
    result.add_argument("--jobs", type=positive_int, default=2, help="processes, of one thread each")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    if args.seed is not None:
        if not _suits(args.seed, args.way):
            raise UsageError(f"the case of seed {args.seed} does not suit --way {args.way}")
        return _one(args.seed, args.way)
    seeds = range(args.start, args.start + args.cases)
    suited = [seed for seed in seeds if _suits(seed, args.way)]
    failures = _many(suited, args.jobs, args.way)
    for _, text in failures.values():
        print(text)
    print(f"{len(suited)} cases, {len(failures)} failures")
    for kind, count in collections.Counter(kind for kind, _ in failures.values()).most_common():
        print(f"  {count} {kind}")
    if failures:
        print("failing seeds:", *failures)
    return 1 if failures else 0


def _suits(seed, way):
    return way == "steps" or ways.WAYS[way].suited(draw(seed)) is not None


def _one(seed, way):
    _prepare()
    failure = _failure(seed, way)
    print(failure[1] if failure else f"seed {seed} passes\n  case: {draw(seed).describe()}")
    return 1 if failure else 0


def _many(seeds, jobs, way):
    """(kind, text) of the seeds that fail, in order."""
    chunks = [seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK)]
    failures = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _prepare_worker) as pool:
        try:
            waiting = [pool.submit(_failures, chunk, way) for chunk in chunks]
            bar = progress(concurrent.futures.as_completed(waiting), total=len(chunks), desc=f"{_CHUNK} cases each")
            for done in bar:
                failures |= done.result()
                bar.set_postfix(failures=len(failures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(sorted(failures.items()))


def _prepare_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    _prepare()


def _prepare():
    torch.set_num_threads(1)
    generate.BACKEND = "aot_eager"  # graphs run as they are: code for each of them takes seconds
    warnings.simplefilter("ignore")


def _failures(seeds, way):
    found = {seed: _failure(seed, way) for seed in seeds}
    return {seed: failure for seed, failure in found.items() if failure}


def _failure(seed, way):
    """(kind, text) of a failing case, else None; an oracle that fails is a failure as well."""
    try:
        difference = check.check(seed) if way == "steps" else ways.check(seed, way)
    except Exception:
        text = (
            f"seed {seed}: what it is compared with raises\n  case: {draw(seed).describe()}\n{traceback.format_exc()}"
        )
        return "oracle raises", text
    return (difference.kind, str(difference)) if difference else None


if __name__ == "__main__":
    run_main(main)
