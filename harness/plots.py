"""Figures: one look, and one colour per gradient method or model in all of them."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from harness.files import atomic_write

# Colour-blind safe: Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), black kept for the truth, and from lstm
# to ode Paul Tol's "muted" scheme.
METHOD_COLOURS = {
    "aca": "#0072B2",
    "aca-own-time": "#332288",
    "direct": "#56B4E9",
    "naive": "#E69F00",
    "adjoint": "#D55E00",
    "mali": "#009E73",
    "torchdiffeq": "#117733",
    "torchdiffeq-adjoint": "#999933",
}
MODEL_COLOURS = {
    "node": METHOD_COLOURS["aca"],
    "resnet": "#CC79A7",
    "lstm": "#882255",
    "lstm-aug": "#AA4499",
    "rnn": "#999933",
    "gru": "#117733",
    "ode": "#332288",
    "truth": "#000000",
}
# For the parts of one thing, such as three bodies: no method or model has them
PART_COLOURS = ("#CC6677", "#44AA99", "#661100")

# Line style and marker of each gradient method, in all figures: they tell methods apart in grey print too.
METHOD_STYLES = {
    "aca": ("-", "o"),
    "aca-own-time": ("-.", "P"),
    "direct": ((0, (1, 1)), "x"),
    "naive": ("--", "s"),
    "adjoint": (":", "^"),
    "mali": ("-.", "D"),
    "torchdiffeq": ((0, (5, 1)), "v"),
    "torchdiffeq-adjoint": ((0, (3, 1, 1, 1, 1, 1)), "<"),
}


def look(method, *, markers=False, **others):
    """Keywords of matplotlib's ``plot`` for a gradient method: colour, line style and, if asked for, ``markers``.

    ``others`` are added, and win.
    """
    style, marker = METHOD_STYLES[method.lower()]
    keywords = {"color": colour(method), "linestyle": style, "linewidth": 1.4}
    return keywords | ({"marker": marker, "markersize": 4} if markers else {}) | others


def colour(label):
    """The colour of a gradient method or model, whatever the case of its name. ValueError for an unknown one."""
    colours = METHOD_COLOURS | MODEL_COLOURS
    try:
        return colours[label.lower()]
    except KeyError:
        raise ValueError(f"no colour for {label!r}; known are {', '.join(colours)}") from None


def new_figure(rows=1, columns=1, *, width=5.0, height=3.5, **keywords):
    """A figure and its axes (one, or an array as from matplotlib's ``subplots``), each ``width`` by ``height`` inches.

    Drawn without pyplot, so that no window system is needed and nothing stays open.
    """
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, **keywords)
    for ax in figure.axes:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure, path):
    """Write ``figure`` to ``path`` as PNG of 256 colours, tightly cropped; equal figures give equal bytes."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight")
    few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_write(path) as file:
        few.save(file, format="png", optimize=True)
