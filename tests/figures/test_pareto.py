import pytest

pytest.importorskip("matplotlib")

from kerneldna.figures import pareto
from kerneldna.figures.pareto import Point

POINTS = [
    Point("resnet18", 100.0, 11_000_000, 0.70),
    Point("resnet18/kerneldna", 90.0, 9_000_000, 0.74),
    Point("resnet18/odconv", 20.0, 45_000_000, 0.73),
]


def without_accuracy(points):
    return [Point(p.label, p.images_per_second, p.parameters, series=p.series) for p in points]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def naive_front(points, good):
    """Walk from the fastest point down and keep each that is better than all before it."""
    kept, best = [], float("-inf")
    for point in sorted(points, key=lambda p: (-p.images_per_second, -good(p))):
        if good(point) > best:
            kept.append(point)
            best = good(point)
    return kept[::-1]


def test_front_is_what_no_other_point_beats():
    assert [p.label for p in pareto.front(POINTS)] == ["resnet18/kerneldna", "resnet18"]
    many = [Point(str(i), float(i * 7 % 23), 10 + i * 5 % 17, (i * 11 % 19) / 19) for i in range(40)]
    assert pareto.front(many) == naive_front(many, lambda p: p.accuracy)
    assert pareto.front(without_accuracy(many)) == naive_front(
        without_accuracy(many), lambda p: -p.parameters
    )


def test_points_that_are_equal_do_not_beat_each_other():
    twins = [Point("a", 1.0, 5), Point("b", 1.0, 5)]
    assert pareto.front(twins) == twins


def test_figure_shows_accuracy_in_percent_and_parameters_as_area():
    figure = pareto.throughput_figure(POINTS, where="batch 8")
    axes = figure.axes[0]
    (bubbles,) = axes.collections
    assert [tuple(place) for place in bubbles.get_offsets()] == [
        (p.images_per_second, pytest.approx(100 * p.accuracy)) for p in POINTS
    ]
    sizes = bubbles.get_sizes()
    assert sizes[2] / sizes[0] == pytest.approx(45 / 11)
    assert list(axes.get_lines()[0].get_xdata()) == [90.0, 100.0]
    assert axes.get_xlabel() == "images per second, batch 8"
    assert texts(figure) == ["resnet18  11M", "kerneldna  9M", "odconv  45M"]


def test_without_accuracies_parameters_stand_on_the_axis():
    figure = pareto.throughput_figure(without_accuracy(POINTS))
    assert figure.axes[0].get_ylabel() == "parameters (millions)"
    assert not figure.legends


def test_points_without_an_accuracy_are_left_out_where_others_have_one():
    figure = pareto.throughput_figure([*POINTS, Point("vgg11", 5.0, 130_000_000)])
    assert texts(figure) == ["resnet18  11M", "kerneldna  9M", "odconv  45M"]


def test_each_series_has_a_colour_and_a_front():
    both = [
        Point(p.label, p.images_per_second * k, p.parameters, series=s)
        for p in POINTS
        for s, k in (("eager", 1), ("onnx", 3))
    ]
    figure = pareto.throughput_figure(both)
    first, second = figure.axes[0].get_lines()
    assert first.get_color() != second.get_color()
    assert list(second.get_xdata()) == [270.0, 300.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["eager", "onnx"]


def test_labels_leave_out_the_backbone_where_it_is_the_series():
    mixed = [
        Point("resnet18/se", 9.0, 1_000_000, series="resnet18"),
        Point("resnet50/se", 5.0, 2_000_000, series="resnet50"),
        Point("runs/digits", 3.0, 3_000_000, series=""),
    ]
    assert texts(pareto.throughput_figure(mixed)) == ["se  1M", "se  2M", "runs/digits  3M"]


def test_labels_keep_off_each_other_where_there_is_room():
    crowd = [Point(f"network{i}", 100.0 + i, 1_000_000, 0.70 + i / 500) for i in range(5)]
    figure = pareto.throughput_figure(crowd)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_one_point_and_far_apart_speeds():
    assert pareto.throughput_figure(POINTS[:1]).axes[0].get_xscale() == "linear"
    apart = [Point("a", 1.0, 5_000_000), Point("b", 200.0, 80_000_000)]
    axes = pareto.throughput_figure(apart).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_no_point():
    with pytest.raises(ValueError, match="points is empty; give one network or more"):
        pareto.throughput_figure([])


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_save(tmp_path, name, start):
    path = pareto.save(pareto.throughput_figure(POINTS), tmp_path / "figures" / name)
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_save_under_another_ending(tmp_path):
    with pytest.raises(ValueError, match="let the name end in .png, .svg, .pdf"):
        pareto.save(pareto.throughput_figure(POINTS), tmp_path / "a.jpeg")
