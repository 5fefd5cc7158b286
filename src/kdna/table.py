"""kdna table: the paper's tables beside what this library counts."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import Annotated, Any

import typer

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
R18: tuple[str, ...] = ("layer3", "layer4")
R50 = {"layer3": "F-S-F-S-F-S-F", "layer4": "F-S-F"}


def table(
    number: Annotated[int, typer.Argument(help="The paper's table: 1, 3, 4 or 5.")] = 1,
) -> dict[str, Any]:
    """Print the parameters and multiply-accumulates of a table's rows beside the paper's figures."""
    from rich.console import Console
    from rich.table import Table

    rows = _read(number)
    page = Table(title=f"Table {number}: the paper's figures and ours", title_justify="left")
    keys = [key for key in rows[0] if key not in ("top1", "top5", "gpu_throughput_fps", "cpu_latency_ms")]
    for head in (*keys, "parameters", "G MAC"):
        page.add_column(head, justify="left" if head in ("backbone", "method", "pattern") else "right")
    found, notes = [], []
    for row in rows:
        plain, method = _network(number, row)
        size = _size(plain, method)
        found.append({**{key: row[key] for key in keys}, "parameters": size.parameters, "macs": size.macs})
        mark = ""
        if note := NOTES.get((row.get("backbone", ""), row.get("method", ""))) if number == 1 else None:
            notes.append(f"{row['backbone']} {row['method']}: {note}")
            mark = f" [{len(notes)}]"
        page.add_row(*(row[key] for key in keys), f"{size.parameters:,}{mark}", f"{size.macs / 1e9:.2f}")
    console = Console(highlight=False, width=120)
    console.print(page, markup=False)
    for i, note in enumerate(notes, 1):
        console.print(f"[{i}] {note}", markup=False)
    console.print(
        "G MAC: multiply-accumulates of convolutions and matrix products for one 224 x 224 image, in 10^9. The paper's flops "
        "also count BatchNorm, LayerNorm and pooling: 0.3 % of a ResNet, 4 % of a MobileNetV2. Ours count the mixing of kernels, "
        "a matrix product; the paper's figures for CondConv and ODConv do not, those for DY-Conv and KernelWarehouse do."
    )
    return {"table": number, "rows": found}


def _read(number: int) -> list[dict[str, str]]:
    source = files("kdna").joinpath(f"tables/table{number}.csv")
    if not source.is_file():
        raise ValueError(f"no table {number}; this command has tables 1, 3, 4 and 5")
    return list(csv.DictReader(source.read_text(encoding="utf-8").splitlines()))


def _network(number: int, row: dict[str, str]) -> tuple[str, Any]:
    """Return the backbone of a row and the method on it."""
    from kerneldna.methods.kerneldna import KernelDNA
    from kerneldna.registry import methods

    backbone = row.get("backbone", "resnet18")
    if number == 1:
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


def _size(backbone: str, method: Any) -> Any:
    import torch

    from kerneldna.convert import describe, plan
    from kerneldna.models import create_model

    with torch.device("meta"):
        model = create_model(backbone)
    return describe(model).size if method is None else plan(model, method).after
