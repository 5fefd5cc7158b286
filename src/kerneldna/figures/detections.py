"""What a detector found, drawn on its image: tinted masks, boxes, and a chip with class and score.

    drawn = draw_detections(image, detector([pixels])[0], classes)       # image: PIL, RGB; pixels: the same, (3, H, W)

A class has one colour everywhere. Small objects lie on top of large ones, and a pixel under several masks takes
the tint of the topmost alone, so that the image shows through a crowd as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import avg_pool2d

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

# Strong enough for photographs, and told apart by colour-blind readers as well.
PALETTE: tuple[Colour, ...] = (
    (34, 136, 255), (255, 130, 30), (0, 175, 150), (220, 30, 110), (245, 225, 60),
    (100, 50, 190), (120, 215, 255), (165, 35, 20), (245, 160, 215), (0, 105, 70),
)  # fmt: skip

_TINT = 0.4  # of a mask's colour over the image
_SHADES = (0.0, 0.3, -0.2)  # towards white or black: the first, second and third object of a class, and so on
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class _Object:
    """A detection to draw; `place` is its row in what the detector gave."""

    place: int
    box: Box
    text: str
    colour: Colour


def draw_detections(
    image: Image.Image, found: Mapping[str, Tensor], classes: Sequence[str], *, threshold: float = 0.5
) -> Image.Image:
    """Draw what a detector found on a copy of its image.

    Args:
        image: RGB, W x H pixels.
        found: What torchvision's detectors give for an image: `boxes` `(N, 4)`, left, top, right, bottom in pixels; `labels` `(N,)`
            from 1; `scores` `(N,)`, 0-1; and where there are masks `masks` `(N, 1, H, W)`, 0-1.
        classes: Names of the classes; label 1 is the first.
        threshold: Detections of a higher score than this are drawn.

    Raises:
        ValueError: If the image is not RGB, the threshold is not in 0-1, a label has no class, or the tensors do not fit
            each other or the image.

    Example:
        >>> nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
        >>> draw_detections(Image.new("RGB", (64, 48)), nothing, ["cat", "dog"]).size
        (64, 48)
    """
    _check(image, found, classes, threshold)
    objects = _objects(found, classes, threshold)
    if not objects:
        return image.copy()
    side = (image.width * image.height) ** 0.5
    if "masks" in found:
        masks = [(item.colour, found["masks"][item.place, 0]) for item in objects]
        image = _tint(image, masks, reach=max(1, round(side / 600)))
    else:
        image = image.copy()
    draw = ImageDraw.Draw(image)
    for item in objects:
        _outline(draw, item, image.size, width=max(2, round(side / 300)))
    _chips(draw, objects, image.size, letters=max(11, side / 42))
    return image


def class_colour(label: int) -> Colour:
    """Return the colour of a class by its label, counted from 1, as red, green, blue of 0-255."""
    return PALETTE[(label - 1) % len(PALETTE)]


def check_threshold(threshold: float) -> None:
    """Check that a threshold of scores is one.

    Raises:
        ValueError: If it is not in 0-1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; scores are fractions, give one of 0 to 1")


def _check(image: Image.Image, found: Mapping[str, Tensor], classes: Sequence[str], threshold: float) -> None:
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode!r} was given; pass image.convert('RGB')")
    check_threshold(threshold)
    if missing := [name for name in ("boxes", "labels", "scores") if name not in found]:
        raise ValueError(
            f"found has {', '.join(found) or 'nothing'}, no {missing[0]}; pass one dictionary of the list that a detector "
            "gives in eval mode"
        )
    count = len(found["labels"])
    expected = {"boxes": (count, 4), "labels": (count,), "scores": (count,)}
    expected["masks"] = (count, 1, image.height, image.width)
    for name, shape in expected.items():
        if name in found and tuple(found[name].shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(found[name].shape)}; {count} labels and an image {image.width} px wide and "
                f"{image.height} px high need {shape}; pass the image that the detector saw, at its own size"
            )
    if strange := sorted({int(label) for label in found["labels"]} - set(range(1, len(classes) + 1))):
        raise ValueError(
            f"label {strange[0]} has no name; {len(classes)} classes were given, whose labels are 1 to {len(classes)}; "
            "pass the classes that the detector was trained on"
        )


