"""torch.export: the network as one graph in a .pt2 file, for any program that has torch, without this library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from kerneldna.deploy.facts import knowing
from kerneldna.deploy.graph import exact, exported_program
from kerneldna.deploy.runtime import Request, TorchFile, only_fp32, refuse_other
from kerneldna.registry import runtimes


@runtimes.register("torch_export")
class TorchExport(TorchFile):
    """Writes with `torch.export.save`; the fused kernels are written out."""

    name: ClassVar[str] = "torch_export"

    @staticmethod
    def write(model: nn.Module, x: Tensor, path: Path, request: Request) -> None:
        """Write `model`; see `kerneldna.deploy.runtime.Runtime`."""
        program = exported_program(model, x, dynamic=request.dynamic)
        torch.export.save(program, path, extra_files=dict(request.facts))

    @staticmethod
    def open(
        path: str | Path, *, threads: int | None = None, precision: str = "fp32"
    ) -> Callable[[Tensor], Tensor | list[Tensor]]:
        """Return a function that runs the file, and the code in it; `threads` are torch's own, set by `torch.set_num_threads`."""
        only_fp32(TorchExport, precision)
        refuse_other(path, given="torch_export", other="aot_inductor")
        network = torch.export.load(path).module()

        @torch.no_grad()
        def run(images: Tensor) -> Tensor | list[Tensor]:
            with exact(images.device):
                return network(images.contiguous())

        return knowing(run, TorchExport.facts(path))

    @staticmethod
    def facts(path: str | Path) -> dict[str, str]:
        """Return what the file says of itself: the extra files in it."""
        with ZipFile(path) as archive:
            extra = [name for name in archive.namelist() if "/extra/" in name]
            return {name.rpartition("/extra/")[2]: archive.read(name).decode() for name in extra}
