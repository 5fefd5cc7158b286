"""Pixels of what is drawn, on images of one colour."""

from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from kerneldna.figures.detections import PALETTE, class_colour, draw_detections

GREY = (128, 128, 128)
CLASSES = [f"class{i}" for i in range(1, 13)]

# What protan, deutan and tritan readers see of linear RGB (Machado et al. 2009, severity 1).
READERS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "all": np.eye(3),
}  # fmt: skip


def made_up(*objects, size=None):
    """What a detector would give: objects are (box, label, score); a mask of each, the inner half of its box, if size is (W, H)."""
    found = {
        "boxes": torch.tensor([box for box, _, _ in objects], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for _, label, _ in objects], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in objects]),
    }
    if size:
        found["masks"] = torch.zeros(len(objects), 1, size[1], size[0])
        for mask, (box, _, _) in zip(found["masks"], objects, strict=True):
            left, top, right, bottom = (int(at) for at in box)
            dx, dy = (right - left) // 4, (bottom - top) // 4
            mask[0, top + dy : bottom - dy, left + dx : right - dx] = 0.9
    return found


def drawn(found, size=(200, 160), **options):
    return np.asarray(draw_detections(Image.new("RGB", size, GREY), found, CLASSES, **options))


def changed(pixels):
    return (pixels != GREY).any(-1)


def test_the_box_has_the_colour_of_its_class_and_nothing_else_is_touched():
    pixels = drawn(made_up(((60, 60, 140, 120), 2, 0.9)))
    for row, column in ((119, 61), (119, 139), (90, 60), (90, 61), (90, 139), (90, 138)):
        assert tuple(pixels[row, column]) == class_colour(2)
    assert not changed(pixels)[62:118, 62:138].any()
    rows, columns = np.nonzero(changed(pixels)[:60])  # the chip stands on the box
    assert rows.min() > 40
    assert columns.min() == 60
    assert columns.max() < 140
    assert not changed(pixels)[60:, :60].any()
    assert not changed(pixels)[60:, 140:].any()
    assert not changed(pixels)[120:].any()


def test_a_mask_is_tinted_and_lets_the_image_through():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (160, 200, 3), dtype=np.uint8)
    found = made_up(((40, 40, 160, 140), 3, 0.9), size=(200, 160))
    result = np.asarray(draw_detections(Image.fromarray(image), found, CLASSES)).astype(float)
    inside = (slice(70, 110), slice(75, 125))
    expected = image + 0.4 * (np.array(class_colour(3)) - image.astype(float))
    assert np.abs(result - expected)[inside].max() <= 1
    between = (slice(60, 62), slice(45, 155))  # in the box, outside the mask and its contour
    assert (result == image)[between].all()
    edge = np.abs(result - class_colour(3))[90, 69:71].max()
    assert edge < np.abs(image.astype(float) - class_colour(3)).max() * 0.4


def test_a_pixel_takes_the_tint_of_the_topmost_mask_alone():
    small, large = ((80, 60, 120, 100), 1, 0.6), ((10, 10, 190, 150), 4, 0.9)
    both = drawn(made_up(small, large, size=(200, 160)))
    alone = drawn(made_up(small, size=(200, 160)))
    assert (both[73:87, 93:107] == alone[73:87, 93:107]).all()
    assert tuple(both[80, 80]) == class_colour(1)  # the box of the small one


def test_of_equal_objects_the_higher_score_is_on_top():
    box = (60, 60, 140, 120)
    for order in ((0, 1), (1, 0)):
        objects = [(box, 1, 0.6), (box, 2, 0.9)]
        pixels = drawn(made_up(*(objects[i] for i in order)))
        assert tuple(pixels[90, 60]) == class_colour(2)


def test_objects_of_one_class_differ_in_lightness():
    pixels = drawn(made_up(((20, 60, 60, 120), 1, 0.9), ((100, 60, 140, 120), 1, 0.8)))
    first, second = pixels[90, 20], pixels[90, 100]
    assert tuple(first) == class_colour(1)
    assert (second >= first).all()
    assert (second > first).any()


