"""Images and their objects, varied together: boxes and masks follow the image."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from kerneldna.data.instance_transforms import collate, train_transform, val_transform
from kerneldna.data.instances import Objects
from kerneldna.recipes.specs import AugmentSpec

SIZE = (20, 30)
BOXES = [[2.0, 3.0, 12.0, 9.0], [0.0, 0.0, 30.0, 20.0], [25.0, 10.0, 30.0, 20.0]]


def image() -> Image.Image:
    return Image.frombytes("RGB", SIZE[::-1], bytes(range(200)) * 9)


def objects(boxes: list[list[float]] = BOXES) -> Objects:
    outlines = tuple([[a, b, c, b, c, d, a, d]] for a, b, c, d in boxes)
    labels = torch.arange(1, len(boxes) + 1)
    return Objects(7, SIZE, torch.tensor(boxes).reshape(-1, 4), labels, outlines)


def bounds(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.where(mask > 0)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_unvaried():
    pixels, target = train_transform(AugmentSpec())(image(), objects())
    torch.testing.assert_close(pixels, pil_to_tensor(image()) / 255)
    assert torch.equal(target["boxes"], torch.tensor(BOXES))
    assert torch.equal(target["masks"], objects().masks())
    assert target["labels"].tolist() == [1, 2, 3]
    assert (target["image_id"].shape, int(target["image_id"])) == ((), 7)
    dtypes = {"boxes": torch.float32, "labels": torch.int64, "masks": torch.uint8, "image_id": torch.int64}
    assert {name: value.dtype for name, value in target.items()} == dtypes
    assert {type(value) for value in (pixels, *target.values())} == {torch.Tensor}


def test_a_flip_takes_boxes_and_masks_along():
    plain, before = train_transform(AugmentSpec())(image(), objects())
    flipped, after = train_transform(AugmentSpec(flip=1.0))(image(), objects())
    assert torch.equal(flipped, plain.flip(-1))
    assert torch.equal(after["masks"], before["masks"].flip(-1))
    assert after["boxes"].tolist() == [[30 - c, b, 30 - a, d] for a, b, c, d in BOXES]
    for box, mask in zip(after["boxes"], after["masks"], strict=True):
        assert torch.equal(bounds(mask), box)
    assert {type(value) for value in (flipped, *after.values())} == {torch.Tensor}


def test_flips_come_at_the_given_rate_and_follow_the_seed():
    transform = train_transform(AugmentSpec(flip=0.25), masks=False)
    upright = pil_to_tensor(image()) / 255

    def draws() -> list[bool]:
        torch.manual_seed(1)
        return [not torch.allclose(transform(image(), objects())[0], upright) for _ in range(400)]

    found = draws()
    assert 70 <= sum(found) <= 130
    assert found == draws()


def test_colours_are_varied_as_strongly_as_asked():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    shown = Objects(1, (4, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ())
    for strength in (0.1, 0.4):
        transform = train_transform(AugmentSpec(color_jitter=strength))
        found = torch.stack([transform(grey, shown)[0].mean() for _ in range(200)]) * 2.55
        assert 1 - strength - 0.02 <= found.min() < 1 - 0.8 * strength
        assert 1 + 0.8 * strength < found.max() <= 1 + strength + 0.02


def test_colours_leave_the_objects_alone():
    pixels, target = train_transform(AugmentSpec(color_jitter=0.4))(image(), objects())
    assert not torch.allclose(pixels, pil_to_tensor(image()) / 255)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert torch.equal(target["boxes"], torch.tensor(BOXES))
    assert torch.equal(target["masks"], objects().masks())


def test_boxes_without_an_area_are_dropped():
    shown = objects([BOXES[0], [5.0, 5.0, 5.0, 9.0], BOXES[2], [5.0, 5.0, 9.0, 5.0]])
    _, target = train_transform(AugmentSpec(flip=1.0))(image(), shown)
    assert target["labels"].tolist() == [1, 3]
    assert (len(target["boxes"]), len(target["masks"])) == (2, 2)


def test_no_object():
    pixels, target = train_transform(AugmentSpec(flip=1.0, color_jitter=0.1))(image(), objects([]))
    assert pixels.shape == (3, *SIZE)
    shapes = {name: tuple(value.shape) for name, value in target.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "masks": (0, *SIZE), "image_id": ()}


class Undecoded(Objects):
    def masks(self) -> torch.Tensor:
        raise AssertionError("masks were decoded")


def test_masks_are_decoded_only_where_asked_for():
    shown = Undecoded(**vars(objects()))
    _, target = train_transform(AugmentSpec(flip=1.0), masks=False)(image(), shown)
    assert set(target) == {"boxes", "labels", "image_id"}
    pixels, target = val_transform()(image(), shown)
    torch.testing.assert_close(pixels, pil_to_tensor(image()) / 255)
    assert target == {"image_id": torch.tensor(7)}
    with pytest.raises(AssertionError, match="masks were decoded"):
        train_transform(AugmentSpec())(image(), shown)


def test_collate_keeps_images_of_different_sizes_apart():
    transform = val_transform()
    samples = [transform(picture, objects()) for picture in (image(), image().rotate(90, expand=True))]
    images, targets = collate(samples)
    assert [picture.shape for picture in images] == [(3, 20, 30), (3, 30, 20)]
    assert [int(target["image_id"]) for target in targets] == [7, 7]


@pytest.mark.parametrize(
    "transform", [train_transform(AugmentSpec(flip=0.5, color_jitter=0.2)), val_transform(), collate]
)
def test_what_goes_to_workers_can_be_pickled(transform):
    again = pickle.loads(pickle.dumps(transform))
    if transform is not collate:
        assert again(image(), objects())[0].shape == (3, *SIZE)