def _objects(found: Mapping[str, Tensor], classes: Sequence[str], threshold: float) -> list[_Object]:
    """Return what is to be drawn, large objects first, and of equal ones those of low score."""
    boxes, labels, scores = (found[name].detach().cpu().tolist() for name in ("boxes", "labels", "scores"))
    drawn = [place for place, score in enumerate(scores) if score > threshold]
    colours, seen = {}, Counter[int]()
    for place in sorted(drawn, key=lambda place: -scores[place]):
        label = int(labels[place])
        colours[place] = _shade(class_colour(label), _SHADES[seen[label] % len(_SHADES)])
        seen[label] += 1
    texts = {place: f"{classes[int(labels[place]) - 1]} {scores[place]:.2f}" for place in drawn}
    drawn.sort(key=lambda place: (-_area(boxes[place]), scores[place]))
    return [_Object(place, tuple(boxes[place]), texts[place], colours[place]) for place in drawn]


def _tint(image: Image.Image, masks: Sequence[tuple[Colour, Tensor]], *, reach: int) -> Image.Image:
    """Return the image under masks `(H, W)`, the last on top, each with a contour of `reach` pixels on both sides of its edge."""
    plain = np.asarray(image)
    canvas = plain.copy()
    for colour, mask in masks:
        rows, columns = (torch.nonzero((mask > 0.5).any(axis)).flatten().tolist() for axis in (1, 0))
        if not rows:
            continue
        window = tuple(slice(max(at[0] - reach, 0), at[-1] + reach + 1) for at in (rows, columns))
        soft = _blurred((mask[window] > 0.5).float().cpu(), reach)[..., None]
        edge = np.minimum(reach * (1 - np.abs(2 * soft - 1)), 1)  # the mean is a half on the edge itself
        ink = np.asarray(colour, dtype=np.float32)
        under, below = canvas[window], plain[window]
        tinted = under + soft * (below + _TINT * (ink - below) - under)
        canvas[window] = np.round(tinted + edge * (ink - tinted)).astype(np.uint8)
    return Image.fromarray(canvas)


def _blurred(mask: Tensor, reach: int) -> np.ndarray:
    """Return the mean of a mask `(H, W)` over `reach` pixels to each side; outside the image it goes on as at the border."""
    for size, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        mask = avg_pool2d(mask[None], size, stride=1, padding=padding, count_include_pad=False)[0]
    return mask.numpy()


def _outline(draw: ImageDraw.ImageDraw, item: _Object, image: tuple[int, int], *, width: int) -> None:
    left, top = (min(max(round(at), 0), side - 1) for at, side in zip(item.box[:2], image, strict=True))
    right, bottom = (min(round(at), side) - 1 for at, side in zip(item.box[2:], image, strict=True))
    draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=item.colour, width=width)


def _chips(
    draw: ImageDraw.ImageDraw, objects: Sequence[_Object], image: tuple[int, int], *, letters: float
) -> None:
    """Write the label of each object at a corner of its box, inside the image and where few other labels stand."""
    taken: list[Box] = []
    for item in reversed(objects):
        left, top, right, bottom = item.box
        # The label of a small object would hide its neighbours
        size = max(11, 0.75 * letters, min(letters, (bottom - top) / 4))
        font: Any = ImageFont.load_default(size)
        gap = round(size / 4)
        if (wide := font.getlength(item.text)) + 2 * gap > image[0]:
            font = ImageFont.load_default(max(1, size * (image[0] - 2 * gap) / wide))
        width, height = font.getlength(item.text) + 2 * gap, sum(font.getmetrics())
        corners = [
            (left, top - height), (left, top), (right - width, top - height), (left, bottom),
            (right - width, bottom), (left, bottom - height), (right - width, bottom - height),
        ]  # fmt: skip
        chips = [_inside((x, y, x + width, y + height), image) for x, y in corners]
        chip = min(chips, key=lambda chip: sum(_area(_common(chip, other)) for other in taken))
        taken.append(chip)
        draw.rounded_rectangle(chip, radius=size / 6, fill=item.colour)
        ink = _BLACK if _luminance(item.colour) > 0.18 else _WHITE
        draw.text((chip[0] + gap, (chip[1] + chip[3]) / 2), item.text, fill=ink, font=font, anchor="lm")


def _inside(box: Box, image: tuple[int, int]) -> Box:
    """Move a box into the image, onto whole pixels."""
    left, top = (
        max(0, min(round(at), side - 1 - int(far - at)))
        for at, far, side in zip(box[:2], box[2:], image, strict=True)
    )
    return left, top, left + int(box[2] - box[0]), top + int(box[3] - box[1])


def _common(first: Box, second: Box) -> Box:
    return (
        max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3]),
    )  # fmt: skip


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _shade(colour: Colour, by: float) -> Colour:
    """Move a colour towards white by a fraction, or towards black by a negative one."""
    end = 255 if by > 0 else 0
    red, green, blue = (round(value + abs(by) * (end - value)) for value in colour)
    return red, green, blue


def _luminance(colour: Colour) -> float:
    """Return the relative luminance of WCAG 2; black and white contrast equally with 0.18."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
