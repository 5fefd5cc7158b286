"""The figures that stand for a network's accuracy, of several forms of it side by side: before and after fusing or exporting."""

from __future__ import annotations

from collections.abc import Mapping

from kerneldna.recipes.specs import Recipe
from kerneldna.registry import tasks
from kerneldna.training.trainer import Network, evaluate


def headline(
    networks: Mapping[str, Network], recipe: Recipe, *, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Measure networks on the validation images of a recipe.

    Args:
        networks: Label -> network, or function such as an exported file's.
        recipe: Says which images, in what form.
        progress: Show a progress bar.

    Returns:
        For each figure of the task's headline its value by label: `{"top1": {"unfused": 0.74, "accuracy": 0.74}}`.
    """
    figures: dict[str, dict[str, float]] = {}
    for label, network in networks.items():
        measured = evaluate(network, recipe, progress=progress)
        for figure in tasks.get(recipe.task).headline:
            if figure in measured:
                figures.setdefault(figure, {})[label] = measured[figure]
    return figures
