"""Where the bodies went and where a model says they went: sheets of orbits, and animations."""

import io

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.lines import Line2D

from harness import packed
from harness.plots import PART_COLOURS, colour, new_figure, save_figure

FRAMES, TAIL = 50, 0.25  # of the animation, and the time that trails behind each body
ROOM = 0.3  # beyond the true orbit, as a part of its extent: a prediction may fly off


def trajectory(folder):
    """Times and errors [T], true and predicted positions [T, 3, 3] of a run; NaN where the prediction had failed."""
    numbers = np.genfromtxt(io.BytesIO(packed.read(folder, "trajectory.csv")), delimiter=",", skip_header=1)
    return numbers[:, 0], numbers[:, 1], numbers[:, 2:11].reshape(-1, 3, 3), numbers[:, 11:].reshape(-1, 3, 3)


def model_of(name):
    """Model and gradient method of a label such as ode-aca; the method is None for a recurrent network."""
    return (name, None) if name.startswith("lstm") else tuple(name.split("-", 1))


def shade_of(name):
    """The colour of a label such as ode-aca: that of its gradient method where it has one."""
    model, gradient = model_of(name)
    return colour(gradient or model)


def faint(runs):
    """How opaque the thin lines of so many runs are: the more, the less."""
    return min(0.6, 4 / runs)


def draw_orbits(sheet, path, heading):
    """A sheet of orbits: each body's true and predicted one, in the plane of the true one's two widest axes.

    ``sheet``: for each of its rows what to call it, and the runs of one model on one system, a run a seed. The first is
    drawn broad.
    """
    figure, axes = new_figure(len(sheet), 3, width=3.4, height=2.2, squeeze=False)
    for own, (name, rows) in zip(axes, sheet.items()):
        for body, ax in enumerate(own):
            _draw_orbit(ax, body, rows)
            ax.set_title(f"{name}, body {body + 1}", fontsize="medium")
    known = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels())))
    shown = [
        Line2D([], [], color="grey", marker=line.get_marker(), linestyle=line.get_linestyle(), label=name,
               linewidth=line.get_linewidth(), alpha=line.get_alpha())
        for name, line in known.items()
    ]  # fmt: skip
    figure.legend(handles=shown, loc="outside lower center", ncols=len(shown), fontsize="small")
    figure.suptitle(heading, fontsize="medium")
    save_figure(figure, path)


def _draw_orbit(ax, body, rows):
    _, _, true, _ = trajectory(rows[0]["folder"])
    true = true[:, body]
    across, up = sorted(np.argsort(np.ptp(true, axis=0))[1:])
    shade = shade_of(rows[0]["label"])
    ax.plot(true[:, across], true[:, up], color=colour("truth"), linewidth=4, alpha=0.2, label="truth")
    ax.plot(*true[-1, [across, up]], "s", color=colour("truth"), markersize=6, alpha=0.4)
    for rank, row in enumerate(rows):
        times, _, _, predicted = trajectory(row["folder"])
        positions = predicted[:, body][:, [across, up]]
        line = {"linewidth": 0.5, "alpha": faint(len(rows))} if rank else {"linewidth": 1.3}
        before = times <= row["until"][0]
        for seen, style, part in ((before, "-", "trained on"), (~before, ":", "beyond")):
            label = None if rank else f"predicted, {part}"
            ax.plot(*positions[seen].T, style, color=shade, label=label, **line)
        if not rank:
            ax.plot(*positions[-1], "s", color=shade, markersize=4, label="end")
    for axis, limits, name in ((across, ax.set_xlim, ax.set_xlabel), (up, ax.set_ylim, ax.set_ylabel)):
        lower, upper = true[:, axis].min(), true[:, axis].max()
        limits(lower - ROOM * (upper - lower), upper + ROOM * (upper - lower))
        name("xyz"[axis])


def animate(rows, path, heading):
    """The truth beside the predictions of ``rows``, over the whole of [0, 2]."""
    figure, axes = new_figure(1, 1 + len(rows), width=2.6, height=3.0, subplot_kw={"projection": "3d"})
    loaded = [trajectory(row["folder"]) for row in rows]
    times, _, true, _ = loaded[0]
    panels = [("truth", times, true)]
    panels += [(row["label"], own_times, predicted) for row, (own_times, _, _, predicted) in zip(rows, loaded)]
    artists = []
    for ax, (name, own_times, positions) in zip(axes, panels):
        ax.set(xlim=(true.min(), true.max()), ylim=(true.min(), true.max()), zlim=(true.min(), true.max()), title=name)
        ax.tick_params(labelbottom=False, labelleft=False, labelright=False)
        for body, shade in enumerate(PART_COLOURS):
            (tail,), (head,) = ax.plot([], [], [], color=shade), ax.plot([], [], [], "o", color=shade)
            artists.append((tail, head, own_times, positions[:, body]))
    clock = figure.suptitle("", fontsize=9)

    def show(frame):
        now = times[-1] * frame / (FRAMES - 1)
        for tail, head, own_times, positions in artists:
            seen = positions[(own_times > now - TAIL) & (own_times <= now)]
            tail.set_data_3d(*seen.T)
            head.set_data_3d(*seen[-1:].T)
        clock.set_text(f"{heading}, t = {now:.2f}" + (" (beyond the training data)" if now > 1 else ""))

    path.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, show, frames=FRAMES).save(path, writer=PillowWriter(fps=8), dpi=50)
