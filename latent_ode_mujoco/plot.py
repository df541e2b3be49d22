"""Figures from the records: error against epoch and time, and reconstructions with the observed points marked."""

import io
import textwrap

import numpy as np
from matplotlib.lines import Line2D

from harness import packed
from harness.cli import run_main
from harness.plots import colour, new_figure, save_figure
from harness.plots import look as method_look
from harness.record import read_epochs, read_run
from harness.tables import results_folder
from latent_ode_mujoco import untrained
from latent_ode_mujoco.data import FEATURES, NAMES
from latent_ode_mujoco.experiment import LatentODE, joint_words
from latent_ode_mujoco.report import LABELS, collect

# Models without a gradient method lend the colours of other recurrent networks and of ResNet
COLOURS = {"rnn": "rnn", "rnn-decay": "gru", "rnn-vae": "lstm", "latent-ode-rnn": "resnet"}
STYLES = {  # thin ones, by label
    "rnn": (0, (6, 2)), "rnn-decay": (0, (2, 1)), "rnn-repaired": (0, (6, 1, 1, 1)), "rnn-vae": (0, (1, 3)),
    "latent-ode-rnn-aca": (0, (3, 3)),
}  # fmt: skip
RECONSTRUCTIONS = "reconstructions.csv"
RECONSTRUCTED = ("rnn", "rnn-repaired", "latent-ode-adjoint", "latent-ode-naive", "latent-ode-aca")
DRAWN = (0, 1, 2, 4, 9, 12)  # features of the reconstructions: positions and velocities of trunk and leg


def look(name):
    """Colour and line style of a label such as latent-ode-aca: its gradient method's; thin and broken without."""
    model, _, variant = name.rpartition("-")
    if shade := COLOURS.get(name) or COLOURS.get(model):
        return {"color": colour(shade), "linestyle": STYLES[name], "label": name, "linewidth": 0.9}
    return method_look(variant, label=name)


def curve(rows):
    """Epochs after which an error was taken in all ``rows``; the means over them of seconds of training and of the
    error."""
    taken = []
    for run in rows:
        tagged = [row for row in read_epochs(run["folder"]) if watched(run) in row]
        taken.append({row["step"]: (row["training_seconds"], row[watched(run)]) for row in tagged})
    epochs = sorted(set.intersection(*map(set, taken)))
    seconds, errors = np.mean([[own[epoch] for epoch in epochs] for own in taken], axis=0).T
    return np.array(epochs), seconds, 100 * errors


def watched(run):
    """The error that a run's record has by epoch: on the trajectories set aside or, where none were, as in runs of
    earlier versions, on those to test on."""
    return "Validation/MSE" if run["validation"] else "Test/MSE"


def draw_curves(rows, baselines, path, heading):
    """The `watched` error against epoch and time, a column for each fraction observed: the mean over seeds, a line for
    each model. ``baselines`` are those of `untrained.errors`."""
    fractions = sorted({row["sample"] for row in rows})
    figure, axes = new_figure(2, len(fractions), width=3.8, height=3.0, sharey=True, squeeze=False)
    for (by_epoch, by_time), fraction in zip(axes.T, fractions):
        own = [row for row in rows if row["sample"] == fraction]
        for name in (name for name in LABELS if any(row["label"] == name for row in own)):
            epochs, seconds, errors = curve([row for row in own if row["label"] == name])
            by_epoch.semilogy(epochs, errors, **look(name))
            by_time.loglog(seconds, errors, **look(name))
        title = f"{fraction:.0%} observed"
        if baselines:
            for ax in (by_epoch, by_time):
                constant = np.mean(baselines["constant"][fraction])
                ax.axhline(constant, color="grey", linewidth=0.8, linestyle="-.", label=untrained.TITLES["constant"])
            title += f"\n{untrained.TITLES['straight']}: {np.mean(baselines['straight'][fraction]):.2g}"
        by_epoch.set_title(title, fontsize=8)
        by_epoch.set(xlabel="epoch")
        by_time.set(xlabel="seconds of training")
    kinds = sorted({watched(row).partition("/")[0].lower() for row in rows})
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{' or '.join(kinds)} MSE x 1e-2")
    names = {name: line for ax in axes.flat for line, name in zip(*ax.get_legend_handles_labels())}
    figure.legend(names.values(), names, loc="outside lower center", ncols=5, fontsize=7)
    figure.suptitle(heading, fontsize=9)
    save_figure(figure, path)


