from dataclasses import dataclass
from math import nan

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from kerneldna.figures import heatmap, pareto, style
from kerneldna.figures.heatmap import distance_figure, gate_figure, similarity_figure, similarity_panels

LAYERS = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3, 4) for block in range(3) for i in (1, 2)]


@dataclass
class Matrix:
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    note: str = ""


def square(names, *, note="", blank=None):
    values = [[blank if blank is not None and i != j else 1 / (1 + abs(i - j)) for j in range(len(names))]
              for i in range(len(names))]  # fmt: skip
    return Matrix(list(names), list(names), values, note)


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_the_first_row_is_on_top_and_every_layer_is_named():
    matrix = Matrix(["a", "b"], ["c", "d", "e"], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    axes, bar = similarity_figure(matrix, title="net").axes
    assert axes.yaxis_inverted()
    assert (names(axes.yaxis), names(axes.xaxis)) == (["a", "b"], ["c", "d", "e"])
    (mesh,) = axes.collections
    assert mesh.get_clim() == (0, 1)
    np.testing.assert_allclose(np.ravel(mesh.get_array()), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert [text.get_text() for text in axes.texts] == ["0.10", "0.20", "0.30", "0.40", "0.50", "0.60"]
    assert axes.get_title(loc="left") == "net"
    assert names(bar.yaxis) == ["0", "0.5", "1"]


def test_numbers_stand_in_large_cells_only():
    assert not similarity_figure(square(LAYERS)).axes[0].texts


@pytest.mark.parametrize("blank", [None, nan])
def test_blanks_are_hatched_and_the_note_says_why(blank):
    matrix = Matrix(["a", "b"], ["a", "b"], [[1.0, blank], [blank, 1.0]], note="blank: not comparable")
    figure = similarity_figure(matrix)
    axes = figure.axes[0]
    assert axes.patch.get_hatch() == "////"
    assert np.ma.getmaskarray(axes.collections[0].get_array()).ravel().tolist() == [False, True, True, False]
    assert [text.get_text() for text in axes.texts] == ["1.00", "1.00"]
    assert texts(figure) == ["blank: not comparable"]
    assert similarity_figure(square(["a", "b"])).axes[0].patch.get_hatch() is None


def test_panels_share_one_scale_one_bar_and_say_each_note_once():
    plain, dna = square(LAYERS, note="as one; two"), square(LAYERS[:-3], note="as one; three")
    across = Matrix(LAYERS, LAYERS[:-3], [[0.5] * (len(LAYERS) - 3)] * len(LAYERS), note="as one; two")
    figure = similarity_panels(
        {"plain": plain, "KernelDNA": dna, "plain (rows), KernelDNA (columns)": across}
    )
    *panels, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "plain",
        "KernelDNA",
        "plain (rows), KernelDNA (columns)",
    ]
    assert {axes.collections[0].get_clim() for axes in panels} == {(0, 1)}
    assert bar.get_ylabel() == "CKA"
    assert " ".join(reversed(texts(figure))) == "as one; two; three"
    cells = {round(axes.get_window_extent().width / len(names(axes.xaxis)), 6) for axes in panels}
    assert len(cells) == 1


def boxes(figure):
    """Every label, title and note, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style.style():
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        found = [text for axes in figure.axes for text in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label,
                 axes.yaxis.label, axes.title, axes._left_title)]  # fmt: skip
        return [t.get_window_extent(renderer) for t in (*found, *figure.texts) if t.get_text()]


@pytest.mark.parametrize(
    "figure",
    [
        similarity_figure(square(LAYERS, note="a note of many words " * 20), title="a title"),
        similarity_figure(square([f"stages.{i}.blocks.10.mlp.fc1" for i in range(70)])),
        similarity_panels({"plain": square(LAYERS), "a long title " * 4: square(LAYERS[:4]), "x": square(LAYERS)}),
        distance_figure(["layer3.0.conv2", "layer3.1.conv1"], [[0, 0.02], [0.02, 0]], title="layer3.1.conv2", note="n " * 90),
        gate_figure([f"class {i}" for i in range(30)], np.random.default_rng(0).random((30, 500)), title="t", note="n " * 200),
    ],
    ids=["one", "many layers", "panels", "distances", "gates"],
)  # fmt: skip
def test_no_text_leaves_the_figure_or_meets_another(figure):
    found = boxes(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for box in found:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            shared = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(shared) <= 2.5, (a, b)


def test_many_layers_are_named_in_part():
    many = similarity_figure(square([f"layer{i}" for i in range(150)])).axes[0]
    assert names(many.yaxis)[:3] == ["layer0", "layer3", "layer6"]


def test_stages_are_set_apart():
    assert heatmap._borders(["conv1", *LAYERS]) == [1, 7, 13, 19]
    assert (
        heatmap._borders(["conv_stem", "blocks.0.0.conv", "blocks.1.0.conv", "blocks.1.1.conv", "head"]) == []
    )
    assert heatmap._borders(["a", "a", "a"]) == []


def test_distances_run_from_zero_to_the_largest():
    axes, bar = distance_figure(["a", "b"], [[0, 0.04], [0.04, 0]], title="parent").axes
    assert axes.collections[0].get_clim() == (0, 0.04)
    assert [text.get_text() for text in axes.texts] == ["0.000", "0.040", "0.040", "0.000"]
    assert bar.get_ylabel() == "relative distance"
    assert distance_figure(["a"], [[0.0]]).axes[0].collections[0].get_clim() == (0, 1)


def test_gates_are_ordered_by_what_tells_classes_apart():
    figure = gate_figure(["cat", "dog"], [[0.5, 0.2, 0.3], [0.5, 0.8, 0.4]], title="conv1", note="a note")
    upper, lower = figure.axes[0], figure.axes[2]
    np.testing.assert_allclose(upper.images[0].get_array(), [[0.2, 0.3, 0.5], [0.8, 0.4, 0.5]])
    np.testing.assert_allclose(lower.images[0].get_array(), [[-0.3, -0.05, 0], [0.3, 0.05, 0]])
    assert upper.images[0].get_clim() == (0, 1)
    assert lower.images[0].get_clim() == pytest.approx((-0.3, 0.3))
    assert names(upper.yaxis) == ["cat", "dog"]
    assert lower.get_xlabel() == "3 channels, those that differ most between classes first"
    assert texts(figure) == ["conv1", "a note"]


def test_a_class_without_an_image_is_hatched():
    figure = gate_figure(["cat", "dog", "cow"], [[0.5, 0.2], [None, nan], [0.1, 0.2]])
    assert [axes.patch.get_hatch() for axes in figure.axes[::2]] == ["////", "////"]


def test_gates_all_alike_are_drawn():
    assert gate_figure(["cat"], [[0.5, 0.5]]).axes[2].images[0].get_clim() == (-1, 1)


def test_figures_are_saved(tmp_path):
    figure = similarity_figure(Matrix(["a", "b"], ["a", "b"], [[1, None], [None, 1]], note="n"), title="t")
    assert pareto.save(figure, tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: similarity_panels({}), "panels is empty; give titles, each with the similarities"),
        (
            lambda: similarity_figure(Matrix([], [], [])),
            "'the figure' has 0 rows of .* for 0 x 0 names; expected a row",
        ),
        (
            lambda: similarity_figure(Matrix(["a"], ["b"], [[1, 2]]), title="net"),
            r"'net' has 1 rows of \[2\] .* 1 x 1",
        ),
        (lambda: distance_figure(["a", "b"], [[0]]), "1 rows of .* for 2 x 2 names"),
        (lambda: gate_figure([], []), "0 rows of .* for 0 x 0 names"),
        (lambda: gate_figure(["a", "b"], [[1, 2], [3]]), r"2 rows of \[1, 2\] values"),
        (lambda: gate_figure(["a"], [[nan]]), "means has no number; give the mean gates of one class"),
    ],
)
def test_wrong_values(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
