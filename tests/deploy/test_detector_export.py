"""A detector exported whole to ONNX, or its backbone for any runtime, against the detector in PyTorch."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

import kerneldna as kd
from kerneldna.deploy import detector_export
from kerneldna.detection.detectors import BackboneImages
from kerneldna.detection.difference import detection_differences

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxscript", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")

KINDS = ["maskrcnn", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fasterrcnn", "retinanet"))]
SIZES = ((100, 120), (130, 90), (64, 64))


def smooth(*size):
    return F.interpolate(torch.rand(1, 3, 9, 9), size=size, mode="bilinear")[0]


def settled(kind, settle):
    """A small detector whose scores are spread: a fresh one gives nothing, or a hundred detections alike."""
    torch.manual_seed(0)
    network = kd.create_model("mobilenetv2_050", method="kerneldna", width=0.5)
    settle(network, torch.randn(4, 3, 64, 64))
    detector = kd.create_detector(network, kind, classes=("cat", "dog", "cow"), image_size=96, max_size=160)
    if kind == "retinanet":
        predictors = [(detector.head.classification_head.cls_logits, 50)]
    else:
        detector.roi_heads.box_head = TwoMLPHead(256 * 49, 32)
        detector.roi_heads.box_predictor = FastRCNNPredictor(32, 4)
        detector.roi_heads.detections_per_img = 10
        detector.rpn._pre_nms_top_n["testing"] = detector.rpn._post_nms_top_n["testing"] = 100
        predictors = [(detector.roi_heads.box_predictor.cls_score, 10), (detector.rpn.head.cls_logits, 5)]
    with torch.no_grad():
        for layer, times in predictors:
            layer.weight.mul_(times)
    return detector.eval()


@pytest.fixture(scope="module")
def made(settle):
    return {}


@pytest.fixture
def detector(made, settle, request):
    kind = getattr(request, "param", "fasterrcnn")
    if kind not in made:
        made[kind] = settled(kind, settle)
    return made[kind]


@pytest.fixture
def images():
    return [smooth(*size) for size in SIZES]


def differences(detector, run, image):
    """How far what `run` finds in an image is from what PyTorch finds, detection by detection."""
    keeper = getattr(detector, "roi_heads", detector)
    with torch.no_grad():
        (expected,), (found,) = detector([image]), run([image])
    assert len(expected["scores"]) > 5
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape[1:] == value.shape[1:]
    limits = {"least": keeper.score_thresh, "most": keeper.detections_per_img}
    return detection_differences(expected, found, size=tuple(image.shape[1:]), **limits)


@pytest.mark.parametrize("detector", KINDS, indirect=True)
def test_a_whole_detector_finds_what_pytorch_does_in_images_of_any_size(detector, images, tmp_path):
    before = copy.deepcopy(detector.state_dict())
    written = kd.export(detector, tmp_path / "m.onnx", images=images)
    assert written.difference < 1e-4
    assert written.bytes == (tmp_path / "m.onnx").stat().st_size
    run = kd.load_exported(tmp_path / "m.onnx", threads=1)
    # torchvision's own tracing resizes the second to another size, a pixel off
    for image in (*images, smooth(200, 596), smooth(97, 200)):
        apart = differences(detector, run, image)
        assert (apart < 1e-3).float().mean() > 0.9
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(properties["classes"]) == ["cat", "dog", "cow"]


@pytest.mark.parametrize(
    "storage", ["fp32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "int8"))]
)
def test_each_shared_kernel_stands_once(storage, detector, images, tmp_path):
    small = kd.export(detector, tmp_path / "small.onnx", images=images, storage=storage)
    graph = onnx.load(small.path).graph
    assert any("/gate/" in node.name for node in graph.node)
    names = [tensor.name for tensor in graph.initializer]
    for family in kd.plan_of(detector).families:
        kernels = [name for name in names if name.startswith(f"backbone.body.model.{family.parent}.kernel")]
        assert len(kernels) == 1 + (storage == "int8")  # and its scales
    if storage == "fp32":
        full = kd.export(kd.fuse_(copy.deepcopy(detector)), tmp_path / "full.onnx", images=images)
        assert full.bytes - small.bytes > 100_000
    kd.expand(small.path, tmp_path / "expanded.onnx")
    found, same = (
        kd.load_exported(file, threads=1)(images[:1])[0] for file in (small.path, tmp_path / "expanded.onnx")
    )
    assert all(torch.equal(same[name], value) for name, value in found.items())


def test_throughput_mode(detector, images, tmp_path):
    seen = BackboneImages(detector, [images[:1], (images[1:], [{}, {}])])
    path = tmp_path / "m.onnx"
    kd.export(detector, path, mode="throughput", calibrate=seen, images=images, progress=False)
    fused = kd.fuse_(copy.deepcopy(detector), mode="throughput", calibrate=seen, progress=False)
    apart = differences(fused, kd.load_exported(path, threads=1), images[0])
    assert (apart < 1e-3).float().mean() > 0.9
    assert not any("/gate/" in node.name for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("detector", ["maskrcnn"], indirect=True)
def test_images_in_which_nothing_is_found(detector, images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(detector.roi_heads, "score_thresh", 2.0)
    caplog.set_level("INFO", logger="kerneldna")
    assert kd.export(detector, tmp_path / "m.onnx", images=images[:1]).difference is None
    assert (
        "the file was not compared with PyTorch: neither found anything in 1 images; pass some" in caplog.text
    )
    assert "largest relative difference to PyTorch not compared" in caplog.text
    found = kd.load_exported(tmp_path / "m.onnx", threads=1)(images[:2])
    assert [tuple(each["boxes"].shape) for each in found] == [(0, 4)] * 2
    assert [tuple(each["masks"].shape) for each in found] == [(0, 1, 100, 120), (0, 1, 130, 90)]


def test_random_images_are_of_three_shapes(detector):
    shapes = [tuple(image.shape) for image in detector_export.images_of(detector, None)]
    assert shapes == [(3, 72, 96), (3, 96, 72), (3, 96, 96)]


@pytest.mark.parametrize(
    "name", ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torch_export", "openvino"))]
)
def test_the_backbone_gives_the_maps_of_the_pyramid(name, detector, images, tmp_path):
    from kerneldna.registry import runtimes

    if name == "openvino":
        pytest.importorskip("openvino", reason="needs kerneldna[export]")
    path = tmp_path / f"m{runtimes.get(name).suffix}"
    written = kd.export(detector, path, runtime=name, part="backbone", input_size=(3, 64, 96))
    assert written.difference < 1e-4
    run = kd.load_exported(path, runtime=name)
    for batch in (1, 2):
        x = torch.randn(batch, 3, 64, 96)
        found = run(x)
        found = list(found.values()) if isinstance(found, dict) else found
        with torch.no_grad():
            expected = list(detector.backbone(x).values())
        assert len(found) == 5
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    if name == "onnx":
        names = [output.name for output in onnx.load(path).graph.output]
        assert names == ["map_0", "map_1", "map_2", "map_3", "map_pool"]


def test_the_backbone_on_real_images_of_any_size(detector, images, tmp_path):
    shown = [*images, *images, smooth(300, 90)]
    assert (
        kd.export(
            detector, tmp_path / "m.pt2", runtime="torch_export", part="backbone", images=shown
        ).difference
        < 1e-4
    )
    assert detector_export.backbone_size(detector) == (3, 96, 160)
    seen = detector_export.backbone_images(detector, shown, (3, 96, 160))
    assert torch.equal(seen[:1], F.pad(detector.transform(shown[:1])[0].tensors, (0, 32)))
    with pytest.raises(ValueError, match="3 images were given; the comparison needs 7"):
        kd.export(detector, tmp_path / "m.onnx", part="backbone", images=images)


@pytest.mark.slow
def test_the_backbone_computed_in_int8(detector, images, tmp_path):
    path, shown = tmp_path / "m.onnx", [*images, *images, smooth(300, 90)]
    seen = BackboneImages(detector, [[image] for image in shown])
    options = {"part": "backbone", "compute": "int8", "calibrate": seen, "progress": False}
    assert 1e-4 < kd.export(detector, path, images=shown, **options).difference < 0.5
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "QuantizeLinear" in kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "torch_export"}, "'torch_export' takes no whole detector, .*part='backbone' writes"),
        ({"compute": "int8", "calibrate": torch.randn(1, 3, 32, 32)}, "compute='int8' .* storage='int8'"),
        ({"batch": 2}, "batch=2 was given; the file of a whole detector takes one image of any size"),
        ({"input_size": (3, 96, 96)}, r"input_size=\(3, 96, 96\) was given"),
        ({"opset": 15}, "opset 15 was given; a detector's is 16 to 20"),
        ({"opset": 12, "part": "backbone", "input_size": (3, 64, 64)}, "opset 12 was given; expected 13 to"),
        (
            {"images": [torch.randn(1, 3, 32, 32)]},
            r"images of shape \(1, 3, 32, 32\) .* expected \(3, H, W\)",
        ),
        ({"images": []}, "no images were given; pass some, or leave images out"),
        ({"part": "head"}, "unknown part 'head'; Known: backbone"),
        ({"mode": "throughput"}, "none was given; pass calibrate="),
    ],
)
def test_wrong_use(options, message, detector, tmp_path):
    suffix = ".pt2" if options.get("runtime") else ".onnx"
    with pytest.raises(ValueError, match=message):
        kd.export(detector, tmp_path / f"m{suffix}", **options)
    assert not list(tmp_path.iterdir())


def test_training_mode_is_refused(detector, tmp_path):
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        kd.export(copy.deepcopy(detector).train(), tmp_path / "m.onnx")


def test_a_classifier_has_no_such_part(tiny, tmp_path):
    with pytest.raises(ValueError, match="part='backbone' was given with a Sequential, .* leave part= out"):
        kd.export(tiny, tmp_path / "m.onnx", part="backbone")


def test_without_the_tracing_exporter_the_backbone_is_named(detector, images, tmp_path, monkeypatch):
    def newer(*args, dynamic_shapes=None):
        raise AssertionError("is not called")

    monkeypatch.setattr(torch.onnx, "export", newer)
    with pytest.raises(RuntimeError, match="did not write the whole detector .*; part='backbone' writes"):
        kd.export(detector, tmp_path / "m.onnx", images=images)
    assert not list(tmp_path.iterdir())


def test_a_file_that_finds_something_else_is_not_written(detector, images, tmp_path, monkeypatch):
    traced = detector_export.traced

    def other(model, *arguments):
        model = copy.deepcopy(model)
        torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.bias, 0, 3)
        return traced(model, *arguments)

    monkeypatch.setattr("kerneldna.deploy.onnx_file.traced", other)
    with pytest.raises(
        ValueError, match="in too many detections, more than 1e-03 allows; nothing was written"
    ):
        kd.export(detector, tmp_path / "m.onnx", images=images)
    assert not list(tmp_path.iterdir())
