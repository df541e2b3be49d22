"""The hopper in motion: the true trajectory beside the predicted one, as an animation."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from harness import packed
from harness.cli import ArgumentParser, UsageError, non_negative_int, run_main
from harness.files import check_file
from harness.plots import colour, new_figure
from harness.testing import read_tests
from latent_ode_mujoco.data import FEATURES, hopper
from latent_ode_mujoco.plot import RECONSTRUCTIONS, read_reconstructions

GROUND = "floor"


def skeleton(states):
    """Ends of the hopper's capsules in the plane it moves in: [T, capsules, 2 ends, (x, z)].

    Asks the simulator where the joints put them, and so needs no window system.

    Args:
        states: physical states [T, FEATURES], positions first.
    """
    physics = hopper()
    names = physics.named.model.geom_size.axes.row.names
    parts = [i for i, name in enumerate(names) if name != GROUND]
    half_lengths = physics.model.geom_size[parts, 1]
    frames = []
    for state in states:
        with physics.reset_context():
            physics.data.qpos[:] = state[: FEATURES // 2]
        centres = physics.data.geom_xpos[parts]
        axes = physics.data.geom_xmat[parts].reshape(-1, 3, 3)[:, :, 2]  # a capsule lies along its own z
        ends = np.stack([centres - half_lengths[:, None] * axes, centres + half_lengths[:, None] * axes], axis=1)
        frames.append(ends[..., [0, 2]])
    return np.stack(frames)


def animate(true, predicted, times, observed, path, heading):
    """Two panels, one frame for every second time; the truth's frame is marked where the model had an observation."""
    figure, axes = new_figure(1, 2, width=3.4, height=3.4, sharex=True, sharey=True)
    both = np.concatenate([true, predicted]).reshape(-1, 2)
    lines = []
    for ax, name, frames, shade in zip(axes, ("truth", "prediction"), (true, predicted), ("truth", "aca")):
        (low_x, low_z), (high_x, high_z) = both.min(0) - 0.2, both.max(0) + 0.2
        ax.set(xlim=(low_x, high_x), ylim=(min(low_z, -0.1), high_z), aspect="equal", title=name)
        ax.axhline(0, color="grey", linewidth=0.8)
        for part in range(frames.shape[1]):
            (line,) = ax.plot([], [], color=colour(shade), linewidth=5, solid_capstyle="round")
            lines.append((line, frames[:, part]))
    clock = figure.suptitle("", fontsize=6)

    def show(frame):
        for line, ends in lines:
            line.set_data(*ends[frame].T)
        clock.set_text(f"{heading}\nt = {times[frame]:.3f}" + ("  observed" if observed[frame] else ""))

    path.parent.mkdir(parents=True, exist_ok=True)
    shown = range(0, len(times), 2)  # half of them are enough for the eye
    FuncAnimation(figure, show, frames=shown).save(path, writer=PillowWriter(fps=10), dpi=70)


def main(argv=None):
    parser = ArgumentParser("Animate a reconstruction: the true hopper beside the predicted one.")
    parser.add_argument("run", metavar="DIR", help="folder with the tests.jsonl and reconstructions.csv of test.py")
    parser.add_argument("--trajectory", type=non_negative_int, default=0, metavar="N", help="which of those kept")
    parser.add_argument("--out", metavar="FILE", help="where it goes; the default is hopper.gif in that folder")
    args = parser.parse_args(argv)
    folder = Path(args.run)
    path = Path(args.out or folder / "hopper.gif")
    check_file(path)
    tests = read_tests(folder)
    if not tests or packed.read(folder, RECONSTRUCTIONS) is None:
        raise UsageError(f"{folder} holds no tests.jsonl and {RECONSTRUCTIONS}: run test.py --resume {folder} first")
    test = tests[-1]  # all of them have the same data
    trajectories, times, observed, true, predicted = read_reconstructions(folder)
    chosen = (trajectories == args.trajectory) & np.isfinite(predicted).all(1)
    if not chosen.any():
        raise UsageError(f"--trajectory {args.trajectory} is not in {folder}: there are {len(np.unique(trajectories))}")
    scale, shift = np.array(test["maximum"]), np.array(test["minimum"])
    frames = (skeleton(states[chosen] * scale + shift) for states in (true, predicted))
    animate(*frames, times[chosen], observed[chosen], path, textwrap.fill(test["title"], 80))
    print(path)


if __name__ == "__main__":
    run_main(main)
