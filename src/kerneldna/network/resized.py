"""timm's backbones at other widths, and with a stem for small images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.models.resnet import ResNet
from torch import nn

from kerneldna.layers.start import draw_layer_
from kerneldna.network import surgery
from kerneldna.network.replaceable import why_irreplaceable
from kerneldna.reading.shown import said


def at_width(name: str, width: float, timm_args: Mapping[str, Any]) -> nn.Module:
    """Create a timm network with the channels of every stage times `width`, but for that as timm makes it.

    Args:
        name: Of a ResNet, MobileNetV2 or ConvNeXt.
        width: The factor.
        timm_args: Passed to timm.

    Raises:
        ValueError: If the network is another.
    """
    family = next((make for start, make in _FAMILIES.items() if name.startswith(start)), None)
    made = None if family is None else family(name, width, timm_args)
    if made is None:
        raise ValueError(
            f"width={width} was given for {name!r}; it works for resnet18, mobilenetv2_100, convnext_tiny and their like"
        )
    return made


def small_stem_(model: nn.Module) -> None:
    """Put a 3x3 convolution of stride 1 in the first one's place, and drop the pooling behind the stem.

    Raises:
        ValueError: If the first convolution is no plain one, or others beside it see the image too.
    """
    name, first = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    channels, kind = first.in_channels, type(model).__name__
    if reason := why_irreplaceable(first, known=(Conv2dSame,)):
        raise ValueError(
            f"stem='small' puts a plain convolution in the place of {name!r} of this {kind}, but {reason}"
        )
    pool = _stem_pool(model, name, first)
    small = nn.Conv2d(channels, first.out_channels, 3, 1, 1, bias=first.bias is not None)
    draw_layer_(small)
    surgery.replace_(model, name, small.to(first.weight))
    if pool is not None:
        surgery.replace_(model, pool, nn.Identity())
    try:
        surgery.trace(surgery.skeleton(model), surgery.input_size_of(model))
    except ValueError as error:
        raise ValueError(
            f"stem='small' does not fit this {kind}, whose first convolution is not all of its stem: {said(error)}"
        ) from error


def _stem_pool(model: nn.Module, name: str, first: nn.Conv2d) -> str | None:
    """Return the name of the pooling behind the stem, whose convolutions stand in the module that holds the first one."""
    if isinstance(getattr(model, "maxpool", None), nn.Module):  # a ResNet's, a sequence in some
        return "maxpool"
    if max(first.stride) == 1:
        return None
    stem, modules = name.rpartition(".")[0], dict(model.named_modules())
    for call in surgery.trace(surgery.skeleton(model), surgery.input_size_of(model)).calls:
        module = modules[call.name]
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            return call.name
        if (
            isinstance(module, nn.Conv2d)
            and call.name != name
            and not (stem and call.name.startswith(f"{stem}."))
        ):
            return None
    return None


def _resnet(name: str, width: float, timm_args: Mapping[str, Any]) -> nn.Module | None:
    plain = _on_meta(name)
    if not isinstance(plain, ResNet):  # timm has networks of other classes under such names
        return None
    norm: Any = plain.bn1
    channels = getattr(norm, "num_features", None) or norm.num_channels  # of a batch, or a group norm
    stem: dict[str, Any] = {"stem_width": round(channels * width) // 2}
    single = isinstance(plain.conv1, nn.Conv2d)
    if single:  # whose 64 channels timm fixes: make a deep one, and put the single convolution back
        stem["stem_type"] = "deep"
    stages = tuple(round(c * width) for c in (64, 128, 256, 512))
    model: Any = timm.create_model(name, channels=stages, base_width=64, **stem, **timm_args)
    if single:
        first = model.conv1[0]
        conv = nn.Conv2d(first.in_channels, 2 * stem["stem_width"], 7, 2, 3, bias=False)
        draw_layer_(conv)
        model.conv1 = conv.to(first.weight)
    return model


def _mobilenetv2(name: str, width: float, timm_args: Mapping[str, Any]) -> nn.Module | None:
    from timm.models.efficientnet import _gen_mobilenet_v2

    found = re.match(r"mobilenetv2_(\d{3})($|\.)", name)  # a letter behind stands for more layers
    return found and _gen_mobilenet_v2(name, int(found[1]) / 100 * width, **timm_args)


def _convnext(name: str, width: float, timm_args: Mapping[str, Any]) -> nn.Module:
    dims = tuple(round(info["num_chs"] * width) for info in _on_meta(name).feature_info)
    return timm.create_model(name, dims=dims, **timm_args)


def _on_meta(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


_FAMILIES: dict[str, Callable[[str, float, Mapping[str, Any]], nn.Module | None]] = {
    "resnet": _resnet,
    "mobilenetv2": _mobilenetv2,
    "convnext": _convnext,
}
