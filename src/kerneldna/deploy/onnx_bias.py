"""Bias correction of an ONNX file: rounded weights shift what layers answer on average, and their biases take the shift back.

After Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721), section 4.2,
with the mean inputs of real images. Roundings of the weights of one filter do not cancel where inputs have a mean, as behind a
ReLU they have; through fifty layers the shifts add up.
"""

from __future__ import annotations

import copy
from collections import Counter
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
from kerneldna.deploy.graph import exact
from kerneldna.deploy.onnx_names import Names
from kerneldna.deploy.onnx_storage import places_of
from kerneldna.deploy.onnx_store import Array, float_arrays

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Reader:
    """Where a weight is computed with in a file.

    Attributes:
        layers: The layers that hold it, by name: several, where it is tied.
        outputs: Of the nodes that read it, in the order they run: one for each call of those layers.
        turned: They read the weight transposed.
    """

    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    turned: bool


def readers_of(model: ModelProto, network: nn.Module) -> tuple[Reader, ...]:
    """Find the weights of convolutions and Linears in the file that was written of a network, before they are rounded.

    Args:
        model: The file's contents.
        network: What was written.
    """
    weights: dict[str, Array] = {}
    layers: dict[int, list[str]] = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            holders = layers.setdefault(id(module.weight), [])
            if not holders:
                weights[f"{name}.weight"] = module.weight.detach().cpu().numpy()
            holders.append(name)
    places = places_of(model, weights)
    found = []
    for holders in layers.values():
        if (place := places.get(f"{holders[0]}.weight")) is not None:
            nodes = [n for n in model.graph.node if n.op_type in LAYERS and n.input[1] == place.name]
            found.append(Reader(tuple(holders), tuple(node.output[0] for node in nodes), place.turned))
    return tuple(found)


def correct_biases_(
    model: ModelProto, readers: Iterable[Reader], network: nn.Module, images: Iterable[Tensor]
) -> None:
    """Add to the biases of a file what its rounded weights take from the mean answers of each layer, in place.

    A weight that is read otherwise too than by calls of its layers has no call for each node: its biases stay as they are.

    Args:
        model: The file's contents, its weights rounded.
        readers: Where its weights are (`readers_of`).
        network: What was written, with its weights as they were.
        images: Batches of what the network takes.

    Raises:
        ValueError: If there is no image.
    """
    whole = copy.deepcopy(model)
    expand_(whole)
    arrays, read = float_arrays(whole.graph), {n.output[0]: n.input for n in whole.graph.node if n.output}
    lost: dict[Reader, Tensor] = {}
    for reader in readers:
        weight = network.get_submodule(reader.layers[0]).get_parameter("weight").detach()
        rounded = arrays.get(read[reader.outputs[0]][1]) if reader.outputs else None
        if rounded is None:
            continue
        rounded = rounded.T if reader.turned else rounded
        rounding = weight - torch.tensor(rounded).to(weight)
        if rounding.any():
            lost[reader] = rounding
    shifts = mean_shifts(network, {reader.layers: part for reader, part in lost.items()}, images)
    names = Names(model.graph)
    for reader in lost:
        calls = shifts.get(reader.layers, ())
        if len(calls) == len(reader.outputs):
            for output, shift in zip(reader.outputs, calls, strict=True):
                _add_(model.graph, output, shift.cpu().numpy(), names)
    drop_unused(model.graph)


@torch.no_grad()
def mean_shifts(
    network: nn.Module, lost: Mapping[tuple[str, ...], Tensor], images: Iterable[Tensor]
) -> dict[tuple[str, ...], list[Tensor]]:
    """Return what layers answer on average, over images and positions, to a part of their weights: `(C_out,)`, float64.

    Args:
        network: A network in eval mode.
        lost: The part of a weight, by the names of the layers that hold it.
        images: Batches of what the network takes.

    Returns:
        The means of each call of those layers in a run, in the order they run.

    Raises:
        ValueError: If there is no image.
    """
    sums: dict[tuple[tuple[str, ...], int], Tensor] = {}
    seen: Counter[tuple[tuple[str, ...], int]] = Counter()
    calls: Counter[tuple[str, ...]] = Counter()
    inside = False

    def adding(names: tuple[str, ...]) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            nonlocal inside
            if inside:
                return
            parts: dict[str, Tensor] = {"weight": lost[names]}
            if isinstance(layer.bias, Tensor):
                parts["bias"] = torch.zeros_like(layer.bias)
            inside = True
            try:
                answers: Tensor = functional_call(layer, parts, inputs)
            finally:
                inside = False
            channel = -1 if isinstance(layer, nn.Linear) else 1
            rows = answers.double().movedim(channel, 0).flatten(1)
            call = names, calls[names]
            sums[call] = sums.get(call, 0) + rows.sum(1)
            seen[call] += rows.shape[1]
            calls[names] += 1

        return hook

    count = 0
    with ExitStack() as hooks:
        for names in lost:
            for name in names:
                layer = network.get_submodule(name)
                hooks.callback(layer.register_forward_hook(adding(names)).remove)
        for batch in images:
            calls.clear()
            with exact(batch.device):
                network(batch)
            count += len(batch)
    check_some(count)
    found: dict[tuple[str, ...], list[Tensor]] = {}
    for (names, call), total in sums.items():  # in the order of the first run
        found.setdefault(names, []).append(total / seen[names, call])
    return found


def _add_(graph: GraphProto, output: str, shift: Array, names: Names) -> None:
    """Add to the bias behind the node of an output; a layer without one gets one."""
    from onnx import helper, numpy_helper

    name = names.new(f"{output}.bias")
    place, node = next((i, each) for i, each in enumerate(graph.node) if output in each.output)
    biases = {t.name: t for t in graph.initializer if t.data_type == 1 and list(t.dims) == [len(shift)]}
    at = 2
    if node.op_type == "MatMul":
        reading = [n for n in graph.node if output in n.input]
        alone = (
            len(reading) == 1 and reading[0].op_type == "Add" and output not in {o.name for o in graph.output}
        )
        if alone and any(given in biases for given in reading[0].input):
            node, at = reading[0], next(i for i, given in enumerate(reading[0].input) if given in biases)
        else:
            node.output[0] = names.new(f"{output}.unshifted")
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
