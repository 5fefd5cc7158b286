"""ONNX networks written in an older opset: what can be said in it computes the same, what cannot is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.deploy.onnx_opset import lower_

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from onnx import TensorProto, helper  # noqa: E402


class Means(nn.Module):
    """A convolution, and means over positions and over channels: reductions whose axes an older opset knows as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        first, second = y.chunk(2, dim=1)
        return first.mean((1,)).flatten(1) + second.amax((1,)).flatten(1)


def one_node(kind: str, inputs: int, **attributes: object):
    names = [f"in{i}" for i in range(inputs)]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4, 3]) for name in names]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(kind, names, ["out"], **attributes)], "g", infos, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("opset", [17, 13])
def test_an_older_opset_computes_the_same(opset, tmp_path):
    torch.manual_seed(0)
    written = kd.export(Means().eval(), tmp_path / "m.onnx", input_size=(3, 8, 8), opset=opset)
    assert written.difference < 1e-5
    model = onnx.load(written.path)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)


def test_a_kerneldna_network_in_opset_17(tmp_path):
    """Whose children's kernels are derived in the file: for TensorRT 8.5 and OpenCV 4.8."""
    torch.manual_seed(0)
    model = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.125, stem="small").eval()
    written = kd.export(model, tmp_path / "m.onnx", opset=17)
    assert written.difference < 1e-4
    assert [each.version for each in onnx.load(written.path).opset_import if not each.domain] == [17]


def test_an_operator_that_the_older_opset_lacks_is_named():
    with pytest.raises(ValueError, match="opset 16 was asked for, which has no LayerNormalization"):
        lower_(one_node("LayerNormalization", 2), 16)


def test_a_setting_that_the_older_opset_lacks_is_named_unless_it_is_the_default():
    model = one_node("Resize", 3, antialias=0)
    lower_(model, 17)
    assert not model.graph.node[0].attribute
    with pytest.raises(ValueError, match="whose Resize has no antialias"):
        lower_(one_node("Resize", 3, antialias=1), 17)


def test_an_input_that_the_older_opset_lacks_is_named():
    with pytest.raises(ValueError, match="whose Pad takes 3 inputs, not 4"):
        lower_(one_node("Pad", 4), 17)


def test_an_operator_of_another_domain_is_named():
    model = one_node("Relu", 1)
    model.graph.node[0].domain = "com.example"
    with pytest.raises(ValueError, match="Relu of 'com.example' is in none of ONNX's own"):
        lower_(model, 17)
