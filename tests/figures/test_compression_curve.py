"""The curve of all budgets: a point a budget, the networks that were made beside it."""

import pytest

from kerneldna.figures import compression_curve

pytest.importorskip("matplotlib")


def test_every_budget_is_a_point_and_every_network_a_label(tmp_path):
    figure = compression_curve(
        [900, 500, 100], [0.0, 0.02, 1.4], whole=1000, what="MACs", measured={"refined": (500, 0.01)}
    )
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [0.9, 0.5, 0.1]
    assert list(axes.lines[0].get_ydata()) == [1e-5, 0.02, 1.4]
    assert next(text.get_text() for text in axes.texts) == "refined 0.01"
    assert axes.get_xlabel() == "MACs kept, of 1.00 k"
    figure.savefig(tmp_path / "a.png")


def test_as_many_damages_as_sizes():
    with pytest.raises(ValueError, match="2 sizes and 1 damages"):
        compression_curve([1, 2], [0.5], whole=3)
