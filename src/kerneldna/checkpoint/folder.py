"""The two files of a network's folder, read: what config.json may say, and the shapes and tensors of the weights.

The notes are checked against their types, both files against their checksums. A fixed list of timm's arguments may come from a
file (`kerneldna.reading.arguments`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from kerneldna.conversion.plan import Plan, Side
from kerneldna.data.preprocessing import Preprocessing
from kerneldna.detection.settings import check_settings
from kerneldna.models import check_created
from kerneldna.network.tensors import Shape, Stored
from kerneldna.reading.checksum import checksum_of_data, checksum_of_file
from kerneldna.reading.shown import said, shown
from kerneldna.reading.text import check_file, read_json
from kerneldna.reading.typed import Within, typed

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = 1
_LARGEST_IMAGE = 2**28  # values
_LARGEST_CONFIG = 8 * 2**20  # bytes; that of a ResNet152 has 60 thousand


@dataclass(frozen=True)
class _Fused:
    mode: Literal["accuracy", "throughput"]
    difference: float
    folded: tuple[tuple[str, str], ...] = ()
    moved: float = 0.0
    prefer: Literal["macs", "one_conv"] = "macs"
    split: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """A network inside one, that was converted or fused by itself."""

    plan: Plan | None = None
    fused: _Fused | None = None


@dataclass(frozen=True)
class _Detector:
    kind: str
    classes: tuple[str, ...]
    image_size: Side
    max_size: Side
    scales: tuple[Side, ...]
    anchor_sizes: tuple[Side, ...]
    boxes_per_image: Annotated[int, Within(1, 2**20)]
    settings: Mapping[str, Any] = field(default_factory=dict)  # 0.1.0 noted none

    def __post_init__(self) -> None:
        check_settings(self.settings, "detector.settings")


@dataclass(frozen=True)
class _Head:
    num_classes: Annotated[int, Within(0, 2**31 - 1)]


@dataclass(frozen=True)
class _Checksums:
    config: str
    weights: str


@dataclass(frozen=True)
class Config:
    """What config.json may say."""

    format: int
    kerneldna: str
    created: Mapping[str, Any] | None = None
    input_size: tuple[Side, Side, Side] | None = None
    plan: Plan | None = None
    head: _Head | None = None
    fused: _Fused | None = None
    parts: Mapping[str, _Part] = field(default_factory=dict)
    detector: _Detector | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    same: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    checksums: _Checksums | None = None

    def __post_init__(self) -> None:
        if self.created:
            check_created(self.created)
        plans = {"plan": self.plan} | {f"parts.{name}.plan": part.plan for name, part in self.parts.items()}
        for at, size in (
            ("input_size", self.input_size),
            *((f"{at}.input_size", plan and plan.input_size) for at, plan in plans.items()),
            *((f"{at}.counted_on", plan and plan.counted_on) for at, plan in plans.items()),
            ("preprocessing.input_size", self.preprocessing and self.preprocessing.input_size),
        ):
            if size and prod(size) > _LARGEST_IMAGE:
                raise ValueError(
                    f"{at}: expected an image of {_LARGEST_IMAGE:,} values at most, given {shown(size)}"
                )


def read_config(path: Path) -> dict[str, Any]:
    """Return what config.json says, checked.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it says something else than a config may.
    """
    if not path.exists():
        folder, remedy = path.parent, "give a folder that kerneldna.save or a training wrote"
        if not folder.exists():
            raise FileNotFoundError(f"no file or folder '{folder}'; {remedy}")
        if (folder / "model" / CONFIG).exists():
            raise FileNotFoundError(
                f"'{folder}' is the folder of a run; its network is in '{folder / 'model'}'"
            )
        raise FileNotFoundError(
            f"'{folder}' is a file; {remedy}" if folder.is_file() else f"no {CONFIG} in {folder}; {remedy}"
        )
    noted = read_json(path, largest=_LARGEST_CONFIG)
    found = noted.get("format") if isinstance(noted, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is not of format {FORMAT} (found {shown(found)}); it was not written by this version of kerneldna"
        )
    try:
        typed(noted, Config)
    except ValueError as error:
        written, own = noted.get("kerneldna"), version("kerneldna")
        by = "" if written == own else f" (written by kerneldna {shown(written)}, this is {own})"
        raise ValueError(f"{path}, {error}{by}; restore the file, or save the network again") from error
    return noted


def read_header(path: Path) -> dict[str, Shape]:
    """Return shape, and whether its numbers are floating point, of each tensor of a file, which is not read further."""
    if not path.exists():
        raise FileNotFoundError(
            f"no {WEIGHTS} in {path.parent}; give a folder that kerneldna.save or a training wrote"
        )
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {
                name: (tuple(part.get_shape()), part.get_dtype().startswith(("F", "BF")))
                for name, part in tensors.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def held(tensors: Mapping[str, Any], noted: Mapping[str, Any]) -> Stored[Any]:
    """Return what the weights' file holds, or what stands for it, with what config.json says about it."""
    buffers = tuple(noted.get("buffers", ()))
    return Stored(tensors, noted.get("same", {}), buffers, noted.get("versions", {}))


def check_unchanged(noted: Mapping[str, Any], config_file: Path, weights_file: Path) -> None:
    """Check both files against the checksums that they were saved with; 0.1.0 wrote none."""
    given = noted.get("checksums")
    if not given:
        return
    described = {key: value for key, value in noted.items() if key != "checksums"}
    for path, now in (
        (config_file, checksum_of_data(described)),
        (weights_file, checksum_of_file(weights_file)),
    ):
        if now != given["config" if path == config_file else "weights"]:
            raise ValueError(
                f"{path} is damaged or was changed: it is not the file that was saved, by its checksum; restore it, or, if you "
                f'changed it on purpose, remove "checksums" from {CONFIG}'
            )


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged: {said(error)}; restore the file, or save the network again")
