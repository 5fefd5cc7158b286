"""A file keeps the names of the classes that its network was trained for, in the order of its outputs."""

from __future__ import annotations

import copy

import pytest
import torch

import kerneldna as kd
from kerneldna.conversion.convert import classes_of, set_state

pytest.importorskip("onnx", reason="needs kerneldna[export]")

NAMES = ("cat", 'the "big" dog', "wilde Füchse, 狐", "d")
IMAGES = torch.linspace(-1, 1, 7 * 3 * 16 * 16).reshape(7, 3, 16, 16)


@pytest.fixture
def named(tiny):
    model = copy.deepcopy(tiny)
    set_state(model, classes=list(NAMES))
    return model


@pytest.mark.parametrize(
    ("runtime", "options"),
    [
        ("onnx", {}),
        ("onnx", {"compute": "int8", "calibrate": IMAGES}),
        ("openvino", {}),
        ("torch_export", {}),
        pytest.param("aot_inductor", {}, marks=pytest.mark.slow),
    ],
)
def test_every_runtime_keeps_the_names(named, tmp_path, runtime, options):
    ending = {"onnx": "onnx", "openvino": "xml"}.get(runtime, "pt2")
    path = tmp_path / f"model.{ending}"
    kd.export(named, path, runtime=runtime, progress=False, **options)
    run = kd.load_exported(path, runtime=runtime)
    assert classes_of(run) == NAMES
    assert run(IMAGES).shape == (7, 4)


@pytest.mark.parametrize("runtime", ["openvino", "torch_export"])
def test_a_file_of_a_network_without_names_has_none(tiny, tmp_path, runtime):
    path = tmp_path / ("model.xml" if runtime == "openvino" else "model.pt2")
    kd.export(tiny, path, runtime=runtime)
    assert classes_of(kd.load_exported(path, runtime=runtime)) is None


def test_an_expanded_file_keeps_them(named, tmp_path):
    kd.export(named, tmp_path / "small.onnx")
    kd.expand(tmp_path / "small.onnx", tmp_path / "full.onnx")
    assert classes_of(kd.load_exported(tmp_path / "full.onnx")) == NAMES


def test_damaged_metadata_are_named(named, tmp_path):
    import onnx

    kd.export(named, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    (entry,) = [entry for entry in proto.metadata_props if entry.key == "label_names"]
    entry.value = '["cat"'
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"metadata label_names are damaged \(.*\); export it again"):
        kd.load_exported(tmp_path / "model.onnx")


def test_they_outlive_converting_fusing_and_saving(named, tmp_path):
    fused = kd.fuse_(copy.deepcopy(named), progress=False)
    assert classes_of(fused) == NAMES
    plain = kd.create_model("resnet18", num_classes=3, width=1 / 16, method="kerneldna", stem="small")
    assert classes_of(plain) is None
    kd.save(plain.eval(), tmp_path)
    assert classes_of(kd.load(tmp_path)) is None
    set_state(plain, classes=["a", "b", "c"])
    kd.save(plain, tmp_path)
    assert classes_of(kd.load(tmp_path)) == ("a", "b", "c")


def test_those_of_a_detector_are_its_own_and_not_its_backbones(tmp_path):
    network = kd.create_model("mobilenetv2_050", num_classes=3, width=0.5)
    set_state(network, classes=["a", "b", "c"])
    detector = kd.create_detector(network, "fasterrcnn", classes=NAMES, image_size=32, max_size=48).eval()
    kd.save(detector, tmp_path)
    again = kd.load(tmp_path)
    assert classes_of(detector) == classes_of(again) == NAMES


@pytest.mark.slow
def test_the_file_of_a_whole_detector_keeps_them(tmp_path):
    network = kd.create_model("mobilenetv2_050", num_classes=3, width=0.5)
    detector = kd.create_detector(network, "fasterrcnn", classes=NAMES, image_size=32, max_size=48).eval()
    kd.export(detector, tmp_path / "whole.onnx")
    assert classes_of(kd.load_exported(tmp_path / "whole.onnx")) == NAMES
    kd.export(detector, tmp_path / "part.onnx", part="backbone")
    assert classes_of(kd.load_exported(tmp_path / "part.onnx")) is None
