"""Weights that a network starts from: a file of tensors or a run's folder, read, and put where they fit.

    start = read_weights("resnet18.pth")
    print(fill_(model, start))        # how many tensors were loaded, which are new by design, which did not fit

What does not fit is said, by name; a file that fits less than half of the network is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kerneldna.network import surgery
from kerneldna.network.tensors import Stored, check_finite
from kerneldna.reading.shown import said
from kerneldna.reading.text import check_file, read_json

PICKLED = (".pth", ".pt", ".bin", ".tar", ".ckpt")
ENDINGS = (".safetensors", *PICKLED)
_INSIDE = (
    "state_dict",
    "model",
    "model_state_dict",
)  # what training scripts call the weights in a larger file
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COUNTER = "num_batches_tracked"
_MOST = 8  # names that a line lists


@dataclass(frozen=True)
class Weights:
    """Tensors by the names of a network's `state_dict`.

    Attributes:
        source: Where they are from.
        tensors: Each by its name.
        classes: The classes of the network that they are of, where that is noted.
    """

    source: str
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Filled:
    """What became of weights; prints as three counted lists.

    Attributes:
        source: Where they are from.
        loaded: Names of the tensors that were loaded.
        new: Those of the network that start anew by design, each with the reason: another number of classes, a method's own.
        unfit: What did not fit, each with the reason: tensors of the file that have no place, and of the network that have no
            value.
    """

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unfit: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"weights of '{self.source}': {len(self.loaded)} tensors loaded; {len(self.new)} new by design{_few(self.new)}; "
            f"{len(self.unfit)} did not fit{_few(self.unfit)}"
        )


def read_weights(source: str | Path) -> Weights:
    """Read weights as tensors alone, so that no code in a file runs.

    Args:
        source: A .safetensors file, a file of `torch.save` (.pth, .pt, .bin) with a state_dict, or the folder of a run or a
            network (`kerneldna.save`).

    Raises:
        FileNotFoundError: If there is no such file, or no network in the folder.
        ValueError: If it is damaged, holds no tensors by name, or some that are not finite.
    """
    path, classes = Path(source), None
    if path.is_dir():
        folder = path / "model" if (path / "model").is_dir() else path
        file = folder / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(
                f"'{path}' holds no trained network; give a run folder of a training that is finished, or a file of weights"
            )
        noted = read_json(folder / "config.json", largest=8 * 2**20)
        noted = noted if isinstance(noted, dict) else {}
        classes = noted.get("classes") and tuple(map(str, noted["classes"]))
        tensors = _read(file)
        same = noted.get("same") or {}
        tensors |= {name: tensors[first] for name, first in same.items() if first in tensors}
    else:
        if not path.exists():
            raise FileNotFoundError(f"no file or folder '{path}'; give a file of weights, or a run folder")
        tensors = _read(path)
    check_finite(Stored(tensors, {}, (), {}), f"'{path}'", "give another file, or train from a random start")
    return Weights(str(source), tensors, classes)


def fill_(
    model: nn.Module, weights: Weights, *, classes: Sequence[str] | None = None, own: Collection[str] = ()
) -> Filled:
    """Put weights into `model` where name and shape are the same.

    Args:
        model: The network; what finds no weights stays as it is.
        weights: What to put in.
        classes: Those that the network is for: where the weights are of others, its classifier starts anew.
        own: Names that the network need not find: those that a method adds.

    Raises:
        ValueError: If less than half of the network's parameters outside the classifier would be loaded; nothing is changed.
    """
    head = _head_of(model)
    other = classes is not None and weights.classes not in (None, tuple(classes))
    loaded, new, unfit = [], [], []
    state = model.state_dict()
    for name, tensor in state.items():
        found, in_head = weights.tensors.get(name), name.startswith(head)
        if found is None:
            if name in own:
                new.append(f"{name}: the method's own")
            elif not name.endswith(_COUNTER):
                (new if in_head else unfit).append(f"{name}: not in the file")
        elif found.shape != tensor.shape:
            shapes = f"{name}: {tuple(found.shape)} in the file, {tuple(tensor.shape)} here"
            (new if in_head else unfit).append(shapes)
        elif in_head and other:
            new.append(f"{name}: for other classes")
        else:
            loaded.append(name)
    unfit += [f"{name}: not in the network" for name in weights.tensors if name not in state]
    filled = Filled(weights.source, tuple(loaded), tuple(new), tuple(unfit))
    sizes = {name: value.numel() for name, value in model.named_parameters() if not name.startswith(head)}
    if 2 * sum(sizes.get(name, 0) for name in loaded) < sum(
        size for name, size in sizes.items() if name not in own
    ):
        raise ValueError(
            f"{filled}: that is less than half of the network; give weights of a {type(model).__name__} of this size, with timm's "
            "names"
        )
    with torch.no_grad():
        for name in loaded:
            state[name].copy_(weights.tensors[name])
    if any(line.startswith(head) for line in new):
        draw_head_(model)
    return filled


@torch.no_grad()
def draw_head_(model: nn.Module) -> None:
    """Start the classifier of a timm network anew, near zero, in front of trained features.

    timm draws that of an EfficientNet or a MobileNetV2 by the number of classes alone: of ten, its logits are so large that the
    first steps spoil the features.
    """
    for name in _head_of(model):
        for layer in surgery.get(model, name.removesuffix(".")).modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def _read(path: Path) -> dict[str, Tensor]:
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' holds more than tensors and plain values, and might run code; save the state_dict alone: "
            "torch.save(model.state_dict(), path)"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # of zipfile, torch and safetensors, whatever the first wrong byte leads to
        raise ValueError(
            f"'{path}' cannot be read as weights: {said(error)}; expected one of {', '.join(ENDINGS)}"
        ) from error
    content = content if isinstance(content, Mapping) else {}
    inside = next((content[key] for key in _INSIDE if isinstance(content.get(key), Mapping)), content)
    tensors = {str(name): value for name, value in inside.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"'{path}' holds no tensors by name; save the state_dict: torch.save(model.state_dict(), path)"
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _head_of(model: nn.Module) -> tuple[str, ...]:
    """Return the starts of the names of a timm network's classifier."""
    config = getattr(model, "pretrained_cfg", None)
    names = config.get("classifier") if isinstance(config, Mapping) else None
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names or ()))


def _few(lines: Sequence[str]) -> str:
    more = f", and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    return f" ({'; '.join(lines[:_MOST])}{more})" if lines else ""
