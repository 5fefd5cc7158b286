"""Detectors on any timm network: torchvision's Mask R-CNN, Faster R-CNN and RetinaNet, each behind a feature pyramid (FPN).

    network = kd.create_model("resnet50", method="kerneldna")
    detector = kd.create_detector(network, "maskrcnn", classes=("person", "bicycle")).eval()
    found = detector([image])[0]            # boxes (N, 4), labels (N,) from 1, scores (N,), masks (N, 1, H, W) of a (3, H, W) image
    kd.fuse_(detector)                      # the backbone's children, as in any network

Sources: He et al., Mask R-CNN (arXiv 1703.06870); Ren et al., Faster R-CNN (1506.01497); Lin et al., Focal loss (1708.02002);
Lin et al., Feature pyramid networks (1612.03144).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from kerneldna.conversion.convert import set_state, state_of
from kerneldna.detection.exact_boxes import ExactAnchors, set_exact_coders_
from kerneldna.registry import suggest

CHANNELS = 256  # of every level of the pyramid
STRIDES = (4, 8, 16, 32)  # of the backbone's maps
RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors
NETWORK = "backbone.body.model"  # where the network stands in a detector


def create_detector(
    network: nn.Module,
    kind: str = "maskrcnn",
    *,
    classes: Sequence[str],
    image_size: int = 800,
    max_size: int = 1333,
    scales: Sequence[int] = (),
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    boxes_per_image: int = 512,
) -> nn.Module:
    """Put a detector on a classification network, which loses its classifier and becomes the backbone.

    Args:
        network: Any timm network with maps of strides 4 to 32, converted or not, such as `create_model` makes.
        kind: "maskrcnn" for boxes and masks, "fasterrcnn" or "retinanet" for boxes.
        classes: Names of the classes; label 1 is the first, 0 the background.
        image_size: Length that the shorter side of an image is resized to, in pixels.
        max_size: Largest length of the longer side after that.
        scales: Further lengths that the shorter side is drawn from in training, beside `image_size`.
        anchor_sizes: Side of the anchors of each of the five levels of the pyramid, in pixels of the resized image.
        boxes_per_image: Proposals of an image that the heads of a two-stage detector learn from.

    Returns:
        torchvision's detector in the mode of `network`. It takes a list of images `(3, H, W)`, 0-1, of any size, and normalises
        and resizes them itself; in training mode also a list of targets (`boxes`, `labels`, for masks `masks`), and gives a
        dictionary of losses.

    Raises:
        ValueError: If the kind is unknown, there is no class, or the network has no such maps.

    Example:
        >>> detector = create_detector(create_model("mobilenetv2_050"), classes=("cat", "dog"))  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise ValueError(suggest("detector", kind, KINDS))
    if not classes:
        raise ValueError("no classes were given; pass their names, in the order of their labels")
    if len(anchor_sizes) != 5:
        raise ValueError(
            f"anchor_sizes are {tuple(anchor_sizes)}; give five, one for each level of the pyramid"
        )
    made = KINDS[kind](
        network,
        tuple(anchor_sizes),
        boxes_per_image,
        num_classes=len(classes) + 1,
        min_size=(*scales, image_size),  # evaluation uses the last
        max_size=max_size,
    )
    set_exact_coders_(made)
    noted = {
        "kind": kind,
        "classes": list(classes),
        "image_size": image_size,
        "max_size": max_size,
        "scales": list(scales),
        "anchor_sizes": list(anchor_sizes),
        "boxes_per_image": boxes_per_image,
    }
    set_state(made, network=NETWORK, detector=noted)
    return made.train(network.training)


