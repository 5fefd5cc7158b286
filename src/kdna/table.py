"""kdna table: the paper's tables next to what this library counts."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import Annotated, Any

import typer

from kdna.terminal import say, show_table

NAMES = {"base": None, "kw": "kernelwarehouse", "kdna": "kerneldna"}
NOTES = {
    (
        "resnet18",
        "cgc",
    ): "the official layer has 21,388 affine BatchNorm parameters that 11.69M leaves no room for; 2.19G has no "
    "source in it: the gates cost 3M MACs",
    (
        "convnext_tiny",
        "kdna",
    ): "the authors' ConvNeXt code was never released; ours carries the MobileNetV2 rule over, 0.1 % off; "
    "4.51G is out of reach of any network of the same depth",
    ("resnet18", "kw"): "the released configuration; 2.23G was not reproduced, the other KW rows agree",
    ("mobilenetv2_050", "kdna"): "the paper prints the same network without children as 0.10G",
}
NAMING = ("backbone", "method", "pattern", "channel", "spatial", "filter")
FIGURES = ("params_m", "flops_g", "box_ap", "mask_ap")
COUNTED = {
    "parameters": "parameters",
    "macs": "G MAC",
    "backbone_parameters": "backbone parameters",
    "detector_parameters": "detector parameters",
}
CLASSIFIERS = (
    "G MAC: multiply-accumulates of convolutions and matrix products for one 224 x 224 image, in 10^9. The paper's flops "
    "also count BatchNorm, LayerNorm and pooling: 0.3 % of a ResNet, 4 % of a MobileNetV2. Ours count the mixing of kernels, "
    "a matrix product; the paper's figures for CondConv and ODConv do not, those for DY-Conv and KernelWarehouse do."
)
DETECTORS = (
    "box_ap, mask_ap: the paper's, of Mask R-CNN on COCO 2017; it gives no sizes. Backbone parameters: the network up to its last "
    "map, as the detector keeps it: without the classifier, and without MobileNetV2's convolution to 1280 channels. Detector "
    "parameters: those, the feature pyramid and the heads, for COCO's 80 classes. The recipe of a row is "
    "maskrcnn-BACKBONE-METHOD-coco, without METHOD for base; kw is kernelwarehouse there, kdna kerneldna."
)
R18: tuple[str, ...] = ("layer3", "layer4")
R50 = {"layer3": "F-S-F-S-F-S-F", "layer4": "F-S-F"}


def table(
    number: Annotated[int, typer.Argument(help="The paper's table: 1 to 5.")] = 1,
) -> dict[str, Any]:
    """Print the sizes of a paper's table as this library counts them, next to the paper's figures."""
    rows = _read(number)
    count = _count_detector if number == 2 else _count_classifier
    counts = [count(*_network(number, row)) for row in rows]
    keys = [key for key in rows[0] if key in NAMING + FIGURES]
    found, notes, cells = [], [], []
    for row, counted in zip(rows, counts, strict=True):
        found.append({**{key: row[key] for key in keys}, **counted})
        shown = [f"{value / 1e9:.2f}" if key == "macs" else f"{value:,}" for key, value in counted.items()]
        if note := NOTES.get((row.get("backbone", ""), row.get("method", ""))) if number == 1 else None:
            notes.append(f"{row['backbone']} {row['method']}: {note}")
            shown[0] += f" [{len(notes)}]"
        cells.append([*(row[key] for key in keys), *shown])
    heads = [*keys, *(COUNTED[key] for key in counts[0])]
    title = f"Table {number}: the paper's figures and ours"
    show_table(heads, cells, title=title, left=("backbone", "method", "pattern"))
    for i, note in enumerate(notes, 1):
        say(f"[{i}] {note}")
    say(DETECTORS if number == 2 else CLASSIFIERS)
    return {"table": number, "rows": found}


def _read(number: int) -> list[dict[str, str]]:
    source = files("kdna").joinpath(f"tables/table{number}.csv")
    if not source.is_file():
        raise ValueError(f"no table {number}; this command has tables 1 to 5")
    return list(csv.DictReader(source.read_text(encoding="utf-8").splitlines()))


def _network(number: int, row: dict[str, str]) -> tuple[str, Any]:
    """Return the backbone of a row and the method on it."""
    from kerneldna.methods.kerneldna import KernelDNA
    from kerneldna.registry import methods

    backbone = row.get("backbone", "resnet18")
    if number in (1, 2):
        name = NAMES.get(row["method"], row["method"])
        return backbone, name and methods.get(name).recipe(backbone)
    if number == 3:
        return backbone, KernelDNA(patterns=dict.fromkeys(R18, row["pattern"]))
    if number == 5:
        flags = {key: row[key] == "1" for key in ("channel", "spatial", "filter")}
        return backbone, KernelDNA.recipe(backbone, **flags)
    copying = {"channel": False, "spatial": False, "filter": False}
    deeper = (
        dict.fromkeys(R18, "FF-FFF")
        if backbone == "resnet18"
        else {k: v.replace("S", "F") for k, v in R50.items()}
    )
    kinds = {
        "original": None,
        "expanding_parent": KernelDNA(patterns=deeper),
        "direct_copying": KernelDNA.recipe(backbone, **copying),
        "adapter": KernelDNA.recipe(backbone),
    }
    return backbone, kinds[row["method"]]


def _count_classifier(backbone: str, method: Any) -> dict[str, int]:
    import torch

    from kerneldna.conversion.convert import describe, plan
    from kerneldna.models import create_model

    with torch.device("meta"):
        model = create_model(backbone)
    size = describe(model).size if method is None else plan(model, method).after
    return {"parameters": size.parameters, "macs": size.macs}


def _count_detector(backbone: str, method: Any) -> dict[str, int]:
    import torch

    from kerneldna.detection import detectors
    from kerneldna.models import create_model
    from kerneldna.network import surgery

    with torch.device("meta"):
        network = create_model(backbone, method=method)
        detector = detectors.create_detector(network, "maskrcnn", classes=[str(i) for i in range(80)])
    kept = surgery.get(detector, detectors.NETWORK)
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (kept, detector)]
    return {"backbone_parameters": sizes[0], "detector_parameters": sizes[1]}
