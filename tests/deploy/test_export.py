"""What every runtime must do: found through the registry, nothing to add for a new one."""

import copy
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.deploy.onnx_file import in_batches
from kerneldna.registry import runtimes

RUNTIMES = runtimes.names()
# which compiles for half a minute
SLOWLY = [pytest.param(n, marks=pytest.mark.slow if n == "aot_inductor" else ()) for n in RUNTIMES]


@pytest.fixture
def model(tiny):
    return tiny


@pytest.fixture
def images():
    return torch.randn(7, 3, 16, 16)


def runtime(name):
    found = runtimes.get(name)
    if missing := [package for package in found.packages if find_spec(package) is None]:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    return found


@pytest.mark.parametrize("name", SLOWLY)
def test_a_file_computes_what_pytorch_does_at_any_batch_size(name, model, images, tmp_path):
    path = tmp_path / f"m{runtime(name).suffix}"
    written = kd.export(model, path, runtime=name, images=images)
    assert written.path == path
    assert written.difference < 1e-5
    assert written.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    run = kd.load_exported(path, runtime=name)
    for batch in (1, 3, 7):
        torch.testing.assert_close(run(images[:batch]), model(images[:batch]), rtol=1e-3, atol=1e-4)
    assert isinstance(model.stage[0].conv2, kd.ChildConv2d)  # the given network is untouched


@pytest.mark.parametrize("name", [n for n in RUNTIMES if "int8" in runtimes.get(n).storages])
@pytest.mark.parametrize(
    ("options", "limit"),
    [({"storage": "fp16"}, 5e-3), ({"storage": "int8"}, 0.05), ({"compute": "int8"}, 0.1)],
)
def test_rounded_weights_move_the_outputs_a_little(name, options, limit, model, images, tmp_path):
    path = tmp_path / f"m{runtime(name).suffix}"
    written = kd.export(model, path, runtime=name, images=images, calibrate=images, progress=False, **options)
    assert 1e-6 < written.difference < limit


