import pytest

pytest.importorskip("matplotlib")

from kerneldna.figures import size_curve
from kerneldna.figures.size_curve import Measured

NETWORKS = [
    Measured("plain", 700_000, (0.71, 0.70), "plain"),
    Measured("FS-SF", 333_000, (0.70, 0.72, 0.71), "copying"),
    Measured("width 0.18", 364_000, (0.69, 0.68), "plain"),
]


def written(figure):
    return [text.get_text() for text in figure.texts if text.get_text()]


def test_one_series_is_a_curve_and_every_network_a_point_with_a_bar():
    figure = size_curve(NETWORKS, curve="plain", title="ResNet18")
    (axes,) = figure.axes
    curve, *bars = axes.get_lines()
    assert curve.get_xydata().tolist() == [[364_000, pytest.approx(68.5)], [700_000, pytest.approx(70.5)]]
    assert [bar.get_xydata().tolist() for bar in bars] == [
        [[each.parameters, 100 * min(each.accuracies)], [each.parameters, 100 * max(each.accuracies)]]
        for each in NETWORKS
    ]
    points = [tuple(dots.get_offsets()[0]) for dots in axes.collections]
    assert points == [
        (700_000, pytest.approx(70.5)),
        (333_000, pytest.approx(71)),
        (364_000, pytest.approx(68.5)),
    ]
    assert [text.get_text() for text in axes.texts] == ["plain", "FS-SF", "width 0.18"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "copying"]
    assert written(figure) == [
        "ResNet18", "above the curve pays, below does not", "point: mean of 2 to 3 seeds;  bar: lowest to highest"
    ]  # fmt: skip


def test_everything_lies_inside():
    axes = size_curve(NETWORKS, curve="plain").axes[0]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < 333_000 < 700_000 < right
    assert low < 68 < 72 < high


def test_of_one_seed_there_is_no_bar_to_explain_and_of_one_width_no_curve():
    single = [
        Measured(each.label, each.parameters, each.accuracies[:1], each.series) for each in NETWORKS[:2]
    ]
    assert written(size_curve(single, curve="plain")) == ["one seed each"]
    assert written(size_curve(single[1:], curve="plain")) == ["one seed each"]


@pytest.mark.parametrize("networks", [[], [Measured("plain", 5, (), "plain")]])
def test_no_accuracy(networks):
    with pytest.raises(ValueError, match="give networks with one accuracy or more each"):
        size_curve(networks, curve="plain")
