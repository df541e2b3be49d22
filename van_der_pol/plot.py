"""Draw the figures and write the tables from the records; what was not run is left out."""

import io
from statistics import mean

import numpy as np
from matplotlib.lines import Line2D

from harness import packed
from harness.cli import run_main
from harness.plots import colour, look, new_figure, save_figure
from harness.tables import results_folder
from van_der_pol import records, tables
from van_der_pol.experiment import VanDerPol
from van_der_pol.picture import PICTURES
from van_der_pol.plot_training import train
from van_der_pol.styles import NAMES, style

MARKERS = {"RK12": "v", "RK23": "s", "RK45": "^"}  # of the adjoint by solver
FLOOR = 1e-17  # where a logarithmic axis shows exact zeros


def main(argv=None):
    folder = results_folder(argv, __doc__, VanDerPol(), packs=True)
    drawn = records.places(folder)
    for name, place in drawn.items():
        save_figure(FIGURES[name](place), folder / name / f"{name}.png")
    tables.write(folder)
    left = [name for name in FIGURES if name not in drawn]
    print(f"drawn: {', '.join(drawn)}; left out: {', '.join(left) or 'nothing'}")


def reconstruction(folder):
    """Phase plane, time course, and the error of what is rebuilt against horizon and tolerance."""
    figure, axes = new_figure(2, 2, width=5.5, height=4.2)
    forward, *backward = records.read(folder, kind="trajectory")
    _trajectories(axes[0], forward, backward)
    _against_horizon(axes[1, 0], records.read(folder, kind="error", sweep="horizon"))
    _against_tolerance(axes[1, 1], records.read(folder, kind="error", sweep="tolerance"))
    rtol, atol = (next(iter(records.read(folder, sweep="horizon")))[key] for key in ("rtol", "atol"))
    figure.suptitle(
        f"van der Pol, RK45 at rtol {rtol:g}, atol {atol:g}: solved to T = {forward['t'][-1]:g} and rebuilt from y(T)"
    )
    return figure


def _trajectories(axes, forward, backward):
    phase, course = axes
    course.set(xlabel="time t", ylabel="$y_1$", title="Against time")
    phase.set(xlabel="$y_1$", ylabel="$y_2$", title="Phase plane")
    t, y = np.array(forward["t"]), np.array(forward["y"])
    phase.plot(*y.T, color=colour("truth"), label="forward")
    course.plot(t, y[:, 0], color=colour("truth"), label="forward")
    for row in backward:
        t, y = np.array(row["t"]), np.array(row["y"])
        replayed = row["label"] == "aca"
        drawn = look("aca", markers=True, linestyle="") if replayed else look("adjoint", linewidth=2)
        label = "ACA: replayed steps" if replayed else "adjoint: solved back from y(T)"
        phase.plot(*y.T, label=label, **drawn)
        course.plot(t, y[:, 0], label=label, **drawn)
        if row["label"] == "adjoint":
            phase.plot(*y[0], "X", ms=10, color=colour("adjoint"))
    phase.annotate("y(0)", forward["y"][0], xytext=(8, 8), textcoords="offset points")
    phase.plot(*forward["y"][0], "k*", ms=12)
    course.legend(loc="upper right", fontsize="small")


def _against_horizon(ax, rows):
    for label in ("adjoint", "mali", "aca"):
        first = [row for row in rows if row["label"] == label and row["start"] == 0]
        _errors(ax, first, "horizon", label, NAMES[label] + (", paper's start" if label == "adjoint" else ""))
    _dots(ax, rows, "scipy", "horizon")
    groups = {}
    for row in rows:
        if row["label"] == "adjoint" and row["error"] is not None:
            groups.setdefault(row["horizon"], []).append(row["error"])
    spread = np.array([np.quantile(errors, [0, 0.5, 1]) for errors in groups.values()]).T
    starts = 1 + max(row["start"] for row in rows)
    ax.fill_between(
        list(groups), spread[0], spread[2], color=colour("adjoint"), alpha=0.2, lw=0, label=f"all of {starts} starts"
    )
    ax.set(xlabel="horizon T", ylabel="distance from the forward state", yscale="log", title="Error against horizon")
    _zero_line(ax)
    ax.plot([], [], "x", color="grey", label="did not finish")
    ax.legend(fontsize="small", loc="center right")


