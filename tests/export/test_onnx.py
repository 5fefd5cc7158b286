import copy

import pytest
import torch

import kerneldna as kd

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from kerneldna.export.onnx import export  # noqa: E402
from kerneldna.registry import runtimes  # noqa: E402


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.25, stem="small").eval()


def test_one_file_of_any_batch_size(model, tmp_path):
    import onnxruntime

    difference = runtimes.get("onnx")(kd.fuse_(copy.deepcopy(model)), tmp_path / "m.onnx")
    assert difference < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    graph = onnx.load(tmp_path / "m.onnx").graph
    constants = {initializer.name for initializer in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(node.input[1] in constants for node in convolutions)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 3):
        images = torch.randn(batch, 3, 32, 32)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert logits.shape == (batch, 4)


def test_training_mode_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        export(copy.deepcopy(model).train(), tmp_path / "m.onnx")


def test_too_few_images(model, tmp_path):
    with pytest.raises(ValueError, match="2 images were given; the comparison needs 7"):
        export(model, tmp_path / "m.onnx", images=torch.randn(2, 3, 32, 32))


def test_a_file_that_differs_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr("kerneldna.export.onnx._difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="nothing was written"):
        export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'kerneldna\[export\]'"):
        export(model, tmp_path / "m.onnx")


def test_a_network_of_per_image_kernels_needs_a_fixed_batch(tmp_path):
    import onnxruntime

    dynamic = kd.create_model("resnet18", method="odconv", num_classes=4, width=0.125, stem="small").eval()
    with pytest.raises(ValueError, match="export with a fixed batch size"):
        export(dynamic, tmp_path / "m.onnx")
    assert export(dynamic, tmp_path / "m.onnx", batch=3) < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape[0] == 3
