"""Which nodes stay in float: those of a gate, and not what it scales."""

import pytest

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
from onnx import TensorProto, helper  # noqa: E402

from kerneldna.deploy.onnx_quantize import gate_nodes  # noqa: E402


def block(x, y, *, first):
    """A convolution with SiLU, scaled by a gate: `gate * maps` as torchvision writes it where `first`, else `maps * gate`."""
    made = [
        (f"{y}.conv", "Conv", [x, f"{y}.w"]),
        (f"{y}.sigmoid", "Sigmoid", [f"{y}.conv"]),
        (f"{y}.maps", "Mul", [f"{y}.conv", f"{y}.sigmoid"]),
        (f"{y}.pool", "GlobalAveragePool", [f"{y}.maps"]),
        (f"{y}.batch", "Shape", [x]),
        (f"{y}.pixel", "Reshape", [f"{y}.pool", f"{y}.batch"]),
        (f"{y}.fc1", "Conv", [f"{y}.pixel", f"{y}.w1"]),
        (f"{y}.between", "Sigmoid", [f"{y}.fc1"]),
        (f"{y}.silu", "Mul", [f"{y}.fc1", f"{y}.between"]),
        (f"{y}.fc2", "Conv", [f"{y}.silu", f"{y}.w2"]),
        (f"{y}.gate", "Sigmoid", [f"{y}.fc2"]),
        (y, "Mul", [f"{y}.gate", f"{y}.maps"] if first else [f"{y}.maps", f"{y}.gate"]),
    ]
    return [helper.make_node(kind, given, [name], name=name) for name, kind, given in made]


@pytest.mark.parametrize("first", [True, False], ids=["gate * maps", "maps * gate"])
def test_a_gate_ends_where_it_scales(first):
    nodes = [*block("x", "a", first=first), *block("a", "b", first=first)]
    head = ("pool", "GlobalAveragePool", ["b"]), ("fc", "Conv", ["pool", "w"])
    nodes += [helper.make_node(kind, given, [name], name=name) for name, kind, given in head]
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 4, 4])
    graph = helper.make_graph(nodes, "g", [shape], [helper.make_empty_tensor_value_info("fc")])
    parts = ("pixel", "fc1", "between", "silu", "fc2", "gate")
    assert gate_nodes(graph) == [f"{name}.{part}" for name in "ab" for part in parts]
