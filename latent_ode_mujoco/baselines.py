"""Test errors of two predictors without training: the constant, which is the mean of the training targets, and straight
lines between the observed points of a trajectory.

On the test trajectories and observed points of every setting of the profiles: what a trained model has to beat.
"""

import os

import numpy as np
import torch

from harness.cli import run_main
from harness.files import check_folder
from harness.measurement import measurement_parser, write_parts
from latent_ode_mujoco.data import FOLDER as DATA
from latent_ode_mujoco.data import load
from latent_ode_mujoco.evaluation import fixed_batch
from latent_ode_mujoco.experiment import PROFILES, LatentODE
from latent_ode_mujoco.tasks import TASKS, prepare

FRACTIONS = (0.1, 0.2, 0.5)
SEEDS = list(range(3))
FOLDER = LatentODE().results / "baselines"


def main(argv=None):
    parser = measurement_parser(__doc__.partition("\n\n")[0].replace("\n", " "), FOLDER)
    data = os.environ.get("HOPPER_DATA") or DATA
    parser.add_argument("--data", default=data, metavar="DIR", help="folder of the simulated trajectories")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES), help="settings to measure")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    sizes = [LatentODE().new_settings("--profile", name)["trajectories"] for name in args.profiles]
    check_folder(args.out)
    states = load(args.data, max(sizes))
    del args.data  # the machine's own folder is not recorded
    write_parts(args, SEEDS, lambda seed: rows(states, args.profiles, seed))


def rows(states, profiles, seed):
    """All rows of a seed."""
    for profile in profiles:
        for task in TASKS:
            flags = ["--profile", profile, "--task", task, "--seed", str(seed)]
            for sample in FRACTIONS:
                settings = LatentODE().new_settings(*flags, "--sample", str(sample))
                prepared = prepare(states[: settings["trajectories"]], task, seed, "cpu")
                batch = fixed_batch(prepared, "test", settings)
                guesses = {"constant": prepared.train.targets.mean((0, 1)), "straight": lines(batch)}
                where = {"seed": seed, "profile": profile, "task": task, "sample": sample}
                for label, guess in guesses.items():
                    yield where | {"label": label, "mse": float(((batch.targets - guess) ** 2).mean())}


def lines(batch):
    """The straight lines between the observed points of each trajectory, and before and after these the nearest one:
    [B, T, FEATURES]."""
    times = batch.target_index.numpy()
    found = [
        np.stack([np.interp(times, index, column) for column in values.T], 1)
        for index, values in zip(batch.index.numpy(), batch.values.double().numpy())
    ]
    return torch.from_numpy(np.stack(found)).to(batch.targets.dtype)


if __name__ == "__main__":
    run_main(main)
