import random
from itertools import pairwise

import pytest

pytest.importorskip("matplotlib")

from kerneldna.figures import compression_curve, labels, pareto
from kerneldna.figures.labels import Label, write_labels
from kerneldna.figures.style import new_figure


def naive_length(start, end, box, steps=20_000):
    """Walk along a line and count the steps inside."""
    inside = 0
    for k in range(steps):
        x, y = (a + (b - a) * (k + 0.5) / steps for a, b in zip(start, end, strict=True))
        inside += box[0] <= x <= box[2] and box[1] <= y <= box[3]
    return inside / steps * ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5


def test_how_much_of_a_line_lies_in_a_box():
    box = (1.0, 2.0, 5.0, 4.0)
    draw = random.Random(0)
    lines = [
        ((0.0, 3.0), (9.0, 3.0)),
        ((2.0, 0.0), (2.0, 9.0)),
        ((0.0, 1.0), (9.0, 1.0)),
        ((2.0, 3.0), (2.0, 3.0)),
    ]
    lines += [tuple((draw.uniform(0, 7), draw.uniform(0, 6)) for _ in range(2)) for _ in range(20)]
    for start, end in lines:
        assert labels._length_inside(start, end, box) == pytest.approx(
            naive_length(start, end, box), abs=2e-3
        )


def struck(figure):
    """Return the labels of a figure that a line of it goes through."""
    from matplotlib.text import Text

    axes = figure.axes[0]
    found = []
    for text in axes.texts:
        box = Text.get_window_extent(text).extents  # an annotation's own takes in its lead
        for line in axes.get_lines():
            corners = axes.transData.transform(line.get_xydata())
            if any(naive_length(*pair, box, steps=500) for pair in pairwise(corners)):
                found.append(text.get_text())
    return found


def test_a_front_strikes_through_no_label():
    falling = [
        (30, 0.73),
        (40, 0.745),
        (55, 0.743),
        (80, 0.735),
        (88, 0.741),
        (90, 0.74),
        (95, 0.715),
        (100, 0.7),
    ]
    for times in (1, 2):  # one front, two fronts
        points = [
            pareto.Point(f"resnet18/network{k}", speed * each, 10_000_000, accuracy - each / 200, str(each))
            for each in range(1, times + 1)
            for k, (speed, accuracy) in enumerate(falling)
        ]
        assert not struck(pareto.throughput_figure(points))


def test_the_curve_of_budgets_strikes_through_no_label():
    sizes = range(4, 21)
    damages = [2.0 * (1 - size / 20.2) ** 2 for size in sizes]
    measured = {"basis, 0.5": (10, 0.62), "basis, 0.7, refined": (14, 0.12), "at the edge": (20, 1e-5)}
    figure = compression_curve(list(sizes), damages, whole=20, measured=measured)
    assert not struck(figure)


def test_labels_keep_off_bars_where_there_is_room():
    figure = new_figure(400, 300)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 4), ylim=(0, 4))
    bar, level = [(2, 0.5), (2, 3.5)], [(0, 2), (4, 2)]
    for line in (bar, level):
        axes.plot(*zip(*line, strict=True))
    write_labels(figure, axes, [Label("in the cross", (2, 2), 6)], lines=[bar, level])
    assert not struck(figure)
    (text,) = axes.texts
    assert text.arrow_patch is None  # a corner is near enough


def test_a_label_far_from_its_point_has_a_lead():
    figure = new_figure(400, 300)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 4), ylim=(0, 4))
    crowd = [Label("a rather long label", (2 + k / 50, 2 + k / 50), 40) for k in range(10)]
    write_labels(figure, axes, crowd)
    assert any(text.arrow_patch for text in axes.texts)
