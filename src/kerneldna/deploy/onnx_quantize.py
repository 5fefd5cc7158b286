"""Static int8 quantization of an ONNX network by ONNX Runtime: uint8 activations, int8 weights with one scale an output channel.

The layers of gates stay in float: they see one pixel, cost little, and scale whole channels. Their pools, which see maps, do not.
So does what is around a network with its preprocessing inside: its probabilities would be rounded to 256 steps.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerneldna.deploy.calibrate import check_some

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_POOLS = ("ReduceMean", "GlobalAveragePool", "GlobalMaxPool")
_SIGMOIDS = ("Sigmoid", "HardSigmoid")
_BEFORE = ("Transpose", "Cast", "Sub", "Mul", "Identity")  # what normalises pixels


def quantize(model: ModelProto, images: Iterable[np.ndarray[Any, Any]]) -> ModelProto:
    """Return `model` with its convolutions and matrix products in int8, in QDQ format.

    Args:
        model: A float network; its weights are initializers.
        images: Batches of what the network takes, such as `(B, C, H, W)`, that the ranges of the activations are taken from.

    Raises:
        ValueError: If there is no image.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)
            self.count, self.ended = 0, False

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            self.count, self.ended = self.count + (batch is not None), batch is None
            return None if batch is None else {"images": batch}

    reader = Reader()
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        try:
            root.setLevel(logging.ERROR)  # it advises, through the root logger, what was done already
            quantize_static(
                model,
                out,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,  # with int8 activations the same network runs at half the speed
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*gate_nodes(model.graph), *outer_nodes(model.graph)],
            )
        except ValueError:
            if reader.ended:  # else the images themselves were refused
                check_some(reader.count)
            raise
        finally:
            root.setLevel(level)
        return onnx.load(out)


def gate_nodes(graph: GraphProto) -> list[str]:
    """Return the names of the nodes behind a global pool, up to the sigmoid of a gate (squeeze-and-excitation).

    Behind a pool is what is computed of pools alone: what a gate scales is not, in whichever order the two are multiplied.
    """
    # the largest of all channels is a map
    over = {tensor.name for tensor in graph.initializer if list(tensor.dims) != [1]}
    pools = {
        node.name
        for node in graph.node
        if node.op_type in _POOLS or (node.op_type == "ReduceMax" and over.intersection(node.input[1:]))
    }
    behind: dict[str, Any] = {}  # a value -> the node that makes it
    maps = {given.name for given in graph.input}
    found: set[str] = set()
    for node in graph.node:
        given = maps.intersection(node.input)
        if node.name in pools or (not given and any(name in behind for name in node.input)):
            behind.update(dict.fromkeys(node.output, node))
        elif given and node.op_type not in ("Shape", "Size"):  # sizes are no numbers of an image
            maps.update(node.output)
        ends = [node] if node.op_type in _SIGMOIDS and node.output[0] in behind else []
        while ends:
            at = ends.pop()
            if at.name not in found | pools:
                found.add(at.name)
                ends += [behind[name] for name in at.input if name in behind]
    return [node.name for node in graph.node if node.name in found]


def outer_nodes(graph: GraphProto) -> list[str]:
    """Return the names of the nodes that make normalised images of uint8 pixels, and probabilities of logits."""
    from onnx import TensorProto

    if graph.input[0].type.tensor_type.elem_type != TensorProto.UINT8:
        return []
    made, found = {graph.input[0].name}, []
    for node in graph.node:
        if node.op_type in _BEFORE and made.intersection(node.input):
            made.update(node.output)
            found.append(node.name)
    given = {out.name for out in graph.output}
    return found + [
        node.name for node in graph.node if node.op_type == "Softmax" and given.intersection(node.output)
    ]
