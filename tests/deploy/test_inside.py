"""A file with its preprocessing inside: uint8 pixels in, probabilities out, against the formula on the network itself."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.conversion.convert import set_state
from kerneldna.data.preprocessing import Preprocessing
from kerneldna.deploy import inside

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")

HOW = Preprocessing.cropped(
    16, crop_pct=0.8, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
PIXELS = torch.randint(0, 256, (7, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2", "aot_inductor": ".pt2"}


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    levels = (pixels.double() / 255 - torch.tensor(HOW.mean)) / torch.tensor(HOW.std)
    return levels.permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def trained(tiny):
    model = copy.deepcopy(tiny)
    set_state(model, classes=["a", "b", "c", "d"], preprocessing=HOW.to_dict())
    return model


@pytest.fixture(scope="module")
def probabilities(trained):
    with torch.no_grad():
        return trained(normalised(PIXELS)).softmax(1)


def written(model, folder, runtime="onnx", **options):
    path = folder / f"inside{ENDINGS[runtime]}"
    kd.export(model, path, runtime=runtime, preprocessing=True, progress=False, **options)
    return path


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    return written(trained, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    kd.export(trained, path, progress=False)
    return path


@pytest.mark.parametrize(
    "runtime", ["onnx", "openvino", "torch_export", pytest.param("aot_inductor", marks=pytest.mark.slow)]
)
def test_pixels_in_probabilities_out(trained, probabilities, file, tmp_path, runtime):
    path = file if runtime == "onnx" else written(trained, tmp_path, runtime)
    run = kd.load_exported(path, runtime=runtime)
    for batch in (1, 3, 7):
        torch.testing.assert_close(run(PIXELS[:batch]), probabilities[:batch], rtol=1e-4, atol=1e-6)
    assert run.preprocessing == HOW.as_pixels()
    assert run.classes == ("a", "b", "c", "d")
    expected = {
        "layout": "NHWC", "outputs": "probabilities", "value_range": "[0.0, 255.0]", "input_size": "[3, 16, 16]",
        "resize": "20", "crop_pct": "0.8", "interpolation": "bicubic",
    }  # fmt: skip
    assert {key: run.facts[key] for key in expected} == expected


def test_the_graph_says_what_it_takes_and_stores_kernels_once(file, plain):
    graph, other = (onnx.load(path).graph for path in (file, plain))
    types = [info.type.tensor_type for info in (*graph.input, *graph.output)]
    shapes = [[dim.dim_param or dim.dim_value for dim in each.shape.dim] for each in types]
    assert shapes == [["batch", 16, 16, 3], ["batch", 4]]
    assert [each.elem_type for each in types] == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]
    assert (graph.input[0].name, graph.output[0].name) == ("images", "probabilities")
    weights = [
        sum(onnx.numpy_helper.to_array(tensor).size for tensor in each.initializer) for each in (graph, other)
    ]
    assert 6 <= weights[0] - weights[1] < 20  # two constants a channel, and what a cast may take


def test_the_other_options_go_with_it(trained, probabilities, tmp_path):
    options = {"images": normalised(PIXELS), "batch": 2, "opset": 13, "storage": "int8"}
    found = kd.load_exported(written(trained, tmp_path, **options))(PIXELS[:2])
    assert (found - probabilities[:2]).abs().max() < 0.02
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_neither_pixels_nor_probabilities_are_rounded_by_int8_compute(trained, probabilities, tmp_path):
    loader = [(normalised(PIXELS), torch.zeros(7))]
    path = written(trained, tmp_path, compute="int8", calibrate=loader)
    found = kd.load_exported(path)(PIXELS)
    assert (found - probabilities).abs().max() < 0.05
    torch.testing.assert_close(found.sum(1), torch.ones(7))
    graph = onnx.load(path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    assert made_by["probabilities"].op_type == "Softmax"
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    before = next(node for node in graph.node if node.op_type == "Sub")
    assert made_by[before.input[0]].op_type == "Cast"
    assert values[before.input[1]].ravel().tolist() == pytest.approx([127.5, 102, 76.5])


def test_pixels_come_back_from_normalised_images():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    for how in (HOW, Preprocessing.cropped(16, crop_pct=1)):
        transform = how.transform().transforms[-1]
        images = transform(levels.permute(0, 3, 1, 2).float() / 255)
        assert torch.equal(inside.pixels_of(images, how), levels)
    assert inside.pixels_of(torch.full((1, 3, 1, 2), 99.0), HOW).tolist() == [[[[255] * 3] * 2]]


def test_logits_are_the_logarithms_of_probabilities():
    shares = torch.tensor([[0.75, 0.25, 0.0]])
    logits = inside.of_normalised(lambda pixels: shares, HOW)(normalised(PIXELS[:1]))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.softmax(1), shares)


@pytest.mark.parametrize(
    "wrong", [normalised(PIXELS), PIXELS.permute(0, 3, 1, 2), PIXELS.float(), PIXELS[:, :8], PIXELS[0]]
)
def test_other_images_are_refused(file, wrong):
    with pytest.raises(
        ValueError, match=r"inside\.onnx has its preprocessing inside: it takes uint8 pixels \(B, 16, 16, 3\)"
    ):
        kd.load_exported(file)(wrong)


def test_a_file_of_normalised_images_refuses_pixels(plain):
    """OpenVINO would cast them and compute something."""
    with pytest.raises(ValueError, match=r"takes float images, normalised .* given uint8 \(7, 3, 16, 16\)"):
        kd.load_exported(plain)(PIXELS.permute(0, 3, 1, 2))


class Maps(nn.Module):
    """A network that gives maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


def test_what_has_no_probabilities_or_no_noted_preprocessing_is_refused(tiny, trained, tmp_path):
    maps = Maps().eval()
    set_state(maps, preprocessing=HOW.to_dict())
    backbone = kd.create_model("mobilenetv2_050", width=0.5)
    detector = kd.create_detector(backbone, "fasterrcnn", classes=["cat"], image_size=32, max_size=48).eval()
    pixels = {"images": PIXELS}
    for model, options, message in (
        (tiny, {}, "does not say what images become before it sees them: no recipe trained it"),
        (maps, {"input_size": (3, 16, 16)}, r"returns \(1, 4, 14, 14\), expected logits \(B, classes\)"),
        (detector, {}, "given with a detector"),
        (detector, {"part": "backbone"}, "given with part='backbone', whose file gives maps"),
        (trained, pixels, r"uint8 \(7, 16, 16, 3\) was given; .* normalised float images"),
        (trained, {"compute": "int8", "calibrate": PIXELS}, r"uint8 \(7, 16, 16, 3\) was given"),
    ):
        with pytest.raises(ValueError, match=message):
            written(model, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_an_expanded_file_keeps_it(file, probabilities, tmp_path):
    kd.expand(file, tmp_path / "full.onnx")
    run = kd.load_exported(tmp_path / "full.onnx")
    assert json.loads(run.facts["label_names"]) == ["a", "b", "c", "d"]
    torch.testing.assert_close(run(PIXELS), probabilities, rtol=1e-4, atol=1e-6)
