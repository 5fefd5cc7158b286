"""OpenVINO's intermediate representation: an .xml file and its .bin of weights, each parent's kernel stored once."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from kerneldna.deploy import onnx_file
from kerneldna.deploy.expand import expand
from kerneldna.deploy.facts import knowing
from kerneldna.deploy.runtime import Request
from kerneldna.deploy.seal import seal_
from kerneldna.registry import runtimes, suggest

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


@runtimes.register("openvino")
class OpenVino(onnx_file.OnnxFile):
    """Writes by way of ONNX; OpenVINO derives the children's kernels once, while it loads.

    It does not do so for int8 compute, so those weights are written out: that file is as large as without sharing.
    """

    name: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".xml"
    packages: ClassVar[tuple[str, ...]] = ("openvino", *onnx_file.OnnxFile.packages)
    precisions: ClassVar[tuple[str, ...]] = tuple(PRECISIONS)

    @staticmethod
    def write(model: nn.Module, x: Tensor, path: Path, request: Request) -> None:
        """Write `model`; see `kerneldna.deploy.runtime.Runtime`."""
        import openvino

        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / "model.onnx"
            onnx_file.write(model, x, part, request)
            if request.compute == "int8":
                expand(part, part, overwrite=True)
            network = openvino.Core().read_model(part)
            for key, text in request.facts.items():
                network.set_rt_info(text, key)
            openvino.save_model(network, path, compress_to_fp16=False)
        seal_(path)

    @staticmethod
    def open(
        path: str | Path, *, threads: int | None = None, precision: str = "fp32"
    ) -> Callable[[Tensor], Tensor | list[Tensor]]:
        """Return a function that runs the file on the CPU; several threads may call it at a time.

        Raises:
            ValueError: For a precision other than "fp32" and "bf16".
        """
        import openvino

        if precision not in PRECISIONS:
            raise ValueError(suggest("precision", precision, PRECISIONS))
        # left to itself, OpenVINO computes in bf16 wherever the processor can
        options: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            # nor round what a weight of int8 is multiplied with to int8 too
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        network = core.read_model(path)
        model = core.compile_model(network, "CPU", options)
        own = threading.local()  # a request holds its outputs: two threads with one would read each other's

        def run(images: Tensor) -> Tensor | list[Tensor]:
            if not hasattr(own, "request"):
                own.request = model.create_infer_request()
            results = own.request.infer({0: images.contiguous().numpy()})
            # copied: OpenVINO writes the next outputs to the same place
            found = [torch.from_numpy(array.copy()) for array in results.to_tuple()]
            return found[0] if len(found) == 1 else found

        return knowing(run, OpenVino.facts(path))

    @staticmethod
    def facts(path: str | Path) -> dict[str, str]:
        """Return what the file says of itself: the values of its `rt_info`."""
        root = ElementTree.parse(path).getroot()
        entries = root.findall("rt_info/*")
        return {entry.tag: entry.attrib["value"] for entry in entries if "value" in entry.attrib}
