"""Average precision of boxes and masks on COCO, computed by pycocotools.

    IoU    of a detection and an object: their overlap over their union; over the detection alone where the object is a crowd
    match  an image's detections of a category, the surest first, take the object of highest IoU >= t that is still free
    AP_t   mean over recall r = 0, 0.01, ..., 1 of the highest precision at a recall of r or more; then over categories
    AP     mean of AP_t over t = 0.50, 0.55, ..., 0.95

Lin et al. 2014, Microsoft COCO: Common Objects in Context (arXiv 1405.0312); cocodataset.org/#detection-eval.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from kerneldna.data.coco_file import CocoFile
from kerneldna.detection.coco_truth import coco_truth, no_output, pycocotools_modules
from kerneldna.files import to_json, write_text

logger = logging.getLogger(__name__)

_PREFIXES = {"bbox": "box", "segm": "mask"}
_FIGURES = ("ap", "ap50", "ap75", "aps", "apm", "apl")  # the order of the first six of COCOeval.stats
_DECIMALS = 3  # of a pixel: finer than any detector, and coarse enough to hide the rounding of float32


@dataclass(frozen=True)
class _Detections:
    """What was found in one image, a list item an object; masks by their run lengths, as COCO compresses them."""

    categories: list[int]
    scores: list[float]
    boxes: list[list[float]]
    masks: list[dict[str, Any]]


class CocoMetric:
    """Average precision of a detector on the images it was shown, of one annotation file.

    Only images that were updated count: of these every object, found or not, and of other images none. An image updated again
    counts once, as it was found last. Of an image, the 100 surest detections of a category count, as in COCO.

    It measures by the objects that training learns from, `kerneldna.data.coco_file` says which, and by crowds.

    Args:
        annotations: COCO instances: those that a data set was opened with (`data.val.annotations`), or a JSON file, which is
            read and checked at once.
        category_ids: COCO category of each label: label 1 is `category_ids[0]`, as label 0 is the background. All of the
            file's in the order of their ids where not given. None for a class that the file has not: what is found of it does
            not count.
        kinds: What to measure: "bbox" for boxes, "segm" for masks.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If pycocotools is not installed.
        ValueError: If the file is not in COCO's format, a category is not in it, or a kind is not known.

    Example:
        >>> metric = CocoMetric("annotations/instances_val2017.json")  # doctest: +SKIP
        >>> metric.update(139, model.eval()([image])[0])  # doctest: +SKIP
        >>> metric.compute()["box_ap"]  # doctest: +SKIP
        0.379
    """

    def __init__(
        self,
        annotations: CocoFile | str | Path,
        category_ids: Sequence[int | None] | None = None,
        *,
        kinds: Sequence[str] = ("bbox", "segm"),
    ) -> None:
        if not kinds or not set(kinds) <= set(_PREFIXES):
            raise ValueError(f"kinds is {kinds!r}; give one or both of {tuple(_PREFIXES)}")
        pycocotools_modules()
        if not isinstance(annotations, CocoFile):
            annotations = CocoFile(annotations)
            if annotations.fault:
                logger.warning(annotations.fault)
        self.annotation_file = annotations.path
        self.category_ids = tuple(annotations.category_ids if category_ids is None else category_ids)
        if unknown := {*self.category_ids} - {None, *annotations.category_ids}:
            raise ValueError(
                f"category_ids has {', '.join(map(str, unknown))}, which {annotations.path} does not list among "
                f"{annotations.category_ids}"
            )
        self.kinds = tuple(kinds)
        self._sizes = dict(zip(annotations.image_ids.tolist(), annotations.sizes.tolist(), strict=True))
        self._truth = coco_truth(annotations, masks="segm" in self.kinds)
        self._found: dict[int, _Detections] = {}

    def update(self, image_id: int, found: Mapping[str, Tensor]) -> None:
        """Take what was found in one image, on any device and in any floating type.

        Args:
            image_id: Of the image in the annotation file.
            found: As torchvision's detectors return it: `boxes` `(N, 4)`, left, top, right, bottom in pixels of the original
                image; `labels` `(N,)`, 1 to K; `scores` `(N,)`; where "segm" is measured `masks` `(N, 1, H, W)` or `(N, H, W)`
                of the original size, the object where they are above 0.5.

        Raises:
            ValueError: If the annotation file has no such image, or a tensor is missing, of a wrong shape or out of range.
        """
        image_id = int(image_id)
        if image_id not in self._sizes:
            raise ValueError(
                f"image {image_id} is not among the {len(self._sizes)} of {self.annotation_file}; "
                "give the id of an image of that file"
            )
        needed = ("boxes", "labels", "scores", *(("masks",) if "segm" in self.kinds else ()))
        if missing := [key for key in needed if key not in found]:
            raise ValueError(
                f"image {image_id}: no {', '.join(missing)} among {sorted(found)}; add what is missing, or leave out of kinds "
                f"what the detector does not find: kinds is {self.kinds}"
            )
        boxes, labels, scores = (found[key].detach().cpu() for key in ("boxes", "labels", "scores"))
        masks = found["masks"].detach() if "segm" in self.kinds else None
        if masks is not None and masks.ndim == 4 and masks.shape[1] == 1:
            masks = masks[:, 0]
        _check_shapes(image_id, self._sizes[image_id], boxes, labels, scores, masks)
        self._check_values(image_id, boxes, labels, scores)
        categories = [self.category_ids[label - 1] for label in labels.tolist()]
        kept = torch.tensor([category is not None for category in categories], dtype=torch.bool)
        self._found[image_id] = _Detections(
            [category for category in categories if category is not None],
            scores[kept].double().tolist(),
            _corner_and_size(boxes[kept]),
            [] if masks is None or not kept.any() else _run_lengths(masks[kept.to(masks.device)]),
        )

    def gather(self) -> None:
        """Give every process what all of them hold, an image that several measured once; does nothing in a single one.

        Every process of `torch.distributed` has to call it.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        if (world := distributed.get_world_size()) == 1:
            return
        parts: list[Any] = [None] * world
        distributed.all_gather_object(parts, self._found)
        # the lowest rank last: its word on an image is the one that every process keeps
        self._found = {image_id: found for part in reversed(parts) for image_id, found in part.items()}

    def compute(self) -> dict[str, float]:
        """Return average precision as fractions 0-1, of what this process holds.

        Returns:
            `box_ap`, the mean over IoU thresholds; `box_ap50` and `box_ap75`, at one; `box_aps`, `box_apm`, `box_apl`, of objects
            below 32 x 32 pixels, up to 96 x 96 and above; and for masks `mask_ap` and so on. A figure for which the images have no
            object at all is left out.

        Raises:
            ValueError: If no image was updated.
        """
        if not self._found:
            raise ValueError("no image was measured; call update with each image before compute")
        figures: dict[str, float] = {}
        with no_output():
            for kind in self.kinds:
                stats = zip(_FIGURES, self._stats(kind), strict=True)
                figures |= {f"{_PREFIXES[kind]}_{name}": value for name, value in stats if value > -1}
        return figures

    def save(self, folder: str | Path) -> None:
        """Write what was found to `bbox.json` and `segm.json` in `folder`, as COCO results; `compute` measures the same values.

        Args:
            folder: Made if missing.
        """
        for kind in self.kinds:
            write_text(Path(folder) / f"{kind}.json", to_json(self._results(kind)) + "\n")

    def reset(self) -> None:
        """Forget all images; the annotations stay in memory."""
        self._found = {}

    def _results(self, kind: str) -> list[dict[str, Any]]:
        """Return new COCO results (loadRes writes into them), by image: the files do not depend on who measured what."""
        results = []
        for image_id, found in sorted(self._found.items()):
            # never both keys: pycocotools would measure the size of a mask by its box
            key, shapes = ("bbox", found.boxes) if kind == "bbox" else ("segmentation", found.masks)
            for category, score, shape in zip(found.categories, found.scores, shapes, strict=True):
                results.append({"image_id": image_id, "category_id": category, key: shape, "score": score})
        return results

    def _stats(self, kind: str) -> list[float]:
        """Return the six figures of one kind, -1 where there is no object."""
        coco, cocoeval, _ = pycocotools_modules()
        if results := self._results(kind):
            detections = self._truth.loadRes(results)
        else:  # loadRes looks at the first result
            detections = coco.COCO()
            detections.createIndex()
        evaluation = cocoeval.COCOeval(self._truth, detections, kind)
        evaluation.params.imgIds = sorted(self._found)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return [float(value) for value in evaluation.stats[: len(_FIGURES)]]

    def _check_values(self, image_id: int, boxes: Tensor, labels: Tensor, scores: Tensor) -> None:
        known = len(self.category_ids)
        if wrong := sorted({label for label in labels.tolist() if not 1 <= label <= known}):
            raise ValueError(
                f"image {image_id}: labels has {wrong}; expected 1 to {known}, one a category of category_ids, and no background"
            )
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise ValueError(
                f"image {image_id}: boxes or scores are not finite; look for a network that diverged or overflowed"
            )


