"""`expand`: write out the derived weights of an ONNX file, for runtimes that do not compute them once while they load."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerneldna.deploy.seal import KEY, check_seal, is_sealed, seal_
from kerneldna.files import atomic
from kerneldna.reading.shown import said
from kerneldna.reading.text import check_file

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def expand(path: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write an ONNX file whose derived weights are written out: for runtimes that do not compute them once at loading.

    Args:
        path: A file that `export` wrote.
        out: The file to write.
        overwrite: `out` may be `path`, which then loses its small form.

    Returns:
        `out`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ONNX file or damaged, or `out` is the same file and may not be.
    """
    import onnx

    source, target = Path(path), Path(out)
    if not source.exists():
        raise FileNotFoundError(f"no file {str(path)!r}; give an ONNX file that export wrote")
    if not overwrite and target.exists() and source.samefile(target):
        raise ValueError(
            f"{str(out)!r} is the file to be expanded, which would be replaced; give another name, or overwrite=True"
        )
    check_file(source)
    check_seal(source, ".onnx")
    try:
        model = onnx.load(str(source))
        onnx.checker.check_model(model)  # an empty file is a message too
        expand_(model)
    except MemoryError:
        raise
    # protobuf, ONNX's checker, ONNX Runtime and NumPy meet what is damaged, each with errors of its own
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is not an ONNX file, or damaged: {said(error)}; give a file that export wrote, or export it again"
        ) from error
    sealed = is_sealed(source, ".onnx")
    _drop_seal_(model)
    with atomic(target) as part:
        onnx.save(model, str(part))
        if sealed:
            seal_(part, ".onnx")
    return target


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
    wanted = sorted(outputs & read_by(rest))
    if not wanted:
        return
    read = read_by(inner)
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
    read = read_by(graph.node) | {out.name for out in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def read_by(nodes: Iterable[Any]) -> set[str]:
    """Return the names of what nodes read, those inside of an `If` or `Loop` too: these read what is around it."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for part in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
            found |= read_by(part.node) | {out.name for out in part.output}
    return found


def _drop_seal_(model: ModelProto) -> None:
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def _all_constant(node: Any, constant: set[str]) -> bool:
    if node.input and all(not name or name in constant for name in read_by([node])):
        constant.update(node.output)
        return True
    return False
