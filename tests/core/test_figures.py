"""Pictures: two files of one style, letters that can be read in a column, names beside lines that hide nothing."""

import re

import numpy as np
import pytest
from PIL import Image

from fl.core.figures import COLUMN, log_axis, look, name_lines, picture, style


def size(path):
    with Image.open(path) as image:
        return image.size


def a_picture(path, columns=3):
    with picture(path, 15, 4, columns=columns) as (_, panels):
        for axes in panels:
            axes.plot([1, 2], [3, 4], label="$x$ of a run", **look(0))
            axes.set(xlabel="round", ylabel="accuracy (%)")


def test_every_picture_is_a_png_and_an_svg_whose_text_is_text(tmp_path):
    a_picture(tmp_path / "a.png")
    svg = (tmp_path / "a.svg").read_text()
    assert size(tmp_path / "a.png") == (1800, 480)
    assert svg.count("accuracy (%)") >= 3
    assert "$x$ of a run" not in svg, "a name that nobody asked for"
    before = svg
    a_picture(tmp_path / "a.png")
    assert (tmp_path / "a.svg").read_text() == before


def test_letters_that_no_font_has_are_said_in_one_line(tmp_path, capfd):
    with picture(tmp_path / "some.png", 4, 3) as (_, [axes]):
        axes.set_title("forest \U000f0000\ue000\ue000, Лес")
    told = capfd.readouterr()
    assert told.out == "note: some.png: no font here has \\U000f0000\\ue000; boxes stand for it, not in the SVG\n", told
    assert not told.err
    with picture(tmp_path / "other.png", 4, 3) as (_, [axes]):
        axes.set_title("Лес")
    assert not "".join(capfd.readouterr())


def test_in_a_paper_panels_stand_below_each_other_in_one_column(tmp_path):
    with style("paper"):
        a_picture(tmp_path / "a.png")
    width, height = size(tmp_path / "a.png")
    assert width == COLUMN * 600
    assert height > 1.5 * width
    sizes = {float(each) for each in re.findall(r"font-size: ([\d.]+)px", (tmp_path / "a.svg").read_text())}
    assert sizes
    assert min(sizes) >= 5.5
    a_picture(tmp_path / "b.png", columns=1)
    assert size(tmp_path / "b.png") == (1800, 480), "the style ended"


def test_a_picture_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), picture(tmp_path / "a.png", 4, 4):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ends", [(1.0, 1.001, 1.002, 5.0), (1.0, 5.0, 3.0, 4.999)], ids=["close", "apart"])
@pytest.mark.parametrize("at_one_x", [True, False])
def test_names_stand_beside_their_lines_and_hide_no_other(ends, at_one_x, drawn, tmp_path):
    with picture(tmp_path / "a.png", 8, 4) as (_, (axes,)):
        for number, end in enumerate(ends):
            axes.plot([0, 10 - (0 if at_one_x else 2 * number)], [0, end], label=f"run {number}", **look(number))
        name_lines(axes)
    figure = drawn[0]
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
    for line, text in zip(figure.axes[0].lines, texts, strict=True):
        assert text.get_text() == line.get_label()
        assert text.get_color() == line.get_color()
        end = figure.axes[0].transData.transform(line.get_xydata()[-1])
        box = text.get_window_extent()
        away = np.maximum(0, np.maximum(box.min - end, end - box.max))
        assert np.hypot(*away) < 60


def test_names_that_are_too_long_stand_below(drawn, tmp_path):
    with style("paper"), picture(tmp_path / "a.png", 8, 4) as (_, (axes,)):
        for number in range(2):
            axes.plot([0, 1], [0, number], label=f"a run of the {number}th kind with many words", **look(number))
        name_lines(axes)
    figure = drawn[0]
    figure.draw_without_rendering()
    assert not figure.axes[0].texts
    assert [text.get_text()[:10] for text in figure.legends[0].texts] == ["a run of t"] * 2
    assert figure.axes[0].get_window_extent().width > 0.7 * figure.bbox.width


@pytest.mark.parametrize(("low", "high"), [(0.0011, 0.0044), (0.5, 350.0)])
def test_a_logarithmic_axis_has_numbers(low, high, drawn, tmp_path):
    with picture(tmp_path / "a.png", 8, 4) as (_, (axes,)):
        axes.plot([low, high], [1, 2])
        log_axis(axes, "x")
    drawn[0].draw_without_rendering()
    told = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    inside = [text for text in told if text and low <= float(text) <= high]
    assert len(inside) >= 2