def read_reconstructions(folder):
    """Trajectory numbers [N], times [N], observed [N] (bool), true and predicted states [N, FEATURES]."""
    content = io.BytesIO(packed.read(folder, RECONSTRUCTIONS))
    numbers = np.genfromtxt(content, delimiter=",", skip_header=1, ndmin=2)
    states = numbers[:, 3:]
    return numbers[:, 0], numbers[:, 1], numbers[:, 2] == 1, states[:, :FEATURES], states[:, FEATURES:]


def draw_reconstructions(rows, path, heading):
    """One sheet: some features of one kept trajectory, a column a model, with the error of that prediction.

    ``rows``: a run a model.
    """
    kept = {row["label"]: read_reconstructions(row["folder"]) for row in rows}
    kept = {name: found for name, found in kept.items() if len(found[0])}
    if not kept:
        return
    figure, axes = new_figure(len(DRAWN), len(kept), width=2.3, height=1.2, sharex=True, sharey="row", squeeze=False)
    for column, (name, (trajectories, times, observed, true, predicted)) in enumerate(kept.items()):
        own = trajectories == trajectories[0]
        for ax, feature in zip(axes[:, column], DRAWN):
            ax.plot(times[own], true[own, feature], color=colour("truth"), linewidth=0.8, label="truth")
            ax.plot(times[own], predicted[own, feature], **look(name) | {"label": "prediction"})
            seen = own & observed
            ax.plot(times[seen], true[seen, feature], "o", color=colour("truth"), markersize=3, label="observed")
        error = 100 * np.mean((true[own] - predicted[own]) ** 2)
        axes[0, column].set_title(f"{name}\nMSE x 1e-2: {error:.2f}", fontsize=8)
        axes[-1, column].set_xlabel("time")
    for ax, feature in zip(axes[:, 0], DRAWN):
        ax.set_ylabel(NAMES[feature], fontsize=8)
    truth, _, seen = axes[0, 0].get_legend_handles_labels()[0]
    prediction = Line2D([], [], color="grey", linestyle="--", label="prediction, in the column's style")
    figure.legend(handles=[truth, seen, prediction], loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{heading}\none test trajectory, one seed; the error is that of this trajectory", fontsize=9)
    save_figure(figure, path)


def main(argv=None):
    about = "Draw curves of all runs, and reconstructions of the lowest seed of each model."
    root, groups = results_folder(argv, about, LatentODE()), {}
    for row in collect(root):
        row["title"] = LatentODE().title(read_run(row["folder"])["settings"])
        groups.setdefault((row["profile"], row["task"], row["sample"]), []).append(row)
    for profile, task in dict.fromkeys(key[:2] for key in groups):
        rows = [row for key, own in groups.items() if key[:2] == (profile, task) for row in own]
        heading = f"{task}, {profile} profile, mean over seeds\n{textwrap.fill(joint_words(rows), 120)}"
        path = root / profile / "figures" / f"{task}-curves.png"
        draw_curves(rows, untrained.errors(root, profile, task), path, heading)
    for (profile, task, sample), rows in groups.items():
        folder = root / profile / "figures"
        name = f"{task}-{sample * 100:g}"
        heading = f"{task}, {sample:.0%} observed, {profile} profile\n{textwrap.fill(joint_words(rows), 120)}"
        first = {row["label"]: row for row in reversed(rows)}  # rows go by seed: the lowest one stays
        shown = [first[label] for label in RECONSTRUCTED if label in first]
        draw_reconstructions(shown, folder / f"{name}-reconstructions.png", heading)
        print(f"{len(rows)} runs -> {folder / name}-reconstructions.png")


if __name__ == "__main__":
    run_main(main)
