"""Save and load networks: a folder with `config.json` (how to build it) and `model.safetensors` (each kernel once). No pickle."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kerneldna.conversion.convert import convert_, network_of, set_state, state_of
from kerneldna.conversion.plan import Plan
from kerneldna.deploy.fuse import fuse_as_
from kerneldna.detection.detectors import create_detector
from kerneldna.files import atomic, write_json
from kerneldna.models import create_model

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = 1


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
    with atomic(folder / WEIGHTS) as part:
        save_file(state, part, metadata={"format": "pt"})
    noted = {"format": FORMAT, "kerneldna": version("kerneldna"), **state_of(network_of(model))}
    if detector := state_of(model).get("detector"):
        noted["detector"] = detector
        noted.pop("classes", None)  # of the classifier that the backbone was
    write_json(folder / CONFIG, noted)
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
        ValueError: If a file is damaged, or the weights are not those of the network; the message says what is missing,
            too much, or of another shape.
    """
    folder = Path(folder)
    config = _read_config(folder)
    state = _read_weights(folder)
    if model is None:
        if "created" not in config:
            raise ValueError(
                f"{folder / CONFIG} names no network to create; pass the plain one: load(folder, model=...)"
            )
        model = create_model(**config["created"])
    model.eval()
    if config.get("plan") and not state_of(model).get("plan"):
        convert_(model, Plan.from_dict(config["plan"]))
    if config.get("fused") and not state_of(model).get("fused"):
        fuse_as_(model, config["fused"])
    if config.get("classes"):
        set_state(model, classes=config["classes"])
    if config.get("detector"):
        model = create_detector(model, **config["detector"])
    if problems := _mismatch(model.state_dict(), state):
        raise ValueError(f"{folder / WEIGHTS} is not this network: {'; '.join(problems)}")
    model.load_state_dict(state)
    return model.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}; give the folder that kerneldna.save wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise ValueError(
            f"{path} is not of format {FORMAT} (found {found}); it was not written by this version of kerneldna"
        )
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}; give the folder that kerneldna.save wrote")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _mismatch(expected: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    common = expected.keys() & given.keys()
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(common)
        if given[name].shape != expected[name].shape
    ]
    groups = {
        "missing": sorted(expected.keys() - given.keys()),
        "too much": sorted(given.keys() - expected.keys()),
        "of another shape": shapes,
    }
    return [
        f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for what, names in groups.items()
        if names
    ]
