"""AOTInductor: the network compiled ahead of time by torch's inductor, as one .pt2 package for this kind of machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from kerneldna.deploy.facts import DTYPE, knowing
from kerneldna.deploy.graph import exported_program
from kerneldna.deploy.runtime import Request, TorchFile, only_fp32, refuse_other
from kerneldna.registry import runtimes


@runtimes.register("aot_inductor")
class AotInductor(TorchFile):
    """Writes with `torch._inductor.aoti_compile_and_package`; needs a C++ compiler to write, not to run."""

    name: ClassVar[str] = "aot_inductor"

    @staticmethod
    def write(model: nn.Module, x: Tensor, path: Path, request: Request) -> None:
        """Write `model`; see `kerneldna.deploy.runtime.Runtime`.

        Raises:
            RuntimeError: If it does not compile, for want of a C++ compiler, say.
        """
        from torch._inductor import aoti_compile_and_package

        program = exported_program(model, x, dynamic=request.dynamic)
        try:
            options = {"aot_inductor.metadata": {**request.facts, DTYPE: _word(x.dtype)}}
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        except Exception as error:
            raise RuntimeError(
                f"inductor could not compile the network: {error}; it needs a C++ compiler"
            ) from error

    @staticmethod
    def open(
        path: str | Path, *, threads: int | None = None, precision: str = "fp32"
    ) -> Callable[[Tensor], Tensor | list[Tensor]]:
        """Return a function that runs the package, compiled code; `threads` are torch's own, set by `torch.set_num_threads`.

        The code checks nothing: of images of another type, shape or layout than it was compiled for it reads other numbers.
        """
        from torch._inductor import aoti_load_package

        only_fp32(AotInductor, precision)
        refuse_other(path, given="aot_inductor", other="torch_export")
        package = aoti_load_package(str(path))
        facts = AotInductor.facts(path)

        @torch.no_grad()
        def run(images: Tensor) -> Tensor | list[Tensor]:
            _check(images, facts)
            return package(images.contiguous())

        return knowing(run, facts)

    @staticmethod
    def facts(path: str | Path) -> dict[str, str]:
        """Return what the file says of itself: the metadata of the package."""
        with ZipFile(path) as archive:
            noted = [name for name in archive.namelist() if name.endswith("_metadata.json")]
            return {key: str(text) for name in noted for key, text in json.loads(archive.read(name)).items()}


def _check(images: Tensor, facts: Mapping[str, str]) -> None:
    size = json.loads(facts.get("input_size", "[]"))
    size = [*size[1:], *size[:1]] if facts.get("layout") == "NHWC" else size
    batch, kind = facts.get("batch", "B"), facts.get(DTYPE, _word(images.dtype))
    fits = batch in ("B", str(len(images))) and (not size or list(images.shape[1:]) == size)
    if not fits or kind != _word(images.dtype):
        shape = ", ".join(map(str, (batch, *size)))
        raise ValueError(
            f"its code takes {kind} ({shape}), given {_word(images.dtype)} {tuple(images.shape)}"
        )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
