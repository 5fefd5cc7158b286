"""A network as one ONNX file: written by torch's exporter, quantized if asked, its weights stored small; and a session."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.utils._pytree import tree_leaves, tree_unflatten

from kerneldna.deploy import onnx_bias, onnx_storage
from kerneldna.deploy.calibrate import batches
from kerneldna.deploy.detector_export import detect, is_detector, traced
from kerneldna.deploy.expand import drop_unused
from kerneldna.deploy.facts import knowing
from kerneldna.deploy.graph import convolution_of_batch, exact, exported_program
from kerneldna.deploy.onnx_opset import OLDEST, WRITTEN, lower_
from kerneldna.deploy.onnx_quantize import quantize
from kerneldna.deploy.runtime import Request
from kerneldna.deploy.seal import seal_
from kerneldna.reading.shown import said, shown

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


class OnnxFile:
    """The facts of a runtime that is reached by way of ONNX, without its name and the ending of its files."""

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    storages: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    computes: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    opsets: ClassVar[bool] = True
    float32_only: ClassVar[bool] = True


def write(model: nn.Module, x: Tensor, path: Path, request: Request) -> None:
    """Write `model` as one ONNX file.

    Args:
        model: A network in eval mode, or a detector of `create_detector`.
        x: Images to trace with, `(B, C, H, W)`; of a detector one, `(3, H, W)`; of what has its preprocessing inside uint8.
        path: The file to write.
        request: Storage, compute, shared kernels and the rest.

    Raises:
        ValueError: If the opset is unknown, or has no words for the network, or a convolution's groups depend on the batch.
        RuntimeError: If torch cannot write the detector.
    """
    import onnx

    proto = traced(model, x, request.opset) if is_detector(model) else _exported(model, x, request)
    state = model.state_dict()
    users = [name for kernel in request.shared for name in kernel.users]
    places = onnx_storage.places_of(proto, {name: state[name].cpu().numpy() for name in users})
    images = _images(model, x, request)
    if request.compute == "int8" and images is not None:
        proto = quantize(proto, (part.cpu().numpy() for part in images))
        onnx_storage.shrink(proto, places, request.shared, storage="int8", quantized=True)
    elif request.storage == "int8" and images is not None and not is_detector(model):
        readers = onnx_bias.readers_of(proto, model)
        onnx_storage.shrink(proto, places, request.shared, storage="int8")
        onnx_bias.correct_biases_(proto, readers, model, images)
    else:
        onnx_storage.shrink(proto, places, request.shared, storage=request.storage)
    proto.metadata_props.extend(
        onnx.StringStringEntryProto(key=key, value=text) for key, text in request.facts.items()
    )
    onnx.save(proto, str(path))
    seal_(path)


def facts(path: str | Path) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def session(path: str | Path, *, threads: int | None = None) -> Callable[[Any], Any]:
    """Return a function from images `(B, C, H, W)` to what the network returns, run by ONNX Runtime on the CPU.

    Of a detector's file, from a list of images `(3, H, W)`, 0-1, to a list of what it finds in each
    (`kerneldna.deploy.detector_export`).

    Args:
        path: An ONNX file.
        threads: How many threads an operator may use; by default all cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # on a fault it would try the same again, and print that it does
    once = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}
    opened = onnxruntime.InferenceSession(str(path), options, **once)
    said = opened.get_modelmeta().custom_metadata_map
    if found := detect(opened):
        return knowing(found, said)
    name = opened.get_inputs()[0].name

    def run(images: Tensor) -> Tensor | list[Tensor]:
        found = [torch.from_numpy(array) for array in opened.run(None, {name: images.contiguous().numpy()})]
        return found[0] if len(found) == 1 else found

    return knowing(run, said)


def _images(model: nn.Module, x: Tensor, request: Request) -> Iterator[Tensor] | None:
    """Return the calibration images in the type of `x`, for a network of a fixed batch size in batches of that.

    Raises:
        ValueError: While they are read: if they are of another size than a file that computes in int8 takes, or not finite.
    """
    if request.calibrate is None:
        return None
    pixels = not x.is_floating_point()
    given = batches(model, request.calibrate, text="Calibrating", progress=request.progress, pixels=pixels)
    given = (_checked(batch, x, request) for batch in given)
    return (part.to(x.dtype) for part in (given if request.dynamic else in_batches(given, len(x))))


