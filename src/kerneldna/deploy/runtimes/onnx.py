"""ONNX by torch's exporter, run by ONNX Runtime: each parent's kernel stored once, weights in fp32, fp16 or int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from kerneldna.deploy import onnx_file
from kerneldna.deploy.runtime import Request, only_fp32
from kerneldna.registry import runtimes


@runtimes.register("onnx")
class Onnx(onnx_file.OnnxFile):
    """Writes one ONNX file; runs it in ONNX Runtime, which derives the children's kernels once, while it loads.

    The one runtime that takes a whole detector.
    """

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"

    @staticmethod
    def write(model: nn.Module, x: Tensor, path: Path, request: Request) -> None:
        """Write `model`; see `kerneldna.deploy.runtime.Runtime`."""
        onnx_file.write(model, x, path, request)

    @staticmethod
    def open(
        path: str | Path, *, threads: int | None = None, precision: str = "fp32"
    ) -> Callable[[Any], Any]:
        """Return a function that runs the file on the CPU; a detector's takes a list of images.

        Raises:
            ValueError: For a precision other than "fp32", or int8 as exported: the CPU has no other kernels.
        """
        only_fp32(Onnx, precision)
        return onnx_file.session(path, threads=threads)

    @staticmethod
    def facts(path: str | Path) -> dict[str, str]:
        """Return what the file says of itself: its metadata."""
        return onnx_file.facts(path)