def _against_tolerance(ax, rows):
    for method, marker in MARKERS.items():
        chosen = [row for row in rows if (row["label"], row["method"]) == ("adjoint", method)]
        _errors(ax, chosen, "rtol", "adjoint", f"{NAMES['adjoint']}, {method}", marker=marker)
        _errors(ax, [row for row in rows if (row["label"], row["method"]) == ("aca", method)], "rtol", "aca", None)
    _errors(ax, [row for row in rows if row["label"] == "mali"], "rtol", "mali", None)
    _dots(ax, rows, "scipy", "rtol")
    ax.set(xlabel="rtol (atol = rtol / 1000)", xscale="log", yscale="log", title="Error against tolerance")
    ax.invert_xaxis()
    _zero_line(ax)
    ax.plot([], [], "x", color="grey", label="did not finish")
    ax.legend(fontsize="small", loc="center right")


def _errors(ax, rows, key, label, name, **others):
    """A line of errors; crosses at the upper edge for solves that did not finish."""
    done = [row for row in rows if row["error"] is not None]
    errors = [max(row["error"], FLOOR) for row in done]
    ax.plot([row[key] for row in done], errors, label=name, **look(label, markers=True, **others))
    lost = [row[key] for row in rows if row["error"] is None]
    if lost:
        height = {"mali": 0.97}.get(label, 0.93)
        ax.plot(lost, [height] * len(lost), "x", color=colour(label), transform=ax.get_xaxis_transform())


def _dots(ax, rows, label, key):
    chosen = [row for row in rows if row["label"] == label and row["error"] is not None]
    ax.plot(
        [row[key] for row in chosen], [row["error"] for row in chosen], "o", ms=7, mfc="none", color=colour("truth"),
        label="scipy, reverse time",
    )  # fmt: skip


def _zero_line(ax):
    ax.set_ylim(FLOOR / 3, 30)
    ax.axhline(FLOOR, color=colour("aca"), lw=0.8, alpha=0.5)
    place = {"transform": ax.get_yaxis_transform(), "color": colour("aca"), "fontsize": "small"}
    ax.text(0.02, FLOOR * 2, "exactly 0: bit for bit", **place)