def _check_shapes(
    image_id: int, size: Sequence[int], boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor | None
) -> None:
    n = len(boxes)
    given = {"boxes": boxes, "labels": labels, "scores": scores}
    expected: dict[str, tuple[int, ...]] = {"boxes": (n, 4), "labels": (n,), "scores": (n,)}
    if masks is not None and (n or len(masks)):
        given["masks"] = masks
        expected["masks"] = (n, *size)
    if wrong := [key for key in given if given[key].shape != expected[key]]:
        raise ValueError(
            f"image {image_id}: {', '.join(f'{key} is {tuple(given[key].shape)}' for key in wrong)}; "
            f"expected {', '.join(str(expected[key]) for key in wrong)}: one row a box, masks of the original image's height "
            "and width"
        )


def _corner_and_size(boxes: Tensor) -> list[list[float]]:
    """Return boxes `(N, 4)` as COCO has them: left, top, width, height."""
    left, top, right, bottom = boxes.double().unbind(1)
    rows = torch.stack((left, top, right - left, bottom - top), dim=1).tolist()
    return [[round(value, _DECIMALS) for value in row] for row in rows]


def _run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """Return masks `(N, H, W)` compressed, each as its size and its run lengths."""
    if not len(masks):
        return []
    # columns first, as COCO counts; turned on the device, and a byte a pixel on the way from it
    pixels = (masks > 0.5).to(torch.uint8).transpose(1, 2).contiguous().cpu()
    found = pycocotools_modules()[2].encode(pixels.numpy().transpose(2, 1, 0))
    return [{"size": list(each["size"]), "counts": each["counts"].decode("ascii")} for each in found]
