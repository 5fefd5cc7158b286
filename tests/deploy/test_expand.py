import numpy as np
import pytest

import kerneldna as kd
from damage import MANY, QUICK, cases, damaged_bytes, outcome
from kerneldna.deploy.expand import drop_unused, read_by
from kerneldna.deploy.seal import seal_

onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def save(path, nodes, initializers, *, rows=3):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)


def test_nodes_on_constants_become_initializers(tmp_path):
    kernel, scale = np.arange(6, dtype=np.int8).reshape(3, 2), np.array([[0.5, 2]], np.float32)
    nodes = [
        helper.make_node("Cast", ["k"], ["f"], to=1),
        helper.make_node("Mul", ["f", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    save(tmp_path / "a.onnx", nodes, {"k": kernel, "s": scale})
    assert kd.expand(tmp_path / "a.onnx", tmp_path / "b.onnx") == tmp_path / "b.onnx"
    graph = onnx.load(tmp_path / "b.onnx").graph
    assert [node.op_type for node in graph.node] == ["MatMul"]
    assert [tensor.name for tensor in graph.initializer] == ["w"]
    np.testing.assert_array_equal(numpy_helper.to_array(graph.initializer[0]), kernel * scale)


def test_what_a_node_reads_inside_of_it_is_kept():
    branches = {}
    for key, weight in (("then_branch", "a"), ("else_branch", "b")):
        value = helper.make_empty_tensor_value_info(f"{key}.y")
        node = helper.make_node("MatMul", ["x", weight], [f"{key}.y"])
        branches[key] = helper.make_graph([node], key, [], [value])
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], **branches)], "g", [], [])
    graph.initializer.extend(numpy_helper.from_array(np.ones(2, np.float32), name) for name in "abc")
    assert read_by(graph.node) == {"a", "b", "c", "x", "then_branch.y", "else_branch.y"}
    drop_unused(graph)
    assert [tensor.name for tensor in graph.initializer] == ["a", "b", "c"]


def test_a_file_without_derived_weights_stays_and_is_its_own_target_where_that_is_wanted(tmp_path):
    save(
        tmp_path / "a.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": np.ones((3, 2), np.float32)},
    )
    before = (tmp_path / "a.onnx").read_bytes()
    kd.expand(tmp_path / "a.onnx", tmp_path / "a.onnx", overwrite=True)
    assert (tmp_path / "a.onnx").read_bytes() == before


@pytest.mark.parametrize("name", ["a.onnx", "../{folder}/a.onnx", "link.onnx", "hard.onnx"])
def test_a_file_does_not_replace_itself_unasked(tmp_path, name):
    file = tmp_path / "a.onnx"
    save(file, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((3, 2), np.float32)})
    (tmp_path / "link.onnx").symlink_to(file)
    (tmp_path / "hard.onnx").hardlink_to(file)
    before = file.read_bytes()
    with pytest.raises(
        ValueError,
        match="is the file to be expanded, which would be replaced; give another name, or overwrite=True",
    ):
        kd.expand(file, tmp_path / name.format(folder=tmp_path.name))
    assert file.read_bytes() == before


def test_what_fails_leaves_the_target_as_it_was(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    (tmp_path / "b.onnx").write_bytes(b"kept")
    with pytest.raises(ValueError, match="is not an ONNX file, or damaged"):
        kd.expand(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    assert (tmp_path / "b.onnx").read_bytes() == b"kept"


@pytest.mark.parametrize("count", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_any_damage(tmp_path, count):
    nodes = [
        helper.make_node("Cast", ["k"], ["f"], to=1),
        helper.make_node("Mul", ["f", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    file, rows = tmp_path / "a.onnx", 50_000  # a file as large as a network's
    save(file, nodes, {"k": np.ones((rows, 2), np.int8), "s": np.array([[0.5, 2]], np.float32)}, rows=rows)
    seal_(file)
    whole = file.read_bytes()
    kd.expand(file, tmp_path / "whole.onnx")
    for rng in cases(count, "expand"):
        file.write_bytes(damaged_bytes(whole, rng))
        opened, out = outcome(lambda: kd.expand(file, tmp_path / "b.onnx"), "a.onnx")
        if opened:
            found, expected = (onnx.load(path).graph for path in (out, tmp_path / "whole.onnx"))
            assert found == expected


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="give an ONNX file that export wrote"):
        kd.expand(tmp_path / "a.onnx", tmp_path / "b.onnx")
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match="is not an ONNX file"):
        kd.expand(tmp_path / "a.onnx", tmp_path / "b.onnx")
