import math
import sys

import pytest

pytest.importorskip("matplotlib")

from kerneldna.figures import attention_maps, curves, style

CURVES = {
    "epoch": [1, 2, 3],
    "train_loss": [2.0, 1.0, 0.5],
    "val_loss": [2.1, 1.2, 0.7],
    "top1": [0.3, 0.6, 0.9],
}
GRID = [[0.1, -0.2, 0.0], [0.3, 0.0, 0.1], [0.0, 0.05, -0.4]]


def lines(figure):
    return figure.axes[0].get_lines()


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_loss_draws_training_dashed_and_validation_solid():
    figure = curves.loss_curves([("plain", CURVES)])

    assert [(line.get_linestyle(), list(line.get_ydata())) for line in lines(figure)] == [
        ("--", CURVES["train_loss"]),
        ("-", CURVES["val_loss"]),
    ]
    assert legend(figure) == ["plain", "training", "validation"]


def test_a_run_keeps_its_colour_where_another_has_no_curves():
    loss = curves.loss_curves([("plain", CURVES), ("KernelDNA", CURVES)])
    accuracy = curves.accuracy_curves([("plain", {}), ("KernelDNA", CURVES)])

    assert {line.get_color() for line in lines(loss)} == set(style.RUN_COLOURS[:2])
    assert [line.get_color() for line in lines(accuracy)] == [style.RUN_COLOURS[1]]
    assert legend(accuracy) == ["KernelDNA"]


def test_more_runs_than_colours_start_again():
    figure = curves.accuracy_curves([(str(index), CURVES) for index in range(7)])

    assert lines(figure)[6].get_color() == style.RUN_COLOURS[0]


def test_accuracy_is_drawn_in_percent():
    axis = curves.accuracy_curves([("plain", CURVES)]).axes[0].yaxis

    assert axis.get_major_formatter()(0.975, 0) == "97.5"


def test_one_epoch_is_drawn_as_a_point():
    one = curves.accuracy_curves([("plain", {"epoch": [1], "top1": [0.5]})])

    assert lines(one)[0].get_marker() == "o"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_the_values_of_a_run_that_is_measured_every_few_epochs_are_joined(missing):
    top1 = [missing, 0.5, missing, 0.6]
    figure = curves.accuracy_curves([
        ("every second", {"epoch": [1, 2, 3, 4], "top1": top1}),
        ("once", {"epoch": [1, 2], "top1": [missing, 0.5]}),
    ])  # fmt: skip
    figure.canvas.draw()
    second, once = lines(figure)
    assert (list(second.get_xdata()), list(second.get_ydata())) == ([2, 4], [0.5, 0.6])
    assert once.get_marker() == "o"


def test_curves_of_another_length_than_epochs():
    message = (
        r"run 'plain' has 1 values of top1 for 3 epochs; give one value an epoch, nan where there is none"
    )
    with pytest.raises(ValueError, match=message):
        curves.accuracy_curves([("plain", {"epoch": [1, 2, 3], "top1": [0.5]})])


def test_long_names_get_a_legend_row_each():
    short = curves.accuracy_curves([("a", CURVES), ("b", CURVES)])
    long = curves.accuracy_curves([("a" * 40, CURVES), ("b" * 40, CURVES)])

    assert long.get_figheight() > short.get_figheight()


def test_attention_maps_share_a_scale_centred_at_zero():
    figure = attention_maps({"conv1": GRID, "conv2": [[0.9]]})
    *maps, bar = figure.axes

    assert [axes.get_title() for axes in maps] == ["conv1", "conv2"]
    assert {axes.collections[0].get_clim() for axes in maps} == {(-0.9, 0.9)}
    assert [label.get_text() for label in bar.get_yticklabels()] == ["−0.90", "0", "+0.90"]


def test_attention_maps_show_the_first_row_on_top_and_numbers_in_small_ones():
    small = attention_maps({"conv1": GRID}).axes[0]
    large = attention_maps({"conv1": [[0.1] * 7] * 7}).axes[0]

    assert small.yaxis_inverted()
    assert [text.get_text() for text in small.texts][:3] == ["+0.10", "−0.20", "+0.00"]
    assert not large.texts


def test_attention_maps_take_a_given_limit_and_untrained_children():
    given = attention_maps({"conv1": GRID}, limit=2.0).axes[0]
    zeros = attention_maps({"conv1": [[0.0]]}).axes[0]

    assert given.collections[0].get_clim() == (-2.0, 2.0)
    assert zeros.collections[0].get_clim() == (-1.0, 1.0)


def test_many_children_go_on_in_further_rows():
    one = attention_maps({str(index): GRID for index in range(6)})
    two = attention_maps({str(index): GRID for index in range(7)})

    assert two.get_figheight() == pytest.approx(2 * one.get_figheight())


def test_attention_maps_refuse_nothing():
    with pytest.raises(ValueError, match="maps is empty; expected child names"):
        attention_maps({})


@pytest.mark.parametrize("grid", [[[1.0, 2.0], [3.0]], [], [[]]])
def test_attention_maps_refuse_ragged_grids(grid):
    with pytest.raises(
        ValueError, match=r"spatial attention of 'conv1' has rows of .* expected k_h rows of k_w"
    ):
        attention_maps({"conv1": grid})


def test_without_matplotlib_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"install it with: pip install 'kerneldna\[plots\]'"):
        curves.loss_curves([("plain", CURVES)])
