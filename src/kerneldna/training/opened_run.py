"""A trained network, opened with all that its training knows of it: its recipe, its images, its figures.

run = OpenedRun("runs/digits")
network = run.network()
run.compare({"as trained": network, "fused": fused})    # {"top1": {"as trained": 0.99, "fused": 0.99}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna import checkpoint
from kerneldna.conversion.convert import set_state
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import calibration_loader
from kerneldna.data.preprocessing import preprocessing_of
from kerneldna.data.transforms import evaluation
from kerneldna.detection.detectors import BackboneImages
from kerneldna.recipes.specs import Recipe
from kerneldna.training.evaluate import Network, headline
from kerneldna.training.run_folder import RunFolder


class OpenedRun:
    """A run folder of `train`, or the folder of a network alone, which has no recipe and so no images.

    Args:
        path: The folder.

    Attributes:
        folder: The files of the run, by name.
        model_dir: The folder of the trained network.
        recipe: What the network was trained by; None for the folder of a network alone.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = RunFolder(path)
        self.model_dir = self.folder.model_dir if self.folder.model_dir.is_dir() else self.path
        self.recipe: Recipe | None = self.folder.recipe() if self.folder.recipe_file.is_file() else None

    @property
    def task(self) -> str | None:
        """What the network was trained for: "classification" or "detection"; None without a recipe."""
        return self.recipe and self.recipe.task

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the classes of a trained classifier, read without its weights; None where they are not noted."""
        return checkpoint.read_config(self.model_dir / checkpoint.CONFIG).get("classes")

    def network(self, *, allow_nonfinite: bool = False) -> nn.Module:
        """Load the trained network, in eval mode; a new one at every call.

        Args:
            allow_nonfinite: Also if there is NaN or infinity in its weights.
        """
        network = checkpoint.load(self.model_dir, allow_nonfinite=allow_nonfinite)
        if self.recipe and self.task == "classification" and preprocessing_of(network) is None:
            # 0.1 noted none
            set_state(network, preprocessing=evaluation(self.recipe.data, self.recipe.augment).to_dict())
        return network

    def calibration(
        self, network: nn.Module, *, source: str | None = None, images: int = 1024, augmented: bool = False
    ) -> Any:
        """Return a loader of training images to calibrate `network` on, in the form that its gates see.

        Args:
            network: That of the run.
            source: Other images: a folder or a hub name.
            images: How many, or all if there are fewer.
            augmented: Vary them as in training: what BatchNorm's statistics are taken from.

        Raises:
            ValueError: If the folder has no recipe, which says what images to use.
        """
        loader = self._loader(source, images, augmented)
        return BackboneImages(network, loader) if self.task == "detection" else loader

    def sample(self, images: int, *, source: str | None = None) -> Tensor | list[Tensor]:
        """Return some training images: as one batch `(images, 3, H, W)`, or as a list where each has its own size.

        Args:
            images: How many.
            source: Other images: a folder or a hub name.

        Raises:
            ValueError: If the folder has no recipe, which says what images to use.
        """
        batches = [found for found, _ in self._loader(source, images, augmented=False)]
        if all(isinstance(batch, Tensor) for batch in batches):
            return torch.cat(batches)
        return [image for batch in batches for image in batch]

    def compare(
        self, networks: Mapping[str, Network], *, progress: bool = False
    ) -> dict[str, dict[str, float]]:
        """Measure forms of the network on the run's validation images: see `evaluate.headline`; {} without a recipe."""
        return headline(networks, self.recipe, progress=progress) if self.recipe else {}

    def _loader(self, source: str | None, images: int, augmented: bool) -> Any:
        if self.recipe is None:
            raise ValueError(
                f"'{self.path}' holds no recipe, which says what images to use; give the run folder of kdna train"
            )
        recipe = self.recipe if source is None else self.recipe.on_other_images(source)
        return calibration_loader(open_data(recipe.data.source), recipe, images=images, augmented=augmented)
