"""int8 weights with calibration images: what rounding takes from mean answers comes back in the biases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.conversion.convert import set_state
from kerneldna.data.preprocessing import Preprocessing
from kerneldna.deploy.onnx_bias import Reader, correct_biases_, readers_of
from kerneldna.registry import runtimes

pytest.importorskip("onnxruntime")


class ChannelsLast(nn.Module):
    """Linears on channels-last maps, which are matrix products with an addition behind, or without."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.conv(torch.relu(self.conv(x))))


def network(*middle: nn.Module) -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8)]
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), *middle, nn.ReLU(), *head)


def row(layers: int, **options) -> nn.Module:
    made = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, **options), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*made)


def heavy_tailed_(model: nn.Module) -> nn.Module:
    """Give every weight some outliers, as trained ones have: they widen the steps that all others are rounded to."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.where(torch.rand_like(parameter) < 0.01, 8.0, 1.0))
    return model.eval()


def shift(run, model, images) -> float:
    """By how much the mean answer differs, as a share of the largest answer."""
    with torch.no_grad():
        expected = model(images)
    return ((run(images) - expected).mean(0).abs().max() / expected.abs().max()).item()


NETWORKS = {
    "biases": lambda: network(row(4)),
    "no biases": lambda: network(row(4, bias=False)),
    "padded by reflection": lambda: network(row(2, padding_mode="reflect")),
    "grouped": lambda: network(row(2, groups=2)),
    "channels last": lambda: network(ChannelsLast(), ChannelsLast()),
    "called twice": lambda: network(Twice()),
    "kerneldna": lambda: kd.convert_(network(row(4)), kd.KernelDNA(), input_size=(3, 16, 16)),
    "basis": lambda: kd.convert_(network(row(4)), "sharedbasis", input_size=(3, 16, 16)),
    "norms": lambda: kd.create_model("resnet18", method="kerneldna", width=0.25, num_classes=8),
}


QUICK = ("no biases", "channels last", "kerneldna")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_the_mean_answer_comes_back(name, tmp_path):
    torch.manual_seed(0)
    model = heavy_tailed_(NETWORKS[name]())
    images = torch.rand(24, 3, 16, 16)
    options = {"storage": "int8", "images": images, "input_size": (3, 16, 16), "progress": False}
    plain = kd.export(model, tmp_path / "plain.onnx", **options)
    corrected = kd.export(model, tmp_path / "corrected.onnx", calibrate=[images[:16], images[16:]], **options)
    before, after = (shift(kd.load_exported(each.path), model, images) for each in (plain, corrected))
    assert after < before / 4
    assert corrected.bytes < plain.bytes * 1.05


@pytest.mark.parametrize(
    ("runtime", "batch"), [("onnx", 4), pytest.param("openvino", None, marks=pytest.mark.slow)]
)
def test_it_does_for_a_fixed_batch_and_another_runtime(runtime, batch, tmp_path):
    pytest.importorskip(runtime)
    model, images = heavy_tailed_(network(row(4))), torch.rand(8, 3, 16, 16)
    file = tmp_path / f"m{runtimes.get(runtime).suffix}"
    shifts = []
    for calibrate in (None, images):
        kd.export(
            model,
            file,
            runtime=runtime,
            batch=batch,
            storage="int8",
            images=images,
            calibrate=calibrate,
            progress=False,
        )
        run = kd.load_exported(file)
        shifts.append(shift(lambda x, run=run: torch.cat([run(part) for part in x.split(4)]), model, images))
    assert shifts[1] < shifts[0] / 3


def test_it_does_with_the_preprocessing_inside(tmp_path):
    model = heavy_tailed_(network(row(4)))
    how = Preprocessing.cropped(16, crop_pct=1.0, interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)
    set_state(model, preprocessing=how.to_dict())
    pixels = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    images = pixels.permute(0, 3, 1, 2) / 255
    shifts = []
    for calibrate in (None, images):
        options = {"preprocessing": True, "images": images, "calibrate": calibrate, "progress": False}
        kd.export(model, tmp_path / "m.onnx", storage="int8", **options)
        run = kd.load_exported(tmp_path / "m.onnx")
        shifts.append(shift(lambda _, run=run: run(pixels), nn.Sequential(model, nn.Softmax(1)), images))
    assert shifts[1] < shifts[0] / 3


class Named(nn.Module):
    """Two Linears called as their outputs in the graph are, or otherwise; tied, one weight does for both."""

    def __init__(self, first: str, second: str, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = first, second
        self.stem, self.logits = nn.Conv2d(3, 32, 3), nn.Linear(32, 8)
        for name, value in zip(self.names, (1.0, -1.0), strict=True):
            setattr(self, name, layer := nn.Linear(32, 32))
            nn.init.constant_(layer.bias, value)
        if tied:
            layer.weight = self.get_submodule(first).weight

    def forward(self, x):
        first, second = (self.get_submodule(name) for name in self.names)
        x = torch.relu(self.stem(x)).mean((2, 3))
        # two calls that see means apart
        return self.logits(torch.cat([first(9 * x), second(1 - x)]).unflatten(0, (2, -1)).sum(0))


@pytest.mark.parametrize(
    ("names", "tied"), [(("linear_1", "linear"), False), (("fc1", "fc2"), True)], ids=["as outputs", "tied"]
)
def test_each_bias_is_its_layer_s_own(names, tied, tmp_path):
    onnx = pytest.importorskip("onnx")
    model, images = heavy_tailed_(Named(*names, tied=tied)), torch.rand(24, 3, 8, 8)
    options = {"images": images, "calibrate": images, "progress": False}
    kd.export(model, tmp_path / "m.onnx", storage="int8", **options)
    moved = shift(kd.load_exported(tmp_path / "m.onnx"), model, images)
    assert moved < 1e-5
    graph = onnx.load(tmp_path / "m.onnx").graph
    made = [part.name for part in graph.initializer] + [name for node in graph.node for name in node.output]
    assert len({*made}) == len(made)
    assert sum(list(part.dims) == [32] for part in graph.initializer) == 3  # the replaced biases are gone


def test_a_weight_that_forward_reads_itself_too_is_left_uncorrected():
    onnx = pytest.importorskip("onnx")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x):
            return self.fc(x) + nn.functional.linear(x, self.fc.weight)

    net = Net().eval()
    weight = onnx.numpy_helper.from_array(net.fc.weight.detach().numpy(), "fc.weight")
    nodes = [onnx.helper.make_node("Gemm", ["x", "fc.weight"], [name], transB=1) for name in "ab"]
    graph = onnx.helper.make_graph(
        nodes, "g", [], [onnx.helper.make_empty_tensor_value_info(n) for n in "ab"]
    )
    graph.initializer.append(weight)
    proto = onnx.helper.make_model(graph)
    (reader,) = readers_of(proto, net)
    assert reader == Reader(("fc",), ("a", "b"), turned=False)
    with torch.no_grad():
        net.fc.weight += 0.1
    before = proto.SerializeToString()
    correct_biases_(proto, [reader], net, [torch.rand(8, 32)])
    assert proto.SerializeToString() == before
    correct_biases_(proto, [replace(reader, outputs=("a",))], net, [torch.rand(8, 32)])
    assert proto.SerializeToString() != before


def test_no_image_is_an_error_and_writes_nothing(tmp_path):
    model = heavy_tailed_(network(row(2)))
    with pytest.raises(ValueError, match="calibration data without an image"):
        kd.export(model, tmp_path / "m.onnx", storage="int8", calibrate=[], input_size=(3, 16, 16))
    assert not list(tmp_path.iterdir())


def test_a_file_rounded_without_images_says_what_would_help(tmp_path, caplog):
    caplog.set_level("INFO", logger="kerneldna")
    kd.export(heavy_tailed_(network(row(2))), tmp_path / "m.onnx", storage="int8", input_size=(3, 16, 16))
    assert "with calibrate=" in caplog.text
