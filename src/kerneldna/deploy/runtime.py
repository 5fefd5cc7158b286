"""What an export runtime is: a member of `kerneldna.deploy.runtimes` that writes a network to a file and runs such a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol
from zipfile import BadZipFile, ZipFile

from torch import Tensor, nn

from kerneldna.deploy.calibrate import Batches
from kerneldna.deploy.shared_kernels import SharedKernel
from kerneldna.registry import suggest


@dataclass(frozen=True)
class Request:
    """How a network is to be written.

    Attributes:
        dynamic: Whether the file takes any batch size.
        storage: How weights are stored: "fp32", "fp16", or "int8" with one scale an output channel.
        compute: "fp32", or "int8" for weights and activations of convolutions and matrix products.
        shared: The kernels to store once.
        calibrate: Images that int8 compute takes the ranges of activations from.
        opset: Of ONNX; None leaves it to the exporter.
        progress: Show a progress bar.
        facts: What the file says of itself in its metadata (`kerneldna.deploy.facts`).
    """

    dynamic: bool = True
    storage: str = "fp32"
    compute: str = "fp32"
    shared: tuple[SharedKernel, ...] = ()
    calibrate: Batches | None = None
    opset: int | None = None
    progress: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """One way to run a network outside of training."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    storages: ClassVar[tuple[str, ...]]
    computes: ClassVar[tuple[str, ...]]
    precisions: ClassVar[tuple[str, ...]]
    opsets: ClassVar[bool]
    float32_only: ClassVar[bool]

    @staticmethod
    def write(model: nn.Module, x: Tensor, path: Path, request: Request) -> None:
        """Write `model` to `path`; `x` is a batch like those it will see. Files that belong to it lie beside it."""
        ...

    @staticmethod
    def open(
        path: str | Path, *, threads: int | None = None, precision: str = "fp32"
    ) -> Callable[[Tensor], Tensor | list[Tensor]]:
        """Return a function from images, as they were given to `write`, to what the network returns, on the CPU.

        The function has the attributes that `kerneldna.deploy.facts.knowing` gives it.
        """
        ...

    @staticmethod
    def facts(path: str | Path) -> dict[str, str]:
        """Return what a file says of itself, text by key; the network in it is not opened, and none of its code runs."""
        ...


class TorchFile:
    """The facts of a runtime that torch brings along: nothing to install, a .pt2 file, stored and computed in fp32."""

    suffix: ClassVar[str] = ".pt2"
    packages: ClassVar[tuple[str, ...]] = ()
    storages: ClassVar[tuple[str, ...]] = ("fp32",)
    computes: ClassVar[tuple[str, ...]] = ("fp32",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    opsets: ClassVar[bool] = False
    float32_only: ClassVar[bool] = False


def is_compiled(path: str | Path) -> bool:
    """Whether a `.pt2` file is a package of compiled code, AOTInductor's; only the names of what lies in it are read."""
    try:
        with ZipFile(path) as archive:
            return any("/aotinductor/" in name for name in archive.namelist())
    except (BadZipFile, OSError):
        return False


def refuse_other(path: str | Path, *, given: str, other: str) -> None:
    """Refuse a file that another of torch's runtimes wrote.

    Raises:
        ValueError: If it did.
    """
    if is_compiled(path) != (given == "aot_inductor"):
        raise ValueError(
            f"{str(path)!r} was not written by runtime {given!r}; open it with runtime {other!r}"
        )


def check(runtime: type[Runtime], request: Request) -> None:
    """Check that `runtime` is installed and can write what is asked for.

    Raises:
        ModuleNotFoundError: If a package is missing.
        ValueError: If it does not know the storage, the compute or an opset.
    """
    require(runtime)
    for what, given, known in (
        ("storage", request.storage, runtime.storages),
        ("compute", request.compute, runtime.computes),
    ):
        if given not in known:
            raise ValueError(f"runtime {runtime.name!r}: {suggest(what, given, known)}")
    if request.opset is not None and not runtime.opsets:
        raise ValueError(f"opset={request.opset} was given; runtime {runtime.name!r} has none, drop it")
    if request.compute == "int8" and request.calibrate is None:
        raise ValueError(
            "int8 compute takes the ranges of activations from calibration data, and none was given; pass calibrate=, some "
            "hundred training images or a loader of them (or storage='int8', which needs none)"
        )


def require(runtime: type[Runtime]) -> None:
    """Check that the packages of `runtime` are installed.

    Raises:
        ModuleNotFoundError: If one is missing.
    """
    if missing := [name for name in runtime.packages if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"runtime {runtime.name!r} needs {', '.join(missing)}: pip install 'kerneldna[export]'"
        )


def only_fp32(runtime: type[Runtime], precision: str) -> None:
    """Refuse a precision other than fp32.

    Raises:
        ValueError: If it is another.
    """
    if precision != "fp32":
        raise ValueError(
            f"precision {precision!r} was given; runtime {runtime.name!r} computes a file as it was exported, with "
            "precision='fp32'; openvino has bf16"
        )