@pytest.mark.parametrize("name", [n for n in RUNTIMES if n != "aot_inductor"])
def test_throughput_mode(name, model, images, tmp_path):
    path = tmp_path / f"m{runtime(name).suffix}"
    kd.export(model, path, runtime=name, mode="throughput", calibrate=images, images=images, progress=False)
    fused = kd.fuse_(copy.deepcopy(model), mode="throughput", calibrate=images, progress=False)
    found = kd.load_exported(path, runtime=name)(images)
    torch.testing.assert_close(found, fused(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"storage": "int4"},
            "unknown storage 'int4'; did you mean 'int8'|unknown storage 'int4'; Known: fp32",
        ),
        (
            {"compute": "int4"},
            "unknown compute 'int4'; did you mean 'int8'|unknown compute 'int4'; Known: fp32",
        ),
        ({"opset": 3}, "opset 3 was given; expected 13 to|opset=3 was given; runtime .* has none, drop it"),
        ({"images": torch.randn(2, 3, 16, 16)}, "2 images were given; the comparison needs 7"),
        ({"images": torch.randn(3, 16, 16)}, r"images= is \(3, 16, 16\); expected images \(B, C, H, W\)"),
        ({"images": [torch.randn(3, 16, 16)] * 7}, "images= is a list; expected images"),
        (
            {"images": torch.randn(7, 3, 16, 16), "input_size": (3, 32, 32)},
            r"input_size=\(3, 32, 32\) was given with images of \(3, 16, 16\)",
        ),
        ({"input_size": (16, 16)}, r"input_size=\(16, 16\) was given; expected \(C, H, W\)"),
        ({"batch": 0}, "batch=0 was given; expected 1 or more"),
        ({"batch": -1}, "batch=-1 was given; .* without batch= the file takes any number"),
        ({"mode": "fast"}, "unknown mode 'fast'"),
        ({"mode": "throughput"}, "none was given; pass calibrate="),
    ],
)
def test_wrong_use(name, options, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        kd.export(model, tmp_path / f"m{runtime(name).suffix}", runtime=name, **options)
    assert not list(tmp_path.iterdir())


def test_an_unknown_runtime(model, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'onnx'"):
        kd.export(model, tmp_path / "m.onnx", runtime="onx")


def test_a_file_of_another_ending(model, tmp_path):
    with pytest.raises(ValueError, match=r"'m.pth' was given; torch_export files end in .pt2$"):
        kd.export(model, tmp_path / "m.pth", runtime="torch_export")
    ways = "runtime='aot_inductor' or runtime='torch_export'"
    with pytest.raises(ValueError, match=f"onnx files end in .onnx, {ways} writes .pt2"):
        kd.export(model, tmp_path / "m.pt2")


def test_a_name_that_no_file_can_have(model, tmp_path):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    for path, message in (
        ("folder.pt2", "is a folder; give the name of a file"),
        ("file/m.pt2", "file' is a file; give a name in a folder"),
        ("file/a/m.pt2", "file' is a file; give a name in a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            kd.export(model, tmp_path / path, runtime="torch_export")


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_network_in_another_type_is_written_where_a_runtime_computes_in_it(name, kind, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().to(kind)
    options = {"runtime": name, "input_size": (3, 16, 16)}
    path = tmp_path / f"m{runtime(name).suffix}"
    if runtime(name).float32_only:
        with pytest.raises(ValueError, match=rf"has weights in {kind}; {name} takes networks in float32"):
            kd.export(model, path, **options)
    elif name != "aot_inductor":  # which takes a compiler, and half a minute
        assert kd.export(model, path, **options).difference == 0


def test_training_mode_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        kd.export(copy.deepcopy(model).train(), tmp_path / "m.pt2", runtime="torch_export")


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_missing_package_is_named(name, model, tmp_path, monkeypatch):
    if not runtimes.get(name).packages:
        pytest.skip("needs nothing but torch")
    monkeypatch.setattr("kerneldna.deploy.runtime.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=rf"'{name}' needs .*pip install 'kerneldna\[export\]'"):
        kd.export(model, tmp_path / "m", runtime=name)


def test_int8_compute_needs_images(model, tmp_path):
    runtime("onnx")
    with pytest.raises(ValueError, match=r"ranges of activations .* none was given; pass calibrate="):
        kd.export(model, tmp_path / "m.onnx", compute="int8")


@pytest.mark.parametrize("options", [{"compute": "int8"}, {"storage": "int8"}])
def test_calibration_images_that_make_no_file(options, model, tmp_path):
    runtime("onnx")
    given = {"images": torch.randn(7, 3, 16, 16), "progress": False, **options}
    with pytest.raises(ValueError, match="calibration images hold NaN or infinity"):
        kd.export(model, tmp_path / "m.onnx", calibrate=torch.full((2, 3, 16, 16), torch.nan), **given)
    if "compute" in options:
        with pytest.raises(ValueError, match="a generator is used up by the first"):
            kd.export(model, tmp_path / "m.onnx", calibrate=iter([]), **given)
        with pytest.raises(
            ValueError, match=r"images are \(3, 24, 24\) each, and the file takes \(3, 16, 16\)"
        ):
            kd.export(model, tmp_path / "m.onnx", calibrate=torch.randn(2, 3, 24, 24), **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([3], [[0, 1, 2, 0]]),
        ([3, 3, 3], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([9], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([], []),
    ],
)
def test_calibration_images_come_in_batches_that_the_file_takes(sizes, expected):
    images = torch.arange(sum(sizes)).split(sizes) if sizes else []
    assert [part.tolist() for part in in_batches(images, 4)] == expected


def test_fewer_calibration_images_than_the_batch(model, tmp_path):
    runtime("onnx")
    given = {"batch": 8, "input_size": (3, 16, 16), "progress": False}
    for options in ({"compute": "int8"}, {"storage": "int8"}):
        images = torch.randn(5, 3, 16, 16).split(3)
        assert kd.export(model, tmp_path / "m.onnx", calibrate=images, **given, **options).difference < 0.5


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_threads_that_call_one_function_get_their_own_answers(name, model, tmp_path):
    path = tmp_path / f"m{runtime(name).suffix}"
    kd.export(model, path, runtime=name, input_size=(3, 64, 64))
    run = kd.load_exported(path, runtime=name)
    images = [torch.randn(1, 3, 64, 64) * (i + 1) for i in range(80)]
    expected = [run(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for alone, found in zip(expected, pool.map(run, images), strict=True):
            torch.testing.assert_close(found, alone)


def test_a_file_that_differs_is_not_written(model, tmp_path, monkeypatch):
    module = import_module("kerneldna.deploy.export")  # kd.export is the function
    monkeypatch.setattr(module, "_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="nothing was written"):
        kd.export(model, tmp_path / "m.pt2", runtime="torch_export")
    assert not list(tmp_path.iterdir())


def test_opening_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a file that export wrote"):
        kd.load_exported(tmp_path / "m.onnx")
    (tmp_path / "m.bin").touch()
    with pytest.raises(
        ValueError, match=r"no runtime's files end in '.bin'; expected one of .onnx, .pt2, .xml"
    ):
        kd.load_exported(tmp_path / "m.bin")


@pytest.mark.parametrize("name", [n for n in RUNTIMES if n != "openvino"])
def test_bf16_is_refused_where_there_is_none(name, tmp_path):
    found = runtime(name)
    file = tmp_path / f"m{found.suffix}"
    file.touch()
    with pytest.raises(ValueError, match=r"precision 'bf16' was given; .* openvino has bf16"):
        kd.load_exported(file, runtime=name, precision="bf16")


@pytest.mark.parametrize("method", ["se", pytest.param("odconv", marks=pytest.mark.slow)])
def test_other_networks(method, tmp_path):
    small = {"width": 0.125, "stem": "small", "layers": (1, 1, 1, 1)}
    model = kd.create_model("resnet18", method=method, num_classes=4, **small).eval()
    batch = 2 if method == "odconv" else None
    assert kd.export(model, tmp_path / "m.pt2", runtime="torch_export", batch=batch).difference < 1e-5
    if batch:
        with pytest.raises(ValueError, match="export with a fixed batch size"):
            kd.export(model, tmp_path / "n.pt2", runtime="torch_export")


@pytest.mark.parametrize("fused", ["accuracy", "throughput"])
def test_a_fused_network_is_written_in_the_mode_that_it_has(fused, model, images, tmp_path):
    given = copy.deepcopy(model)
    kd.fuse_(given, mode=fused, calibrate=images if fused == "throughput" else None, progress=False)
    for mode in (None, fused):
        written = kd.export(given, tmp_path / "m.pt2", runtime="torch_export", mode=mode)
        found = kd.load_exported(written.path, runtime="torch_export")(images)
        torch.testing.assert_close(found, given(images), rtol=1e-4, atol=1e-4)
        written.path.unlink()
    other = {"accuracy": "throughput", "throughput": "accuracy"}[fused]
    with pytest.raises(
        ValueError, match=f"mode '{other}' was asked for, and this network is fused already, in {fused}"
    ):
        kd.export(given, tmp_path / "m.pt2", runtime="torch_export", mode=other, calibrate=images)
    assert not list(tmp_path.iterdir())


def test_a_pt2_file_is_opened_by_a_named_runtime_alone(model, images, tmp_path):
    path = kd.export(model, tmp_path / "m.pt2", runtime="torch_export", images=images).path
    with pytest.raises(
        ValueError, match="runtime=aot_inductor or runtime=torch_export. Such a file runs code"
    ):
        kd.load_exported(path)
    with pytest.raises(
        ValueError, match="was not written by runtime 'aot_inductor'; .* runtime 'torch_export'"
    ):
        kd.load_exported(path, runtime="aot_inductor")
