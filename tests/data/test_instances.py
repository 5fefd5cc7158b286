"""Masks of objects, against encodings written out by hand and, on real photos, against pycocotools' own reading."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kerneldna.data.dataset import ImageData, open_data
from kerneldna.data.instances import Objects


def objects(*outlines, size: tuple[int, int] = (6, 8)) -> Objects:
    count = len(outlines)
    return Objects(7, size, torch.zeros(count, 4), torch.ones(count, dtype=torch.int64), outlines)


def rectangle(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def filled(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def runs(mask: torch.Tensor) -> list[int]:
    """Encode as COCO does: lengths of runs down the columns, the first of zeros."""
    lengths, value = [0], 0
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def test_no_object():
    masks = objects().masks()
    assert (masks.shape, masks.dtype) == ((0, 6, 8), torch.uint8)


def test_polygons_of_one_object_are_united():
    masks = objects([rectangle(1, 1, 4, 3), rectangle(3, 2, 7, 6)], [rectangle(0, 0, 8, 6)]).masks()
    assert torch.equal(masks[0], filled((6, 8), (1, 1, 4, 3), (3, 2, 7, 6)))
    assert masks[1].all()
    assert masks.dtype == torch.uint8


def test_uncompressed_runs():
    mask = filled((6, 8), (0, 0, 3, 2), (5, 3, 8, 6))
    outline = {"size": [6, 8], "counts": runs(mask)}
    assert torch.equal(objects(outline).masks()[0], mask)


@pytest.mark.parametrize("kind", [str, bytes])
def test_compressed_runs(kind):
    coco = pytest.importorskip("pycocotools.mask")
    mask = filled((6, 8), (2, 0, 3, 6), (4, 1, 8, 2))
    outline = coco.encode(np.asfortranarray(mask.numpy()))
    if kind is str:
        outline["counts"] = outline["counts"].decode()
    assert torch.equal(objects(outline).masks()[0], mask)


def test_pycocotools_is_needed_for_masks_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    shown = objects([rectangle(1, 1, 4, 3)])
    assert len(shown.boxes) == 1
    with pytest.raises(ModuleNotFoundError, match="pycocotools"):
        shown.masks()


# Of COCO's photos.


def unpack(data_dir: Path, name: str, folder: Path) -> ImageData:
    with tarfile.open(data_dir / f"{name}.tar") as tar:
        tar.extractall(folder, filter="data")
    return open_data(str(folder / name))


@pytest.fixture(scope="module")
def fixture(data_dir, tmp_path_factory) -> ImageData:
    return unpack(data_dir, "coco_fixture", tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def mini(data_dir, tmp_path_factory) -> ImageData:
    return unpack(data_dir, "coco_mini", tmp_path_factory.mktemp("coco"))


@pytest.mark.parametrize(("split", "count"), [("train", 57), ("val", 30)])
def test_masks_are_those_of_pycocotools(fixture, split, count):
    coco = pytest.importorskip("pycocotools.coco").COCO(getattr(fixture, split).annotation_file)
    compared = 0
    for _, shown in getattr(fixture, split):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=shown.image_id, iscrowd=False))
        expected = torch.stack([torch.from_numpy(coco.annToMask(one)) for one in annotations])
        assert torch.equal(shown.masks(), expected)
        compared += len(annotations)
    assert compared == count


def test_the_counts_of_coco_mini(mini):
    assert (mini.name, len(mini.classes), mini.classes[:2]) == ("coco_mini", 80, ("person", "bicycle"))
    assert (len(mini.train), len(mini.val), mini.faults) == (208, 79, ())
    assert (int(mini.train.empty.sum()), int(mini.val.empty.sum())) == (2, 0)
    assert (mini.train.category_ids[0], mini.train.category_ids[-1]) == (1, 90)


@pytest.mark.parametrize(("split", "count"), [("train", 1660), ("val", 619)])
def test_boxes_and_masks_of_every_photo_agree(mini, split, count):
    beyond, short = [], []
    for image, shown in getattr(mini, split):
        assert (image.mode, image.size) == ("RGB", shown.size[::-1])
        for box, mask in zip(shown.boxes, shown.masks(), strict=True):
            across, down = torch.nonzero(mask.any(0)), torch.nonzero(mask.any(1))
            inside = torch.stack([across[0], down[0], -1 - across[-1], -1 - down[-1]]).flatten()
            gaps = inside - box * torch.tensor([1, 1, -1, -1])
            beyond.append(-gaps.min())
            short.append(gaps.max())
    assert len(short) == count
    assert torch.stack(beyond).max() < 1
    # Where an outline ends in a sliver narrower than a pixel, its mask does not reach as far as its box.
    assert (torch.stack(short) <= 1).float().mean() > 0.92
    assert (torch.stack(short) <= 2).float().mean() > 0.97