class Pyramid(nn.Module):
    """A network's maps, and the feature pyramid over them: images `(B, 3, H, W)` to maps `(B, 256, H / stride, W / stride)`.

    Args:
        network: A timm network; what comes after its last map is dropped.
        strides: Of the maps to take.
        extra: What adds the levels above the last map.
    """

    def __init__(
        self, network: nn.Module, strides: Sequence[int], extra: Callable[[], ExtraFPNBlock]
    ) -> None:
        super().__init__()
        self.body = FeatureGetterNet(network, out_indices=_indices(network, strides))
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), CHANNELS, extra())
        self.out_channels = CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels of the pyramid by name, the finest first."""
        return self.fpn(OrderedDict((str(level), x) for level, x in enumerate(self.body(images))))


class BackboneImages:
    """Images as a detector's backbone sees them, normalised, resized and padded: what its gates are calibrated on.

    Args:
        detector: A detector in eval mode.
        batches: Lists of images `(3, H, W)`, 0-1, or (images, targets); can be read as often as they can.
    """

    def __init__(self, detector: nn.Module, batches: Iterable[Any]) -> None:
        self.detector: Any = detector
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            first = batch[0]
            images = batch if isinstance(first, Tensor) and first.ndim == 3 else first
            yield self.detector.transform(list(images))[0].tensors


def foreground(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a detector found in an image without the background, which RetinaNet has a score for too."""
    objects = found["labels"] > 0
    return {name: value[objects] for name, value in found.items()}


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a detector's classes, label 1 first.

    Raises:
        ValueError: If `model` is no detector of `create_detector`.
    """
    noted = state_of(model).get("detector")
    if noted is None:
        raise ValueError(
            f"a {type(model).__name__} was given, which is no detector; expected one of create_detector, or a run of a recipe "
            "with task: detection"
        )
    return tuple(noted["classes"])


def stem_and_stages(detector: nn.Module, count: int) -> list[nn.Parameter]:
    """Return the parameters of the backbone up to its `count`-th map, but for those that layers behind it borrow.

    Such are the cells of KernelWarehouse that a later stage shares, and a parent of a child there. They are in the order they stand
    in the network.
    """
    if count == 0:
        return []
    body: Any = detector.backbone.body  # pyright: ignore[reportAttributeAccessIssue]
    last = body.feature_info.module_name()[count - 1]
    names = [name for name, _ in body.model.named_parameters()]
    end = max(i for i, name in enumerate(names) if name.startswith(f"{last}."))
    borrowed = {id(parameter) for parameter in _borrowed_behind(body.model, last)}
    return [own for own in list(body.model.parameters())[: end + 1] if id(own) not in borrowed]


def _borrowed_behind(network: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """Yield the parameters of modules that those behind the module called `name` refer to and do not own."""
    modules = list(network.named_modules())
    end = max(i for i, (other, _) in enumerate(modules) if other == name or other.startswith(f"{name}."))
    for _, module in modules[end + 1 :]:
        for held in vars(module).values():
            if isinstance(held, nn.Module):
                yield from held.parameters()


def _indices(network: nn.Module, strides: Sequence[int]) -> tuple[int, ...]:
    """Return which of the network's maps have these strides."""
    info: Any = getattr(network, "feature_info", None)
    if not info or not hasattr(network, "forward_intermediates"):
        raise ValueError(
            f"{type(network).__name__} does not tell its maps as timm's networks do (feature_info, forward_intermediates); "
            "pass a network of create_model or of timm"
        )
    found = {entry["reduction"]: index for index, entry in enumerate(list(info))}
    if missing := [stride for stride in strides if stride not in found]:
        raise ValueError(
            f"{type(network).__name__} has maps of strides {', '.join(map(str, found))}, none of {missing[0]}; "
            f"a detector needs {', '.join(map(str, strides))}"
        )
    return tuple(found[stride] for stride in strides)


def _mask_rcnn(network: nn.Module, sizes: tuple[int, ...], boxes: int, **arguments: Any) -> nn.Module:
    pyramid = Pyramid(network, STRIDES, LastLevelMaxPool)
    return MaskRCNN(
        pyramid, rpn_anchor_generator=_anchors(sizes), box_batch_size_per_image=boxes, **arguments
    )


def _faster_rcnn(network: nn.Module, sizes: tuple[int, ...], boxes: int, **arguments: Any) -> nn.Module:
    pyramid = Pyramid(network, STRIDES, LastLevelMaxPool)
    return FasterRCNN(
        pyramid, rpn_anchor_generator=_anchors(sizes), box_batch_size_per_image=boxes, **arguments
    )


def _retinanet(network: nn.Module, sizes: tuple[int, ...], boxes: int, **arguments: Any) -> nn.Module:
    pyramid = Pyramid(network, STRIDES[1:], lambda: LastLevelP6P7(CHANNELS, CHANNELS))
    return RetinaNet(pyramid, anchor_generator=_anchors(sizes, octaves=3), **arguments)


def _anchors(sizes: tuple[int, ...], octaves: int = 1) -> ExactAnchors:
    each = tuple(tuple(int(size * 2 ** (i / octaves)) for i in range(octaves)) for size in sizes)
    return ExactAnchors(each, (RATIOS,) * len(sizes))


KINDS: dict[str, Callable[..., Any]] = {
    "fasterrcnn": _faster_rcnn,
    "maskrcnn": _mask_rcnn,
    "retinanet": _retinanet,
}
