import json
import random
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed

from kerneldna.detection.coco_metric import CocoMetric

pytest.importorskip("pycocotools")

FIGURES = ("ap", "ap50", "ap75", "aps", "apm", "apl")
THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]

# rectangles on images of 100 x 100: two small, one of them on image 9, and two medium

FIRST, SECOND, THIRD = (0, 0, 20, 10), (40, 40, 90, 90), (10, 10, 60, 50)


def found(boxes=(), labels=(), scores=(), masks=None):
    result = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }
    return result if masks is None else result | {"masks": masks}


def rectangle(left, top, right, bottom):
    mask = torch.zeros(1, 100, 100)
    mask[0, top:bottom, left:right] = 1
    return mask


def write_truth(folder, objects, *, images=(7, 8, 9), categories=(5, 11)):
    """Write an annotation file of rectangles: `(image, category, box, crowd)` each."""
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            "iscrowd": int(crowd),
        }
        for number, (image, category, (left, top, right, bottom), crowd) in enumerate(objects, start=1)
    ]
    file = folder / "truth.json"
    content = {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "height": 100, "width": 100} for image in images
        ],
        "categories": [{"id": category, "name": str(category)} for category in categories],
        "annotations": annotations,
    }
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def small(tmp_path):
    objects = [(7, 11, FIRST), (7, 11, SECOND), (8, 11, THIRD), (9, 5, FIRST)]
    return write_truth(tmp_path, [(*each, False) for each in objects])


def measured(file, detections, ids=(5, 11)):
    """Return the figures of `{image: [(label, score, box), ...]}`, masks being the boxes' pixels."""
    metric = CocoMetric(file, ids)
    for image, rows in detections.items():
        labels, scores, boxes = ([row[i] for row in rows] for i in range(3))
        masks = torch.stack([torch.zeros(1, 100, 100), *(rectangle(*box) for box in boxes)])[1:]
        metric.update(image, found(boxes, labels, scores, masks))
    return metric.compute()


def test_by_hand(small):
    """Three objects; found by falling score: one exactly, a false one, one at IoU 0.62.

    Up to IoU 0.6 precision is 1 up to recall 1/3 (34 of the 101 points) and 2/3 up to recall 2/3 (33 points): 56/101. Above it is
    34/101. The small object is the one found exactly; a detection of another size that meets no object does not count there.
    """
    overlapping = (40, 40, 90, 71)  # 50 x 31 of SECOND's 50 x 50
    figures = measured(small, {7: [(2, 0.7, overlapping), (2, 0.9, FIRST)], 8: [(2, 0.8, (60, 30, 99, 99))]})
    low, high = 56 / 101, 34 / 101
    medium = 51 / 2 / 101  # two objects, the false detection first: precision 1/2 up to recall 1/2, 51 points
    expected = ((3 * low + 7 * high) / 10, low, high, 1.0, 3 * medium / 10)
    for kind in ("box", "mask"):
        assert [figures[f"{kind}_{name}"] for name in FIGURES[:5]] == pytest.approx(expected)


def overlap(a, b, crowd):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    own = (a[2] - a[0]) * (a[3] - a[1])
    return both / (own if crowd else own + (b[2] - b[0]) * (b[3] - b[1]) - both)


