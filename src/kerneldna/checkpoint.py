"""Save and load networks: a folder with `config.json` (how to build it) and `model.safetensors` (each kernel once). No pickle.

A folder is checked before memory is taken: the notes against their types, the shapes of the network, built on the meta device,
against those of the weights, both files against their checksums. A fixed list of timm's arguments may come from a file
(`kerneldna.reading.arguments`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kerneldna.conversion.convert import convert_, network_of, set_state, state_of
from kerneldna.conversion.plan import Plan, Side
from kerneldna.deploy.fuse import fuse_as_
from kerneldna.detection.detectors import create_detector
from kerneldna.files import atomic, write_json
from kerneldna.models import check_created, create_model
from kerneldna.network import surgery
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


@dataclass(frozen=True)
class _Detector:
    kind: str
    classes: tuple[str, ...]
    image_size: Side
    max_size: Side
    scales: tuple[Side, ...]
    anchor_sizes: tuple[Side, ...]
    boxes_per_image: Annotated[int, Within(1, 2**20)]


@dataclass(frozen=True)
class _Checksums:
    config: str
    weights: str


@dataclass(frozen=True)
class _Config:
    """What config.json may say."""

    format: int
    kerneldna: str
    created: Mapping[str, Any] | None = None
    input_size: tuple[Side, Side, Side] | None = None
    plan: Plan | None = None
    fused: _Fused | None = None
    detector: _Detector | None = None
    classes: tuple[str, ...] | None = None
    checksums: _Checksums | None = None

    def __post_init__(self) -> None:
        if self.created:
            check_created(self.created)
        for at, size in (
            ("input_size", self.input_size),
            ("plan.input_size", self.plan and self.plan.input_size),
        ):
            if size and prod(size) > _LARGEST_IMAGE:
                raise ValueError(
                    f"{at}: expected an image of {_LARGEST_IMAGE:,} values at most, given {shown(size)}"
                )


def save(model: nn.Module, folder: str | Path) -> Path:
    """Save `model` to a folder, each file whole or not at all.

    Args:
        model: A network of `create_model`, or any network, converted or not, fused or not, or a detector of `create_detector`.
        folder: Made if missing; a network in it is overwritten.

    Returns:
        The folder.
    """
    folder = Path(folder)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    noted = {"format": FORMAT, "kerneldna": version("kerneldna"), **state_of(network_of(model))}
    if detector := state_of(model).get("detector"):
        noted["detector"] = detector
        noted.pop("classes", None)  # of the classifier that the backbone was
    own = checksum_of_data(noted)
    with atomic(folder / WEIGHTS) as part:
        save_file(state, part, metadata={"format": "pt"})
    checksums = {"config": own, "weights": checksum_of_file(folder / WEIGHTS)}
    write_json(folder / CONFIG, {**noted, "checksums": checksums})
    return folder


def load(folder: str | Path, *, model: nn.Module | None = None) -> nn.Module:
    """Load a network from a folder that `save` wrote.

    Args:
        folder: With `config.json` and `model.safetensors`.
        model: For a network that `create_model` did not make: the same network as it was before its conversion. It is converted
            (and fused, if the saved one was) in place; of a detector, the network that it was created on.

    Returns:
        The network or detector with its weights, in eval mode, on the CPU unless `model` is elsewhere.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or was changed, or the weights are not those of the network; the message says what is
            missing, too much, or of another shape or type. `model` is then as it was.
    """
    config_file, weights_file = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    noted = _read_config(config_file)
    header = _read_header(weights_file)
    if model is None and not noted.get("created"):
        raise ValueError(
            f"{config_file} names no network to create: one of your own was saved; in Python, pass it as it was before its "
            "conversion: kerneldna.load(folder, model=network)"
        )
    with torch.device("meta"):
        skeleton = _built(noted, None if model is None else surgery.skeleton(model), config_file)
    if problems := _mismatch(skeleton.state_dict(), header):
        raise ValueError(f"{weights_file} is not the network of {CONFIG}: {'; '.join(problems)}")
    _check_unchanged(noted, config_file, weights_file)
    network = _built(noted, model, config_file)
    network.load_state_dict(_read_weights(weights_file))
    return network.eval()


def _built(noted: Mapping[str, Any], model: nn.Module | None, path: Path) -> nn.Module:
    """Build the network that a config describes, on torch's current device, or out of `model`."""
    try:
        model = create_model(**noted["created"]) if model is None else model
        model.eval()
        if noted.get("plan") and not state_of(model).get("plan"):
            convert_(model, Plan.from_dict(noted["plan"]))
        if noted.get("fused") and not state_of(model).get("fused"):
            fuse_as_(model, noted["fused"])
        if noted.get("classes"):
            set_state(model, classes=noted["classes"])
        return create_detector(model, **noted["detector"]) if noted.get("detector") else model
    except MemoryError:
        raise
    # what is written there reaches the code of timm, torch and the methods, which raise whatever they like
    except Exception as error:
        raise ValueError(f"{path} describes no network that can be built: {said(error)}") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"no {CONFIG} in {path.parent}; give a folder that kerneldna.save or a training wrote"
        )
    noted = read_json(path, largest=_LARGEST_CONFIG)
    found = noted.get("format") if isinstance(noted, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is not of format {FORMAT} (found {shown(found)}); it was not written by this version of kerneldna"
        )
    try:
        typed(noted, _Config)
    except ValueError as error:
        written, own = noted.get("kerneldna"), version("kerneldna")
        by = "" if written == own else f" (written by kerneldna {shown(written)}, this is {own})"
        raise ValueError(f"{path}, {error}{by}; restore the file, or save the network again") from error
    return noted


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
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


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged: {said(error)}; restore the file, or save the network again")


def _check_unchanged(noted: Mapping[str, Any], config_file: Path, weights_file: Path) -> None:
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


def _mismatch(expected: Mapping[str, Tensor], given: Mapping[str, tuple[tuple[int, ...], bool]]) -> list[str]:
    common = sorted(expected.keys() & given.keys())
    shapes = [
        f"{name} {given[name][0]} instead of {tuple(expected[name].shape)}"
        for name in common
        if given[name][0] != expected[name].shape
    ]
    groups = {
        "missing": sorted(expected.keys() - given.keys()),
        "too much": sorted(given.keys() - expected.keys()),
        "of another shape": shapes,
        "of another type": [name for name in common if given[name][1] != expected[name].is_floating_point()],
    }
    return [
        f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for what, names in groups.items()
        if names
    ]
