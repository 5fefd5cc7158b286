"""Bias correction of an ONNX file: rounded weights shift what layers answer on average, and their biases take the shift back.

After Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721), section 4.2,
with the mean inputs of real images. Roundings of the weights of one filter do not cancel where inputs have a mean, as behind a
ReLU they have; through fifty layers the shifts add up.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from kerneldna.deploy.calibrate import check_some
from kerneldna.deploy.expand import drop_unused, expand_
from kerneldna.deploy.onnx_storage import places_of
from kerneldna.deploy.onnx_store import Array, float_arrays

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Reader:
    """Where a layer is computed in a file.

    Attributes:
        outputs: Of the nodes that read its weight: several, where the layer is called several times.
        turned: They read the weight transposed.
    """

    outputs: tuple[str, ...]
    turned: bool


def readers_of(model: ModelProto, network: nn.Module) -> dict[str, Reader]:
    """Find the convolutions and Linears of a network in the file that was written of it, before its weights are rounded.

    Args:
        model: The file's contents.
        network: What was written.
    """
    weights = {
        name: module.weight.detach().cpu().numpy()
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    }
    found = {}
    for name, place in places_of(model, weights).items():
        nodes = [n for n in model.graph.node if n.op_type in LAYERS and n.input[1] == place.name]
        found[name] = Reader(tuple(node.output[0] for node in nodes), place.turned)
    return found


def correct_biases_(
    model: ModelProto, readers: Mapping[str, Reader], network: nn.Module, images: Iterable[Tensor]
) -> None:
    """Add to the biases of a file what its rounded weights take from the mean answers of each layer, in place.

    Args:
        model: The file's contents, its weights rounded.
        readers: Where its layers are (`readers_of`).
        network: What was written, with its weights as they were.
        images: Batches of what the network takes.

    Raises:
        ValueError: If there is no image.
    """
    whole = copy.deepcopy(model)
    expand_(whole)
    arrays, read = float_arrays(whole.graph), {n.output[0]: n.input for n in whole.graph.node if n.output}
    lost = {}
    for name, reader in readers.items():
        weight = network.get_submodule(name).get_parameter("weight").detach()
        rounded = arrays.get(read[reader.outputs[0]][1]) if reader.outputs else None
        if rounded is None:
            continue
        rounded = rounded.T if reader.turned else rounded
        rounding = weight - torch.tensor(rounded).to(weight)
        if rounding.any():
            lost[name] = rounding
    for name, shift in mean_shifts(network, lost, images).items():
        for output in readers[name].outputs:
            _add_(model.graph, output, shift.cpu().numpy())
    drop_unused(model.graph)


@torch.no_grad()
def mean_shifts(
    network: nn.Module, lost: Mapping[str, Tensor], images: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return what layers answer on average, over images and positions, to a part of their weights: `(C_out,)`, float64.

    Args:
        network: A network in eval mode.
        lost: The part of the weight, by the layer's name.
        images: Batches of what the network takes.

    Raises:
        ValueError: If there is no image.
    """
    sums: dict[str, Tensor] = {}
    seen: dict[str, int] = {}
    inside = False

    def adding(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            nonlocal inside
            if inside:
                return
            parts: dict[str, Tensor] = {"weight": lost[name]}
            if isinstance(layer.bias, Tensor):
                parts["bias"] = torch.zeros_like(layer.bias)
            inside = True
            try:
                answers: Tensor = functional_call(layer, parts, inputs)
            finally:
                inside = False
            channel = -1 if isinstance(layer, nn.Linear) else 1
            rows = answers.double().movedim(channel, 0).flatten(1)
            sums[name] = sums.get(name, 0) + rows.sum(1)
            seen[name] = seen.get(name, 0) + rows.shape[1]

        return hook

    count = 0
    with ExitStack() as hooks:
        for name in lost:
            hooks.callback(network.get_submodule(name).register_forward_hook(adding(name)).remove)
        for batch in images:
            network(batch)
            count += len(batch)
    check_some(count)
    return {name: total / seen[name] for name, total in sums.items()}


def _add_(graph: GraphProto, output: str, shift: Array) -> None:
    """Add to the bias behind the node of an output; a layer without one gets one."""
    from onnx import helper, numpy_helper

    name = f"{output}.bias"
    place, node = next((i, each) for i, each in enumerate(graph.node) if output in each.output)
    biases = {t.name: t for t in graph.initializer if t.data_type == 1 and list(t.dims) == [len(shift)]}
    at = 2
    if node.op_type == "MatMul":
        adding = [n for n in graph.node if n.op_type == "Add" and output in n.input]
        if len(adding) == 1 and any(given in biases for given in adding[0].input):
            node, at = adding[0], next(i for i, given in enumerate(adding[0].input) if given in biases)
        else:
            node.output[0] = f"{output}.unshifted"
            node = helper.make_node("Add", [node.output[0], ""], [output], name=name)
            graph.node.insert(place + 1, node)
            node, at = graph.node[place + 1], 1
    elif len(node.input) == at:
        node.input.append("")
    if node.input[at] and node.input[at] not in biases:
        return  # computed, not stored
    if node.input[at]:
        shift = shift + numpy_helper.to_array(biases[node.input[at]])
    node.input[at] = name
    graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), name))