def in_batches(given: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield images so many at a time, whatever batches they come in.

    Those left over go, unless there are no others: then some are given several times.

    Args:
        given: Batches of images.
        size: How many at a time.
    """
    left, none = torch.empty(0), True
    for batch in given:
        left = torch.cat([left, batch]) if len(left) and left.shape[1:] == batch.shape[1:] else batch
        while len(left) >= size:
            yield left[:size]
            left, none = left[size:], False
    if none and len(left):
        yield left[torch.arange(size) % len(left)]


def _checked(images: Tensor, x: Tensor, request: Request) -> Tensor:
    if request.compute == "int8" and images.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"calibration images are {tuple(images.shape[1:])} each, and the file takes {tuple(x.shape[1:])}; give both in "
            "one size"
        )
    if not images.isfinite().all():
        raise ValueError("calibration images hold NaN or infinity; look at how they are read and normalised")
    return images


def _exported(model: nn.Module, x: Tensor, request: Request) -> ModelProto:
    from onnx.defs import onnx_opset_version

    opset = request.opset
    if opset is not None and not OLDEST <= opset <= onnx_opset_version():
        raise ValueError(f"opset {opset} was given; expected {OLDEST} to {onnx_opset_version()}")
    # exported by itself first, so that a layer's own error is not wrapped in the ONNX exporter's
    exported = exported_program(model, x, dynamic=request.dynamic)
    if name := convolution_of_batch(exported):
        raise ValueError(
            f"a convolution ({name}) holds the batch in its group count, as one does that makes a kernel for each image; ONNX "
            "files have a fixed count: export with a fixed batch size (batch=), one file for each size"
        )
    _check_outputs(model, exported)
    with warnings.catch_warnings(), exact(x.device):
        warnings.simplefilter("ignore")  # the exporter's remarks about its own internals
        try:
            program = torch.onnx.export(
                exported,
                (),
                input_names=["images"],
                output_names=_output_names(exported, request.facts.get("outputs", "logits")),
                opset_version=None if opset is None else max(opset, WRITTEN),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            raise ValueError(
                f"{type(model).__name__} cannot be written as ONNX: {said(first)}; runtime='torch_export' takes all that "
                "torch computes"
            ) from error
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    _own_names_(program.model.graph)
    proto = program.model_proto
    _forget_origins_(proto.graph)
    _name_batch_(proto.graph)
    _pool_globally_(proto.graph)
    if opset is not None and opset < WRITTEN:
        lower_(proto, opset)
    return proto


def _check_outputs(model: nn.Module, exported: ExportedProgram) -> None:
    arguments = [spec.arg for spec in exported.graph_signature.output_specs]
    values = [each.value for each in arguments if isinstance(each, ConstantArgument)]
    if others := [value for value in values if value is not None]:
        raise ValueError(
            f"{type(model).__name__} returns {shown(others[0])} beside tensors, and an ONNX file gives tensors alone; let its "
            "forward return none but tensors"
        )


def _output_names(exported: ExportedProgram, one: str) -> list[str] | None:
    """Name an output that is the only one `one`, and those of a dictionary, such as a feature pyramid's, as it does.

    Where that gives two outputs one name, as of {"a": [x, y], "a_0": z}, the exporter names them.
    """
    given = exported.graph_signature.user_outputs
    if sum(name is not None for name in given) == 1:
        return [one]
    form: Any = exported.call_spec.out_spec
    returned = tree_unflatten(list(given), form)
    if not isinstance(returned, dict):
        return None
    names = []
    for key, part in returned.items():
        leaves = tree_leaves(part)
        own = [f"map_{key}_{i}" if len(leaves) > 1 else f"map_{key}" for i in range(len(leaves))]
        # what is None has no place in a file
        names += [name for name, leaf in zip(own, leaves, strict=True) if leaf is not None]
    return names if len({*names}) == len(names) else None


def _own_names_(graph: Any) -> None:
    """Rename the weights of the network itself that are called as an input or output is, or as a quantizer calls its own."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    for weight in list(graph.initializers.values()):
        if weight.name in taken or weight.name.endswith(("_scale", "_zero_point", "_quantized")):
            weight.name = f"{weight.name}.weight"


def _forget_origins_(graph: GraphProto) -> None:
    """Drop what the exporter notes of every node: stack traces, with paths of this machine; a sixth of a small file."""
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del part.metadata_props[:]


def _name_batch_(graph: GraphProto) -> None:
    """Call the batch axis by its name: the exporter calls it by the symbol that torch drew, such as s77."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        return  # a fixed batch
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", dim.dim_param)


def _pool_globally_(graph: GraphProto) -> None:
    """Let means over whole maps be GlobalAveragePool: runtimes have it in their own layouts and in int8, unlike ReduceMean."""
    from onnx import numpy_helper

    axes = {
        tensor.name: numpy_helper.to_array(tensor).tolist()
        for tensor in graph.initializer
        if tensor.data_type == 7
    }
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in graph.value_info}
    for node in graph.node:
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4 or len(node.input) < 2:
            continue
        over = sorted(axis % 4 for axis in axes.get(node.input[1], []))
        kept = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        if over == [2, 3] and kept:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    drop_unused(graph)
