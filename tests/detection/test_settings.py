"""What is set on a detector after it was made: saved with it, or refused; and never touched by a prediction."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

import kerneldna as kd
from kerneldna.checkpoint import CONFIG
from kerneldna.detection.prediction import detect
from kerneldna.detection.settings import set_settings_, settings_of

pytestmark = pytest.mark.usefixtures("small_detectors")
CHANGED = {
    "rpn._pre_nms_top_n": {"training": 90, "testing": 41},
    "rpn._post_nms_top_n": {"training": 50, "testing": 23},
    "rpn.nms_thresh": 0.61,
    "rpn.score_thresh": 0.01,
    "rpn.min_size": 2.5,
    "roi_heads.score_thresh": 0.31,
    "roi_heads.nms_thresh": 0.41,
    "roi_heads.detections_per_img": 7,
    "score_thresh": 0.011,
    "nms_thresh": 0.41,
    "detections_per_img": 9,
    "topk_candidates": 55,
    "transform.min_size": (40,),
    "transform.max_size": 52,
    "transform.image_mean": [0.1, 0.2, 0.3],
    "transform.image_std": [0.5, 0.5, 0.6],
    "transform.size_divisible": 64,
    "transform.fixed_size": (64, 48),
}


def make(kind: str = "fasterrcnn") -> torch.nn.Module:
    torch.manual_seed(0)
    network = kd.create_model("mobilenetv2_050", method="kerneldna", width=0.5)
    made = kd.create_detector(network, kind, classes=["cat", "dog"], image_size=32, max_size=48).eval()
    if kind == "retinanet":
        made.head.classification_head.cls_logits.bias.data.fill_(-2.0)
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory, small_detectors):
    return kd.save(make(), tmp_path_factory.mktemp("saved"))


def put(detector: torch.nn.Module, name: str, value: object) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(detector.get_submodule(path), attribute, value)


def found(detector: torch.nn.Module) -> dict[str, torch.Tensor]:
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return detector([image])[0]


@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet"])
def test_settings_are_saved(tmp_path, kind):
    detector = make(kind)
    names = [name for name in CHANGED if name in settings_of(detector)]
    for name in names:
        put(detector, name, CHANGED[name])
    loaded = kd.load(kd.save(detector, tmp_path))
    assert settings_of(loaded) == settings_of(detector) != settings_of(make(kind))
    for name in names:
        path, _, attribute = name.rpartition(".")
        value = getattr(loaded.get_submodule(path), attribute)
        assert (value, type(value)) == (CHANGED[name], type(CHANGED[name]))
    torch.testing.assert_close(found(loaded), found(detector), rtol=0, atol=0)
    kd.save(loaded, tmp_path / "again")
    assert (tmp_path / "again" / CONFIG).read_bytes() == (tmp_path / CONFIG).read_bytes()


@pytest.mark.parametrize("kind", ["maskrcnn", "fasterrcnn", "retinanet"])
def test_every_setting_of_torchvision_is_known(kind):
    """Whatever plain value stands on a detector's own parts is saved, or set by `create_detector`."""
    detector = make(kind)
    parts = {
        "": detector,
        **{name: getattr(detector, name, None) for name in ("rpn", "roi_heads", "transform")},
    }
    plain = {
        f"{path}.{name}".strip(".")
        for path, part in parts.items()
        for name, value in vars(part or torch.nn.Module()).items()
        if isinstance(value, (int, float, list, tuple)) or (isinstance(value, dict) and name.endswith("_n"))
    }
    others = {name for name in plain if name.endswith(("training", "_has_warned", "_skip_resize"))}
    assert plain - others <= settings_of(detector).keys()


def test_what_is_not_saved_is_refused(tmp_path):
    detector = make()
    coder = detector.roi_heads.box_coder
    detector.roi_heads.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    with pytest.raises(
        ValueError, match=r"'roi_heads' has box_coder.weights=\(1.0, 1.0, 1.0, 1.0\) instead of"
    ):
        kd.save(detector, tmp_path)
    detector.roi_heads.box_coder = coder
    detector.roi_heads.box_roi_pool.sampling_ratio = 1
    with pytest.raises(ValueError, match=r"'roi_heads.box_roi_pool' has sampling_ratio=1 instead of 2"):
        kd.save(detector, tmp_path)
    detector.roi_heads.box_roi_pool.sampling_ratio = 2
    sizes = detector.rpn.anchor_generator.sizes
    detector.rpn.anchor_generator.sizes = ((4,), (8,), (16,), (32,), (64,))
    with pytest.raises(ValueError, match=r"'rpn.anchor_generator' has sizes="):
        kd.save(detector, tmp_path)
    detector.rpn.anchor_generator.sizes = sizes
    detector.roi_heads.score_thresh = torch.tensor(0.3)
    with pytest.raises(ValueError, match=r"settings.'roi_heads.score_thresh': expected a number"):
        kd.save(detector, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_head_for_other_classes_is_refused(tmp_path):
    detector = make()
    head = detector.roi_heads.box_predictor
    detector.roi_heads.box_predictor = FastRCNNPredictor(head.cls_score.in_features, 6)
    with pytest.raises(ValueError, match=r"of another shape .*Make the detector anew with create_detector"):
        kd.save(detector, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roi_heads.score_tresh": 0.3}, "did you mean 'roi_heads.score_thresh'"),
        ({"roi_heads.score_thresh": "high"}, "'roi_heads.score_thresh': expected a number, given 'high'"),
        ({"roi_heads.detections_per_img": 2**40}, "expected a whole number from 0 to"),
        ({"topk_candidates": 3}, "unknown setting of this detector 'topk_candidates'"),
    ],
)
def test_settings_of_a_file_are_checked(saved, tmp_path, settings, message):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["detector"]["settings"] = settings
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as caught:
        kd.load(tmp_path)
    assert str(tmp_path / CONFIG) in str(caught.value)


def test_settings_are_put_where_they_were():
    detector = make()
    set_settings_(detector, {"roi_heads.score_thresh": 0.7})
    assert detector.roi_heads.score_thresh == 0.7


@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet"])
def test_predictions_of_several_thresholds_at_once(kind):
    """One detector in eight threads, each with a threshold of its own."""
    detector = make(kind)
    if (
        kind == "retinanet"
    ):  # untrained, its boxes and scores nearly tie: which are suppressed or cut off hangs on the last bits
        detector.nms_thresh, detector.topk_candidates, detector.detections_per_img = 1.0, 10**6, 10**6
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    everything = detect(detector, image, threshold=0)["scores"]
    scores = everything.sort().values
    wide = (scores[1:] - scores[:-1]).argsort(descending=True)[:8]  # threads change the last bits of a score
    thresholds = [float(scores[place : place + 2].mean()) for place in wide.tolist()]
    expected = [everything[everything > threshold] for threshold in thresholds]
    assert len({len(each) for each in expected}) == 8
    before = settings_of(detector)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            given = pool.map(lambda threshold: detect(detector, image, threshold=threshold), thresholds)
            for each, found in zip(given, expected, strict=True):
                torch.testing.assert_close(each["scores"], found)
    assert settings_of(detector) == before
