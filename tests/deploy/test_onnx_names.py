"""New names in a graph: none that an initializer, an input or a node has already."""

import numpy as np
import pytest
import torch
from torch import nn

import kerneldna as kd

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from kerneldna.deploy.onnx_names import Names  # noqa: E402
from kerneldna.deploy.onnx_storage import shrink  # noqa: E402


def model(nodes, **initializers):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_name_that_is_taken_gets_a_number():
    node = helper.make_node("Add", ["x", "linear.bias"], ["y"], name="node")
    names = Names(model([node], **{"linear.bias": np.ones(32, np.float32)}).graph)
    given = [names.new(wanted) for wanted in ("linear.bias", "linear.bias", "x", "y", "node", "new")]
    assert given == ["linear.bias.1", "linear.bias.2", "x.1", "y.1", "node.1", "new"]


def test_weights_of_the_network_itself_that_are_called_as_other_things_in_a_file(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.images, self.logits, self.relu_scale = (nn.Parameter(torch.randn(32)) for _ in range(3))

        def forward(self, x):
            return torch.relu(x.flatten(1) * self.images) + self.logits * self.relu_scale

    images = torch.randn(7, 2, 4, 4)
    written = kd.export(
        Net().eval(), tmp_path / "a.onnx", images=images, compute="int8", calibrate=images, progress=False
    )
    assert written.difference < 0.02


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_what_a_weight_is_stored_as_takes_no_other_s_name(storage):
    weight, others = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32), {}
    last, nodes = "product", [helper.make_node("MatMul", ["x", "w"], ["product"])]
    for i, part in enumerate(("scale", "whole", "int8", "fp16")):
        others[f"w.{part}"] = np.full(32, 10.0**i, np.float32)
        nodes.append(helper.make_node("Add", [last, f"w.{part}"], ["y" if part == "fp16" else f"sum{i}"]))
        last = f"sum{i}"
    proto, x = model(nodes, w=weight, **others), np.ones((1, 32), np.float32)
    shrink(proto, {}, (), storage=storage)
    onnx.checker.check_model(proto)
    found = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, x @ weight + 1111, atol=0.3)
