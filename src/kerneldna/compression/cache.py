"""What was measured, kept in a folder, so that a measurement which was stopped goes on: a file for each set of layers.

Files lie in a folder of their own for each network and set of images: what was measured on others is never taken. Nor is what was
measured on a network of these weights that answered otherwise: its code has changed since.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kerneldna.compression.statistics import POSITIONS, RIDGE
from kerneldna.files import atomic

FORMAT = 2
_FOLDER = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"\.?[a-z]+-[0-9a-f]{16}\.safetensors(\..+\.part)?")  # whole, or half-written
ALIKE = 1e-6  # of answers, in squares: as near as another number of threads, or another device, brings them


class Cache:
    """Tensors by name, in files.

    Args:
        folder: Where they are kept; None keeps nothing.
        model: The network that is measured.
        images: What it is measured on.
        answers: What it gives for some of them.
    """

    def __init__(
        self, folder: str | Path | None, model: nn.Module, images: Tensor, *, answers: Sequence[Tensor]
    ) -> None:
        self.folder = None
        if folder is not None:
            self.folder = Path(folder) / _fingerprint(model, images)
            if not _alike(self.get("answers", ()), answers):
                _empty(self.folder)
                self.put("answers", (), {str(place): each for place, each in enumerate(answers)})

    def get(self, kind: str, layers: Sequence[str]) -> dict[str, Tensor] | None:
        """Return what was kept of some layers, None where nothing is, or where its file is damaged."""
        path = self._path(kind, layers)
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            return None

    def put(self, kind: str, layers: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors of some layers; the file is whole or not there."""
        path = self._path(kind, layers)
        if path is not None:
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            with atomic(path) as part:
                save_file(held, part)

    def _path(self, kind: str, layers: Sequence[str]) -> Path | None:
        if self.folder is None:
            return None
        of = hashlib.sha256("\n".join(layers).encode()).hexdigest()[:16]
        return self.folder / f"{kind}-{of}.safetensors"


def clear(folder: str | Path) -> None:
    """Remove what was kept in a folder, and the folder itself where it holds nothing else."""
    with suppress(OSError):  # it holds something else, or another process removed it
        for each in list(Path(folder).iterdir()):
            if _FOLDER.fullmatch(each.name):
                _empty(each)
        Path(folder).rmdir()


def _empty(folder: Path) -> None:
    with suppress(OSError):
        for each in list(folder.iterdir()):
            if _FILE.fullmatch(each.name):
                each.unlink(missing_ok=True)
        folder.rmdir()


def _alike(kept: Mapping[str, Tensor] | None, answers: Sequence[Tensor]) -> bool:
    if kept is None or len(kept) != len(answers):
        return False
    pairs = [(kept[str(place)], each) for place, each in enumerate(answers)]
    return all(
        a.shape == b.shape and float((a - b).square().sum()) <= ALIKE * float(a.square().sum())
        for a, b in pairs
    )


def _fingerprint(model: nn.Module, images: Tensor) -> str:
    found = hashlib.sha256(f"{FORMAT} {POSITIONS} {RIDGE}".encode())
    for name, tensor in [*model.state_dict().items(), ("images", images)]:
        if not isinstance(tensor, Tensor):  # what get_extra_state of a module returned
            found.update(f"{name} {tensor!r}".encode())
            continue
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()[:32]