def gradient_error(folder):
    """Error of both gradients of the toy, growing and contracting, and of van der Pol against tolerance."""
    figure, axes = new_figure(2, 3, width=4.6, height=3.8)
    toy, oscillator = records.read(folder, problem="toy"), records.read(folder, problem="van der Pol")
    for row, (quantity, title) in enumerate((("start", "initial state"), ("parameter", "parameter"))):
        for column, flow in enumerate(("growing", "contracting")):
            ax = axes[row, column]
            for key in _solvers(toy):
                chosen = [r for r in toy if (r["library"], r["gradient"]) == key and r["flow"] == flow]
                _band(ax, chosen, "horizon", f"error_{quantity}", key)
            sign = "+" if flow == "growing" else "-"
            ax.set(yscale="log", xlabel="horizon T", ylabel=f"relative error of dL/d({title})", ylim=(1e-9, 3e-2))
            ax.set_title(f"toy z' = {sign}0.3 z, {flow}")
        ax = axes[row, 2]
        for key in _solvers(oscillator):
            chosen = [r for r in oscillator if (r["library"], r["gradient"]) == key]
            _band(ax, chosen, "rtol", f"error_{quantity}", key)
        ax.set(yscale="log", xscale="log", xlabel="rtol (atol = rtol / 1000)", ylim=(1e-10, 1e6))
        ax.set_title(f"van der Pol, T = {oscillator[0]['horizon']:g}")
        ax.invert_xaxis()
    handles = [
        Line2D([], [], label=f"{NAMES[gradient]}, {library}", **_style(library, gradient))
        for library, gradient in _solvers(toy)
    ]
    handles.append(Line2D([], [], color="grey", ls="", marker="x", label="did not finish"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(
        f"Error of the gradient of $|y(T)|^2$; toy at rtol = atol = {toy[0]['rtol']:g}, "
        "lines: median over starts, bands: all of them"
    )
    return figure


def _solvers(rows):
    return list(dict.fromkeys((row["library"], row["gradient"]) for row in rows))


def _style(library, gradient):
    """Thin for torchdiffeq."""
    return look(gradient, linewidth=0.8, alpha=0.7) if library == "torchdiffeq" else style(gradient)


def _band(ax, rows, key, value, solver):
    """Median and range of a value against a key; crosses on the upper edge where nothing finished."""
    library, gradient = solver
    groups = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row[value])
    done = {x: [v for v in values if v is not None] for x, values in groups.items()}
    lost = [x for x, values in done.items() if not values]
    done = {x: [max(v, FLOOR) for v in values] for x, values in done.items() if values}
    middle = [np.median(v) for v in done.values()]
    ax.plot(list(done), middle, marker=".", **_style(library, gradient))
    if library == "torch_ACA":
        ax.fill_between(
            list(done),
            [min(v) for v in done.values()],
            [max(v) for v in done.values()],
            color=colour(gradient),
            alpha=0.15,
            lw=0,
        )
    edge = 0.98 if library == "torch_ACA" else 0.94
    if lost:
        ax.plot(lost, [edge] * len(lost), "x", color=colour(gradient), transform=ax.get_xaxis_transform())


def picture(folder):
    """The photograph on its way, solved back and replayed, and the errors."""
    data = np.load(io.BytesIO(packed.read(folder, PICTURES)))
    times = data["times"]
    figure, axes = new_figure(4, len(times), width=2.1, height=2.2)
    for row, name in enumerate(("forward", "adjoint", "aca")):
        for column, ax in enumerate(axes[row]):
            forward = data["forward"][column]
            low, high = (0.0, 1.0) if column == 0 else (forward.min(), forward.max())
            ax.imshow(np.clip((data[name][column] - low) / (high - low), 0, 1).transpose(1, 2, 0))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.grid(False)
            if row == 0:
                ax.set_title(f"t = {times[column]:g}")
            else:
                error = np.linalg.norm(data[name][column] - forward) / np.linalg.norm(forward)
                text = f"error {error:.2g}" if error else "error 0"
                start = name == "adjoint" and column == len(times) - 1
                ax.set_xlabel("solved back from here" if start else text, color=colour(name))
    for ax, text in zip(axes[:, 0], ("forward", "adjoint:\nsolved back", "ACA:\nreplayed")):
        ax.set_ylabel(text)
    for ax in axes[3]:
        ax.remove()
    grid = axes[0, 0].get_gridspec()
    half = len(times) // 2
    _kernel_errors(figure.add_subplot(grid[3, : half + 1]), records.read(folder, sweep="kernel"))
    _tolerance_errors(figure.add_subplot(grid[3, half + 1 :]), records.read(folder, sweep="tolerance"))
    figure.suptitle("A photograph along z' = tanh(K * z), RK45 at ode45's tolerances")
    return figure


def _kernel_errors(ax, rows):
    adjoint = np.array([row["error"][:-1] for row in rows if row["label"] == "adjoint"])
    times = rows[0]["t"][:-1]
    for errors in adjoint:
        ax.plot(times, errors, color=colour("adjoint"), alpha=0.25, lw=1)
    ax.plot(times, np.median(adjoint, 0), ".-", color=colour("adjoint"))
    ax.set(yscale="log", xlabel="time t", ylabel="relative error", title=f"adjoint: {len(adjoint)} kernels and median")
    ax.grid(alpha=0.3)


def _tolerance_errors(ax, rows):
    chosen = [row for row in rows if row["label"] == "adjoint"]
    ax.plot([row["rtol"] for row in chosen], [row["error"] for row in chosen], ".-", color=colour("adjoint"))
    ax.set(xscale="log", yscale="log", xlabel="rtol (atol = rtol / 1000)", title="at t = 0, first kernel")
    ax.invert_xaxis()
    ax.grid(alpha=0.3)


def depth(folder):
    """Depth, memory, work and gradient error against the tries per step."""
    rows = records.read(folder)
    figure, axes = new_figure(2, 2, width=4.6, height=3.2)
    axes = axes.flat
    panels = {
        "graph depth (autograd nodes)": lambda row: row["depth"],
        "held for the backward pass (bytes)": lambda row: row["held_bytes"],
        "evaluations and VJPs of f": lambda row: row["n_f_evals"] + row["n_backward_f_evals"] + row["n_vjps"],
        "relative error of the gradient": lambda row: row["error"],
    }
    for ax, (title, value) in zip(axes, panels.items()):
        for gradient in ("naive", "aca", "direct"):
            groups = {}
            for row in rows:
                if row["gradient"] == gradient:
                    groups.setdefault(row["shrink"], []).append((row["tries_per_step"], value(row)))
            points = [tuple(zip(*group)) for group in groups.values()]
            m = [mean(tries) for tries, _ in points]
            middle = [float(np.exp(np.mean(np.log(values)))) for _, values in points]
            ax.plot(m, middle, label=NAMES[gradient], **style(gradient, markers=True))
            low, high = [min(values) for _, values in points], [max(values) for _, values in points]
            ax.fill_between(m, low, high, color=colour(gradient), alpha=0.15, lw=0)
        ax.set(xlabel="tries per accepted step m", title=title, xlim=(0, None))
        ax.set(yscale="log") if "error" in title else ax.set(ylim=(0, None))
    axes[0].legend()
    speeds = len({row["speed"] for row in rows})
    figure.suptitle(f"A field of sudden changes, RK45: means and ranges over {speeds} fields")
    return figure


FIGURES = {figure.__name__: figure for figure in (reconstruction, gradient_error, picture, depth, train)}

if __name__ == "__main__":
    run_main(main)