def test_scores_up_to_the_threshold_are_not_drawn():
    found = made_up(((60, 60, 140, 120), 2, 0.5), ((20, 30, 60, 50), 1, 0.3), size=(200, 160))
    assert not changed(drawn(found)).any()
    assert changed(drawn(found, threshold=0.4)).any()
    assert not changed(drawn(found, threshold=0.4))[:45, :60].any()


def test_nothing_found_gives_a_copy():
    image = Image.new("RGB", (20, 10), GREY)
    result = draw_detections(image, made_up(), CLASSES)
    assert result is not image
    assert result.tobytes() == image.tobytes()


def test_the_given_image_stays_as_it_is():
    image = Image.new("RGB", (200, 160), GREY)
    draw_detections(image, made_up(((60, 60, 140, 120), 2, 0.9)), CLASSES)
    assert not changed(np.asarray(image)).any()


@pytest.mark.parametrize("size", [(200, 160), (48, 30), (1200, 900)])
@pytest.mark.parametrize("box", [(0, 0, 0.2, 0.1), (0.9, 0, 1, 0.2), (0.8, 0.9, 1, 1), (0, 0, 1, 1)])
def test_labels_stay_inside_the_image(size, box):
    width, height = size
    corner = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    pixels = drawn(made_up((corner, 1, 0.9)), size=size)
    ink = pixels.max(-1) < 100  # the image is brighter, and so is the chip
    assert ink.sum() > 5
    for border in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):
        assert not border.any()


def test_an_image_too_small_for_letters_is_drawn_all_the_same():
    assert tuple(drawn(made_up(((0, 0, 1, 2), 1, 0.9)), size=(3, 2))[0, 0]) == class_colour(1)


def test_labels_avoid_each_other():
    objects = [((60, 80, 140, 140), label, 0.9) for label in (1, 2, 3)]
    pixels = drawn(made_up(*objects), size=(400, 320))
    visible = [int((pixels == class_colour(label)).all(-1).sum()) for label in (1, 2, 3)]
    assert min(visible) > 300


@pytest.mark.parametrize("label", range(1, len(PALETTE) + 1))
def test_labels_are_written_in_the_ink_that_contrasts(label):
    pixels = drawn(made_up(((60, 60, 140, 120), label, 0.9)))
    white, black = (pixels.min(-1) > 200).sum(), (pixels.max(-1) < 90).sum()
    assert (white > 20, black > 20) == ((True, False) if label in (4, 6, 8, 10) else (False, True))


def test_a_class_has_one_colour_and_the_palette_goes_round():
    assert class_colour(1) == PALETTE[0]
    assert class_colour(len(PALETTE) + 2) == PALETTE[1]


@pytest.mark.parametrize("reader", READERS)
def test_colours_are_told_apart(reader):
    scaled = np.array(PALETTE) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(READERS[reader]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.cbrt(seen @ np.array(to_xyz).T / [0.9505, 1, 1.089])
    lab = np.stack([116 * xyz[:, 1], 500 * (xyz[:, 0] - xyz[:, 1]), 200 * (xyz[:, 1] - xyz[:, 2])], 1)
    assert (
        min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 10
    )  # in CIELAB, where 2.3 can just be seen


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"masks": torch.zeros(1, 1, 80, 100)}, {}, r"masks has shape \(1, 1, 80, 100\).*\(1, 1, 160, 200\)"),
        ({"boxes": torch.zeros(2, 4)}, {}, r"boxes has shape \(2, 4\).*need \(1, 4\)"),
        ({"scores": torch.zeros(1, 1)}, {}, "scores has shape"),
        ({"labels": torch.tensor([13])}, {}, "label 13 has no name; 12 classes were given"),
        ({"labels": torch.tensor([0])}, {}, "label 0 has no name"),
        ({}, {"threshold": 1.5}, "threshold is 1.5; scores are fractions"),
        ({}, {"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_what_does_not_fit_is_refused(change, options, message):
    with pytest.raises(ValueError, match=message):
        drawn(made_up(((60, 60, 140, 120), 1, 0.9)) | change, **options)


def test_other_input_is_refused():
    with pytest.raises(ValueError, match=r"mode 'L' was given; pass image.convert"):
        draw_detections(Image.new("L", (20, 10)), made_up(), CLASSES)
    with pytest.raises(ValueError, match="found has loss, no boxes"):
        drawn({"loss": torch.zeros(())})
