"""`kdna table 2`: the paper's thirteen detectors, counted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning", reason="needs kerneldna[train]")

from command_line import call, last_line
from kerneldna.detection.detectors import create_detector
from kerneldna.models import create_model
from kerneldna.recipes.recipe import list_recipes

METHODS = {"base": None, "dyconv": "dyconv", "odconv": "odconv", "kw": "kernelwarehouse", "kdna": "kerneldna"}


pytestmark = pytest.mark.slow  # thirteen detectors are built


@pytest.fixture(scope="module")
def result():
    return call("table", 2)


@pytest.fixture(scope="module")
def shown(result):
    return result.stdout


@pytest.fixture(scope="module")
def rows(result):
    return last_line(result)["rows"]


def test_a_row_for_each_of_the_papers_with_its_figures(rows):
    assert len(rows) == 13
    figures = {(row["backbone"], row["method"]): (row["box_ap"], row["mask_ap"]) for row in rows}
    assert figures["resnet50", "kdna"] == ("42.5", "39.1")
    assert figures["mobilenetv2_100", "base"] == ("33.8", "31.7")
    assert figures["convnext_tiny", "kw"] == ("44.8", "40.6")


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        ("resnet50", "base"),
        ("mobilenetv2_100", "odconv"),
        ("mobilenetv2_100", "kw"),
        ("convnext_tiny", "kdna"),
    ],
)
def test_sizes_are_those_of_the_detector(rows, backbone, method):
    with torch.device("meta"):
        network = create_model(backbone, method=METHODS[method])
        detector = create_detector(network, "maskrcnn", classes=list(map(str, range(80))))
    sizes = {name: parameter.numel() for name, parameter in detector.named_parameters()}
    row = next(row for row in rows if (row["backbone"], row["method"]) == (backbone, method))
    assert row["detector_parameters"] == sum(sizes.values())
    body = sum(size for name, size in sizes.items() if name.startswith("backbone.body."))
    assert row["backbone_parameters"] == body


def test_rows_of_a_backbone_have_the_same_heads(rows):
    heads = {(row["backbone"], row["detector_parameters"] - row["backbone_parameters"]) for row in rows}
    assert len(heads) == 3


def test_each_row_has_its_recipe(rows):
    parts = [(row["backbone"], METHODS[row["method"]]) for row in rows]
    names = {f"maskrcnn-{backbone}-{method}-coco".replace("-None", "") for backbone, method in parts}
    shipped = [name for name in list_recipes() if name.startswith("maskrcnn-")]
    assert names == {name for name in shipped if name.endswith("-coco")}


def test_what_is_counted_is_said_below(shown):
    assert "Backbone parameters: the network up to its last map" in " ".join(shown.split())
    assert "G MAC" not in shown
