"""A detector for export: the whole as an ONNX graph, or its backbone with the feature pyramid.

What a detector decides (proposals, overlaps) depends on the image, which torch's exporter by `torch.export` refuses. torch's
older, tracing one writes torchvision's detectors whole, for one image of any size:

    image (3, H, W), 0-1  ->  boxes (N, 4), labels (N,), scores (N,), for Mask R-CNN masks (N, 1, H, W)
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from kerneldna.conversion.convert import set_state, state_of
from kerneldna.deploy import calibrate
from kerneldna.deploy.calibrate import Batches
from kerneldna.deploy.graph import exact
from kerneldna.detection.detectors import NETWORK, BackboneImages
from kerneldna.detection.difference import detection_difference, detection_differences
from kerneldna.network import copies
from kerneldna.network.surgery import InputSize
from kerneldna.registry import suggest

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger(__name__)
Images = Sequence[Tensor]
Detect = Callable[[Iterable[Tensor]], list[dict[str, Tensor]]]
OPSETS = (16, 20)  # below 16 RoIAlign rounds otherwise; the exporter ends at 20
INPUT = "image"
FOUND = ("boxes", "labels", "scores")
_AXES = {INPUT: {1: "height", 2: "width"}, "masks": {0: "found", 2: "height", 3: "width"}}
MULTIPLE = 32  # detectors pad images to multiples of it
# The difference to PyTorch that is let through, and the share of the detections that keep within it. Rounded weights do change
# what is found, so half of it has to stay.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.5}
SHARES = {"fp32": 0.95, "fp16": 0.5, "int8": 0.5}


def is_detector(model: nn.Module) -> bool:
    """Whether `model` is one of `create_detector`."""
    return bool(state_of(model).get("detector"))


def check_whole(
    runtime: str, *, compute: str, batch: int | None, input_size: InputSize | None, opset: int | None
) -> None:
    """Check that a whole detector can be written as asked.

    Raises:
        ValueError: If not; the message names the other way.
    """
    other = "part='backbone' writes the backbone with its feature pyramid"
    if runtime != "onnx":
        raise ValueError(f"runtime {runtime!r} takes no whole detector, runtime='onnx' does; {other}")
    if compute != "fp32":
        raise ValueError(
            f"compute={compute!r} was given; a whole detector is computed in float, with storage='int8' stored "
            f"small; {other}, in int8 if asked"
        )
    if batch is not None or input_size is not None:
        given = f"batch={batch}" if batch is not None else f"input_size={input_size}"
        raise ValueError(
            f"{given} was given; the file of a whole detector takes one image of any size, leave it out; {other}, of that size"
        )
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset {opset} was given; a detector's is {OPSETS[0]} to {OPSETS[1]}")


def images_of(detector: nn.Module, images: Images | Tensor | None) -> list[Tensor]:
    """Return the images `(3, H, W)` to compare a whole detector on: those given, or random ones of three shapes.

    Raises:
        ValueError: If one of those given is no such image, or there is none.
    """
    if images is None:
        size = state_of(detector)["detector"]["image_size"]
        short, generator = size * 3 // 4, torch.Generator().manual_seed(0)
        shapes = ((short, size), (size, short), (size, size))
        # smooth, as real ones are: noise makes more of how coordinates are rounded when an image is resized
        coarse = [torch.rand(1, 3, 9, 9, generator=generator, device="cpu") for _ in shapes]
        images = [
            F.interpolate(x, size=shape, mode="bilinear")[0] for x, shape in zip(coarse, shapes, strict=True)
        ]
    images = list(images)
    wrong = [tuple(image.shape) for image in images if image.ndim != 3 or len(image) != 3]
    if wrong or not images:
        raise ValueError(
            f"images of shape {wrong[0]} were given; expected (3, H, W), 0-1, each of its own size"
            if wrong
            else "no images were given; pass some, or leave images out for random ones"
        )
    device = next(detector.parameters()).device
    return [image.to(device) for image in images]


def traced(detector: nn.Module, image: Tensor, opset: int | None) -> ModelProto:
    """Return a whole detector as ONNX.

    Args:
        detector: In eval mode.
        image: To trace with, `(3, H, W)`, 0-1.
        opset: Of ONNX; by default the exporter's own.

    Raises:
        RuntimeError: If torch cannot trace it, or has lost its tracing exporter.
    """
    import onnx

    noted = state_of(detector)["detector"]
    names = [*FOUND, "masks"] if noted["kind"] == "maskrcnn" else [*FOUND]
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), exact(torch.device("cpu")):
            warnings.simplefilter("ignore")  # that the exporter is deprecated, and that shapes are traced
            file = Path(folder) / "detector.onnx"
            torch.onnx.export(
                _Whole(detector, names),
                (image.cpu(),),
                file,
                input_names=[INPUT],
                output_names=names,
                dynamic_axes={name: _AXES.get(name, {0: "found"}) for name in (INPUT, *names)},
                opset_version=opset,
                dynamo=False,
            )
            proto = onnx.load(file)
    except Exception as error:
        raise RuntimeError(
            f"torch {torch.__version__} did not write the whole detector with its tracing ONNX exporter ({error}); "
            "part='backbone' writes the backbone with its feature pyramid, by the newer exporter"
        ) from error
    onnx.helper.set_model_props(proto, {"classes": json.dumps(noted["classes"])})
    return proto


def detect(session: Any) -> Detect | None:
    """Return a function from images `(3, H, W)` to what the detector of an ONNX Runtime session finds; None if it holds none.

    The function gives what torchvision's detectors give in eval mode: one dictionary an image.
    """
    names = [output.name for output in session.get_outputs()]
    if [given.name for given in session.get_inputs()] != [INPUT] or tuple(names[:3]) != FOUND:
        return None

    def run(images: Iterable[Tensor]) -> list[dict[str, Tensor]]:
        outputs = [session.run(names, {INPUT: image.contiguous().numpy()}) for image in images]
        return [dict(zip(names, map(torch.from_numpy, arrays), strict=True)) for arrays in outputs]

    return run


@torch.no_grad()
def difference(detector: nn.Module, run: Detect, images: Images, storage: str) -> float | None:
    """Return how far what `run` finds is from what `detector` finds, `detection_difference`; None where both find nothing."""
    keeper: Any = getattr(detector, "roi_heads", detector)
    apart = []
    for image in images:
        expected = {name: value.cpu() for name, value in detector([image])[0].items()}
        (found,) = run([image.cpu()])
        height, width = image.shape[1:]
        limits = {"least": keeper.score_thresh, "most": keeper.detections_per_img}
        apart.append(detection_differences(expected, found, size=(height, width), **limits))
    found = detection_difference(apart, SHARES[storage])
    if found is None:
        log.warning(
            "the file was not compared with PyTorch: neither found anything in %d images; pass some with objects by images=",
            len(images),
        )
    return found


def backbone_of(detector: nn.Module, part: str) -> nn.Module:
    """Return the backbone of a detector with its feature pyramid: `(B, 3, H, W)`, as the detector makes them, to its maps.

    Raises:
        ValueError: If `part` is another, or `detector` is none.
    """
    if part != "backbone":
        raise ValueError(suggest("part", part, ["backbone"]))
    if not is_detector(detector):
        raise ValueError(
            f"part='backbone' was given with a {type(detector).__name__}, which is no detector of create_detector; leave part= out"
        )
    whole: Any = detector
    backbone = copy.copy(whole.backbone)  # what is noted on it stays off the detector's own
    set_state(backbone, network=NETWORK.removeprefix("backbone."))
    return backbone


def backbone_size(detector: nn.Module) -> InputSize:
    """Return the `(3, H, W)` of the largest image, lying, that the backbone of a detector sees."""
    noted = state_of(detector)["detector"]
    height, width = (-(-noted[name] // MULTIPLE) * MULTIPLE for name in ("image_size", "max_size"))
    return 3, height, width


class BackboneBatches:
    """Images as a detector's backbone sees them, padded or cut to one size: for a file of that size.

    Args:
        batches: Images as the backbone sees them, `(B, 3, H, W)`, of any size, such as those of `BackboneImages`.
        size: `(3, H, W)`.
    """

    def __init__(self, batches: Batches, size: InputSize) -> None:
        self.batches: Any = [batches] if isinstance(batches, Tensor) else batches
        self.size = size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            x = calibrate.images_of(batch)
            yield F.pad(x, (0, self.size[2] - x.shape[3], 0, self.size[1] - x.shape[2]))


def backbone_images(detector: nn.Module, images: Images | Tensor | None, size: InputSize) -> Tensor | None:
    """Return images as the backbone of a detector sees them, `(B, 3, H, W)`, each padded or cut to `size`.

    Args:
        detector: In eval mode.
        images: A list of `(3, H, W)`, 0-1; or a tensor of what the backbone sees, which stays as it is.
        size: `(3, H, W)`.
    """
    if images is None or isinstance(images, Tensor):
        return images
    device = next(detector.parameters()).device
    seen = BackboneImages(detector, [[image.to(device)] for image in images])
    return torch.cat(list(BackboneBatches(seen, size)))


class _Whole(nn.Module):
    """A detector as a function of one image, on a copy."""

    def __init__(self, detector: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        # torchvision traces some constants on the CPU alone
        self.detector: Any = copies.copied(detector).cpu()
        self.detector.transform = _Transform.like(self.detector.transform)
        self.names = names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.detector([image])[0]
        return tuple(found[name] for name in self.names)


class _Transform(GeneralizedRCNNTransform):
    """torchvision's, with the size of an image computed in double precision when traced, as it is when not.

    In single precision, as torchvision traces it, one size in fifteen comes out a pixel off at 800 x 1333.
    """

    @classmethod
    def like(cls, given: GeneralizedRCNNTransform) -> _Transform:
        sizes: Any = {"min_size": given.min_size, "max_size": given.max_size}
        norms: Any = {"image_mean": given.image_mean, "image_std": given.image_std}
        return cls(**sizes, **norms, size_divisible=given.size_divisible, fixed_size=given.fixed_size).eval()

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        from torch.onnx.operators import shape_as_tensor

        shape = shape_as_tensor(image)[-2:]
        lengths = torch.stack([shape.min(), shape.max()]).double()
        sizes: Any = (self.min_size, self.max_size)
        # divided as such: a number over a tensor is traced as its reciprocal, rounded once more
        scale = (torch.tensor([sizes[0][-1], sizes[1]], dtype=torch.float64) / lengths).min()
        height, width = (shape.double() * scale).floor().to(torch.int64)
        size: Any = (height, width)
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target
