"""`expand`: write out the derived weights of an ONNX file, for runtimes that do not compute them once while they load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerneldna.files import atomic

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def expand(path: str | Path, out: str | Path) -> Path:
    """Write an ONNX file whose derived weights are written out: for runtimes that do not compute them once at loading.

    Args:
        path: A file that `export` wrote.
        out: The file to write; may be `path`.

    Returns:
        `out`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give an ONNX file that export wrote")
    try:
        model = onnx.load(str(path))
    except DecodeError as error:
        raise ValueError(f"{str(path)!r} is not an ONNX file: {error}") from error
    expand_(model)
    with atomic(out) as part:
        onnx.save(model, str(part))
    return Path(out)


def expand_(model: ModelProto) -> None:
    """Compute every node that depends on constants alone, in place, as ONNX Runtime would at loading."""
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    inner, rest = [], []
    for node in graph.node:
        # an int8 weight stays behind its DequantizeLinear: that is what tells a runtime to compute in int8
        computed = node.op_type != "DequantizeLinear" and _all_constant(node, constant)
        (inner if computed else rest).append(node)
    outputs = {name for node in inner for name in node.output}
    wanted = sorted(outputs & {name for node in rest for name in node.input})
    if not wanted:
        return
    read = {name for node in inner for name in node.input}
    given = [tensor for tensor in graph.initializer if tensor.name in read]
    infos = [helper.make_empty_tensor_value_info(name) for name in wanted]
    part = helper.make_model(
        helper.make_graph(inner, "weights", [], infos, given),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = dict(zip(wanted, session.run(wanted, {}), strict=True))
    del graph.node[:]
    graph.node.extend(rest)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in values.items())
    drop_unused(graph)
    onnx.checker.check_model(model)


def drop_unused(graph: GraphProto) -> None:
    """Remove the initializers that no node reads."""
    read = {name for node in graph.node for name in node.input} | {out.name for out in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _all_constant(node: Any, constant: set[str]) -> bool:
    if node.input and all(not name or name in constant for name in node.input):
        constant.update(node.output)
        return True
    return False