def naive_ap(objects, detections, categories, threshold):
    """Average precision from `(image, category, box, crowd)` and `(image, category, score, box)`."""
    averages = []
    for category in categories:
        mine = [each for each in objects if each[1] == category and not each[3]]
        crowds = [each for each in objects if each[1] == category and each[3]]
        if not mine:
            continue
        taken, hits = set(), []
        for image, _, _, box in sorted((d for d in detections if d[1] == category), key=lambda d: -d[2]):
            free = [o for o in mine if o[0] == image and o not in taken]
            best = max(free, key=lambda o: overlap(box, o[2], False), default=None)
            if best is not None and overlap(box, best[2], False) >= threshold:
                taken.add(best)
                hits.append(True)
            elif not any(o[0] == image and overlap(box, o[2], True) >= threshold for o in crowds):
                hits.append(False)
        points = [(sum(hits[:n]) / len(mine), sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
        # a recall of 7/10 lies below the 71st of these, by rounding; pycocotools has them so
        recalls = np.linspace(0, 1, 101)
        precisions = [max((p for r, p in points if r >= recall), default=0) for recall in recalls]
        averages.append(sum(precisions) / 101)
    return sum(averages) / len(averages)


@pytest.mark.parametrize("seed", range(5))
def test_the_formula_on_rectangles(tmp_path, seed):
    draw = random.Random(seed)

    def box():
        left, top = draw.randrange(70), draw.randrange(70)
        return (left, top, left + draw.randrange(9, 30), top + draw.randrange(9, 30))

    def near(box):
        left, top, right, bottom = (min(max(v + draw.choice((-2, -1, 0, 0, 1, 2)), 0), 100) for v in box)
        return (left, top, right, bottom)

    images, ids = (1, 2, 3, 4), (3, 4, 90)
    crowds = [(1, 3, (0, 0, 50, 50), True), (2, 90, (20, 20, 80, 70), True)]
    objects = [(draw.choice(images[:3]), draw.choice(ids[:2]), box(), False) for _ in range(14)] + crowds
    detections = [(image, category, draw.random(), near(b)) for image, category, b, _ in objects]
    detections += [(draw.choice(images), draw.choice(ids), draw.random(), box()) for _ in range(10)]
    file = write_truth(tmp_path, objects, images=images, categories=ids)
    rows = {image: [(ids.index(c) + 1, s, b) for i, c, s, b in detections if i == image] for image in images}
    figures = measured(file, rows, ids)
    values = [naive_ap(objects, detections, ids, threshold) for threshold in THRESHOLDS]
    assert 0.01 < values[5] < values[0] < 0.99
    for kind in ("box", "mask"):
        expected = {"ap": sum(values) / 10, "ap50": values[0], "ap75": values[5]}
        assert {name: figures[f"{kind}_{name}"] for name in expected} == pytest.approx(expected)


def test_nothing_found(small, tmp_path):
    figures = measured(small, {7: [], 8: []})
    assert figures == {f"{kind}_{f}": 0.0 for kind in ("box", "mask") for f in FIGURES[:5]}  # no large object
    metric = CocoMetric(small, (5, 11))
    metric.update(9, found(masks=torch.zeros(0, 1, 100, 100)))
    assert metric.compute() == {f"{kind}_{f}": 0.0 for kind in ("box", "mask") for f in FIGURES[:4]}
    metric.save(tmp_path)
    assert json.loads((tmp_path / "segm.json").read_text()) == []


def test_images_without_an_object_have_no_figures(tmp_path):
    file = write_truth(tmp_path, [(8, 11, THIRD, False)])
    assert measured(file, {7: []}) == {}
    assert measured(file, {7: [(2, 0.9, FIRST)]}) == {}


def test_only_measured_images_count_and_each_once(small):
    exact = {7: [(2, 0.9, FIRST), (2, 0.8, SECOND)]}
    assert measured(small, exact)["box_ap"] == pytest.approx(1)
    assert measured(small, exact | {8: []})["box_ap50"] == pytest.approx(67 / 101)
    metric = CocoMetric(small, (5, 11), kinds=("bbox",))
    metric.update(7, found([THIRD], [2], [0.5]))
    metric.update(7, found([FIRST, SECOND], [2, 2], [0.9, 0.8]))
    assert metric.compute() == metric.compute() == pytest.approx({f"box_{name}": 1 for name in FIGURES[:5]})
    metric.reset()
    with pytest.raises(ValueError, match="no image was measured; call update"):
        metric.compute()


def test_a_label_is_a_place_in_the_categories(small):
    rows = {7: [(1, 0.9, FIRST), (1, 0.8, SECOND)]}
    assert measured(small, rows, ids=(11, 5))["box_ap"] == pytest.approx(1)
    assert measured(small, rows, ids=(5, 11))["box_ap"] == 0


def test_a_mask_begins_above_a_half(small):
    metric = CocoMetric(small, (5, 11), kinds=("segm",))
    halves = torch.full((1, 1, 100, 100), 0.5)
    metric.update(8, found([THIRD], [2], [0.5], torch.where(rectangle(*THIRD) > 0, 0.501, halves)))
    assert metric.compute()["mask_ap"] == pytest.approx(1)
    metric.update(8, found([THIRD], [2], [0.5], halves))  # a mask without a pixel
    assert metric.compute()["mask_ap"] == 0


def test_one_kind_alone(small, tmp_path):
    metric = CocoMetric(small, (5, 11), kinds=("bbox",))
    metric.update(7, found([FIRST], [2], [0.5]))
    metric.save(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bbox.json"]
    assert {name.split("_")[0] for name in metric.compute()} == {"box"}


def test_nothing_is_printed_and_the_annotations_are_read_once(small, tmp_path, capsys):
    metric = CocoMetric(small, (5, 11), kinds=("bbox",))
    metric.update(7, found([FIRST], [2], [0.5]))
    small.unlink()
    metric.update(8, found())
    metric.gather()
    metric.save(tmp_path / "out")
    metric.compute()
    metric.reset()
    metric.update(8, found())
    metric.compute()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("image", "given", "message"),
    [
        (6, found(), r"image 6 is not among the 3 of .*truth\.json; give the id of an image"),
        (
            7,
            found([FIRST], [2], [0.5]),
            r"image 7: no masks among \['boxes', 'labels', 'scores'\]; .* leave out",
        ),
        (
            7,
            found([FIRST], [0], [0.5], rectangle(*FIRST)),
            r"labels has \[0\]; expected 1 to 2, .* no background",
        ),
        (7, found([FIRST], [3], [0.5], rectangle(*FIRST)), r"labels has \[3\]; expected 1 to 2"),
        (
            7,
            found([FIRST], [1], [0.5, 0.4], rectangle(*FIRST)),
            r"scores is \(2,\); expected \(1,\): one row",
        ),
        (7, found([FIRST], [1], [0.5], torch.ones(1, 1, 28, 28)), r"\(1, 28, 28\); expected \(1, 100, 100\)"),
        (7, found([FIRST], [1], [float("nan")], rectangle(*FIRST)), "not finite; look for a network that"),
    ],
)
def test_wrong_detections(small, image, given, message):
    with pytest.raises(ValueError, match=message):
        CocoMetric(small, (5, 11)).update(image, given)


@pytest.mark.parametrize("kinds", [(), ("bbox", "keypoints"), "bbox"])
def test_unknown_kinds(small, kinds):
    with pytest.raises(ValueError, match=r"kinds is .*; give one or both of \('bbox', 'segm'\)"):
        CocoMetric(small, (5, 11), kinds=kinds)


def test_without_pycocotools(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'kerneldna\[detect\]'"):
        CocoMetric(small, (5, 11))


def measure_on(rank, file, store):
    """Measure image 7 on both processes, the others on one each; return what is held after gathering."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        metric = CocoMetric(file, (5, 11), kinds=("bbox",))
        metric.update(7, found([FIRST, SECOND], [2, 2], [0.9 - rank / 2, 0.8]))
        if rank == 0:
            metric.update(8, found([THIRD], [2], [0.7]))
        else:
            metric.update(9, found([FIRST], [1], [0.3]))
        metric.gather()
        metric.gather()
        metric.save(store.parent / str(rank))
        return metric.compute()
    finally:
        distributed.destroy_process_group()


def test_two_processes_hold_the_same_and_count_an_image_once(small, tmp_path):
    # the other process is the only one to start: importing torch is what takes the time
    other = mp.get_context("spawn").Process(target=measure_on, args=(1, small, tmp_path / "store"))
    other.start()
    figures = measure_on(0, small, tmp_path / "store")
    other.join(60)
    assert other.exitcode == 0
    assert figures["box_ap"] == pytest.approx(1)
    files = [json.loads((tmp_path / rank / "bbox.json").read_text()) for rank in ("0", "1")]
    assert files[0] == files[1]
    assert [(each["image_id"], round(each["score"], 3)) for each in files[0]] == [
        (7, 0.9),
        (7, 0.8),
        (8, 0.7),
        (9, 0.3),
    ]
