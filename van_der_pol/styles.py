"""How gradient methods are named and drawn in the figures of this experiment."""

from harness.plots import look

NAMES = {"aca": "ACA", "direct": "direct", "naive": "naive", "adjoint": "adjoint (reverse time)", "mali": "MALI"}


def style(gradient, **others):
    """As `look`; ACA is drawn broad, as direct, which coincides with it, is drawn over it."""
    return look(gradient, **({"linewidth": 3.0, "alpha": 0.7} if gradient == "aca" else {}) | others)
