"""Networks by name: a timm backbone, a method on it, and what small images need; also registered in timm as `kdna_resnet18` etc."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import timm
from timm.models import register_model
from timm.models._features import FeatureGetterNet
from torch import nn

from kerneldna.conversion.convert import Method, plan, set_state
from kerneldna.conversion.started import fetching, start_, weights_of
from kerneldna.layers.marks import Startable, numbers_follow
from kerneldna.layers.start import draw_kernels_
from kerneldna.network import surgery
from kerneldna.network.resized import at_width, small_stem_
from kerneldna.network.tensors import Stored, check_finite
from kerneldna.network.weights import Weights, draw_head_
from kerneldna.reading.arguments import check_arguments
from kerneldna.reading.shown import said, shown
from kerneldna.reading.typed import Within, typed, typed_fields
from kerneldna.registry import methods, suggest

if TYPE_CHECKING:
    from kerneldna.recipes.specs import ModelSpec

BACKBONES = ("resnet18", "resnet50", "mobilenetv2_100", "mobilenetv2_050", "convnext_tiny")
STEMS = ("default", "small")
_REDRAWN = ("mobilenetv2",)  # timm's start differs from that of their rows in the paper
# where weights come from, and where they lie, is no part of a network
_FOR_WEIGHTS = (
    "checkpoint_path",
    "cache_dir",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "device",
    "dtype",
)
_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)


def create_model(
    name: str,
    *,
    method: str | Method | None = None,
    num_classes: int = 1000,
    pretrained: bool = False,
    width: float = 1.0,
    stem: str = "default",
    options: Mapping[str, Any] | None = None,
    input_size: surgery.InputSize | None = None,
    weights: str | Path | Weights | None = None,
    classes: Sequence[str] | None = None,
    **timm_args: Any,
) -> nn.Module:
    """Create a timm network, with the paper's recipe of a method for it.

    Without pretrained weights a network starts as timm starts it, but for the kernels of a MobileNetV2: plain or converted, they
    are drawn by torchvision's rule, as timm's ResNets are, and all kernels that a method draws (`kerneldna.layers.start`).

    Args:
        name: Any convolutional network of timm. `list_models()` names those that the paper has a recipe for; on others a
            method works by its own defaults.
        method: A registered name ("kerneldna"), a method object, or None for the plain network.
        num_classes: Outputs of the classifier.
        pretrained: Load timm's ImageNet weights first, then convert.
        width: Factor on the channels of every stage (ResNet, MobileNetV2, ConvNeXt).
        stem: "small" for images of about 32 px: one 3x3 convolution of stride 1, no pooling.
        options: Arguments of the method that replace those of its recipe, such as `{"spatial": False}`.
        input_size: `(C, H, W)` of the images that it is for, which multiply-accumulates are counted on; by default the backbone's
            own, 32 px with the small stem.
        weights: A file of weights, a run folder, or a timm name such as "resnet18.a1_in1k" to start from
            (`kerneldna.network.weights`), in place of `pretrained`: loaded before the network is converted, unless they are of a
            converted one.
        classes: Their names: where weights are noted to be for others, the classifier starts anew.
        **timm_args: Passed to `timm.create_model`. A network can be saved by name if a file may say them
            (`kerneldna.reading.arguments`): an activation by its name, `act_layer="silu"`.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If a name is unknown, width or stem do not fit the network, or weights that it starts from are not finite.

    Example:
        >>> model = create_model("resnet18", method="kerneldna", num_classes=10)
        >>> sum(p.numel() for p in model.parameters())
        8732928
    """
    chosen = _method(method, name, options or {}) if isinstance(method, str) else method
    if options and not isinstance(method, str):
        raise ValueError(f"options {dict(options)} were given without the name of a method in method=")
    if stem not in STEMS:
        raise ValueError(suggest("stem", stem, STEMS))
    if pretrained and (width != 1 or stem != "default"):
        raise ValueError(
            f"pretrained weights are for width=1, stem='default'; given width={width}, stem={stem!r}"
        )
    with fetching(name, pretrained):
        model = _backbone(name, width, num_classes=num_classes, pretrained=pretrained, **timm_args)
    start = timm_args.get("checkpoint_path") or pretrained
    if start:
        if pretrained and num_classes != (model.pretrained_cfg or {}).get("num_classes"):  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
            draw_head_(model)
        what = f"{name}'s pretrained weights" if start is True else f"checkpoint_path={str(start)!r}"
        given = Stored(dict(model.state_dict()), {}, (), {})
        check_finite(given, what, "give another file, or train from a random start")
    elif name.startswith(_REDRAWN):
        draw_kernels_(model)
    own = surgery.input_size_of(model)
    if stem == "small":
        small_stem_(model)
        own = (own[0], 32, 32)
    size = input_size or own
    built_with = {key: value for key, value in timm_args.items() if key not in _FOR_WEIGHTS}
    created = {"name": name, "num_classes": num_classes, "width": width, "stem": stem, **built_with}
    set_state(model, created=created, input_size=list(size))
    start_with, laid = None if weights is None else weights_of(weights), None
    anew = not (start or start_with)
    with numbers_follow() if anew else nullcontext():
        if chosen is not None:
            # laid out on the backbone's own size, so that one recipe means one network, whatever it is trained on
            set_state(model, input_size=list(own))
            laid = plan(model, chosen, counted_on=input_size)
            set_state(model, input_size=list(size))
        start_(model, start_with, laid, classes)
    for module in model.modules() if anew else ():
        if isinstance(module, Startable):
            module.start_()
    return model


def create_from(spec: ModelSpec, **arguments: Any) -> nn.Module:
    """Create the network that a recipe's section `model` describes.

    Args:
        spec: The section.
        **arguments: Further arguments of `create_model`; they replace those of `spec.args`.

    Raises:
        ValueError: If an argument is none that a file may set or that the network takes, or its value is of another kind.
    """
    given = {key: value for key, value in spec.args.items() if key != "checkpoint_path"}
    check_arguments(given, "model.args")
    try:
        return create_model(
            spec.name,
            method=spec.method,
            pretrained=spec.pretrained and spec.weights is None,
            weights=spec.weights,
            width=spec.width,
            stem=spec.stem,
            options=spec.options or None,
            **{**spec.args, **arguments},
        )
    except TypeError as error:
        raise ValueError(f"model.args: {spec.name} does not take these arguments: {said(error)}") from error


@dataclass(frozen=True)
class _Created:
    name: str
    num_classes: Annotated[int, Within(0, 2**31 - 1)] = 1000
    width: Annotated[float, Within(2**-10, 2**10)] = 1.0
    stem: str = "default"


def check_created(created: Mapping[str, Any]) -> None:
    """Check what a file says about the creation of a network: what `create_model` noted, and nothing else.

    Args:
        created: `name`, `num_classes`, `width`, `stem`, and of timm's arguments those that a file may set
            (`kerneldna.reading.arguments`): to build it, nothing else is read or fetched.

    Raises:
        ValueError: If it says something else; the message names the key.
    """
    own = {key: value for key, value in created.items() if key in _Created.__dataclass_fields__}
    noted = typed(own, _Created, "created")
    if not _NAME.fullmatch(noted.name):
        raise ValueError(f"created.name: expected the name of a network of timm, given {shown(noted.name)}")
    check_arguments({key: value for key, value in created.items() if key not in own}, "created")


def list_models() -> list[str]:
    """Return the backbones that the paper has a recipe for (any other CNN of timm works too)."""
    return list(BACKBONES)


# of files that stand where a network's name is expected
_ENDINGS = (".onnx", ".xml", ".pt2", ".pt", ".pth", ".safetensors")


def list_methods() -> list[str]:
    """Return the names of all methods."""
    return methods.names()


def _method(method: str, backbone: str, options: Mapping[str, Any]) -> Method:
    """Return the recipe of a method for a backbone, with options that are checked first."""
    kind: Any = methods.get(method)
    if is_dataclass(kind):
        known = [field.name for field in fields(kind)]
        for name in options:
            if name not in known:
                raise ValueError(suggest(f"option of {method}", name, known))
        options = typed_fields(options, kind, "options")
    return methods.get(method).recipe(backbone, **options)


def _backbone(name: str, width: float, **timm_args: Any) -> nn.Module:
    if not timm.is_model(name):
        if "/" in name or name.endswith(_ENDINGS):
            what = "is a file or folder" if Path(name).exists() else "names no file or folder"
            raise ValueError(
                f"{name!r} {what}, and no network of timm's; give a name that timm.list_models() lists"
            )
        raise ValueError(
            suggest("model", name, [*BACKBONES, *timm.list_models()], lister="timm.list_models()")
        )
    if width == 1:
        return timm.create_model(name, **timm_args)
    return at_width(name, width, timm_args)


def _register(backbone: str) -> None:
    def entry(
        pretrained: bool = False, features_only: bool = False, out_indices: Any = None, **timm_args: Any
    ) -> nn.Module:
        timm_args = {
            key: value
            for key, value in timm_args.items()
            if key not in ("pretrained_cfg", "pretrained_cfg_overlay")
        }
        timm_args.setdefault("num_classes", 1000)
        model = create_model(backbone, method="kerneldna", pretrained=pretrained, **timm_args)
        if not features_only:
            return model
        stages = len(model.feature_info)  # pyright: ignore[reportArgumentType]
        return FeatureGetterNet(model, out_indices=out_indices or tuple(range(stages)))  # pyright: ignore

    entry.__name__ = entry.__qualname__ = f"kdna_{backbone}"
    entry.__doc__ = f"KernelDNA {backbone} with the paper's recipe (arXiv 2503.23379)."
    register_model(entry)


for _name in BACKBONES:
    if not timm.is_model(f"kdna_{_name}"):
        _register(_name)
