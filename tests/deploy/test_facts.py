"""A file says what it holds: classes, what an image becomes before the network sees it, method and version, in every form."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import kerneldna as kd
from kerneldna.conversion.convert import set_state
from kerneldna.data.preprocessing import Preprocessing, preprocessing_of
from kerneldna.registry import runtimes

pytest.importorskip("onnx", reason="needs kerneldna[export]")

HOW = Preprocessing.cropped(
    16, crop_pct=0.8, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2", "aot_inductor": ".pt2"}


@pytest.fixture
def trained(tiny):
    model = copy.deepcopy(tiny)
    set_state(model, classes=["a", "b", "c", "d"], preprocessing=HOW.to_dict())
    return model


@pytest.mark.parametrize(
    "runtime", ["onnx", "openvino", "torch_export", pytest.param("aot_inductor", marks=pytest.mark.slow)]
)
def test_every_runtime_keeps_them(trained, tmp_path, runtime):
    path = tmp_path / f"model{ENDINGS[runtime]}"
    kd.export(trained, path, runtime=runtime, progress=False)
    run = kd.load_exported(path, runtime=runtime)
    assert preprocessing_of(run) == run.preprocessing == HOW
    facts = runtimes.get(runtime).facts(path)
    assert run.facts == facts
    expected = {
        "label_names": '["a", "b", "c", "d"]', "input_size": "[3, 16, 16]", "mean": "[0.5, 0.4, 0.3]",
        "std": "[0.2, 0.3, 0.4]", "interpolation": "bicubic", "crop_pct": "0.8", "crop_mode": "center", "resize": "20",
        "value_range": "[0.0, 1.0]", "channel_order": "RGB",
        "method": "kerneldna", "kerneldna": version("kerneldna"),
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected


def test_a_file_of_another_size_says_its_own(trained, tmp_path):
    kd.export(trained, tmp_path / "m.onnx", input_size=(3, 24, 24), progress=False)
    how = kd.load_exported(tmp_path / "m.onnx").preprocessing
    assert (how.input_size, how.resize, how.crop_pct) == ((3, 24, 24), 30, 0.8)


def test_a_network_that_no_recipe_trained_says_its_size_alone(tiny, tmp_path):
    kd.export(tiny, tmp_path / "m.onnx", progress=False)
    run = kd.load_exported(tmp_path / "m.onnx")
    assert run.preprocessing is None
    assert json.loads(run.facts["input_size"]) == [3, 16, 16]


def test_they_outlive_converting_fusing_and_saving(tmp_path):
    model = kd.create_model(
        "resnet18", num_classes=3, width=1 / 16, method="kerneldna", stem="small", input_size=(3, 24, 24)
    )
    set_state(model, preprocessing=HOW.to_dict())
    kd.save(model.eval(), tmp_path / "a")
    again = kd.load(tmp_path / "a")
    assert preprocessing_of(again) == HOW
    assert json.loads((tmp_path / "a/config.json").read_text())["preprocessing"] == HOW.to_dict()
    assert preprocessing_of(kd.fuse_(again, progress=False)) == HOW
    set_state(model, preprocessing=HOW.to_dict() | {"resize": "x"})
    with pytest.raises(ValueError, match=r"preprocessing\.resize: expected a whole number"):
        kd.save(model, tmp_path / "b")


def test_sizes_are_counted_on_images_as_trained():
    at = {
        side: kd.create_model(
            "resnet18", num_classes=3, width=1 / 16, method="kerneldna", input_size=(3, side, side)
        )
        for side in (32, 64)
    }
    assert kd.describe(at[64]).size.macs > 3 * kd.describe(at[32]).size.macs
    assert kd.plan_of(at[64]).counted_on == kd.describe(at[64]).input_size == (3, 64, 64)
    assert kd.plan_of(at[64]).input_size == (3, 224, 224)  # the same layers, whatever size it is trained on
    assert "multiply-accumulates for one 3x64x64 image" in str(kd.plan_of(at[64]))
    assert kd.describe(at[64]).before.macs < kd.describe(at[64]).size.macs
    set_state(at[64], preprocessing=HOW.to_dict())  # as of a run that an earlier version planned at 224 px
    assert kd.describe(at[64]).input_size == (3, 16, 16)


@pytest.mark.parametrize("options", [{}, {"compute": "int8", "calibrate": torch.rand(7, 3, 16, 16)}])
def test_the_batch_is_called_batch(trained, tmp_path, options):
    import onnx

    kd.export(trained, tmp_path / "m.onnx", progress=False, **options)
    graph = onnx.load(tmp_path / "m.onnx").graph
    shapes = [
        [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.output)
    ]
    assert shapes == [["batch", 3, 16, 16], ["batch", 4]]
    kd.export(trained, tmp_path / "one.onnx", batch=1, progress=False)
    graph = onnx.load(tmp_path / "one.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_file_says_nothing_of_the_machine_that_wrote_it(tmp_path):
    import onnx

    network = kd.create_model("resnet18", method="kerneldna", width=0.125, num_classes=3).eval()
    kd.export(network, tmp_path / "a.onnx", input_size=(3, 32, 32))
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert not any(
        part.metadata_props for part in (*graph.node, *graph.value_info, *graph.initializer, graph)
    )
    assert str(Path(kd.__file__).parent).encode() not in (tmp_path / "a.onnx").read_bytes()
