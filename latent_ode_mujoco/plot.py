"""Figures from the records: test error against epoch and time, and reconstructions with the observed points marked."""

import io
import textwrap

import numpy as np

from harness import packed
from harness.cli import run_main
from harness.plots import colour, new_figure, save_figure
from harness.record import read_epochs, read_run
from harness.tables import results_folder
from latent_ode_mujoco.data import FEATURES, NAMES
from latent_ode_mujoco.experiment import LatentODE, joint_words
from latent_ode_mujoco.report import LABELS, RESULTS, collect

# Models without a gradient method lend the colours of other recurrent networks and of ResNet
COLOURS = {"rnn": "rnn", "rnn-decay": "gru", "rnn-vae": "lstm", "latent-ode-rnn": "resnet"}
RECONSTRUCTIONS = "reconstructions.csv"
DRAWN = (0, 1, 2, 4, 9, 12)  # features of the reconstructions: positions and velocities of trunk and leg


def look(name):
    """Colour and line style of a label such as latent-ode-aca: solid with a gradient method's colour, else broken."""
    model, _, variant = name.rpartition("-")
    if shade := COLOURS.get(name) or COLOURS.get(model):
        style = "--" if name in COLOURS else ":"
    else:
        shade, style = variant, "-"
    return {"color": colour(shade), "linestyle": style, "label": name, "linewidth": 1.3}


def curve(rows):
    """Epochs that all ``rows`` were tested after; the means over them of seconds of training and of the test error."""
    tested = [{row["step"]: row for row in read_epochs(run["folder"]) if "Test/MSE" in row} for run in rows]
    epochs = sorted(set.intersection(*map(set, tested)))
    seconds = [np.mean([own[epoch]["training_seconds"] for own in tested]) for epoch in epochs]
    errors = [np.mean([own[epoch]["Test/MSE"] for own in tested]) for epoch in epochs]
    return np.array(epochs), np.array(seconds), 100 * np.array(errors)


def draw_curves(rows, path, heading):
    """Test error against epoch and against time, the mean over seeds, a line for each model."""
    figure, (by_epoch, by_time) = new_figure(1, 2, width=5.5, height=4)
    for name in (name for name in LABELS if any(row["label"] == name for row in rows)):
        epochs, seconds, errors = curve([row for row in rows if row["label"] == name])
        by_epoch.semilogy(epochs, errors, **look(name))
        by_time.loglog(seconds, errors, **look(name))
    by_epoch.set(xlabel="epoch", ylabel="test MSE x 1e-2")
    by_time.set(xlabel="seconds of training")
    by_epoch.legend(fontsize=7)
    figure.suptitle(heading, fontsize=9)
    save_figure(figure, path)


def read_reconstructions(folder):
    """Trajectory numbers [N], times [N], observed [N] (bool), true and predicted states [N, FEATURES]."""
    content = io.BytesIO(packed.read(folder, RECONSTRUCTIONS))
    numbers = np.genfromtxt(content, delimiter=",", skip_header=1, ndmin=2)
    states = numbers[:, 3:]
    return numbers[:, 0], numbers[:, 1], numbers[:, 2] == 1, states[:, :FEATURES], states[:, FEATURES:]


def draw_reconstructions(row, path):
    """Some features of the kept trajectories: truth, prediction, observed points."""
    trajectories, times, observed, true, predicted = read_reconstructions(row["folder"])
    shown = np.unique(trajectories)
    if not len(shown):
        return
    figure, axes = new_figure(len(DRAWN), len(shown), width=3.6, height=1.4, sharex=True, squeeze=False)
    name = row["label"]
    for column, trajectory in enumerate(shown):
        own = trajectories == trajectory
        for ax, feature in zip(axes[:, column], DRAWN):
            ax.plot(times[own], true[own, feature], color=colour("truth"), linewidth=0.8, label="truth")
            ax.plot(times[own], predicted[own, feature], **look(name) | {"linestyle": "-"})
            seen = own & observed
            ax.plot(times[seen], true[seen, feature], "o", color=colour("truth"), markersize=3, label="observed")
            if column == 0:
                ax.set_ylabel(NAMES[feature])
        axes[-1, column].set_xlabel("time")
    axes[0, 0].legend(fontsize=6)
    figure.suptitle(textwrap.fill(row["title"], 120), fontsize=7)
    save_figure(figure, path)


def main(argv=None):
    about = "Draw curves of all runs, and reconstructions of the lowest seed of each model."
    root, groups = results_folder(argv, about, RESULTS), {}
    for row in collect(root):
        row["title"] = LatentODE().title(read_run(row["folder"])["settings"])
        groups.setdefault((row["profile"], row["task"], row["sample"]), []).append(row)
    for (profile, task, sample), rows in groups.items():
        folder = root / profile / "figures"
        name = f"{task}-{sample * 100:g}"
        heading = f"{task}, {sample:.0%} observed, {profile} profile\n{textwrap.fill(joint_words(rows), 120)}"
        draw_curves(rows, folder / f"{name}-curves.png", heading)
        first = {row["label"]: row for row in reversed(rows)}  # rows go by seed: the lowest one stays
        for row in first.values():
            draw_reconstructions(row, folder / f"{name}-{row['label']}.png")
        print(f"{len(rows)} runs -> {folder / name}-*.png")


if __name__ == "__main__":
    run_main(main)
