"""Trajectories of the hopper: simulated, cached, and compared with those of other machines; `tasks.py` cuts them.

The recipe is that of Rubanova et al. (2019), https://github.com/YuliaRubanova/latent_ode: DeepMind Control's hopper is
put into a random state and falls, without control; 7 positions and 7 velocities at each of 200 steps.
"""

import fcntl
import hashlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from harness.cli import ArgumentParser, UsageError, positive_int, run_main
from harness.environment import describe, versions
from harness.files import atomic_write

POINTS = 200  # of a trajectory, which is one unit of time
FEATURES = 14
NAMES = tuple(
    kind + joint for kind in ("", "d_") for joint in ("rootx", "rootz", "rooty", "waist", "hip", "knee", "ankle")
)
FULL_SIZE = 10_000  # trajectories of the recipe
SIMULATION_SEED = 123
FOLDER = "data/hopper"
RECIPE = "hopper stand, uncontrolled, 1"  # to be changed with what `simulate` does
PACKAGES = ("mujoco", "dm-control")
REFERENCE = Path(__file__).parent / "reference.json"
REFERENCE_SIZES = (100, 1000, FULL_SIZE)
TOLERANCE = 1e-3  # between the statistics of two machines, in standard deviations of each feature


def hopper():
    """The simulated hopper, as dm-control's ``Physics``.

    Raises:
        UsageError: mujoco or dm-control is not installed.
    """
    os.environ.setdefault("MUJOCO_GL", "disable")  # nothing is rendered, and most servers could not
    try:
        from dm_control import suite
    except ImportError as error:
        raise UsageError(f"the hopper needs mujoco and dm-control ({error}): pip install -e '.[mujoco]'") from error
    return suite.load("hopper", "stand").physics


def simulate(count):
    """The first ``count`` trajectories of the recipe: float32 [count, POINTS, FEATURES]."""
    physics = hopper()
    draw = np.random.RandomState(SIMULATION_SEED).uniform
    states = np.empty((count, POINTS, FEATURES), dtype=np.float32)
    positions, velocities = np.split(states, 2, axis=-1)
    for i in range(count):
        with physics.reset_context():
            physics.data.qpos[:2] = draw(0, 0.5, 2)
            physics.data.qpos[2:] = draw(-2, 2, 5)
            physics.data.qvel[:] = draw(-5, 5, 7)
        for t in range(POINTS):
            positions[i, t], velocities[i, t] = physics.data.qpos, physics.data.qvel
            physics.step()
    return states


def load(folder, count):
    """The first ``count`` trajectories [count, POINTS, FEATURES] from the cache in ``folder``, made if need be.

    The manifest holds a checksum of the data, and is written after it: a cache that is damaged, half written, of
    another recipe or of other versions of the simulator is noticed and built again.

    Raises:
        UsageError: the data have to be simulated and the simulator is missing, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a")  # noqa: SIM115, closed below
    except OSError as error:
        raise UsageError(f"--data {folder} cannot be written: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that start together, one simulates and the others wait
        states, reason = _cached(folder, count)
        if states is None:
            if reason:
                print(f"{folder}: {reason}; simulating {count} trajectories again", file=sys.stderr)
            states = simulate(count)
            _store(folder, states)
            if message := disagreement(states):
                print(f"warning: {message}", file=sys.stderr)
    return torch.from_numpy(states[:count])


def missing():
    """What lacks for the data in the default folder, as a line; None if nothing."""
    folder = Path(os.environ.get("HOPPER_DATA") or FOLDER)
    if _cached(folder, 1)[0] is None and None in _versions().values():
        return f"no simulated data in {folder}, and mujoco or dm-control is not installed: pip install -e '.[mujoco]'"
    return None


def _cached(folder, count):
    """The cached trajectories, or None and what is wrong with the cache (nothing if there is none)."""
    data, manifest = folder / "trajectories.npy", folder / "manifest.json"
    if not data.exists() and not manifest.exists():
        return None, None
    try:
        said, content = json.loads(manifest.read_text()), data.read_bytes()
        if hashlib.sha256(content).hexdigest() != said["sha256"]:
            return None, "the checksum of the cache is wrong"
        if said["recipe"] != RECIPE:
            return None, "the cache is of another recipe"
        if (installed := _versions()) not in (said["versions"], dict.fromkeys(PACKAGES)):
            return None, f"the cache was made with {said['versions']}, installed are {installed}"
        if said["count"] < count:
            return None, f"the cache holds {said['count']} trajectories"
        return np.load(io.BytesIO(content), allow_pickle=False), None
    except (OSError, ValueError, KeyError, TypeError):
        return None, "the cache is incomplete"


def _store(folder, states):
    content = io.BytesIO()
    np.save(content, states)
    manifest = {
        "recipe": RECIPE,
        "count": len(states),
        "sha256": hashlib.sha256(content.getbuffer()).hexdigest(),
        "versions": _versions(),
        "statistics": statistics(states),
        "environment": describe(),
    }
    with atomic_write(folder / "trajectories.npy") as file:
        file.write(content.getbuffer())
    with atomic_write(folder / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())


def _versions():
    """Versions of the simulator; None for what is not installed."""
    return versions(PACKAGES)


def statistics(states):
    """Mean, standard deviation and extremes of each feature, as lists."""
    flat = states.reshape(-1, FEATURES)
    wide = flat.astype(np.float64)
    return {
        "mean": wide.mean(0).tolist(),
        "std": wide.std(0).tolist(),
        "min": flat.min(0).tolist(),
        "max": flat.max(0).tolist(),
    }


def disagreement(states):
    """What the statistics of these trajectories say against the recorded ones; None where they agree to TOLERANCE.

    Another processor rounds differently, so bits may differ; an uncontrolled hopper falls, and hardly amplifies that.
    """
    recorded = json.loads(REFERENCE.read_text())["statistics"]
    sizes = [size for size in REFERENCE_SIZES if size <= len(states)]
    if not sizes:
        return None
    expected, found = recorded[str(sizes[-1])], statistics(states[: sizes[-1]])
    worst = max(
        (abs(a - b) / scale, name, feature)
        for name, values in found.items()
        for a, b, scale, feature in zip(values, expected[name], expected["std"], NAMES)
    )
    if worst[0] <= TOLERANCE:
        return None
    off = f"{worst[0]:.2g} standard deviations ({TOLERANCE:g} allowed)"
    return f"{worst[1]} of {worst[2]} differs from the recorded one by {off}"


def write_reference(states):
    """Record the statistics that other machines are compared with."""
    record = {
        "recipe": RECIPE,
        "versions": _versions(),
        "statistics": {str(size): statistics(states[:size]) for size in REFERENCE_SIZES},
        "environment": describe(),
    }
    with atomic_write(REFERENCE) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


def main(argv=None):
    parser = ArgumentParser("Simulate the hopper and fill the cache; done by train.py and test.py where it is missing.")
    parser.add_argument("--data", default=FOLDER, metavar="DIR", help="folder of the cache")
    parser.add_argument("--trajectories", type=positive_int, default=FULL_SIZE, metavar="N", help="how many at least")
    parser.add_argument(
        "--write-reference",
        action="store_true",
        help="only simulate everything and record the statistics that other machines are compared with",
    )
    args = parser.parse_args(argv)
    if args.write_reference:
        write_reference(simulate(FULL_SIZE))
        return
    states = load(args.data, args.trajectories).numpy()
    print(f"{len(states)} trajectories in {args.data}: {disagreement(states) or 'as recorded'}")


if __name__ == "__main__":
    run_main(main)
