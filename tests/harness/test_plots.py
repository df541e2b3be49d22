import matplotlib.image
import pytest

from harness import plots


def test_colours_tell_the_lines_apart():
    for colours in (plots.METHOD_COLOURS, plots.MODEL_COLOURS):
        assert len(set(colours.values())) == len(colours)
    assert plots.colour("ACA") == plots.colour("aca") == plots.METHOD_COLOURS["aca"]
    assert plots.colour("truth") == "#000000"


def test_unknown_label():
    with pytest.raises(ValueError, match="no colour for 'acca'; known are aca"):
        plots.colour("acca")


def draw(path):
    figure, (left, right) = plots.new_figure(1, 2, width=2, height=2, sharey=True)
    left.plot([0, 1], [0, 1], color=plots.colour("aca"))
    right.plot([0, 1], [1, 0], color=plots.colour("naive"))
    plots.save_figure(figure, path)


def test_figure_is_a_reproducible_png(tmp_path):
    draw(tmp_path / "new" / "a.png")
    draw(tmp_path / "b.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    height, width, _ = matplotlib.image.imread(tmp_path / "b.png").shape
    assert width > 1.5 * height > 300
