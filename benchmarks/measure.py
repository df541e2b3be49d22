"""Times of solvers in alternating rounds, and their errors."""

import gc
import math
import time
import warnings
from functools import partial

import torch

from benchmarks import solvers

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(call, clock, device):
    """Seconds that a call takes, the work that it queued on a CUDA device included."""
    gc.collect()  # what earlier calls left must not be collected at this one's expense
    _wait(device)
    start = CLOCKS[clock]()
    call()
    _wait(device)
    return CLOCKS[clock]() - start


def _wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def checked(name, problem, reference):
    """A solver's first solve: (prepared solver, or None if it cannot be used or failed, and a row for the record).

    :param reference: states and gradient of `Problem.reference_solution`
    """
    row = {"solver": name, "library": solvers.SOLVERS[name].library, "status": solvers.missing(name, problem)}
    if row["status"]:
        return None, row

    def first():
        prepared = solvers.SOLVERS[name].prepare(problem)
        return prepared, prepared.check()

    found, about = _first_call(first)
    if found is None:
        return None, row | about
    prepared, found = found
    state_error, gradient_error = (
        None if a is None else _distance(a, b) for a, b in zip((found.ys, found.gradient), reference)
    )
    return prepared, row | about | {
        "tries": found.tries,
        "nfe_forward": found.nfe_forward,
        "nfe_backward": found.nfe_backward,
        "state_error": state_error,
        "gradient_error": gradient_error,
    }


def checked_client(name, client, reference):
    """The same for a client program: (its call with the library of that solver, or None, and a row for the record).

    :param reference: gradient by torchdiffeq, or None without it
    """
    library = solvers.DROP_INS[name]
    row = {"solver": name, "library": solvers.SOLVERS[name].library}
    if library is None:
        return None, row | {"status": f"{row['library']} is not installed"}
    found, about = _first_call(lambda: client(library))
    if found is None:
        return None, row | about
    difference = None if reference is None else _distance(found[1], reference)
    return partial(client, library), row | about | {"gradient_difference": difference}


def _first_call(call):
    """What ``call()`` returns, or None if it failed, and what the record says about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = call()
        except Exception as error:  # a peer may raise anything; the record says what
            return None, {"status": f"failed: {one_line(error)}"}
    return found, {
        "status": "finished",
        "warnings": sorted({str(warning.message).splitlines()[0] for warning in caught}),
    }


def _distance(found, reference):
    return float((found - reference).norm() / reference.norm())


def one_line(error):
    """Kind and first line of an exception."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def alternating(calls, *, seconds, rounds, clock, device, slow=math.inf):
    """Yield a dict of seconds by name for each round, in which every one of ``calls`` (by name) runs once.

    Each round starts with another one, so that none always follows the same neighbour.

    :param seconds: begin no round after so many seconds of wall time
    :param rounds: (at least, at most) so many rounds
    :param slow: what takes longer, in seconds, runs in the first round alone
    """
    gc.collect()
    gc.freeze()  # collecting before every call then takes next to no time
    names, start = list(calls), time.perf_counter()
    try:
        for number in range(rounds[1]):
            if number >= rounds[0] and time.perf_counter() - start > seconds:
                return
            shift = number % len(names)
            order = names[shift:] + names[:shift]
            taken = {name: timed(calls[name], clock, device) for name in order}
            yield {name: taken[name] for name in names}
            names = [name for name in names if taken[name] <= slow]
            if not names:
                return
    finally:
        gc.unfreeze()
