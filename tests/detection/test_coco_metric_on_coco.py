"""Average precision on real annotations; by hand and by the formula in test_coco_metric.py."""

import io
import json
import random
import tarfile
from contextlib import redirect_stdout

import pytest
import torch

from kerneldna.detection.coco_metric import CocoMetric

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# pycocotools 2.0.11 under numpy 2, in reading masks
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FIGURES = ("ap", "ap50", "ap75", "aps", "apm", "apl")


@pytest.fixture(scope="session")
def coco(data_dir, tmp_path_factory):
    """A function that gives the annotation file of a set and a split."""
    folder = tmp_path_factory.mktemp("coco")

    def annotations(name, split):
        inside = f"{name}/annotations/instances_{split}2017.json"
        with tarfile.open(data_dir / f"{name}.tar") as tar:
            tar.extract(inside, folder, filter="data")
        return folder / inside

    return annotations


def silently(function, *args):
    with redirect_stdout(io.StringIO()):
        return function(*args)


def category_ids(file):
    return sorted(category["id"] for category in json.loads(file.read_text())["categories"])


def truth_as_found(file):
    """Yield each image's id and its objects as a detector would give them, crowds left out."""
    truth, ids = silently(COCO, str(file)), category_ids(file)
    for image_id, image in truth.imgs.items():
        objects = [each for each in truth.imgToAnns[image_id] if not each["iscrowd"]]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for each in objects)]
        masks = torch.zeros(len(objects), 1, image["height"], image["width"], dtype=torch.uint8)
        for mask, each in zip(masks, objects, strict=True):
            mask[0] = torch.from_numpy(truth.annToMask(each))
        labels = [ids.index(each["category_id"]) + 1 for each in objects]
        yield (
            image_id,
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "scores": torch.ones(len(objects)),
                "masks": masks,
            },
        )


def disturbed(file, seed=0):
    """Yield what a middling detector finds: objects moved, missed, mistaken and doubled, with scores that often tie."""
    draw = torch.Generator().manual_seed(seed)
    classes = len(category_ids(file))
    for image_id, exact in truth_as_found(file):
        n = len(exact["labels"])
        rows = torch.cat([torch.randperm(n, generator=draw), torch.randperm(n, generator=draw)])
        rows = rows[: int(1.3 * n)]
        boxes, labels, masks = (exact[key][rows] for key in ("boxes", "labels", "masks"))
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + 0.08 * sides * torch.randn(boxes.shape, generator=draw)
        shifts = torch.randint(-3, 4, (len(rows),), generator=draw)
        for mask, shift in zip(masks, shifts.tolist(), strict=True):
            mask.copy_(mask.roll(shift, -1))
        masks = 0.3 + 0.3 * masks
        mistaken = torch.rand(len(rows), generator=draw) < 0.15
        labels = torch.where(mistaken, torch.randint(1, classes + 1, labels.shape, generator=draw), labels)
        scores = torch.rand(len(rows), generator=draw).mul(20).round() / 20
        yield image_id, {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}


def by_pycocotools(file, folder, kind, images):
    truth = COCO(str(file))
    evaluation = COCOeval(truth, truth.loadRes(str(folder / f"{kind}.json")), kind)
    evaluation.params.imgIds = images
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    prefix = {"bbox": "box", "segm": "mask"}[kind]
    return {f"{prefix}_{name}": v for name, v in zip(FIGURES, evaluation.stats, strict=False) if v != -1}


@pytest.mark.parametrize(
    ("name", "split"), [("coco_mini", "val"), ("coco_mini", "train"), ("coco_fixture", "val")]
)
def test_the_truth_scores_one(coco, name, split):
    file = coco(name, split)
    metric = CocoMetric(file, category_ids(file))
    for image_id, exact in truth_as_found(file):
        metric.update(image_id, exact)
    figures = metric.compute()
    assert set(figures) == {f"{kind}_{figure}" for kind in ("box", "mask") for figure in FIGURES}
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0), abs=1e-12)


@pytest.mark.parametrize(("name", "every"), [("coco_mini", 1), ("coco_fixture", 2)])
def test_the_saved_files_give_the_same_figures(coco, tmp_path, name, every):
    """With `every` 2 only half of the images were measured."""
    file = coco(name, "val")
    metric = CocoMetric(file, category_ids(file))
    detections = list(disturbed(file))[::every]
    random.Random(0).shuffle(detections)
    for image_id, each in detections:
        metric.update(image_id, each)
    metric.save(tmp_path / "new" / "folder")
    figures = metric.compute()
    images = [image_id for image_id, _ in detections]
    expected = {}
    for kind in ("bbox", "segm"):
        expected |= silently(by_pycocotools, file, tmp_path / "new" / "folder", kind, images)
    assert figures == expected
    assert 0.05 < figures["box_ap"] < 0.8
    assert figures["box_ap"] != figures["mask_ap"]


def test_the_files_are_coco_results(coco, tmp_path):
    file = coco("coco_fixture", "val")
    metric = CocoMetric(file, category_ids(file))
    for image_id, each in disturbed(file):
        metric.update(image_id, each)
    metric.save(tmp_path)
    boxes, masks = (json.loads((tmp_path / f"{kind}.json").read_text()) for kind in ("bbox", "segm"))
    assert {tuple(sorted(each)) for each in boxes} == {("bbox", "category_id", "image_id", "score")}
    assert {tuple(sorted(each)) for each in masks} == {("category_id", "image_id", "score", "segmentation")}
    assert all(isinstance(each["segmentation"]["counts"], str) for each in masks)
    assert {each["category_id"] for each in boxes} <= set(category_ids(file))
    assert max(each["category_id"] for each in boxes) > 80  # more than there are categories: ids have gaps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bbox.json", "segm.json"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_type_and_both_shapes_of_masks(coco, dtype):
    file = coco("coco_fixture", "val")
    cast, plain = (CocoMetric(file, category_ids(file)) for _ in range(2))
    for image_id, each in disturbed(file):
        each = {key: value.to(dtype) if value.is_floating_point() else value for key, value in each.items()}
        cast.update(image_id, each | {"boxes": each["boxes"].requires_grad_()})
        each = {key: value.float() if value.is_floating_point() else value for key, value in each.items()}
        plain.update(image_id, each | {"masks": each["masks"][:, 0]})
    assert cast.compute() == plain.compute()


@pytest.mark.gpu
def test_what_lies_on_a_gpu(coco, tmp_path):
    file = coco("coco_fixture", "val")
    for device in ("cpu", "cuda"):
        metric = CocoMetric(file, category_ids(file))
        for image_id, each in disturbed(file):
            metric.update(image_id, {key: value.to(device) for key, value in each.items()})
        metric.save(tmp_path / device)
    for kind in ("bbox", "segm"):
        on_cpu, on_cuda = ((tmp_path / device / f"{kind}.json").read_text() for device in ("cpu", "cuda"))
        assert on_cpu == on_cuda
