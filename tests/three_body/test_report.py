import numpy as np
import pytest

from harness.files import csv_text, write_text
from three_body import plot_orbits
from three_body.report import exploded


def test_models_whose_gradients_exploded_are_named_with_how_many_of_their_runs():
    def rows(name, *norms):
        return [{"label": name, "gradient_norm": norm} for norm in norms]

    calm = [*rows("ode-naive", 3.8, 2.0), *rows("lstm", None)]
    assert exploded(calm) == ""
    said = exploded([*calm, *rows("node-naive", 2e4, 12.0, 6.3e6), *rows("node-aca", 9.2)])
    assert "node-naive in 2 of 3 runs, up to 6.3e+06" in said
    assert "node-aca in none, at most 9.2; ode-naive in none, at most 3.8." in said and "lstm" not in said


@pytest.fixture
def run(tmp_path):
    """A run whose three bodies move in the planes yz, xz and xy, and whose prediction is off by 0.01 in every axis."""
    times = np.linspace(0, 2, 50)
    wide = np.stack([np.cos(times), np.sin(times)], 1)
    true = np.zeros((50, 3, 3))
    for body, plane in enumerate(((1, 2), (0, 2), (0, 1))):
        true[:, body, plane] = wide
    rows = np.concatenate([times[:, None], np.zeros((50, 1)), true.reshape(50, 9), true.reshape(50, 9) + 0.01], 1)
    write_text(tmp_path / "trajectory.csv", csv_text(list(map(str, range(20))), rows.tolist()))
    (tmp_path / "run.json").write_text("{}")
    return {"folder": tmp_path, "label": "ode-aca", "until": [1.0, 2.0]}


def test_each_body_is_drawn_in_the_plane_that_it_moves_in(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot_orbits, "save_figure", lambda figure, path: drawn.append(figure))
    plot_orbits.draw_orbits({"one": [run], "two": [run, run]}, tmp_path / "orbits.png", "a title")
    axes = drawn[0].axes
    assert [ax.get_xlabel() + ax.get_ylabel() for ax in axes] == ["yz", "xz", "xy"] * 2
    assert [len(ax.lines) for ax in axes] == [5] * 3 + [7] * 3  # truth, its end, two parts of the prediction, its end
    truth, _, trained, beyond, _ = axes[0].lines
    np.testing.assert_allclose(np.concatenate([trained.get_xdata(), beyond.get_xdata()]), truth.get_xdata() + 0.01)
    assert (trained.get_linestyle(), beyond.get_linestyle()) == ("-", ":") and len(trained.get_xdata()) == 25
